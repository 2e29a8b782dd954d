"""The four concurrency models: where a handler's code runs.

Guarantees:

* A model is used from the reactor thread only; handler code runs where the model says.
* `call` either returns the result, or raises, or returns a `Pending` and calls `done` later, once,
  in the reactor thread, never before `call` has returned.
* Pool threads are daemons and are never joined: a handler that blocks for ever cannot keep the
  process from ending.  No call waits for a thread; a pool that is busy queues.
* The pool is echod's own: the reactor's pool, which resolves names, is left alone.
* In the event loop a call of `closed` may wait, too.  A drain waits for it, `stop` cancels it; and
  while `MOST_CLOSING` of them wait, new connections are refused.
* Work of a connection that is lost waits behind the work of those that are open.  It is still
  done: one such task for each `OPEN_IN_A_ROW` others where there is no end of those.  A message
  is dropped, and counted, only when `MOST_LOST` such tasks wait; a handler's `closed` never is,
  and when more of those wait than that, every second task is one of them.

How the pool is cheap, and keeps its promises without a lock:

* Tasks wait in one backlog, from which workers help themselves (`deque.popleft` is atomic), so a
  worker does many short tasks in a row, and no other has to be woken for them.
* What lost connections leave waits in a second line.  A task is moved there in two steps: its
  arguments are taken out (`list.pop` is atomic: either the reactor has them, or a worker, which
  then runs the task), and a new task with them joins the second line.  The first line keeps an
  empty task, which costs a worker nothing; many of them are cleared away together.
* Only the reactor thread wakes workers, and starts them; one at a time, in `_turn`.  Whatever may
  call for a worker asks for a turn: a task that is submitted, and a worker that has just woken
  and taken a task while others wait.  If that task is short, the turn finds nothing left to do,
  as it waits for the interpreter's lock until then.  If it blocks, that lock is free, and the
  turn wakes the next worker.  So no task waits for a blocked worker while another could run.
* A worker that finds the backlog empty announces that it is idle, then looks again: a task that
  was submitted in between is seen by that look, or the worker is seen by the task's turn.
* A result is put where the next turn finds it before that turn is asked for.  A turn that is
  asked for already is not asked for again: many tasks, and many results, cost one wake-up of the
  event loop.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import inspect
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.connection import ConnectionSocket
from echod.contexts import Followed
from echod.fairness import Holders, Turns, may_have_another
from echod.forking import end_child
from echod.handlers import (
    Client,
    Close,
    ConcurrencyModel,
    Handler,
    ResolvedHandler,
    StandInServer,
    checked,
    is_request_handler,
)
from echod.limits import Level
from echod.messages.framing import Chunk, Framing, FramingError, encode_greeting
from echod.messages.session import Session
from echod.reasons import EndReason
from echod.text import plural

log = Logger("echod.concurrency")

# How many tasks of lost connections may wait before messages are dropped.  Their replies would go
# nowhere, so this is generous: of the longest messages of `length` framing it is 128 MiB.
MOST_LOST = 4096

# How many `closed` calls may wait before new connections are refused, as each of those will need
# another.  They cannot be dropped; each keeps its handler in memory, 50 MiB of them in all.
MOST_CLOSING = 4 * MOST_LOST

# How many tasks of open connections a worker prefers to one of a lost one that waits.
OPEN_IN_A_ROW = 15

# Called in the reactor thread with what the handler returned, or a Failure.
Done = Callable[[Any], None]


class Busy(Exception):
    """A connection, or a message, cannot be taken now; the text is fit to send to the client.

    Attributes:
        limit: which limit says so.
    """

    def __init__(self, text: str, limit: str) -> None:
        super().__init__(f"Server busy: {text}")
        self.limit = limit


class Abandoned(CancelledError):
    """What was waited for was given up by us, as the connection is lost, or all comes to its end.

    What the handler cancels itself has other errors, Twisted's or asyncio's.
    """


class Dropped(Abandoned):
    """A message of a lost connection was not handled, as too many of them wait already."""


class Pending:
    """What `call` returns when the result will come through `done`.

    Attributes:
        handle: what `abandon` takes.
    """

    __slots__ = ("handle",)

    def __init__(self, handle: Any) -> None:
        self.handle = handle


# A call that waits for a thread: `done`, the function and, until it begins, its arguments.  A
# list, since its last item can be taken out in one step that no other thread comes between.
Task = list[Any]


class Model(Protocol):
    """Where a handler runs."""

    @property
    def name(self) -> ConcurrencyModel:
        """What `--concurrency` calls it."""

    @property
    def greets(self) -> bool:
        """Whether clients get a greeting."""

    @property
    def max_messages(self) -> int | None:
        """How many messages of a connection are answered; None: all."""

    @property
    def levels(self) -> Sequence[Level]:
        """What is scarce, and how much of it is taken."""

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        """Let a new connection start: call `start` now, or when its turn comes.

        Raises:
            Busy: it is refused.
        """

    def leave(self, connection: object) -> None:
        """Learn that a connection that entered needs its place no longer; again is harmless."""

    def overdue(self, connection: object, now: float) -> bool:
        """Whether a silent connection has kept its place too long.

        Args:
            connection: one that has started, and has sent nothing yet.
            now: the reactor's time, in seconds.
        """

    def call(self, done: Done, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run handler code: see the module's guarantees.

        Raises:
            Busy: too much is waiting already.
        """

    def finish(self, done: Done, function: Callable[..., Any], *arguments: Any) -> Any:
        """Do what `call` does, for a connection that is lost: this is never refused."""

    def abandon(self, handle: Any) -> None:
        """Learn that the connection is lost for which `call` has returned a `Pending`.

        `done` may be called at once, with a Failure.

        Args:
            handle: the `Pending`'s.
        """

    def under_way(self) -> list[UnderWay]:
        """Return the calls that have begun and are not over."""

    def drain(self) -> Deferred[None]:
        """Return what fires once no handler code runs or waits to run; `stop` fires it too."""

    def stop(self) -> None:
        """Run nothing more."""


class _OpenHouse:
    """What those models have in common that let everybody in, for as long as they like."""

    greets = True
    max_messages: int | None = None

    @property
    def levels(self) -> Sequence[Level]:
        return ()

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        start()

    def leave(self, connection: object) -> None:
        pass

    def overdue(self, connection: object, now: float) -> bool:
        return False


class InReactor(_OpenHouse):
    """`reactor`: in the event loop; coroutines and Deferreds are waited for."""

    name = ConcurrencyModel.REACTOR

    def __init__(self) -> None:
        # What is waited for; a dictionary, as a set has no order.
        self._awaited: dict[Awaited, None] = {}
        # Those of them that are calls of `closed`.
        self._closing: set[Awaited] = set()
        self._stopped = False
        self._drains: list[Deferred[None]] = []

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        check_closing(len(self._closing))
        start()

    def call(self, done: Done, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.settle(done, function(*arguments))

    def finish(self, done: Done, function: Callable[..., Any], *arguments: Any) -> Any:
        result = self.settle(done, function(*arguments))
        if isinstance(result, Pending):
            self._closing.add(result.handle)
            if self._stopped:
                self.abandon(result.handle)
        return result

    def abandon(self, handle: Any) -> None:
        handle.abandoned = True
        try:
            handle.deferred.cancel()
        except Exception:  # a canceller of the handler's own
            log.failure("What a handler waits for cannot be cancelled")

    def settle(self, done: Done, result: Any) -> Any:
        """Do what `call` does once the handler's code has returned `result`."""
        if result.__class__ is bytes or result is None:
            return result
        followed = None
        if inspect.iscoroutine(result):
            followed = Followed(result)
            result = Deferred.fromCoroutine(followed.run())
        return self._wait(done, result, followed) if isinstance(result, Deferred) else result

    def _wait(self, done: Done, deferred: Deferred[Any], followed: Followed | None) -> Any:
        """Return the result of `deferred` if it has one, else what will become one."""
        results: list[Any] = []
        awaited: Awaited | None = None

        def arrived(result: Any) -> None:
            if awaited is None:
                results.append(result)
            else:
                del self._awaited[awaited]
                self._closing.discard(awaited)
                done(awaited.settled(result))
                self._tell_if_drained()

        deferred.addBoth(arrived)
        if not results:
            awaited = Awaited(deferred, followed, done)
            self._awaited[awaited] = None
            return Pending(awaited)
        if followed is not None:
            followed.take_over()
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def under_way(self) -> list[UnderWay]:
        now = time.monotonic()
        return [one.under_way(now) for one in self._awaited]

    def drain(self) -> Deferred[None]:
        drained: Deferred[None] = Deferred()
        self._drains.append(drained)
        self._tell_if_drained()
        return drained

    def stop(self) -> None:
        self._stopped = True
        for awaited in list(self._awaited):
            self.abandon(awaited)
        self._tell_if_drained()

    def _tell_if_drained(self) -> None:
        while self._drains and (self._stopped or not self._awaited):
            self._drains.pop(0).callback(None)


@dataclass(frozen=True)
class UnderWay:
    """A call of handler code that has not returned, or not given its result yet.

    Attributes:
        key: tells it from all others.
        owner: the connection it is for; something else where it is for none.
        age: how long it is known to have lasted, in seconds.
        thread: where it runs, as `threading.get_ident` says there; None where it only waits.
        coroutine: what waits, if that is a coroutine.
    """

    key: object
    owner: Any
    age: float = 0.0
    thread: int | None = None
    coroutine: Any = None


def owner_of(done: Any) -> Any:
    """Return whose method is to take a result."""
    while isinstance(done, partial):
        done = done.func
    return getattr(done, "__self__", None)


class Awaited:
    """What `InReactor.call` waits for.

    Attributes:
        deferred: has not fired; it can be cancelled.
        followed: the coroutine behind it, if there is one.
        abandoned: whether it has been cancelled by `InReactor.abandon`.
    """

    __slots__ = ("_done", "_since", "abandoned", "deferred", "followed")

    def __init__(self, deferred: Deferred[Any], followed: Followed | None, done: Done) -> None:
        self.deferred = deferred
        self.followed = followed
        self.abandoned = False
        self._done = done
        self._since = time.monotonic()

    def settled(self, result: Any) -> Any:
        """Return `result`; where it only says that we have cancelled, an `Abandoned`."""
        if self.abandoned and isinstance(result, Failure) and _tells_of_cancelling(result):
            return Failure(Abandoned())
        return result

    def under_way(self, now: float) -> UnderWay:
        """Return what is known of the call; `now` is the monotonic clock's, in seconds."""
        coroutine = self.followed.coroutine if self.followed is not None else None
        return UnderWay(self, owner_of(self._done), now - self._since, coroutine=coroutine)


def _tells_of_cancelling(failure: Failure) -> bool:
    """Return whether `failure` is what comes of something that was cancelled."""
    if failure.check(CancelledError, asyncio.CancelledError, ConnectingCancelledError):
        return True
    # What went wrong with a request of Twisted's `Agent` holds the reasons for it.
    reasons = getattr(failure.value, "reasons", None)
    return isinstance(reasons, list) and any(
        isinstance(each, Failure) and _tells_of_cancelling(each) for each in reasons
    )


class Serial(InReactor):
    """`serial`: one client at a time, one message each, as a single-threaded accept loop does.

    Unlike such a loop, a silent client holds the turn for `patience` seconds at most once
    another one waits, and at most `queue_size` may wait.  Addresses have turns one after the
    other, so the many of one do not come before the only one of another.
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
            patience: seconds that a silent client may keep others waiting; 0: for ever.
            queue_size: how many connections may wait.
            shared: whether one address may have only a share of the queue.
        """
        super().__init__()
        self._seconds = seconds
        self.patience = patience
        self.shared = shared
        self._queue_size = queue_size
        self._holder: object = None
        self._waiting: Turns[Callable[[], None]] = Turns()
        self._contended_since = 0.0
        self._advancing = False

    @property
    def levels(self) -> Sequence[Level]:
        return (Level("serial-queue", len(self._waiting), self._queue_size),)

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        check_closing(len(self._closing))
        if self._holder is None:
            self._holder = connection
            start()
            return
        address, free = _address_of(connection), self._queue_size - len(self._waiting)
        if free <= 0:
            clients = plural(self._queue_size, "client is", "clients are")
            raise Busy(f"{self._queue_size} {clients} waiting already", "serial-queue")
        if self.shared and address:
            _check_share(self._waiting.waiting(address), free, "serial-queue-per-address")
        if not self._waiting:
            self._contended_since = self._seconds()
        self._waiting.add(connection, address, start)

    def leave(self, connection: object) -> None:
        self._waiting.discard(connection, _address_of(connection))
        if connection is not self._holder:
            return
        self._holder = None
        if self._advancing:
            return  # a successor left as soon as it had started: the loop below goes on
        self._advancing = True
        last = _address_of(connection)
        while self._holder is None and self._waiting:
            self._holder, start = self._waiting.next(last)
            last = _address_of(self._holder)
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


class InPool(_OpenHouse):
    """`defer-to-thread`: in a pool of threads, with the event loop free meanwhile.

    With every thread busy, messages wait, one of each connection at most; above `max_queue` the
    client is told so and disconnected.  To stop reading from it instead would leave it without
    an answer for nobody knows how long; told, it or its load balancer can try elsewhere.
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
        waiting = Level("max-queue", self.pool.waiting, self._max_queue)
        return Level("threads", self.pool.busy, self.pool.size), waiting

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        check_closing(self.pool.lost_waiting)
        start()

    def call(self, done: Done, function: Callable[..., Any], *arguments: Any) -> Any:
        return Pending(self.submit(done, function, arguments))

    def submit(self, done: Done, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Task:
        """Do what `call` does, and return what `abandon` takes.

        Raises:
            Busy: too much is waiting already.
        """
        if self._max_queue and self.pool.waiting >= self._max_queue:
            waiting = self.pool.waiting
            messages = plural(waiting, "message is", "messages are")
            raise Busy(f"{waiting} {messages} waiting already, try again later", "max-queue")
        return self.pool.submit(done, function, arguments)

    def finish(self, done: Done, function: Callable[..., Any], *arguments: Any) -> Any:
        return Pending(self.pool.submit(done, function, arguments, lost=True))

    def abandon(self, handle: Any) -> None:
        self.pool.put_behind(handle)

    def under_way(self) -> list[UnderWay]:
        return self.pool.under_way()

    def drain(self) -> Deferred[None]:
        return self.pool.drain()

    def stop(self) -> None:
        self.pool.stop()


class ThreadPerConnection(InPool):
    """`thread-per-connection`: each connection has a thread until its handler returns.

    With every thread taken, a client is refused at once, with a line that says so.  A queue
    would be worse: a conversation lasts as long as its client likes, so nobody could say how
    long the wait will be, and a client cannot tell a queue from a server that hangs; refused, it
    or its load balancer can try elsewhere.  One address may have only a share of the threads: a
    thread whose client says nothing could not be taken back for another.
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

    @property
    def levels(self) -> Sequence[Level]:
        return (Level("max-threads", self.pool.busy, self.pool.size),)

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        address, free = _address_of(connection), self.pool.available
        if free == 0:
            size = self.pool.size
            threads = plural(size, "the only thread is", f"all {size} threads are")
            raise Busy(f"{threads} in use, try again later", "max-threads")
        if self.shared and address:
            _check_share(self._inside.by_address[address], free, "threads-per-address")
        self._inside.add(connection, address)
        start()

    def leave(self, connection: object) -> None:
        self._inside.discard(connection)


def check_closing(waiting: int) -> None:
    """Raise `Busy` where as many calls of `closed` wait as may."""
    if waiting >= MOST_CLOSING:
        text = f"{MOST_CLOSING} ended connections are waiting already, try again later"
        raise Busy(text, "max-queue")


def _address_of(connection: object) -> str:
    """Return what a connection counts under; "" where it has no address."""
    address: str = getattr(connection, "network", "")
    return address


def _check_share(held: int, free: int, limit: str) -> None:
    """Raise `Busy` where an address has its share already."""
    if not may_have_another(held, free):
        raise Busy("too many connections from your address, try again later", limit)


class _Worker:
    """A thread of the pool, and the task that it is at."""

    __slots__ = ("process", "task", "thread")

    def __init__(self) -> None:
        self.process = os.getpid()
        self.thread = threading.get_ident()
        self.task: Task | None = None

    def over(self, result: object) -> None:
        """Note that the task has `result`: in a child that it has forked, that is the end."""
        if os.getpid() != self.process:
            end_child(result)
        self.task = None


class _Key:
    """A task as a key: the same only if it is the very same one."""

    __slots__ = ("_task",)

    def __init__(self, task: Task) -> None:
        self._task = task

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._task is other._task

    def __hash__(self) -> int:
        return id(self._task)


class WorkerPool:
    """At most `size` daemon threads that run tasks; results go back to the reactor in batches.

    Threads are started when first needed, and the one that was idle last is used first, so that
    a lightly loaded pool keeps few stacks warm.

    In the reactor thread it does as the thread pool that Twisted's `deferToThreadPool` takes.

    Attributes:
        size: how many threads there may be.
        dropped: how many messages of lost connections found no room.
    """

    def __init__(
        self,
        size: int,
        call_from_thread: Callable[[Callable[[], None]], object],
        *,
        name: str = "echod",
        queues: bool = True,
    ) -> None:
        """Set up a pool without threads.

        Args:
            size: how many threads there may be.
            call_from_thread: runs a function in the reactor thread, soon; safe in any thread.
            name: what the threads' names start with.
            queues: whether a task may wait for a busy thread where the system allows no other.
        """
        self.size = size
        self._queues = queues
        self._call_from_thread = call_from_thread
        self._name = name
        self._threads = 0
        # Tasks that were submitted and whose results were not passed on.
        self._unfinished = 0
        self._backlog: deque[Task] = deque()
        # Those of connections that are lost.
        self._lost: deque[Task] = deque()
        # How many empty tasks the backlog may hold.
        self._emptied = 0
        self.dropped = 0
        self._results: deque[tuple[Done, Any]] = deque()
        self._workers: list[_Worker] = []
        # What idle workers wait for: locks that they hold, and that the reactor releases.
        self._idle: list[_thread.LockType] = []
        # Whether a worker is on its way that has not looked at the backlog yet.
        self._summoned = False
        self._turn_is_due = False
        self._stopped = False
        self._drained: Deferred[None] | None = None

    @property
    def available(self) -> int:
        """How many tasks could start at once."""
        return 0 if self._stopped else max(0, self.size - self._unfinished)

    @property
    def waiting(self) -> int:
        """How many tasks wait for a thread, but for those of lost connections."""
        return max(0, self._unfinished - self.size - len(self._lost))

    @property
    def lost_waiting(self) -> int:
        """How many tasks of lost connections wait for a thread."""
        return len(self._lost)

    @property
    def busy(self) -> int:
        """How many threads are at work, or were a moment ago."""
        return min(self.size, self._unfinished)

    def submit(
        self,
        done: Done,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        *,
        lost: bool = False,
    ) -> Task:
        """Run `function(*arguments)` in a thread, and `done(result or Failure)` in the reactor.

        Where no thread can be started, that is a Failure with `Busy`.  After `stop` it is dropped.

        Args:
            done: takes the result.
            function: what to run.
            arguments: its arguments.
            lost: whether it is for a connection that is lost, and has to wait for the others.

        Returns:
            What `put_behind` takes.
        """
        task = [done, function, arguments]
        if not self._stopped:
            self._unfinished += 1
            (self._lost if lost else self._backlog).append(task)
            # At the end of this turn of the loop: a worker that was woken now would fight the
            # reactor for the interpreter's lock while that still reads what other clients sent.
            if not self._turn_is_due:
                self._ask_for_a_turn()
        return task

    def put_behind(self, task: Task) -> None:
        """Let a task of a lost connection wait for those of the others, unless it has begun.

        Where too many such tasks wait, it is dropped: `done` is called with a `Dropped`, at once.
        """
        try:
            arguments = task.pop(2)
        except IndexError:  # a worker has it
            return
        done, function = task
        task.clear()
        if not self._turn_is_due:
            # A worker may have found the empty task before the other one was there.
            self._ask_for_a_turn()
        self._emptied += 1
        if self._emptied > max(1000, len(self._backlog) // 2):
            self._clear_away_the_emptied()
        if len(self._lost) < MOST_LOST:
            self._lost.append([done, function, arguments])
        else:
            self.dropped += 1
            self._unfinished -= 1
            done(Failure(Dropped()))

    def _clear_away_the_emptied(self) -> None:
        """Keep no more empty tasks than others, however long every worker is blocked."""
        # A task that a worker takes meanwhile is put back, but without its arguments.
        tasks = self._backlog.copy()
        self._backlog.clear()
        self._backlog.extend(filter(None, tasks))
        self._emptied = 0

    def under_way(self) -> list[UnderWay]:
        """Return the calls that threads are at."""
        begun = [(worker.task, worker.thread) for worker in self._workers]
        return [
            # A list is what it is, and no other one has its address while this one is kept.
            UnderWay(_Key(task), owner_of(task[0]), thread=thread)
            for task, thread in begun
            if task is not None
        ]

    def callInThread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Run `function` in a thread; an exception is logged."""
        self.submit(_log_if_failed, partial(function, *args, **kwargs), ())

    def callInThreadWithCallback(
        self, on_result: Callable[[bool, Any], object], function: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Run `function` in a thread, then `on_result(succeeded, result or Failure)`.

        That runs in the reactor thread; in Twisted's own `ThreadPool` it runs in the other.
        """

        def done(result: Any) -> None:
            on_result(not isinstance(result, Failure), result)

        self.submit(done, partial(function, *args, **kwargs), ())

    def drain(self) -> Deferred[None]:
        """Return what fires once no task runs or waits, at once where that is so, or at `stop`."""
        if self._drained is None:
            self._drained = Deferred()
        drained = self._drained
        self._tell_if_drained()
        return drained

    def stop(self) -> None:
        """Drop what has not begun; idle threads end now, busy ones when they can."""
        self._stopped = True
        self._backlog.clear()
        self._lost.clear()
        while self._idle:
            self._idle.pop().release()
        self._tell_if_drained()

    def _tell_if_drained(self) -> None:
        if self._drained is not None and (self._stopped or not self._unfinished):
            drained, self._drained = self._drained, None
            drained.callback(None)

    def _ask_for_a_turn(self) -> None:
        self._turn_is_due = True
        self._call_from_thread(self._turn)

    def _turn(self) -> None:
        """In the reactor thread: pass on what has come, and find a worker for what waits."""
        for _ in range(len(self._results)):
            done, result = self._results.popleft()
            self._unfinished -= 1
            try:
                done(result)
            except Exception:  # one connection's trouble must not keep the others' results
                log.failure("A result could not be delivered")
        # Only now, as `done` may have submitted more; what comes from here on asks for a turn.
        self._turn_is_due = False
        if self._results:
            self._ask_for_a_turn()
        if (self._backlog or self._lost) and not self._summoned:
            self._summon()
        self._tell_if_drained()

    def _summon(self) -> None:
        if self._idle:
            self._summoned = True
            self._idle.pop().release()
        elif self._threads < self.size:
            self._summoned = True
            name = f"{self._name}-{self._threads}"
            try:
                threading.Thread(target=self._work, name=name, daemon=True).start()
            except RuntimeError as error:  # at the system's limit, or the unit's
                self._summoned = False
                self._do_without(error)
            else:
                self._threads += 1

    def _do_without(self, error: RuntimeError) -> None:
        """No thread can be started: fail what waits, unless a busy thread will see to it."""
        if self._threads and self._queues:
            return
        log.warn(
            "No thread can be started ({why}); threads: {count}",
            why=str(error),
            count=self._threads,
        )
        for line in (self._backlog, self._lost):
            while line:
                with contextlib.suppress(IndexError):  # a thread is faster, or it is empty
                    task = line.popleft()
                    task.pop(2)
                    busy = Busy("no thread can be started, try again later", "threads")
                    self._results.append((task[0], Failure(busy)))
        if not self._turn_is_due:
            self._ask_for_a_turn()

    def _work(self) -> None:
        """Live as a worker thread."""
        called = _thread.allocate_lock()
        called.acquire()
        self._summoned = False
        worker = _Worker()
        self._workers.append(worker)
        while not self._stopped:
            self._work_off_backlog(worker)
            self._idle.append(called)
            waits = self._backlog or self._lost or self._stopped
            if not (waits and self._take_back(called)):
                called.acquire()
                self._summoned = False

    def _take_back(self, called: _thread.LockType) -> bool:
        """Be idle no longer; return False if the reactor has chosen this worker meanwhile."""
        try:
            self._idle.remove(called)
        except ValueError:
            return False
        return True

    def _work_off_backlog(self, worker: _Worker) -> None:
        """Run tasks until none is left.  Nothing of them may stay alive while the thread waits."""
        backlog, lost, results = self._backlog, self._lost, self._results
        just_woken = True
        in_a_row = 0
        while backlog or lost:
            line = backlog
            if lost and (in_a_row >= _most_in_a_row(len(lost)) or not backlog):
                line = lost
            try:
                task = line.popleft()
                arguments = task.pop(2)
            except IndexError:  # another worker was faster, or the connection is lost
                continue
            if line is lost:
                in_a_row = 0
            elif lost:
                in_a_row += 1
            done, function = task
            if just_woken:
                just_woken = False
                if (backlog or lost) and not self._turn_is_due:
                    self._ask_for_a_turn()
            worker.task = task
            try:
                result = function(*arguments)
            except BaseException:  # whatever it is, it ends one connection and not this thread
                result = Failure()
            worker.over(result)
            results.append((done, result))
            if not self._turn_is_due:
                self._ask_for_a_turn()


def _most_in_a_row(lost: int) -> int:
    """Return how many tasks of open connections come before one of `lost` ones.

    Above `MOST_LOST` those are calls of `closed`, of which each connection brings one: where there
    is no end of the others, they would only become more.
    """
    return OPEN_IN_A_ROW if lost <= MOST_LOST else 1


def _log_if_failed(result: object) -> None:
    if isinstance(result, Failure):
        log.failure("A function that was called in a thread failed", result)


@dataclass(frozen=True)
class Conversation:
    """What a thread needs to hold one connection's whole conversation.

    Attributes:
        handler: the handler, of either kind.
        framing: how messages are cut, for a message handler.
        client: who is at the other end.
        banner: sent instead of the handler's greeting, as it is; None: the handler's own is.
        server: what `socketserver` handlers find as `self.server`.
    """

    handler: ResolvedHandler
    framing: Framing
    client: Client
    banner: bytes | None
    server: StandInServer

    def own_socket(self, conn: ConnectionSocket) -> EndReason:
        """Hand `conn` to a connection handler, until it returns."""
        if self.banner:
            conn.sendall(self.banner)
        if is_request_handler(self.handler.target):
            self.server.meet(conn.getsockname())
            self.handler.converse(conn, conn.getpeername(), self.server)
        elif isinstance(self.handler.converse(conn), bytes | bytearray | memoryview | Close):
            raise TypeError(
                "a connection handler sends by itself, and what it returns goes nowhere; "
                "mark it with @message_handler if it takes messages"
            )
        return EndReason.DRAINED if conn.draining else EndReason.HANDLER

    def answer_messages(self, conn: ConnectionSocket) -> EndReason:
        """Read `conn`, and give its messages to a message handler: the obvious loop."""
        handler = self.handler.message_handler()
        greeting = call_opened(handler, self.client)
        reason = EndReason.HANDLER_ERROR
        try:
            if self.banner is not None:
                conn.sendall(self.banner)
            elif greeting:
                conn.sendall(encode_greeting(self.framing, checked(greeting)))
            whole_reads = isinstance(self.framing, Chunk)
            loop = self._answer_reads if whole_reads else self._answer_framed
            reason = loop(conn, handler)
        except OSError as error:
            if conn.caused(error):
                reason = EndReason.LOST
            raise
        finally:
            call_closed(handler, reason)
        return reason

    def _answer_reads(self, conn: ConnectionSocket, handler: Handler) -> EndReason:
        """Where what one read gave is a message: no framer, no session, and nothing held.

        What `conn.recv` and `conn.sendall` do is written out here: in a loop of two system calls,
        a Python call around each is felt.
        """
        received, size = handler.received, self.framing.max_message
        recv, sendall = super(ConnectionSocket, conn).recv, super(ConnectionSocket, conn).sendall
        try:
            while not conn.draining:
                conn.receiving = True
                message = recv(size)
                conn.received_bytes += len(message)
                conn.receiving = False
                if not message:
                    break
                conn.messages += 1
                reply = received(message)
                if reply.__class__ is bytes:
                    conn.sending = True
                    sendall(reply)
                    conn.sent_bytes += len(reply)
                    conn.sending = False
                elif isinstance(reply, Close):
                    if reply.reply:
                        self._send(conn, reply.reply)
                    return EndReason.HANDLER
                elif reply is not None:
                    self._send(conn, reply)
        except BaseException as error:
            if not conn.ended_by(error):
                conn.failed(error)
                raise
        # At a drain the stream ends earlier than the socket says: `conn.recv` knows where.
        return self._answer_framed(conn, handler) if conn.draining else EndReason.CLIENT

    def _answer_framed(self, conn: ConnectionSocket, handler: Handler) -> EndReason:
        session = Session(self.framing.framer())
        received, reason = handler.received, EndReason.CLIENT
        size = max(self.framing.max_message, 1024)
        while not session.finished:
            try:
                message = session.next_message()
            except FramingError as error:
                conn.sendall(self.framing.encode_line(str(error).encode()))
                return EndReason.FRAMING_ERROR
            if message is not None:
                conn.messages += 1
                reply: Any = received(message)
                if isinstance(reply, Close):
                    session.close()
                    reason, reply = EndReason.HANDLER, reply.reply or None
                if reply is not None:
                    self._send(conn, reply)
                session.answered()
            elif not session.finished:
                conn.incomplete = session.incomplete
                data = conn.recv(size)
                if data:
                    session.receive(data)
                else:
                    session.end_input(cut_off=conn.draining)
                    reason = EndReason.DRAINED if conn.draining else EndReason.CLIENT
        return reason

    def _send(self, conn: ConnectionSocket, reply: object) -> None:
        if data := self.framing.encode(checked(reply)):
            conn.sendall(data)


def overridden(handler: Handler, hook: str) -> Callable[..., Any] | None:
    """Return `handler`'s method `hook` if it has one that does anything."""
    method = getattr(handler, hook, None)
    return None if getattr(method, "__func__", None) is getattr(Handler, hook) else method


def call_opened(handler: Handler, client: Client) -> Any:
    """Call `handler.opened` if there is one, and return its greeting."""
    opened = overridden(handler, "opened")
    return opened(client) if opened else None


def call_closed(handler: Handler, reason: EndReason) -> None:
    """Call `handler.closed` if there is one."""
    closed = overridden(handler, "closed")
    if closed:
        close_in_thread(closed, reason.value)


def close_in_thread(closed: Callable[[str], Any], reason: str) -> None:
    """Call a handler's `closed`, where nobody can wait for what it returns.

    Raises:
        TypeError: it wants to be waited for.
    """
    result = closed(reason)
    if inspect.iscoroutine(result) or isinstance(result, Deferred):
        if inspect.iscoroutine(result):
            result.close()
        made = type(result).__name__
        raise TypeError(f"in a thread, `closed` cannot wait: it has returned a {made}")
