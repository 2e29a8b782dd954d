from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from twisted.python.failure import Failure

from echod.concurrency.forking import end_child, forks
from tests.support.log import Log


def status_of_child(work: Callable[[], object]) -> int:
    """Return the exit status of a forked child that ends by `work`."""
    if not (child := os.fork()):
        try:
            result = work()
        except BaseException:
            result = Failure()
        end_child(result)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leave(code: object) -> Callable[[], object]:
    def work() -> object:
        raise SystemExit(code)

    return work


@pytest.mark.parametrize(
    ("code", "status"), [(None, 0), (0, 0), (3, 3), (True, 1), (-1, 255), (256, 0), ("why", 1)]
)
def test_a_child_that_exits_has_the_status_that_a_script_has(
    code: object, status: int, log: Log
) -> None:
    assert status_of_child(leave(code)) == status


def test_a_child_ends_well_by_a_return_and_badly_by_an_exception(log: Log) -> None:
    assert status_of_child(lambda: b"anything") == 0
    assert status_of_child(lambda: 1 // 0) == 1


def test_a_fork_is_noted_in_the_parent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "seen", False)
    assert status_of_child(lambda: 1 / forks.seen) == 1  # the child has not forked
    assert forks.seen
