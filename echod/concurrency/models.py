"""The four concurrency models.

Guarantees, besides those in `echod.concurrency.model`:

* In the event loop a call of `closed` may wait, too. A drain waits for it, and `stop` cancels it.
  While `MOST_CLOSING` of them wait, new connections are refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from functools import partial
from types import CoroutineType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.awaiting import cancel
from echod.concurrency.fairness import FairQueue, Holders
from echod.concurrency.lending import Lender, LentTask
from echod.concurrency.model import (
    Abandoned,
    Busy,
    Done,
    Pending,
    UnderWay,
    address_of,
    check_share,
    owner_of,
)
from echod.concurrency.pool import Task, WorkerPool, check_closing
from echod.contexts import Followed
from echod.handlers.client import current
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.per_thread import close_objects_of_this_thread
from echod.limits import Level, Limits
from echod.reasons import Refusal
from echod.text import plural

log = Logger("echod.concurrency")

# In how many turns of the loop a cancelled task learns of that, and its result is delivered.
TURNS_TO_END = 4


class _OpenHouse:
    """Base of the models that refuse no connection."""

    greets = True
    max_messages: int | None = None
    lost_waiting = 0

    @property
    def levels(self) -> Sequence[Level]:
        return ()

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        start()

    def leave(self, connection: object) -> None:
        pass

    def overdue(self, connection: object, now: float) -> bool:
        return False

    def put_off(self, connection: object, seconds: float) -> None:
        pass

    def reconfigure(self, limits: Limits) -> None:
        pass


class InReactor(_OpenHouse):
    """`reactor`: run handlers in the event loop, and wait for coroutines and Deferreds.

    Attributes:
        lender: lends tasks of the asyncio loop that runs; None while none is known to run.
    """

    name = ConcurrencyModel.REACTOR

    def __init__(self) -> None:
        # The pending results; a dictionary, because a set has no order.
        self._awaited: dict[Awaited, None] = {}
        # The calls of `closed` among them.
        self._closing: set[Awaited] = set()
        self._stopped = False
        # Whether no drain has to wait any longer.
        self._ended = False
        self._drains: list[Deferred[None]] = []
        self.lender: Lender | None = None

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        if self._closing:
            check_closing(len(self._closing))
        start()

    def call(self, done: Done, function: Callable[..., object], *arguments: object) -> object:
        return self.settle(done, function(*arguments))

    def finish(self, done: Done, function: Callable[..., object], *arguments: object) -> object:
        result = self.settle(done, function(*arguments))
        if isinstance(result, Pending):
            assert isinstance(result.handle, Awaited)
            self._closing.add(result.handle)
            if self._stopped:
                self.abandon(result.handle)
        return result

    def abandon(self, handle: object) -> None:
        assert isinstance(handle, Awaited)
        handle.abandoned = True
        handle.cancel()

    def has_begun(self, handle: object) -> bool:
        return True

    def settle(self, done: Done, result: object) -> object:
        """Do the rest of `call` after the handler's code has returned `result`."""
        if type(result) is bytes or result is None:
            return result
        if type(result) is CoroutineType:
            return self.run(done, result)
        return self._wait(done, result, None) if isinstance(result, Deferred) else result

    def run(self, done: Done, coroutine: Coroutine[Any, Any, object]) -> object:
        """Do the same for a coroutine: return its result, or a `Pending`."""
        if current.get() is None:  # from here on it keeps its value in this conversation
            current.set(getattr(owner_of(done), "client", None))
        lender = self.lender
        if lender is None or not lender.loop.is_running():
            lender = self._find_lender()
            if lender is None:
                followed = Followed(coroutine)
                return self._wait(done, Deferred.fromCoroutine(followed.run()), followed)
        result = lender.start(coroutine)
        return self.wait_for(done, result) if type(result) is LentTask else result

    def wait_for(self, done: Done, lent: LentTask) -> Pending:
        """Wait for the coroutine of `lent`: its first step has not ended it."""
        awaited = AwaitedTask(lent, done)
        self._awaited[awaited] = None
        context = getattr(owner_of(done), "conversation", None)
        context = copy_context() if context is None else context  # an empty one is false
        lent.take_over(context, partial(self._arrived, awaited))
        return Pending(awaited)

    def _find_lender(self) -> Lender | None:
        """Return the lender of the asyncio loop that runs; None if none does."""
        loop = asyncio._get_running_loop()
        if loop is None:
            return None
        if self.lender is not None:
            self.lender.stop()
        self.lender = Lender(loop)
        return self.lender

    def _wait(self, done: Done, deferred: Deferred[object], followed: Followed | None) -> object:
        """Return the result of `deferred` if it has one, otherwise a `Pending`."""
        results: list[object] = []
        awaited: Awaited | None = None

        def arrived(result: object) -> None:
            if awaited is None:
                results.append(result)
            else:
                self._arrived(awaited, result)

        deferred.addBoth(arrived)
        if not results:
            awaited = AwaitedDeferred(deferred, followed, done)
            self._awaited[awaited] = None
            return Pending(awaited)
        if followed is not None:
            followed.take_over()
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def _arrived(self, awaited: Awaited, result: object) -> None:
        """Deliver the result of a call that had to wait."""
        del self._awaited[awaited]
        self._closing.discard(awaited)
        awaited.done(awaited.settled(result))
        self._tell_if_drained()

    def under_way(self) -> list[UnderWay]:
        now = time.monotonic()
        return [one.under_way(now) for one in self._awaited]

    def drain(self) -> Deferred[None]:
        drained: Deferred[None] = Deferred()
        self._drains.append(drained)
        self._tell_if_drained()
        return drained

    def end(self) -> Deferred[None]:
        close_objects_of_this_thread()
        return succeed(None)

    def drop(self) -> None:
        # Each call once: a second time could end the `finally` of a first.
        self._stopped = True
        for awaited in list(self._awaited):
            if not awaited.abandoned:
                self.abandon(awaited)

    def stop(self) -> None:
        self.drop()
        if self.lender is not None:
            self.lender.stop()
        if any(isinstance(one, AwaitedTask) for one in self._awaited):
            self._let_them_end(TURNS_TO_END)
        else:
            self._ended = True
            self._tell_if_drained()

    def _let_them_end(self, turns: int) -> None:
        """Give cancelled tasks a few turns of the loop: they get their `CancelledError` in one."""
        self._ended = not turns
        self._tell_if_drained()
        if turns:
            asyncio.get_running_loop().call_soon(self._let_them_end, turns - 1, context=Context())

    @property
    def _is_quiet(self) -> bool:
        """Whether no handler code runs or waits."""
        return not self._awaited

    def _tell_if_drained(self) -> None:
        while self._drains and (self._ended or self._is_quiet):
            self._drains.pop(0).callback(None)


class Awaited:
    """A result that `InReactor.call` waits for.

    Attributes:
        coroutine: the coroutine that waits, if there is one.
        done: takes the result.
        abandoned: whether it has been cancelled by `InReactor.abandon`.
    """

    __slots__ = ("_since", "abandoned", "coroutine", "done")

    def __init__(self, coroutine: Coroutine[Any, Any, object] | None, done: Done) -> None:
        self.coroutine = coroutine
        self.done = done
        self.abandoned = False
        self._since = time.monotonic()

    def cancel(self) -> None:
        """Cancel it. Its result still comes."""
        raise NotImplementedError

    def take_over(self) -> None:
        """Set the context variables that the handler has set in the current context, too."""

    def settled(self, result: object) -> object:
        """Return `result`, or an `Abandoned` if it only says that echod has cancelled it."""
        if self.abandoned and isinstance(result, Failure) and _tells_of_cancelling(result):
            return Failure(Abandoned())
        return result

    def under_way(self, now: float) -> UnderWay:
        """Describe the call; `now` is the time of the monotonic clock, in seconds."""
        return UnderWay(self, owner_of(self.done), now - self._since, coroutine=self.coroutine)


class AwaitedDeferred(Awaited):
    """A Deferred that has not fired; it may be a coroutine's that runs without asyncio."""

    __slots__ = ("_deferred", "_followed")

    def __init__(self, deferred: Deferred[object], followed: Followed | None, done: Done) -> None:
        super().__init__(None if followed is None else followed.coroutine, done)
        self._deferred = deferred
        self._followed = followed

    def cancel(self) -> None:
        cancel(self._deferred)

    def take_over(self) -> None:
        if self._followed is not None:
            self._followed.take_over()


class AwaitedTask(Awaited):
    """A coroutine that waits, in an asyncio task; it runs in the conversation's own context."""

    __slots__ = ("_lent",)

    def __init__(self, lent: LentTask, done: Done) -> None:
        super().__init__(lent.coroutine, done)
        self._lent = lent

    def cancel(self) -> None:
        self._lent.task.cancel()


def _tells_of_cancelling(failure: Failure) -> bool:
    """Return whether `failure` is the consequence of a cancellation."""
    if failure.check(CancelledError, asyncio.CancelledError, ConnectingCancelledError):
        return True
    # The error of a request with Twisted's `Agent` contains its reasons.
    reasons = getattr(failure.value, "reasons", None)
    return isinstance(reasons, list) and any(
        isinstance(each, Failure) and _tells_of_cancelling(each) for each in reasons
    )


class Serial(InReactor):
    """`serial`: serve one client at a time, one message each, like a single-threaded accept loop.

    Unlike in such a loop, a silent client keeps its turn for at most `patience` seconds once
    another one waits, and at most `queue_size` clients may wait. Addresses take turns, so the many
    clients of one address do not come before the only client of another.
    """

    name = ConcurrencyModel.SERIAL
    greets = False
    max_messages = 1

    def __init__(
        self,
        seconds: Callable[[], float],
        *,
        patience: float,
        queue_size: int,
        shared: bool = True,
    ) -> None:
        """Set up an empty queue.

        Args:
            seconds: the reactor's clock.
            patience: seconds that a silent client may keep others waiting; 0: any time.
            queue_size: how many connections may wait.
            shared: whether one address may have only a share of the queue.
        """
        super().__init__()
        self._seconds = seconds
        self.patience = patience
        self.shared = shared
        self._queue_size = queue_size
        self._holder: object = None
        self._waiting: FairQueue[Callable[[], None]] = FairQueue()
        self._contended_since = 0.0
        self._advancing = False

    def reconfigure(self, limits: Limits) -> None:
        self.patience = limits.serial_timeout
        self.shared = limits.bounds_addresses

    @property
    def levels(self) -> Sequence[Level]:
        return (Level(Refusal.SERIAL_QUEUE.value, len(self._waiting), self._queue_size),)

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        check_closing(len(self._closing))
        if self._holder is None:
            self._holder = connection
            start()
            return
        address, free = address_of(connection), self._queue_size - len(self._waiting)
        if free <= 0:
            clients = plural(self._queue_size, "client is", "clients are")
            raise Busy(f"{self._queue_size} {clients} waiting already", Refusal.SERIAL_QUEUE)
        if self.shared and address:
            check_share(self._waiting.waiting(address), free, Refusal.SERIAL_QUEUE_PER_ADDRESS)
        if not self._waiting:
            self._contended_since = self._seconds()
        self._waiting.add(connection, address, start)

    def leave(self, connection: object) -> None:
        self._waiting.discard(connection, address_of(connection))
        if connection is not self._holder:
            return
        self._holder = None
        if self._advancing:
            return  # a successor left as soon as it had started; the loop below continues
        self._advancing = True
        last = address_of(connection)
        while self._holder is None and self._waiting:
            self._holder, start = self._waiting.next(last)
            last = address_of(self._holder)
            self._contended_since = self._seconds()
            start()
        self._advancing = False

    def overdue(self, connection: object, now: float) -> bool:
        return bool(
            self.patience
            and self._waiting
            and connection is self._holder
            and now - self._contended_since >= self.patience
        )

    def put_off(self, connection: object, seconds: float) -> None:
        if connection is self._holder:
            # Another client may have come within this time.
            self._contended_since = min(self._seconds(), self._contended_since + seconds)


class InPool(_OpenHouse):
    """`defer-to-thread`: run handlers in a pool of threads, which leaves the event loop free.

    If every thread is busy, messages wait, at most one of each connection; above `max_queue` the
    client is told so and disconnected. If the daemon only stopped reading from it, the client
    would wait for an unknown time; a refused client, or its load balancer, can try elsewhere.
    """

    name = ConcurrencyModel.DEFER_TO_THREAD

    def __init__(self, pool: WorkerPool, *, max_queue: int = 0) -> None:
        """Run handler code in `pool`.

        Args:
            pool: the threads.
            max_queue: how many messages may wait for a thread; 0: any number.
        """
        self.pool = pool
        self._max_queue = max_queue

    @property
    def levels(self) -> Sequence[Level]:
        waiting = Level(Refusal.MAX_QUEUE.value, self.pool.waiting, self._max_queue)
        return Level(Refusal.THREADS.value, self.pool.busy, self.pool.size), waiting

    @property
    def lost_waiting(self) -> int:  # type: ignore[override] # a number in the other models
        return self.pool.lost_waiting

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        check_closing(self.pool.lost_waiting)
        start()

    def call(self, done: Done, function: Callable[..., object], *arguments: object) -> object:
        return Pending(self.submit(done, function, arguments))

    def submit(
        self, done: Done, function: Callable[..., object], arguments: tuple[object, ...]
    ) -> Task:
        """Do the same as `call`, and return the argument for `abandon`.

        Raises:
            Busy: too much is waiting already.
        """
        if self._max_queue and self.pool.waiting >= self._max_queue:
            waiting = self.pool.waiting
            messages = plural(waiting, "message is", "messages are")
            raise Busy(f"{waiting} {messages} waiting already, try again later", Refusal.MAX_QUEUE)
        return self.pool.submit(done, function, arguments)

    def finish(self, done: Done, function: Callable[..., object], *arguments: object) -> object:
        return Pending(self.pool.submit(done, function, arguments, lost=True, kept=True))

    def abandon(self, handle: object) -> None:
        assert isinstance(handle, list)
        self.pool.put_behind(handle)

    def has_begun(self, handle: object) -> bool:
        assert isinstance(handle, list)
        return self.pool.has_begun(handle)

    def under_way(self) -> list[UnderWay]:
        return self.pool.under_way()

    def drain(self) -> Deferred[None]:
        return self.pool.drain()

    def end(self) -> Deferred[None]:
        return self.pool.end()

    def drop(self) -> None:
        self.pool.drop()

    def stop(self) -> None:
        self.pool.stop()


class ThreadPerConnection(InPool):
    """`thread-per-connection`: each connection has a thread until its handler returns.

    If every thread is in use, a client is refused at once, with a line that says so. A queue would
    be worse: a conversation lasts as long as its client likes, so the wait is unpredictable, and a
    client cannot tell a queue from a server that hangs; a refused client, or its load balancer,
    can try elsewhere. One address may have only a share of the threads, because a thread whose
    client is silent cannot be given to another.
    """

    name = ConcurrencyModel.THREAD_PER_CONNECTION

    def __init__(self, pool: WorkerPool, *, shared: bool = True) -> None:
        """Run handler code in `pool`.

        Args:
            pool: the threads.
            shared: whether one address may have only a share of them.
        """
        super().__init__(pool)
        self.shared = shared
        self._inside = Holders()

    def reconfigure(self, limits: Limits) -> None:
        self.shared = limits.bounds_addresses

    @property
    def levels(self) -> Sequence[Level]:
        return (Level(Refusal.MAX_THREADS.value, self.pool.busy, self.pool.size),)

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        address, free = address_of(connection), self.pool.available
        if free == 0:
            size = self.pool.size
            threads = plural(size, "the only thread is", f"all {size} threads are")
            raise Busy(f"{threads} in use, try again later", Refusal.MAX_THREADS)
        if self.shared and address:
            check_share(self._inside.by_address[address], free, Refusal.THREADS_PER_ADDRESS)
        self._inside.add(connection, address)
        start()

    def leave(self, connection: object) -> None:
        self._inside.discard(connection)
