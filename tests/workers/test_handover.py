"""The journal of a worker on its way to the supervisor, with time that the test plays."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from twisted.internet.task import Clock

from echod.journal import Facts, Journal
from echod.workers.handover import MOST, SHARE, Handover, few
from tests.support.log import Log


class Turns(Clock):
    """A turn of the event loop takes a second."""

    def callLater(self, when: float, what: Any, *args: Any, **kw: Any) -> Any:
        return super().callLater(when + 1, what, *args, **kw)


class Told:
    """The worker's end of the pipes: keeps what is sent.

    Attributes:
        numbers: of the connections that were told.
        waiting: how many messages the supervisor has not read.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.waiting = 0
        self.failure: Exception | None = None

    def send(self, news: str, connection: dict[str, Any]) -> None:
        if self.failure is not None:
            raise self.failure
        assert news == "ended"
        assert connection["reason"] == "served"
        self.numbers.append(connection["id"])


class Handing:
    """A journal whose connections end when the test says so."""

    def __init__(self, most: int = 2 * MOST, first_bytes: int = 0) -> None:
        self.clock = Turns()
        self.told = Told()
        self.journal: Journal[object] = Journal(
            most,
            first_bytes,
            facts_of=lambda _: Facts(peer="", listener=""),
            now=itertools.count().__next__,
            seconds=itertools.count().__next__,
        )
        link: Any = self.told
        self.handover = Handover(self.clock, self.journal, link)

    def end(self, count: int) -> None:
        for _ in range(count):
            connection = object()
            self.journal.begin(connection)
            self.journal.end(connection, "served")

    def turn(self) -> None:
        self.clock.advance(1)


def test_each_heartbeat_tells_those_that_have_ended_since_the_last_one() -> None:
    one = Handing()
    one.handover.begin()
    assert not one.clock.getDelayedCalls()
    for expected in ([1, 2], [1, 2, 3]):
        one.end(len(expected) - len(one.told.numbers))
        one.handover.begin()
        assert one.told.numbers == expected
        one.turn()
        assert not one.clock.getDelayedCalls()


def test_many_are_told_a_few_in_a_turn_and_each_once() -> None:
    """Fault 203: No turn of a worker's event loop hands on more than a few of them."""
    one = Handing()
    one.end(3 * SHARE)
    one.handover.begin()
    assert len(one.told.numbers) == SHARE
    one.end(2)
    one.handover.begin()  # the next heartbeat, while it still tells
    assert len(one.told.numbers) == SHARE
    one.turn()
    assert len(one.told.numbers) == 2 * SHARE
    for _ in range(3):
        one.turn()
    assert one.told.numbers == list(range(1, 3 * SHARE + 3))
    assert not one.clock.getDelayedCalls()


@pytest.mark.parametrize(("most", "last"), [(2 * MOST, MOST), (30, 30)])
def test_of_too_many_the_last_ones_are_told(most: int, last: int) -> None:
    one = Handing(most)
    one.end(MOST + 500)
    one.handover.finish()
    assert one.told.numbers == list(range(MOST + 501 - last, MOST + 501))


def test_those_that_are_left_are_told_at_the_end() -> None:
    one = Handing()
    one.end(2 * SHARE + 1)
    one.handover.begin()
    one.handover.finish()
    assert one.told.numbers == list(range(1, 2 * SHARE + 2))
    assert not one.clock.getDelayedCalls()


def test_a_supervisor_that_does_not_read_gets_no_more() -> None:
    """Fault 203: A worker stops handing on while the supervisor does not read."""
    one = Handing()
    one.end(1)
    one.told.waiting = MOST + 1
    one.handover.begin()
    assert not one.told.numbers
    one.told.waiting = MOST
    one.handover.begin()
    assert one.told.numbers == [1]
    one.turn()


def test_without_a_journal_nothing_is_told() -> None:
    one = Handing(0)
    one.end(5)
    one.handover.begin()
    one.turn()
    assert not one.told.numbers
    assert not one.clock.getDelayedCalls()


def test_a_fault_in_the_program_is_logged_and_the_next_heartbeat_goes_on(log: Log) -> None:
    one = Handing()
    one.end(1)
    one.told.failure = RuntimeError("odd")
    one.handover.begin()
    assert "Handing on the journal failed" in log.take_errors()[0]
    one.told.failure = None
    one.end(1)
    one.handover.begin()
    one.turn()
    assert one.told.numbers == [2]


def test_fewer_are_told_in_a_turn_where_first_bytes_are_kept() -> None:
    assert few(20, 1 << 18, 0) == 20
    assert few(20, 1 << 18, 10_000) == 5
    assert few(20, 1 << 18, 1_000_000) == 1
