"""This reactor passes the tests that Twisted has for every reactor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HERE = Path(__file__).parent

#: Each suite, and how many tests it has at least: with fewer, some would not have been found.
SUITES = {
    "core": 14,
    "fdset": 10,
    "newtls": 4,
    "process": 41,
    "socket": 8,
    "stdio": 7,
    "tcp": 109,
    "threads": 10,
    "time": 2,
    "tls": 23,
    "udp": 36,
    "unix": 35,
}

#: What need not pass, and why.
EXCEPTIONS = {
    "avoidLeakingFileDescriptors": (
        "descriptors sent to a protocol that is no IFileDescriptorReceiver are closed by the "
        "kernel, as libuv reads with read(2): nothing leaks, but nobody is there to log it, which "
        "no interface promises"
    ),
    "changeUID": "fails as root with Twisted's own reactors too: 0 != 1",
}
if os.geteuid() != 0:
    EXCEPTIONS |= dict.fromkeys(("changeUID", "changeGID"), "only root can become another user")


def measured() -> list[str]:
    """Return what goes before a program's name so that its coverage is measured, if ours is."""
    from coverage import Coverage  # each worker of pytest would wait for it

    current = Coverage.current()
    if current is None:
        return []
    file = f"--data-file={current.get_option('run:data_file')}"
    return ["-m", "coverage", "run", "--parallel-mode", f"--rcfile={ROOT}/pyproject.toml", file]


# Together in a process: the import of Twisted takes longer than most suites.
PROCESSES = [
    ("core", "fdset", "newtls", "socket", "stdio", "threads", "time", "udp", "unix"),
    ("tcp", "tls"),
    ("process",),
]
assert sorted(name for names in PROCESSES for name in names) == sorted(SUITES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("names", PROCESSES, ids=" ".join)
def test_suites(names: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *measured(), str(HERE / "conformance.py"), *names],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"ran"')]
    for name, outcome in zip(names, outcomes, strict=True):
        assert outcome["ran"] >= SUITES[name]
        unhappy = outcome["unhappy"].items()
        assert {test: how for test, how in unhappy if test not in EXCEPTIONS} == {}
