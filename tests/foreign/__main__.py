"""`python -m tests.foreign [PACKAGE...]`: run other projects' test suites on both reactors.

Each suite runs on Twisted's epoll reactor and on uvloop's, each time in a process and a folder of
its own. Tests that differ are run once more, alone, on both: on a busy machine some fail that
measure time. It exits with 1 if a test still differs, and known.toml has no reason for it. With
`--document FILE` the table in that page is written anew.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.foreign.suites import (
    HUNG,
    REACTORS,
    SUITES,
    Difference,
    Suite,
    differences,
    reason_for,
    reasons,
    row,
    table,
)

ROOT = Path(__file__).parent.parent.parent
BEGIN = "<!-- The table of foreign suites is written by `make foreign`. -->\n"
END = "<!-- End of the foreign suites. -->\n"

#: Seconds after which a run of a suite is cut off.
TIMEOUT = 1800


def run(suite: Suite, reactor: str, folder: Path, *names: str) -> dict[str, str]:
    """Run a suite, or some of its tests, on a reactor; return the outcomes by name.

    The output stays in `folder`.
    """
    folder.mkdir(parents=True)
    record = folder / "outcomes"
    record.touch()
    command = [sys.executable, "-W", "ignore", "-m", "tests.foreign.child"]
    arguments = [reactor, suite.runner, str(record), *(names or [suite.package])]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (folder / "output").open("w") as output:
        child = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                child.wait(TIMEOUT)
        finally:
            _end(child)
    return read(record.read_text())


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child, and what it has left behind."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def read(record: str) -> dict[str, str]:
    """Return the child's outcomes; a test that it had only begun counts as hung."""
    outcomes: dict[str, str] = {}
    for line in record.splitlines():
        name, outcome = json.loads(line)
        # A name may come twice; then it has passed if it has each time.
        if outcome is None:
            outcomes.setdefault(name, HUNG)
        elif outcomes[name] in (HUNG, "passed"):
            outcomes[name] = outcome
    return outcomes


def compare(suite: Suite, folder: Path) -> tuple[dict[str, dict[str, str]], list[Difference]]:
    """Run a suite on both reactors; return the outcomes of each, and where they differ."""
    outcomes = {reactor: run(suite, reactor, folder / reactor) for reactor in REACTORS}
    once = differences(*outcomes.values())
    if once and not any(HUNG in (found.epoll, found.uvloop) for found in once):
        names = [found.test for found in once]
        for reactor in REACTORS:
            outcomes[reactor] |= run(suite, reactor, folder / f"{reactor}-again", *names)
    return outcomes, differences(*outcomes.values())


def write_table(page: Path, rows: list[str]) -> None:
    """Put the table between its marks in a page."""
    head, rest = page.read_text().split(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}")


def main() -> int:
    """Compare all suites, or those named; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.foreign", description=__doc__)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="these suites only")
    parser.add_argument("--document", type=Path, metavar="FILE", help="a page with the table")
    options = parser.parse_args()
    suites = [
        suite for suite in SUITES if not options.packages or suite.package in options.packages
    ]
    folder = Path(tempfile.mkdtemp(prefix="foreign-"))
    known: Mapping[str, str] = reasons()
    rows: list[str] = []
    unexplained: list[Difference] = []
    for suite in suites:
        start = time.monotonic()
        outcomes, found = compare(suite, folder / suite.package)
        rows.append(row(suite.package, outcomes["epoll"], outcomes["uvloop"], len(found)))
        print(f"{rows[-1]} {time.monotonic() - start:.0f} s", flush=True)
        for each in found:
            reason = reason_for(each.test, known)
            why = reason or "no reason is recorded"
            print(f"  {each.test}: epoll {each.epoll}, uvloop {each.uvloop}: {why}")
            if reason is None:
                unexplained.append(each)
        if not (outcomes["epoll"] and outcomes["uvloop"]):
            print(f"  {suite.package}: no test was run; see {folder / suite.package}")
            unexplained.append(Difference(suite.package, "not run", "not run"))
    print(f"All output is in {folder}.")
    if options.document and not options.packages:
        write_table(options.document, rows)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
