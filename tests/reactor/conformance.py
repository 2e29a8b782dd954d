"""Run some of Twisted's own reactor test suites against this reactor alone.

Usage: ``python conformance.py SUITE...``. Prints one JSON object for each: the number of tests,
and the outcome of each that did not pass. Kept out of the test process, as these tests handle
signals, exhaust descriptors and swap the global reactor.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
import unittest
from typing import Any

import uvloop
from twisted.internet.test import connectionmixins
from twisted.internet.test.reactormixins import ReactorBuilder

from tests.support.ports import free_address

#: Seconds after which a test's reactor is stopped, and after which the process is ended.
REACTOR_TIMEOUT = 15
HARD_TIMEOUT = 40

#: Epoll drops a descriptor that is closed while it is watched, so this waits for its time-out.
#: Twisted leaves it out for its own epoll reactor too.
NOT_RUN = {"test_lostFileDescriptor"}


def make_reactor(case: Any) -> Any:
    """A reactor on a loop of its own, for the duration of one test."""
    from echod.reactor import UvloopReactor

    loop = uvloop.new_event_loop()
    case.addCleanup(loop.close)
    return UvloopReactor(loop)


class Result(unittest.TestResult):
    """A result that ends the process, with all stacks on stderr, when a test hangs."""

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        faulthandler.dump_traceback_later(HARD_TIMEOUT, exit=True)


def suite(name: str) -> unittest.TestSuite:
    """All tests of ``twisted.internet.test.test_<name>`` which are built for each reactor."""
    ReactorBuilder._reactors = ["conformance.make_reactor"]
    connectionmixins.findFreePort = free_address
    module = importlib.import_module(f"twisted.internet.test.test_{name}")
    found = unittest.TestSuite()
    for case in vars(module).values():
        if getattr(case, "__name__", "").endswith("_make_reactorTests"):
            case.timeout = REACTOR_TIMEOUT
            tests = unittest.defaultTestLoader.loadTestsFromTestCase(case)
            found.addTests(test for test in tests if test.id().rpartition(".")[2] not in NOT_RUN)
    return found


def main(name: str) -> None:
    """Run the suite, and report its result."""
    result = Result()
    suite(name).run(result)
    faulthandler.cancel_dump_traceback_later()
    unhappy = {
        test.id().rpartition("test_")[2]: how
        for tests, kind in (
            (result.failures, "failed"),
            (result.errors, "error"),
            (result.skipped, "skipped"),
        )
        for test, details in tests
        for how in [f"{kind}: {details}"]
    }
    print(json.dumps({"ran": result.testsRun, "unhappy": unhappy}), flush=True)


if __name__ == "__main__":
    sys.modules["conformance"] = sys.modules["__main__"]
    for name in sys.argv[1:]:
        main(name)
