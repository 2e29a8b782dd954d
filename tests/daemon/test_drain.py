from __future__ import annotations

import itertools
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from echod.daemon.drain import LAST_CALLS, LEAST_OF_SERVICE, STEP, Drain
from echod.daemon.signals import GRACE
from tests.support.log import Log


class FakeConnection:
    def __init__(self, home: FakeFactory) -> None:
        self.home = home
        self.told = False

    def drain(self) -> None:
        self.told = True
        if not self.home.stubborn:
            self.home.leave(self)


class FakeFactory:
    """A factory with connections that end when they are told to, unless they are stubborn."""

    def __init__(self, count: int, *, stubborn: bool = False) -> None:
        self.stubborn = stubborn
        self.connections = {FakeConnection(self) for _ in range(count)}
        self._empty: Deferred[None] = Deferred()

    def leave(self, connection: FakeConnection) -> None:
        before = len(self.connections)
        self.connections.discard(connection)
        if before and not self.connections:
            self._empty.callback(None)

    def drain(self) -> Deferred[None]:
        for connection in list(self.connections):
            connection.drain()
        return self._empty if self.connections else succeed(None)

    def abort(self) -> None:
        for connection in list(self.connections):
            self.leave(connection)

    def let_go(self) -> None:
        """Leave no handler."""


class FakeModel:
    """A model in which a number of calls wait; they never run."""

    def __init__(self, waiting: int = 0) -> None:
        self.stopped = self.dropped = False
        self.lost_waiting = waiting
        self._drained: Deferred[None] = Deferred()

    def drain(self) -> Deferred[None]:
        return self._drained if self.lost_waiting else succeed(None)

    def end(self) -> Deferred[None]:
        return succeed(None)

    def drop(self) -> None:
        self.dropped = True

    def stop(self) -> None:
        self.stopped = True
        self._drained.callback(None)


class FakeLife:
    """The life of a service whose last part ends when it is told to."""

    name, generator, thread = "fake", None, None

    def __init__(self) -> None:
        self.is_open, self.is_closing, self.skipped = True, False, False
        self.over: Deferred[None] = Deferred()

    def close(self) -> Deferred[None]:
        if self.skipped:
            return succeed(None)
        self.is_open, self.is_closing = False, True
        return self.over

    def skip(self) -> None:
        self.is_open, self.is_closing, self.skipped = False, False, True
        self.over.callback(None)


class Draining:
    """A drain that has begun."""

    def __init__(self, factory: FakeFactory, *, waiting: int = 0, **options: Any) -> None:
        self.clock, self.model = Clock(), FakeModel(waiting)
        factories: Any = [factory]
        model: Any = self.model
        self.drain = Drain(self.clock, factories, model, **{"timeout": 20.0, **options})
        self.finished = False
        self.drain.begin().addCallback(self._finish)

    def _finish(self, _: object) -> None:
        self.finished = True


def test_all_connections_are_told_at_once() -> None:
    draining = Draining(FakeFactory(100))
    assert draining.finished
    assert not draining.clock.getDelayedCalls()


@pytest.mark.parametrize("count", [10, 100, 10_000])
def test_connections_are_told_a_few_at_a_time(count: int) -> None:
    factory = FakeFactory(count)
    draining = Draining(factory, spread=10.0)
    left = [len(factory.connections)]
    for _ in range(10):
        draining.clock.pump([STEP] * round(1 / STEP))
        left.append(len(factory.connections))
    share = count / 10
    assert all(abs(before - after - share) <= 1 for before, after in itertools.pairwise(left))
    draining.clock.advance(STEP)
    assert draining.finished
    assert not draining.clock.getDelayedCalls()


def test_a_gradual_drain_is_over_when_the_last_client_has_left_by_itself() -> None:
    factory = FakeFactory(100)
    draining = Draining(factory, spread=10.0)
    factory.abort()
    draining.clock.advance(STEP)
    assert draining.finished


def test_a_gradual_drain_of_nobody_takes_no_time() -> None:
    assert Draining(FakeFactory(0), spread=10.0).finished


def test_a_clock_that_jumps_over_several_steps_makes_up_for_them() -> None:
    factory = FakeFactory(100)
    draining = Draining(factory, spread=10.0)
    draining.clock.advance(5.0)
    draining.clock.pump([STEP] * 50)
    assert draining.finished


def test_the_deadline_aborts_those_who_stay(log: Log) -> None:
    factory = FakeFactory(3, stubborn=True)
    draining = Draining(factory, spread=1.0, timeout=5.0)
    draining.clock.pump([STEP] * 20)
    assert all(connection.told for connection in factory.connections)
    assert not draining.finished
    draining.clock.advance(3.0)
    assert draining.finished
    assert draining.model.dropped
    assert not draining.clock.getDelayedCalls()
    assert "Drain time-out: aborting all; open connections: 3" in log.text


@pytest.mark.parametrize("count", [0, 3])
def test_the_work_that_waits_for_lost_clients_has_the_drains_time_and_is_told(
    log: Log, count: int
) -> None:
    draining = Draining(FakeFactory(count), waiting=5, timeout=2.0)
    told = f"at most; open connections: {count}; calls for lost clients: 5; a second signal"
    assert told in log.text
    draining.clock.advance(1.0)
    assert not draining.finished
    draining.model.lost_waiting = 4
    draining.clock.advance(1.0)
    assert draining.model.dropped
    assert not draining.finished  # a call of a handler runs
    draining.clock.advance(LAST_CALLS)
    assert draining.finished
    assert draining.model.stopped
    told = "Drain time-out: aborting all; open connections: 0; calls for lost clients: 4"
    assert told in log.text


# The drain's time, that of the clients, and that of the rest of the service.
SHARES = [(2.0, 1.8, 0.2), (30.0, 29.0, 1.0), (0.1, 0.09, 0.41), (0.0, 0.0, 0.5)]


@pytest.mark.parametrize(("timeout", "for_clients", "for_service"), SHARES)
def test_a_client_that_stays_leaves_the_service_its_share(
    timeout: float, for_clients: float, for_service: float
) -> None:
    life = FakeLife()
    draining = Draining(FakeFactory(1, stubborn=True), timeout=timeout, life=life)
    draining.clock.advance(for_clients - 0.001)
    assert life.is_open
    draining.clock.advance(0.002)
    assert life.is_closing
    draining.clock.advance(for_service - 0.002)
    assert not life.skipped
    draining.clock.advance(0.003)
    assert life.skipped
    assert draining.finished


@pytest.mark.parametrize("waiting", [0, 1])
def test_the_service_has_its_share_even_if_the_event_loop_is_late(log: Log, waiting: int) -> None:
    """On a busy machine, the end of the clients' time and the deadline may be due together."""
    life = FakeLife()
    factory = FakeFactory(1, stubborn=True)
    draining = Draining(factory, timeout=2.0, life=life, waiting=waiting)
    draining.clock.advance(5.0)
    if waiting:  # a call of a handler runs
        assert life.is_open
        draining.clock.advance(5.0)
    assert life.is_closing
    draining.clock.advance(0.09)
    assert life.is_closing
    life.over.callback(None)
    assert draining.finished
    assert not draining.clock.getDelayedCalls()
    assert "The rest of the service" not in log.text


def test_an_abort_ends_a_gradual_drain() -> None:
    draining = Draining(FakeFactory(100), spread=10.0)
    draining.drain.abort()
    draining.clock.advance(STEP)
    assert draining.finished


def test_the_process_outlives_the_least_time_of_a_service_and_the_last_calls() -> None:
    assert max(LEAST_OF_SERVICE, LAST_CALLS) < GRACE
