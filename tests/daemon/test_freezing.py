from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from echod.daemon.freezing import INTERVAL, STEP, Freezer
from echod.metrics import Metrics


class Cycle:
    """The state of a connection, which only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


class Process:
    """A freezer, with connections that leave cycles behind."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.clock = Clock()
        self.freezer = Freezer(self.clock, lambda: [Metrics(), self.metrics])
        self.open: list[Cycle] = []
        self.made: weakref.WeakSet[Cycle] = weakref.WeakSet()

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.open.append(Cycle())
            self.made.add(self.open[-1])
        self.metrics.accepted += count

    def end(self, count: int) -> None:
        del self.open[:count]
        for _ in range(count):
            self.metrics.end("client", messages=0, received=0, sent=0)


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    made.freezer.start()
    try:
        yield made
    finally:
        made.freezer.stop()
    assert not made.clock.getDelayedCalls()
    assert gc.get_freeze_count() == 0
    assert made.freezer._collected not in gc.callbacks


def is_looked_at(one: object) -> bool:
    """Whether a full collection would look at an object."""
    return any(each is one for each in gc.get_objects())


def test_connections_are_frozen_when_enough_have_come(process: Process) -> None:
    process.connect(STEP - 1)
    gc.collect(1)
    assert is_looked_at(process.open[0])
    process.connect(1)
    gc.collect(1)
    assert not is_looked_at(process.open[0])
    assert not is_looked_at(process.open[-1])
    process.connect(STEP - 1)
    gc.collect(1)
    assert is_looked_at(process.open[-1])


def test_what_frozen_connections_leave_behind_is_collected_when_as_many_have_ended(
    process: Process,
) -> None:
    process.connect(2 * STEP)
    gc.collect(1)
    process.end(2 * STEP - 1)
    gc.collect()
    process.clock.advance(INTERVAL)
    assert len(process.made) == 2 * STEP
    process.end(1)
    process.clock.advance(INTERVAL)
    assert len(process.made) == 0


def test_connections_that_come_and_go_are_collected_as_ever(process: Process) -> None:
    for _ in range(10):
        process.connect(STEP - 1)
        process.end(STEP - 1)
        gc.collect(1)
        assert len(process.made) == 0
        process.clock.advance(INTERVAL)


def test_waves_of_connections_leave_nothing_behind(process: Process) -> None:
    for _ in range(3):  # each collects all that this process has
        process.connect(2 * STEP)
        gc.collect(1)
        process.end(2 * STEP)
        gc.collect(1)
        process.clock.advance(INTERVAL)
        assert len(process.made) == 0


def test_those_that_stay_are_frozen_again_after_a_look_at_all(process: Process) -> None:
    process.connect(3 * STEP)
    gc.collect(1)
    process.end(2 * STEP)
    process.connect(STEP)
    process.end(STEP)
    process.clock.advance(INTERVAL)
    assert len(process.made) == len(process.open) == STEP
    assert not is_looked_at(process.open[0])


def test_starting_and_stopping_twice_is_harmless(process: Process) -> None:
    process.freezer.start()
    assert gc.callbacks.count(process.freezer._collected) == 1
    process.freezer.stop()
    process.freezer.stop()
