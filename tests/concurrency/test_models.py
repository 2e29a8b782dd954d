from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from echod.concurrency import pool as pool_module
from echod.concurrency.model import Busy, Dropped, Pending
from echod.concurrency.models import InPool, InReactor, Serial, ThreadPerConnection
from echod.concurrency.pool import OPEN_IN_A_ROW, WorkerPool
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import eventually, no_more_threads


class Loop:
    """Stands in for the reactor: runs the calls from threads when the test asks for it."""

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
        """Wait until a thread has handed over a call, and run it."""
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
    """A task that runs until it is released."""

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


def test_a_result_that_comes_while_others_are_passed_on_is_passed_on_next(loop: Loop) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    second, third = Gate(), Gate()
    results: list[Any] = []

    def while_passed_on(result: Any) -> None:
        results.append(result)
        second.leave.set()
        assert third.entered.wait(10)  # so the second result is there, and no turn was asked for

    pool.submit(while_passed_on, str, ("first",))
    pool.submit(results.append, second, ("second",))
    pool.submit(results.append, third, ("third",))
    loop.until(lambda: len(results) == 2)
    assert results == ["first", "second"]
    third.leave.set()
    loop.until(lambda: len(results) == 3)
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
    assert isinstance(model.call(results.append, bytes.upper, b"happy"), Pending)
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
    assert caught.value.refusal.value == "max-queue"
    assert isinstance(model.finish(results.append, str), Pending)
    gate.leave.set()
    loop.until(lambda: results == [None, 0, 0, ""])
    assert isinstance(model.call(results.append, int), Pending)
    loop.until(lambda: len(results) == 5)
    model.stop()


def test_a_stopped_pool_model_drops_messages_but_still_calls_what_ends_a_handler(
    loop: Loop,
) -> None:
    model = InPool(WorkerPool(1, loop.call_from_thread))
    gate, results = Gate(), []  # type: ignore[var-annotated]
    model.call(results.append, gate)
    loop.until(gate.entered.is_set)
    model.call(results.append, lambda: "message")
    model.finish(results.append, lambda: "closed")
    model.stop()
    model.finish(results.append, lambda: "closed later")
    gate.leave.set()
    loop.until(lambda: len(results) == 3)
    assert results == [None, "closed", "closed later"]


# The tasks that lost connections leave.


class Blocked:
    """A pool whose only thread is at work until the test releases it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.pool = WorkerPool(1, loop.call_from_thread)
        self.results: list[Any] = []
        self._gate = Gate()
        self.pool.submit(self.results.append, self._gate, ("first",))
        loop.until(self._gate.entered.is_set)

    def submit(self, value: Any, *, lost: bool = False) -> Any:
        return self.pool.submit(self.results.append, lambda: value, (), lost=lost)

    def finish(self) -> list[Any]:
        """Release it, and return the tasks in the order in which they were done."""
        drained = self.pool.drain()
        self._gate.leave.set()
        self.loop.until(lambda: bool(drained.called))
        self.pool.stop()
        return self.results


def test_the_work_of_the_lost_waits_behind_that_of_the_others(loop: Loop) -> None:
    blocked = Blocked(loop)
    many = [blocked.submit(number) for number in range(100)]
    tasks = [blocked.submit(name) for name in ("a", "b", "c", "d")]
    blocked.submit("closed", lost=True)
    blocked.pool.put_behind(tasks[0])
    blocked.pool.put_behind(tasks[2])
    for task in many:
        blocked.pool.put_behind(task)
    assert (blocked.pool.waiting, blocked.pool.lost_waiting) == (2, 103)
    blocked.submit("late")
    assert blocked.finish() == ["first", "b", "d", "late", "closed", "a", "c", *range(100)]
    assert blocked.pool.dropped == 0


def test_the_lost_do_have_their_turn_where_the_others_have_no_end(loop: Loop) -> None:
    blocked = Blocked(loop)
    for number in range(2):
        blocked.submit(f"lost {number}", lost=True)
    for number in range(40):
        blocked.submit(number)
    done = blocked.finish()
    assert done.index("lost 0") == 1 + OPEN_IN_A_ROW
    assert done.index("lost 1") == 2 + 2 * OPEN_IN_A_ROW
    assert [each for each in done if isinstance(each, int)] == list(range(40))


def test_where_too_much_of_the_lost_waits_it_has_every_second_turn(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MOST_LOST", 3)
    blocked = Blocked(loop)
    for number in range(6):
        blocked.submit(number)
    for name in "abcde":
        blocked.submit(name, lost=True)
    assert blocked.finish() == ["first", 0, "a", 1, "b", 2, 3, 4, 5, "c", "d", "e"]


def test_what_has_begun_is_not_put_behind(loop: Loop) -> None:
    pool = WorkerPool(1, loop.call_from_thread)
    gate, results = Gate(), []  # type: ignore[var-annotated]
    task = pool.submit(results.append, gate, ("begun",))
    loop.until(gate.entered.is_set)
    pool.put_behind(task)
    assert pool.lost_waiting == 0
    gate.leave.set()
    loop.until(lambda: results == ["begun"])
    pool.put_behind(task)
    assert (results, pool.lost_waiting, pool.available) == (["begun"], 0, 1)
    pool.stop()


def test_only_where_too_much_of_the_lost_waits_a_message_is_dropped(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MOST_LOST", 2)
    blocked = Blocked(loop)
    tasks = [blocked.submit(number) for number in range(3)]
    for task in tasks:
        blocked.pool.put_behind(task)
    (dropped,) = blocked.results
    assert dropped.check(Dropped, CancelledError)
    assert blocked.pool.dropped == 1
    blocked.submit("closed", lost=True)  # this never is
    assert blocked.finish()[1:] == ["first", 0, 1, "closed"]


def test_the_lost_do_not_make_the_pool_too_busy_for_others(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = Blocked(loop)
    model = InPool(blocked.pool, max_queue=2)
    for number in range(10):
        pending = model.call(blocked.results.append, lambda n=number: n)
        assert isinstance(pending, Pending)
        model.abandon(pending.handle)
    model.call(blocked.results.append, lambda: "a")
    model.call(blocked.results.append, lambda: "b")
    with pytest.raises(Busy, match="2 messages are waiting"):
        model.call(blocked.results.append, int)
    assert blocked.finish() == ["first", "a", "b", *range(10)]


def test_while_too_many_ends_wait_no_connection_begins(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MOST_CLOSING", 2)
    blocked = Blocked(loop)
    model = InPool(blocked.pool)
    started: list[str] = []
    model.finish(blocked.results.append, lambda: "one")
    model.enter(object(), lambda: started.append("in time"))
    model.finish(blocked.results.append, lambda: "other")
    with pytest.raises(Busy, match="2 ended connections are waiting") as caught:
        model.enter(object(), lambda: started.append("must not start"))
    assert caught.value.refusal.value == "max-queue"
    assert blocked.finish() == ["first", "one", "other"]
    assert started == ["in time"]


def test_the_lost_leave_nothing_in_the_first_line_while_every_thread_is_blocked(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MOST_LOST", 10)
    blocked = Blocked(loop)
    for number in range(10):
        blocked.submit(number)
    for _ in range(10_000):
        blocked.pool.put_behind(blocked.submit("lost"))
    assert len(blocked.pool._backlog) < 1100
    done = [each for each in blocked.finish() if not isinstance(each, Failure)]
    assert done == ["first", *range(10), *["lost"] * 10]
    assert blocked.pool.dropped == 9990


def test_without_any_thread_the_work_of_the_lost_fails_too(loop: Loop, log: Log) -> None:
    pool = WorkerPool(2, loop.call_from_thread)
    results: list[Any] = []
    with no_more_threads():
        pool.put_behind(pool.submit(results.append, int, ()))
        pool.submit(results.append, int, ())
        loop.until(lambda: len(results) == 2)
    assert all(result.check(Busy) for result in results)
    pool.stop()


def test_a_stopped_pool_drops_the_work_of_the_lost(loop: Loop) -> None:
    blocked = Blocked(loop)
    blocked.submit("lost", lost=True)
    blocked.pool.stop()
    assert blocked.pool.lost_waiting == 0
    blocked._gate.leave.set()
    loop.until(lambda: blocked.results == ["first"])


@given(
    st.lists(st.sampled_from(["submit", "lose", "finish", "turn"]), max_size=200),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_whoever_is_lost_meanwhile_each_task_is_done_once_or_dropped(
    plan: list[str], threads: int, most: int
) -> None:
    """Meanwhile workers take tasks."""
    loop = Loop()
    results: list[tuple[int, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "MOST_LOST", most)
        pool = WorkerPool(threads, loop.call_from_thread)
        tasks: list[tuple[int, Any]] = []
        count = 0
        for step in plan:
            if step == "turn":
                loop.turn_if_due()
            elif step == "lose":
                if tasks:
                    pool.put_behind(tasks.pop(0)[1])
            else:
                keep = partial(lambda number, result: results.append((number, result)), count)
                task = pool.submit(keep, int, (count,), lost=step == "finish")
                if step == "submit":
                    tasks.append((count, task))
                count += 1
        loop.until(lambda: len(results) == count)
    assert sorted(number for number, _ in results) == list(range(count))
    dropped = [result for _, result in results if isinstance(result, Failure)]
    assert pool.dropped == len(dropped)
    assert all(result.check(Dropped) for result in dropped)
    assert all(number == result for number, result in results if isinstance(result, int))
    assert (pool.available, pool.waiting, pool.lost_waiting) == (pool.size, 0, 0)
    pool.stop()


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


@pytest_twisted.ensureDeferred
async def test_a_deferred_or_coroutine_that_has_not_fired_is_pending() -> None:
    results: list[Any] = []
    deferred: Deferred[bytes] = Deferred()

    async def wait() -> bytes:
        return await deferred + b"!"

    pending = InReactor().call(results.append, wait)
    assert isinstance(pending, Pending)
    deferred.callback(b"happy")
    await eventually(lambda: results == [b"happy!"])
    failing: Deferred[bytes] = Deferred()
    InReactor().call(results.append, lambda: failing)
    failing.errback(ZeroDivisionError())
    assert isinstance(results[1], Failure)


class Turns:
    """A serial model with the test's clock, and the connections that have started."""

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


def test_in_serial_one_whose_turn_has_come_does_not_wait_any_more() -> None:
    turns = Turns()
    for name in ("a", "b", "c"):
        turns.enter(name)
    turns.model.leave("a")
    turns.enter("d")  # as many as may wait do so again
    with pytest.raises(Busy):
        turns.enter("e")
    turns.model.leave("b")
    turns.model.leave("c")
    assert turns.started == ["a", "b", "c", "d"]
    assert not turns.model.overdue("d", turns.now + 1e6)  # no code waits for it


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


@dataclass(frozen=True)
class Guest:
    """A connection from an address."""

    network: str
    number: int


def test_in_serial_addresses_take_turns() -> None:
    turns = Turns(queue_size=100)
    model, started = turns.model, []  # type: ignore[var-annotated]
    many = [Guest("many", number) for number in range(4)]
    one, other = Guest("one", 0), Guest("other", 0)
    for guest in (*many, one):
        model.enter(guest, partial(started.append, guest))
    for guest in (many[0], one, many[1]):
        model.leave(guest)
    model.enter(other, partial(started.append, other))
    for guest in many[2:]:
        model.leave(guest)
        model.leave(other)
    assert started == [many[0], one, many[1], many[2], other, many[3]]


def test_in_serial_one_address_has_a_share_of_the_queue() -> None:
    turns = Turns(queue_size=8)
    model = turns.model
    for number in range(7):
        model.enter(Guest("many", number), str)
    with pytest.raises(Busy, match="too many connections from your address") as caught:
        model.enter(Guest("many", 7), str)
    assert caught.value.refusal.value == "serial-queue-per-address"
    model.enter(Guest("other", 0), str)
    model.enter(Guest("", 0), str)  # at a UNIX socket
    with pytest.raises(Busy, match="8 clients are waiting already") as caught:
        model.enter(Guest("third", 0), str)
    assert caught.value.refusal.value == "serial-queue"


def test_where_addresses_tell_nothing_one_may_have_the_whole_queue() -> None:
    turns = Turns(queue_size=8, shared=False)
    for number in range(9):
        turns.model.enter(Guest("many", number), str)
    with pytest.raises(Busy, match="8 clients are waiting already"):
        turns.model.enter(Guest("other", 0), str)


@pytest.mark.parametrize("shared", [True, False])
def test_one_address_has_a_share_of_the_threads(loop: Loop, shared: bool) -> None:
    model = ThreadPerConnection(WorkerPool(8, loop.call_from_thread), shared=shared)
    gate, results = Gate(), []  # type: ignore[var-annotated]
    guests = [Guest("many", number) for number in range(8)]

    def enter(guest: Guest) -> None:
        model.enter(guest, lambda: model.call(results.append, gate))

    for guest in guests[:6]:
        enter(guest)
    if shared:
        with pytest.raises(Busy, match="too many connections from your address") as caught:
            enter(guests[6])
        assert caught.value.refusal.value == "threads-per-address"
        enter(Guest("other", 0))
        enter(Guest("", 0))
    else:
        enter(guests[6])
        enter(guests[7])
    with pytest.raises(Busy, match="all 8 threads are in use") as caught:
        enter(Guest("third", 0))
    assert caught.value.refusal.value == "max-threads"
    gate.leave.set()
    loop.until(lambda: len(results) == 8)
    for guest in guests:
        model.leave(guest)
        model.leave(guest)
    for guest in guests[:6]:
        enter(guest)
    model.stop()


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
