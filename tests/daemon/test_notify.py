from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from echod.daemon import notify
from echod.daemon.notify import Notifier
from tests.support.log import Log
from tests.support.service_manager import Manager, managing


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with managing(str(tmp_path / "notify")) as listening:
        yield listening


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def status() -> list[str]:
    """The daemon's status text: the last entry."""
    return ["Serving, 0 connections"]


@pytest.fixture
def notifier(manager: Manager, clock: Clock, status: list[str]) -> Iterator[Notifier]:
    made = Notifier(clock, lambda: status[-1], address=manager.address, watchdog=4.0)
    yield made
    made.close()
    assert not clock.getDelayedCalls()


def test_the_manager_hears_ready_reloading_and_stopping_in_order(
    notifier: Notifier, manager: Manager, status: list[str]
) -> None:
    notifier.ready()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    notifier.ready()
    status.append("Draining, 3 connections")
    notifier.stopping()
    ready, reloading, again, stopping = manager.hear()
    assert ready == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=Serving, 0 connections"]
    assert again == ready
    assert reloading[0] == "RELOADING=1"
    name, microseconds = reloading[1].split("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(microseconds) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert stopping == ["STOPPING=1", "STATUS=Draining, 3 connections"]


def test_the_watchdog_is_fed_twice_in_its_interval_with_the_status_where_that_is_new(
    notifier: Notifier, manager: Manager, clock: Clock, status: list[str]
) -> None:
    notifier.ready()
    manager.hear()
    clock.pump([1.9, 0.2, 2.0])
    assert manager.hear() == [["WATCHDOG=1"]] * 2
    status.append("Serving, 1 connections")
    clock.advance(2.0)
    assert manager.hear() == [["WATCHDOG=1", "STATUS=Serving, 1 connections"]]


def test_a_drain_asks_for_more_time_each_second(
    notifier: Notifier, manager: Manager, clock: Clock
) -> None:
    notifier.ready()
    notifier.stopping()
    manager.hear()
    clock.pump([1.0, 1.0])
    assert manager.hear() == [["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=10000000"]] * 2


def test_without_a_watchdog_only_news_is_sent(
    manager: Manager, clock: Clock, status: list[str]
) -> None:
    notifier = Notifier(clock, lambda: status[-1], address=manager.address)
    notifier.ready()
    manager.hear()
    clock.advance(notify.STATUS_INTERVAL)
    assert manager.hear() == []
    status.append("Serving, 1 connections")
    clock.advance(notify.STATUS_INTERVAL)
    assert manager.hear() == [["STATUS=Serving, 1 connections"]]
    notifier.close()


def test_an_abstract_socket_will_do(clock: Clock, tmp_path: Path) -> None:
    with managing(f"@echod-test-{os.getpid()}") as manager:
        notifier = Notifier(clock, str, address=manager.address)
        notifier.reloading()
        assert manager.hear()[0][0] == "RELOADING=1"
        notifier.close()


def test_what_the_manager_has_no_room_for_is_sent_later_and_in_order(
    notifier: Notifier, manager: Manager, clock: Clock
) -> None:
    count = 0
    while not notifier._waiting:
        notifier.reloading()
        count += 1
    notifier.ready()
    clock.advance(5)  # neither the status nor the watchdog make it worse
    assert len(notifier._waiting) == 2
    heard = manager.hear()
    clock.advance(notify.RETRY_INTERVAL)
    heard += manager.hear()
    assert [lines[0] for lines in heard] == ["RELOADING=1"] * count + ["READY=1"]


def test_to_close_forgets_what_waits(notifier: Notifier, manager: Manager) -> None:
    while not notifier._waiting:
        notifier.reloading()


def test_without_a_manager_there_is_no_timer_and_nothing_to_say(clock: Clock) -> None:
    notifier = Notifier(clock, str)
    notifier.ready()
    notifier.reloading()
    notifier.stopping()
    assert not clock.getDelayedCalls()
    notifier.close()


def test_a_manager_that_is_not_there_is_a_line_in_the_log(
    clock: Clock, tmp_path: Path, log: Log
) -> None:
    notifier = Notifier(clock, str, address=str(tmp_path / "no\x1bthing"))
    notifier.ready()
    assert r"no\x1bthing: [Errno 2] No such file or directory" in log.text
    assert not clock.getDelayedCalls()


def test_a_manager_that_is_gone_is_a_line_in_the_log(
    notifier: Notifier, manager: Manager, log: Log
) -> None:
    manager.close()
    notifier.ready()
    assert "Cannot notify the service manager: [Errno 111] Connection refused" in log.text
    assert not notifier._waiting


@pytest.mark.parametrize(
    ("asked", "watchdog"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_request_is_taken_out_of_the_environment(
    manager: Manager, clock: Clock, asked: dict[str, str], watchdog: float
) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "PATH": "/bin", **asked}
    notifier = Notifier.from_environment(clock, str, environment)
    assert environment == {"PATH": "/bin"}
    assert notifier._watchdog == watchdog
    notifier.reloading()
    assert manager.hear()
    notifier.close()


def test_the_manager_hears_how_long_a_start_may_take(notifier: Notifier, manager: Manager) -> None:
    notifier.starting("Opening lookups", 90.5)
    notifier.starting("Opening lookups", 0)
    assert manager.hear() == [
        ["STATUS=Opening lookups", "EXTEND_TIMEOUT_USEC=90500000"],
        ["STATUS=Opening lookups"],
    ]
