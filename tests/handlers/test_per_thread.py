from __future__ import annotations

import threading

import pytest_twisted

from echod.concurrency.models import InReactor
from echod.concurrency.pool import WorkerPool
from echod.handlers.per_thread import PerThread
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import eventually


@pytest_twisted.ensureDeferred
async def test_an_object_is_closed_in_the_thread_that_has_made_it() -> None:
    """Fault 132: The objects of a thread are closed in that thread, when the pool ends."""
    closed: list[tuple[int, int]] = []
    threads = PerThread(
        threading.get_ident, lambda made: closed.append((made, threading.get_ident()))
    )
    pool = WorkerPool(3, reactor.callFromThread)
    barrier = threading.Barrier(3)
    results: list[tuple[int, int]] = []
    for _ in range(3):
        pool.submit(results.append, lambda: (barrier.wait(), threads.get(), threads.get())[1:], ())
    await eventually(lambda: len(results) == 3)
    assert all(first == second for first, second in results)
    await pool.end()
    assert sorted(closed) == sorted((one, one) for one, _ in results)


@pytest_twisted.ensureDeferred
async def test_no_thread_that_hangs_keeps_the_pool_from_its_end() -> None:
    pool, leave = WorkerPool(1, reactor.callFromThread), threading.Event()
    begun = threading.Event()
    pool.submit(lambda _: None, lambda: (begun.set(), leave.wait()), ())
    await eventually(begun.is_set)
    ended = pool.end()
    assert not ended.called
    pool.stop()
    assert ended.called
    leave.set()


@pytest_twisted.ensureDeferred
async def test_in_the_event_loop_there_is_one_and_an_error_as_it_closes_is_logged(
    log: Log,
) -> None:
    made: list[object] = []

    def connect() -> object:
        made.append(object())
        return made[-1]

    def fail(one: object) -> None:
        raise RuntimeError("no good")

    threads = PerThread(connect, fail)
    assert threads.get() is threads.get()
    await InReactor().end()
    (error,) = log.take_errors()
    assert "no good" in error
    assert len(made) == 1
    PerThread(connect).get()
    await InReactor().end()
