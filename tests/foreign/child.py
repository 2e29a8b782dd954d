"""Run one suite on one reactor, and write the outcome of each test, as it ends.

Usage: ``python -m tests.foreign.child REACTOR RUNNER FILE NAME...``. FILE gets a line of JSON when
a test begins and when it has ended: ``[name, outcome]``, the outcome ``null`` at the beginning. A
NAME is a package's, or a test's as an earlier run wrote it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

#: Where each reactor's `install` is.
MODULES = {"epoll": "twisted.internet.epollreactor", "uvloop": "echod.reactor"}


class Record:
    """The file, with one outcome for each test: the worst of those reported."""

    _WORSE = ("passed", "skipped", "failed")

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._worst = "passed"

    def began(self, name: str) -> None:
        """Note that a test begins."""
        self._worst = "passed"
        self._write(name, None)

    def saw(self, outcome: str) -> None:
        """Note something of the test that runs."""
        self._worst = max(self._worst, outcome, key=self._WORSE.index)

    def ended(self, name: str) -> None:
        """Note that the test has ended."""
        self._write(name, self._worst)

    def _write(self, name: str, outcome: str | None) -> None:
        print(json.dumps([name, outcome]), file=self._file, flush=True)


def run_trial(names: list[str], record: Record) -> None:
    """Run the tests as trial does."""
    from twisted.trial.reporter import TestResult
    from twisted.trial.runner import TestLoader, TrialRunner

    class Reporter(TestResult):
        """Trial's result, which writes; a test that is expected to fail passes by failing."""

        separator = ""

        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()

        def startTest(self, test: Any) -> None:
            super().startTest(test)
            record.began(test.id())

        def stopTest(self, test: Any) -> None:
            super().stopTest(test)
            record.ended(test.id())

        def addError(self, test: Any, error: Any) -> None:
            super().addError(test, error)
            record.saw("failed")
            show(test, error)

        def addFailure(self, test: Any, fail: Any) -> None:
            super().addFailure(test, fail)
            record.saw("failed")
            show(test, fail)

        def addUnexpectedSuccess(self, test: Any, todo: Any = None) -> None:
            super().addUnexpectedSuccess(test, todo)
            record.saw("failed")

        def addSkip(self, test: Any, reason: Any) -> None:
            super().addSkip(test, reason)
            record.saw("skipped")

        def done(self) -> None: ...

    def show(test: Any, error: Any) -> None:
        print(f"--- {test.id()}\n{error}", flush=True)

    suite = TestLoader().loadByNames(names, recurse=True)
    TrialRunner(Reporter, workingDirectory="_trial_temp").run(suite)


def run_pytest(names: list[str], record: Record) -> None:
    """Run the tests as pytest does, with pytest-twisted on the reactor that is in place."""
    import pytest

    class Plugin:
        def pytest_runtest_logstart(self, nodeid: str) -> None:
            record.began(nodeid)

        def pytest_runtest_logreport(self, report: Any) -> None:
            record.saw(report.outcome)

        def pytest_runtest_logfinish(self, nodeid: str) -> None:
            record.ended(nodeid)

    package = importlib.import_module(names[0].replace("/", ".").split(".")[0])
    root = Path(str(package.__file__)).parent.parent
    arguments = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={root}"]
    for name in names:
        arguments += [str(root / name)] if "::" in name else ["--pyargs", name]
    pytest.main(arguments, plugins=[Plugin()])


def main(reactor: str, runner: str, file: str, *names: str) -> None:
    """Run, and exit with 0 for any result of the tests: the reader of the file judges that."""
    # By its module, not as a plugin: a foreign plugin may import another reactor.
    importlib.import_module(MODULES[reactor]).install()
    run = {"trial": run_trial, "pytest": run_pytest}[runner]
    with Path(file).open("a") as opened:
        run(list(names), Record(opened))


if __name__ == "__main__":
    main(*sys.argv[1:])
