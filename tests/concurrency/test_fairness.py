from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from echod.concurrency.fairness import TIMES_THE_FREE, FairQueue, Holders, may_have_another


def take_all(size: int, addresses: int) -> list[int]:
    """Return how many places each of some addresses has when none may have another."""
    held = [0] * addresses
    taking = True
    while taking:
        taking = False
        for number in range(addresses):
            if may_have_another(held[number], size - sum(held)):
                held[number] += 1
                taking = True
    return held


@given(st.integers(4, 10_000), st.data())
def test_greedy_addresses_leave_a_place_for_one_that_has_none(
    size: int, data: st.DataObject
) -> None:
    # With m of them at rest each holds three times what is free: size / (1 + 3 m) is free.
    greedy = data.draw(st.integers(1, max(1, size // (1 + TIMES_THE_FREE) // 2)))
    held = take_all(size, greedy)
    free = size - sum(held)
    assert free >= 1
    assert may_have_another(0, free)
    assert max(held) - min(held) <= TIMES_THE_FREE + 1


@given(st.integers(1, 10_000))
def test_one_address_alone_may_have_three_quarters(size: int) -> None:
    (held,) = take_all(size, 1)
    assert held >= size * 3 / 4 - 1
    assert size < 4 or held < size


def test_where_there_are_few_places_an_address_may_have_them_all() -> None:
    assert [take_all(size, 1)[0] for size in range(1, 9)] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_no_place_that_is_not_free_may_be_taken() -> None:
    assert not may_have_another(0, 0)
    assert not may_have_another(0, -1)


class Place(RuleBasedStateMachine):
    """Through any arrivals and departures, the counts match the real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.holders = Holders()
        self.inside: dict[int, str] = {}
        self.count = 0

    @rule(address=st.sampled_from(["", "a", "b", "c"]))
    def come(self, address: str) -> None:
        self.count += 1
        self.inside[self.count] = address
        self.holders.add(self.count, address)

    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        who = data.draw(st.integers(0, self.count + 1))
        self.inside.pop(who, None)
        self.holders.discard(who)

    @invariant()
    def all_is_counted(self) -> None:
        assert dict(self.holders.by_address) == Counter(self.inside.values())


TestPlace = Place.TestCase
TestPlace.settings = settings(max_examples=30, stateful_step_count=30)


class Queue(RuleBasedStateMachine):
    """No client waits for more than one turn of each other address."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: FairQueue[int] = FairQueue()
        self.waiting: list[tuple[int, str]] = []
        self.passed: dict[str, Counter[str]] = {}
        self.last = ""
        self.count = 0

    @rule(address=st.sampled_from(["", "a", "b", "c"]))
    def come(self, address: str) -> None:
        self.count += 1
        self.turns.add(self.count, address, -self.count)
        if all(each != address for _, each in self.waiting):
            self.passed[address] = Counter()
        self.waiting.append((self.count, address))

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        who = data.draw(st.integers(0, self.count + 1))
        address = next((each for number, each in self.waiting if number == who), "a")
        self.turns.discard(who, address)
        self.waiting = [each for each in self.waiting if each[0] != who]

    @precondition(lambda self: self.waiting)
    @rule()
    def turn(self) -> None:
        waiter, value = self.turns.next(self.last)
        first_of_each = {address: number for number, address in reversed(self.waiting)}
        (address,) = (each for each, number in first_of_each.items() if number == waiter)
        assert value == -waiter  # type: ignore[operator]
        self.waiting.remove((waiter, address))
        for other in first_of_each:
            if other != address:
                self.passed[other][address] += 1
                assert self.passed[other][address] <= 1
        self.passed[address] = Counter()
        self.last = address

    @invariant()
    def all_are_counted(self) -> None:
        assert len(self.turns) == len(self.waiting)
        for address in ("", "a", "b", "c"):
            assert self.turns.waiting(address) == sum(each == address for _, each in self.waiting)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=50, stateful_step_count=50)
