from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from echod.concurrency import (
    PENDING,
    Busy,
    InPool,
    InReactor,
    Pending,
    Serial,
    ThreadPerConnection,
    WorkerPool,
)
from tests.conftest import Log
from tests.serving import no_more_threads


class Loop:
    """Stands where the reactor would: what threads hand over is run when the test says so."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self.wake_ups = 0

    def call_from_thread(self, function: Callable[[], None]) -> None:
        with self._changed:
            self.wake_ups += 1
            self._calls.append(function)
            self._changed.notify_all()

    def turn(self) -> None:
        """Wait until something was handed over, and run it."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._calls, 10)
            calls, self._calls = self._calls, []
        for call in calls:
            call()

    def turn_if_due(self) -> None:
        if self._calls:
            self.turn()

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.turn()


class Gate:
    """A task that runs until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()

    def __call__(self, value: Any = None) -> Any:
        self.entered.set()
        assert self.leave.wait(10)
        return value


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_results_come_back_in_the_loops_thread(loop: Loop) -> None:
    pool = WorkerPool(2, loop.call_from_thread)
    results: list[Any] = []
    where: list[threading.Thread] = []
    pool.submit(results.append, lambda: where.append(threading.current_thread()), ())
    loop.until(lambda: len(results) == 1)
    assert where[0] is not threading.current_thread()
    assert where[0].daemon
    pool.stop()


def test_an_exception_comes_back_as_a_failure(loop: Loop) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    results: list[Any] = []
    pool.submit(results.append, lambda: 1 // 0, ())
    pool.submit(results.append, sys.exit, ())
    pool.submit(results.append, str, (7,))
    loop.until(lambda: len(results) == 3)
    assert results[0].check(ZeroDivisionError)
    assert results[1].check(SystemExit)
    assert results[2] == "7"
    pool.stop()


def test_no_more_threads_run_than_the_pool_has_and_none_before_they_are_needed(
    loop: Loop,
) -> None:
    pool = WorkerPool(2, loop.call_from_thread, name="tested")
    assert pool.available == 2
    gates = [Gate() for _ in range(4)]
    results: list[Any] = []
    for number, gate in enumerate(gates):
        pool.submit(results.append, gate, (number,))
    assert pool.available == 0
    assert not any(t.name.startswith("tested-") for t in threading.enumerate())
    for gate in gates[:2]:
        loop.turn()
        assert gate.entered.wait(10)
    assert sum(t.name.startswith("tested-") for t in threading.enumerate()) == 2
    assert not gates[2].entered.is_set()
    for gate in gates:
        gate.leave.set()
    loop.until(lambda: len(results) == 4)
    assert sorted(results) == [0, 1, 2, 3]
    assert pool.available == 2
    pool.stop()


def test_short_tasks_of_one_turn_need_no_second_thread(loop: Loop) -> None:
    pool = WorkerPool(4, loop.call_from_thread)
    names: list[str] = []
    for _ in range(200):
        pool.submit(names.append, lambda: threading.current_thread().name, ())
    loop.until(lambda: len(names) == 200)
    assert len(set(names)) <= 2  # a switch of threads may come in between
    pool.stop()


@given(st.lists(st.sampled_from(["short", "blocking", "turn"]), max_size=40), st.booleans())
def test_no_task_waits_for_a_blocked_one_while_another_thread_could_run(
    plan: list[str], warm: bool
) -> None:
    loop = Loop()
    blocking = plan.count("blocking")
    pool = WorkerPool(blocking + 1, loop.call_from_thread)
    results: list[Any] = []
    gates: list[Gate] = []
    if warm:  # every thread exists, and is idle
        run_at_once(pool, loop, blocking + 1)
    for number, step in enumerate(plan):
        if step == "short":
            pool.submit(results.append, int, (number,))
        elif step == "blocking":
            gates.append(Gate())
            pool.submit(results.append, gates[-1], (number,))
        else:
            loop.turn_if_due()
    short = [number for number, step in enumerate(plan) if step == "short"]
    loop.until(lambda: len(results) == len(short))
    assert sorted(results) == short
    for gate in gates:
        gate.leave.set()
    loop.until(lambda: len(results) == len(short) + len(gates))
    assert pool.available == pool.size
    pool.stop()


def run_at_once(pool: WorkerPool, loop: Loop, count: int) -> None:
    """Let this many threads of the pool run a task at the same time."""
    meeting = threading.Barrier(count)
    met: list[Any] = []
    for _ in range(count):
        pool.submit(met.append, meeting.wait, (10,))
    loop.until(lambda: len(met) == count)


def test_tasks_that_wait_for_each_other_all_run_at_once(loop: Loop) -> None:
    run_at_once(pool := WorkerPool(16, loop.call_from_thread), loop, 16)
    run_at_once(pool, loop, 16)
    assert pool.available == 16
    pool.stop()


def test_what_a_delivered_result_submits_is_run(loop: Loop) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    results: list[int] = []

    def again(number: Any) -> None:
        results.append(number)
        if number < 50:
            pool.submit(again, int, (number + 1,))

    pool.submit(again, int, (0,))
    loop.until(lambda: len(results) == 51)
    assert results == list(range(51))
    pool.stop()


@pytest_twisted.ensureDeferred
async def test_twisted_takes_the_pool_for_its_own() -> None:
    pool = WorkerPool(1, reactor.callFromThread)
    assert await deferToThreadPool(reactor, pool, int, "11", base=2) == 3
    with pytest.raises(ZeroDivisionError):
        await deferToThreadPool(reactor, pool, divmod, 1, 0)
    called: Deferred[str] = Deferred()
    pool.callInThread(reactor.callFromThread, called.callback, "in a thread")
    assert await called == "in a thread"
    pool.stop()


def test_a_function_that_fails_in_a_thread_is_logged(loop: Loop, log: Log) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    pool.callInThread(divmod, 1, 0)
    loop.until(lambda: bool(log.errors))
    (error,) = log.take_errors()
    assert "ZeroDivisionError" in error
    pool.stop()


def test_the_thread_that_was_idle_last_is_used_first(loop: Loop) -> None:
    pool = WorkerPool(3, loop.call_from_thread)
    gates = [Gate() for _ in range(3)]
    names: list[str] = []
    for gate in gates:
        pool.submit(names.append, lambda g: (g(), threading.current_thread().name)[1], (gate,))
    for gate in (gates[1], gates[0], gates[2]):
        seen = len(names)
        gate.leave.set()
        loop.until(lambda seen=seen: len(names) > seen)
    last = names[-1]
    for _ in range(5):
        seen = len(names)
        pool.submit(names.append, lambda: threading.current_thread().name, ())
        loop.until(lambda seen=seen: len(names) > seen)
        assert names[-1] == last
    pool.stop()


def test_many_results_cost_one_wake_up(loop: Loop) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    gate, results = Gate(), []  # type: ignore[var-annotated]
    pool.submit(results.append, gate, ())
    finished = threading.Event()
    for _ in range(100):
        pool.submit(results.append, lambda: None, ())
    pool.submit(results.append, finished.set, ())
    loop.turn()
    gate.leave.set()
    assert finished.wait(10)
    loop.until(lambda: len(results) == 102)
    assert loop.wake_ups <= 3
    pool.stop()


def test_a_result_that_cannot_be_delivered_does_not_keep_the_others(loop: Loop, log: Log) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    results: list[Any] = []

    def refuse(result: Any) -> None:
        raise RuntimeError("no thanks")

    pool.submit(refuse, int, ())
    pool.submit(results.append, int, ())
    loop.until(lambda: len(results) == 1)
    (error,) = log.take_errors()
    assert "no thanks" in error
    pool.stop()


def test_a_stopped_pool_drops_what_has_not_begun_and_takes_nothing(loop: Loop) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    gate, results = Gate(), []  # type: ignore[var-annotated]
    pool.submit(results.append, gate, ("begun",))
    pool.submit(results.append, str, ("queued",))
    loop.turn()
    assert gate.entered.wait(10)
    pool.stop()
    assert pool.available == 0
    pool.submit(results.append, str, ("late",))
    gate.leave.set()
    loop.until(lambda: bool(results))
    assert results == ["begun"]


def test_a_pool_is_drained_once_nothing_runs_or_waits(loop: Loop) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    assert pool.drain().called
    gate, results = Gate(), []  # type: ignore[var-annotated]
    pool.submit(results.append, gate, ("running",))
    pool.submit(results.append, str, ("waiting",))
    drained = pool.drain()
    assert pool.drain() is drained
    assert not drained.called
    gate.leave.set()
    loop.until(lambda: drained.called)
    assert results == ["running", "waiting"]
    pool.stop()


def test_a_stop_ends_a_drain(loop: Loop) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    gate = Gate()
    pool.submit(str, gate, ())
    drained = pool.drain()
    pool.stop()
    assert drained.called
    assert pool.drain().called
    gate.leave.set()
    loop.turn()


def test_the_pool_model_answers_later(loop: Loop) -> None:
    model = InPool(WorkerPool(1, loop.call_from_thread))
    results: list[Any] = []
    started: list[bool] = []
    connection = object()
    model.enter(connection, lambda: started.append(True))
    assert started == [True]
    assert model.call(results.append, bytes.upper, b"happy") is PENDING
    assert results == []
    loop.until(lambda: results == [b"HAPPY"])
    assert not model.overdue(connection, 1e9)
    model.leave(connection)
    assert model.drain().called
    model.stop()


def test_above_its_queue_the_pool_model_takes_no_message_but_ends_what_has_begun(
    loop: Loop,
) -> None:
    model = InPool(WorkerPool(1, loop.call_from_thread), max_queue=2)
    gate, results = Gate(), []  # type: ignore[var-annotated]
    for function in (gate, int, int):
        model.call(results.append, function)
    with pytest.raises(Busy, match="2 messages are waiting already, try again later") as caught:
        model.call(results.append, int)
    assert caught.value.limit == "max-queue"
    assert model.finish(results.append, str) is PENDING
    gate.leave.set()
    loop.until(lambda: results == [None, 0, 0, ""])
    assert model.call(results.append, int) is PENDING
    loop.until(lambda: len(results) == 5)
    model.stop()


def test_with_every_thread_taken_a_connection_is_refused_with_a_line(loop: Loop) -> None:
    model = ThreadPerConnection(WorkerPool(1, loop.call_from_thread))
    gate, results = Gate(), []  # type: ignore[var-annotated]
    model.enter(object(), lambda: model.call(results.append, gate))
    with pytest.raises(Busy, match="Server busy: the only thread is in use, try again later"):
        model.enter(object(), lambda: results.append("must not start"))
    gate.leave.set()
    loop.until(lambda: len(results) == 1)
    model.enter(object(), lambda: results.append("started"))
    assert results == [None, "started"]
    model.stop()


def test_without_any_thread_a_task_fails_and_the_next_tries_again(loop: Loop, log: Log) -> None:
    pool = WorkerPool(2, loop.call_from_thread)
    results: list[Any] = []
    with no_more_threads():
        pool.submit(results.append, int, ())
        loop.until(lambda: len(results) == 1)
    assert results[0].check(Busy)
    assert "No thread can be started" in log.text
    pool.submit(results.append, int, ())
    loop.until(lambda: len(results) == 2)
    assert results[1] == 0
    pool.stop()


@pytest.mark.parametrize("queues", [True, False])
def test_with_too_few_threads_a_task_waits_for_a_busy_one_if_it_may(
    loop: Loop, queues: bool
) -> None:
    pool = WorkerPool(2, loop.call_from_thread, queues=queues)
    gate = Gate()
    results: list[Any] = []
    pool.submit(results.append, gate, ())
    loop.until(gate.entered.is_set)

    with no_more_threads():
        pool.submit(results.append, int, ())
        loop.turn()
        loop.turn_if_due()
    assert len(results) == (0 if queues else 1)
    gate.leave.set()
    loop.until(lambda: len(results) == 2)
    assert (results == [None, 0]) is queues
    pool.stop()


def test_in_the_event_loop_a_result_is_returned_at_once() -> None:
    model = InReactor()
    assert model.call(pytest.fail, bytes.upper, b"happy") == b"HAPPY"
    assert model.call(pytest.fail, lambda: None) is None
    assert model.call(pytest.fail, lambda: 7) == 7
    model.stop()


def test_a_deferred_that_has_fired_is_a_result() -> None:
    assert InReactor().call(pytest.fail, succeed, b"happy") == b"happy"
    with pytest.raises(ZeroDivisionError):
        InReactor().call(pytest.fail, fail, ZeroDivisionError())


def test_a_deferred_or_coroutine_that_has_not_fired_is_pending() -> None:
    results: list[Any] = []
    deferred: Deferred[bytes] = Deferred()

    async def wait() -> bytes:
        return await deferred + b"!"

    pending = InReactor().call(results.append, wait)
    assert isinstance(pending, Pending)
    deferred.callback(b"happy")
    assert results == [b"happy!"]
    failing: Deferred[bytes] = Deferred()
    InReactor().call(results.append, lambda: failing)
    failing.errback(ZeroDivisionError())
    assert isinstance(results[1], Failure)


class Turns:
    """A serial model with a clock of the test's, and what has started."""

    def __init__(self, **options: Any) -> None:
        self.now = 100.0
        self.model = Serial(lambda: self.now, **{"patience": 10.0, "queue_size": 2, **options})
        self.started: list[str] = []

    def enter(self, name: str) -> None:
        self.model.enter(name, lambda: self.started.append(name))


def test_serial_lets_one_connection_in_at_a_time_in_order() -> None:
    turns = Turns()
    for name in ("a", "b", "c"):
        turns.enter(name)
    assert turns.started == ["a"]
    turns.model.leave("a")
    assert turns.started == ["a", "b"]
    turns.model.leave("a")
    turns.model.leave("c")
    turns.model.leave("b")
    turns.enter("d")
    assert turns.started == ["a", "b", "d"]


def test_serial_lets_only_so_many_wait() -> None:
    turns = Turns()
    for name in ("a", "b", "c"):
        turns.enter(name)
    with pytest.raises(Busy, match="Server busy: 2 clients are waiting already"):
        turns.enter("d")


def test_a_silent_client_is_overdue_only_once_another_has_waited_long_enough() -> None:
    turns = Turns()
    turns.enter("a")
    turns.now += 1000
    assert not turns.model.overdue("a", turns.now)
    turns.enter("b")
    assert not turns.model.overdue("a", turns.now + 9)
    assert turns.model.overdue("a", turns.now + 10)
    assert not turns.model.overdue("b", turns.now + 10)
    turns.now += 500
    turns.model.leave("a")
    turns.enter("c")
    assert not turns.model.overdue("b", turns.now + 9)
    assert turns.model.overdue("b", turns.now + 10)


def test_without_patience_set_nobody_is_overdue() -> None:
    turns = Turns(patience=0)
    turns.enter("a")
    turns.enter("b")
    assert not turns.model.overdue("a", turns.now + 1e6)


def test_a_long_queue_of_clients_that_leave_at_once_needs_no_deep_stack() -> None:
    turns = Turns(queue_size=5000)
    turns.enter("holder")
    for number in range(5000):
        turns.model.enter(number, lambda number=number: turns.model.leave(number))
    turns.model.leave("holder")
    turns.enter("last")
    assert turns.started == ["holder", "last"]
