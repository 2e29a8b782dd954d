"""The limits over several processes; here each of them is an object of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from echod.connections.shared_admission import AdmissionTable, SharedAdmission
from echod.limits import Limits
from echod.reasons import Refusal

KEY = b"sixteen bytes..."


@pytest.fixture
def table() -> Iterator[AdmissionTable]:
    made = AdmissionTable.create(8)
    yield made
    made.close()


def workers(table: AdmissionTable, count: int, limits: Limits, clock: Clock) -> list:
    return [
        SharedAdmission(limits, clock.seconds, table=table, block=number, key=KEY)
        for number in range(count)
    ]


@given(st.lists(st.integers(0, 3), min_size=40, max_size=60))
def test_all_together_accept_as_many_as_one_would(draws: list[int]) -> None:
    table = AdmissionTable.create(4)
    four = workers(table, 4, Limits(max_connections=30, max_accept_rate=0), Clock())
    refused = [four[draw].accept() for draw in draws]
    assert refused[:30] == [None] * 30
    assert set(refused[30:]) == {Refusal.MAX_CONNECTIONS}
    four[draws[0]].release()
    assert four[(draws[0] + 1) % 4].accept() is None
    table.close()


def test_an_address_has_its_share_of_all(table: AdmissionTable) -> None:
    one, other = workers(table, 2, Limits(max_connections_per_address=3), Clock())
    assert [each.identify("a") for each in (one, other, one)] == [None] * 3
    assert one.identify("a") is Refusal.PER_ADDRESS
    assert other.identify("a") is Refusal.PER_ADDRESS
    assert other.identify("b") is None
    assert one.levels[1].used == other.levels[1].used == 3
    one.open += 1
    one.release("a")
    assert other.identify("a") is None


def test_a_rate_holds_over_all(table: AdmissionTable) -> None:
    clock = Clock()
    limits = Limits(max_connections=10, max_accept_rate=10)
    one, other = workers(table, 2, limits, clock)
    assert [one.accept() for _ in range(5)] == [None] * 5
    for _ in range(5):
        one.release()
    assert [other.accept() for _ in range(6)] == [None] * 5 + [Refusal.ACCEPT_RATE]
    clock.advance(0.5)
    accepted = [each.accept() for each in (one, other) * 5]
    assert accepted.count(None) == 5


def test_a_successor_has_no_more_tokens_than_the_others(table: AdmissionTable) -> None:
    limits = Limits(max_connections=10, max_accept_rate=10)
    (one,) = workers(table, 1, limits, Clock())
    assert [one.accept() for _ in range(9)] == [None] * 9
    for _ in range(9):
        one.release()
    late = SharedAdmission(limits, Clock().seconds, table=table, block=5, key=KEY)
    assert [late.accept() for _ in range(2)] == [None, Refusal.ACCEPT_RATE]


def test_what_an_ended_process_had_counts_no_more(table: AdmissionTable) -> None:
    limits = Limits(max_connections=2, max_connections_per_address=2, max_accept_rate=0)
    one, other = workers(table, 2, limits, Clock())
    for _ in range(2):
        assert one.accept() is None
        assert one.identify("a") is None
    assert other.accept() is Refusal.MAX_CONNECTIONS
    assert other.identify("a") is Refusal.PER_ADDRESS
    table.clear(0)
    assert other.accept() is None
    assert other.identify("a") is None


def test_a_process_that_has_room_for_fewer_is_bounded_by_that_too(table: AdmissionTable) -> None:
    limits = Limits(max_connections=2, max_accept_rate=0)
    one, other = (
        SharedAdmission(limits, Clock().seconds, table=table, block=number, key=KEY, factor=1.5)
        for number in range(2)
    )
    assert [one.accept() for _ in range(3)] == [None, None, Refusal.MAX_CONNECTIONS]
    assert [other.accept() for _ in range(2)] == [None, Refusal.MAX_CONNECTIONS]
    assert other.levels[0][1:] == (3, 3)


class AtOnce(SharedAdmission):
    """Lets another one decide in the moment between its own look at the sums and its count."""

    between: Callable[[], object] | None = None

    def _sum(self, counter: int) -> int:
        found = super()._sum(counter)
        between, self.between = self.between, None
        if between is not None:
            between()
        return found


def test_in_the_same_moment_each_process_but_the_first_accepts_one_too_many_at_most(
    table: AdmissionTable,
) -> None:
    """Fault 175: Of clients that come in the same moment, at most one for each further worker is
    too many, over all and from one address.
    """
    limits = Limits(max_connections=6, max_connections_per_address=6, max_accept_rate=0)
    four = [
        AtOnce(limits, Clock().seconds, table=table, block=number, key=KEY) for number in range(4)
    ]
    for _ in range(5):
        assert four[0].accept() is None
        assert four[0].identify("a") is None
    for ask in (lambda each: each.accept(), lambda each: each.identify("a")):
        answers: list[Refusal | None] = []

        def ask_all(left: list[AtOnce], ask: Any = ask, answers: Any = answers) -> None:
            """Let the first ask while the others do."""
            if left:
                left[0].between = lambda: ask_all(left[1:])
                answers.append(ask(left[0]))

        ask_all(four)
        assert answers == [None] * 4
    assert four[0]._sum(0) == four[0]._from_address("a") == 6 + 3
    assert {each.accept() for each in four} == {Refusal.MAX_CONNECTIONS}
    assert {each.identify("a") for each in four} == {Refusal.PER_ADDRESS}


def test_an_address_whose_place_is_that_of_a_busy_one_is_not_refused_for_it(
    table: AdmissionTable,
) -> None:
    one, other = workers(table, 2, Limits(max_connections_per_address=3), Clock())
    for _ in range(3):
        assert one.identify("busy") is None
    same = other._places("busy")[0]
    meets = next(name for name in map(str, itertools.count()) if other._places(name)[0] == same)
    assert other.identify("busy") is Refusal.PER_ADDRESS
    assert [other.identify(meets) for _ in range(3)] == [None] * 3
    assert other.identify(meets) is Refusal.PER_ADDRESS
    one.open = other.open = 3
    for _ in range(3):
        other.release(meets)
        one.release("busy")
    assert not any(table.counters[place] for place in one._places("busy"))


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcdef")), max_size=60))
def test_no_address_is_counted_too_low(events: list[tuple[int, str]]) -> None:
    table = AdmissionTable.create(3)
    three = workers(table, 3, Limits(max_connections_per_address=1000), Clock())
    for process, address in events:
        three[process].identify(address)
    for address, count in Counter(address for _, address in events).items():
        assert all(each._from_address(address) >= count for each in three)
    table.close()


@given(st.lists(st.integers(0, 3), max_size=40))
def test_a_later_connection_has_a_higher_number_and_the_number_names_the_process(
    draws: list[int],
) -> None:
    table = AdmissionTable.create(4)
    processes = [table.numbers(block) for block in range(4)]
    given_so_far: list[int] = []
    for draw in draws:
        given_so_far.append(next(processes[draw]))
        assert table.block_of(given_so_far[-1]) == draw
    assert given_so_far == sorted(set(given_so_far))
    table.close()


def test_a_successor_gives_no_number_of_its_predecessor_again(table: AdmissionTable) -> None:
    first = [next(table.numbers(3)) for _ in range(3)]
    table.clear(3)
    assert next(table.numbers(3)) > max(first)


def test_two_processes_that_number_in_the_same_moment_give_two_numbers(
    table: AdmissionTable,
) -> None:
    one, other = table.numbers(0), table.numbers(1)
    next(one)
    before = table._numbered[0]
    mine = next(other)
    table._numbered[1] = 0  # as if the other one had not seen this yet
    table._numbered[0] = before
    assert next(one) != mine
