from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.reports import Reports


class WorkerInteractor:
    """Sends events, as that of pytest-xdist does."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def sendevent(self, name: str, **event: Any) -> None:
        self.sent.append((name, event.get("data")))


def report(when: str, outcome: str = "passed", printed: str = "") -> pytest.TestReport:
    sections = [("Captured stdout", printed)] if printed else []
    return pytest.TestReport(
        "test_x.py::test", ("test_x.py", 0, "test"), {}, outcome, None, when, sections
    )


def sent(*reports: pytest.TestReport, verbose: int = 0) -> list[tuple[str, Any]]:
    """Return what a worker sends of a test with these reports."""
    worker = WorkerInteractor()
    option = SimpleNamespace(verbose=verbose, durations=None, xmlpath=None)
    plugin = Reports(SimpleNamespace(option=option, workerinput={}))
    plugin.pytest_plugin_registered(worker)
    worker.sendevent("logstart", nodeid="test_x.py::test")
    for each in reports:
        # Where no plugin makes anything of it, pytest does.
        data = plugin.pytest_report_to_serializable(each) or {"when": each.when}
        worker.sendevent("testreport", data=data)
    worker.sendevent("logfinish", nodeid="test_x.py::test")
    worker.sendevent("runtest_protocol_complete", item_index=0)
    return worker.sent


END = ("runtest_protocol_complete", None)


def parts(*names: str) -> list[tuple[str, Any]]:
    return [*[("testreport", {"when": name}) for name in names], END]


def test_of_a_test_that_passes_one_report_is_sent() -> None:
    assert sent(report("setup"), report("call"), report("teardown")) == parts("call")


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_a_set_up_or_an_end_that_does_not_pass_is_sent(outcome: str) -> None:
    assert sent(report("setup", outcome), report("teardown")) == parts("setup")
    end = report("teardown", outcome)
    assert sent(report("setup"), report("call"), end) == parts("call", "teardown")


def test_what_is_printed_after_a_test_is_sent() -> None:
    end = report("teardown", printed="late")
    assert sent(report("setup"), report("call", "failed"), end) == parts("call", "teardown")


def test_all_is_sent_where_pytest_prints_each_start() -> None:
    reports = report("setup"), report("call"), report("teardown")
    begun, *others, ended, end = sent(*reports, verbose=1)
    assert (begun[0], ended[0]) == ("logstart", "logfinish")
    assert [*others, end] == parts("setup", "call", "teardown")
