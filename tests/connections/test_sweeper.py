from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from echod.connections.sweeper import CATCH_UP, SLICE, URGENT_INTERVAL, Sweeper, interval_for
from tests.support.log import Log


class Member:
    """Notes when it was looked at; calm after the first time."""

    def __init__(self, sweeper: Sweeper) -> None:
        self.sweeper = sweeper
        self.looks: list[float] = []

    def sweep(self, now: float) -> None:
        self.looks.append(now)
        self.sweeper.urgent.discard(self)


def crowd(count: int, interval: float = 5.0) -> tuple[Clock, Sweeper[Member], list[Member]]:
    clock = Clock()
    sweeper: Sweeper[Member] = Sweeper(lambda: clock, interval)
    members = [Member(sweeper) for _ in range(count)]
    for member in members:
        sweeper.add(member)
    return clock, sweeper, members


def run(clock: Clock, seconds: float) -> None:
    for _ in range(round(seconds * 100)):
        clock.advance(0.01)


@pytest.mark.parametrize("count", [1, SLICE, SLICE + 1, 5 * SLICE])
def test_everybody_is_looked_at_soon_and_then_once_an_interval(count: int) -> None:
    clock, _, members = crowd(count)
    run(clock, 20.5)
    for member in members:
        assert member.looks[0] <= 2 * URGENT_INTERVAL
        gaps = [after - before for before, after in pairwise(member.looks[1:])]
        assert len(gaps) >= 2
        assert all(gap == pytest.approx(5.0, abs=0.1) for gap in gaps)


def test_never_are_more_than_a_slice_looked_at_in_one_go() -> None:
    clock, _, members = crowd(10 * SLICE + 3)
    run(clock, 6)
    at_once = Counter(look for member in members for look in member.looks)
    assert max(at_once.values()) <= 2 * SLICE  # a slice of each round


def test_what_came_while_the_loop_stood_still_is_read_before_anybody_is_looked_at() -> None:
    clock, _, (member,) = crowd(1)
    clock.advance(30)
    assert not member.looks
    clock.advance(CATCH_UP)
    assert member.looks
    before = len(member.looks)
    run(clock, 5.1)  # in time again
    assert len(member.looks) > before


def test_what_is_urgent_is_looked_at_twice_a_second() -> None:
    clock, sweeper, (member,) = crowd(1)
    member.sweep = member.looks.append  # type: ignore[assignment,method-assign]
    run(clock, 5)
    assert len(member.looks) >= 9
    assert sweeper.urgent == {member}


def test_there_is_no_timer_without_members() -> None:
    clock, sweeper, (member,) = crowd(1)
    run(clock, 2)
    sweeper.discard(member)
    sweeper.discard(member)
    assert not clock.getDelayedCalls()
    sweeper.add(member)
    assert len(clock.getDelayedCalls()) == 1
    looks = len(member.looks)
    run(clock, 1)
    assert len(member.looks) > looks


def test_one_that_left_meanwhile_is_not_looked_at() -> None:
    clock, sweeper, members = crowd(2)

    def sweep(now: float) -> None:
        for member in members:
            sweeper.discard(member)
        looks.append(now)

    looks: list[float] = []
    for member in members:
        member.sweep = sweep  # type: ignore[method-assign]
    run(clock, 2)
    assert len(looks) == 1
    assert not clock.getDelayedCalls()


def test_the_last_may_leave_and_another_come_within_a_look() -> None:
    clock, sweeper, (member,) = crowd(1)
    newcomer = Member(sweeper)

    def sweep(now: float) -> None:
        sweeper.discard(member)
        sweeper.add(newcomer)

    member.sweep = sweep  # type: ignore[method-assign]
    run(clock, 2)
    assert newcomer.looks
    assert len(clock.getDelayedCalls()) == 1


def test_an_error_keeps_nobody_else_from_being_looked_at(log: Log) -> None:
    clock, _, members = crowd(3)

    def sweep(now: float) -> None:
        raise RuntimeError("oh")

    members[1].sweep = sweep  # type: ignore[method-assign]
    run(clock, 1)
    assert members[0].looks
    assert members[2].looks
    assert log.take_errors()


@given(st.lists(st.floats(0, 1000)))
def test_the_interval_is_a_small_part_of_the_shortest_time(timeouts: list[float]) -> None:
    interval = interval_for(timeouts)
    shortest = min(filter(None, timeouts), default=1000.0)
    assert interval <= max(URGENT_INTERVAL, shortest / 20)
    assert URGENT_INTERVAL <= interval <= 10


def test_a_new_interval_holds_from_the_next_round_on() -> None:
    clock, sweeper, (member,) = crowd(1)
    run(clock, 5.5)
    sweeper.look_every(1.0)
    member.looks.clear()
    run(clock, 10)
    assert len(member.looks) >= 5
