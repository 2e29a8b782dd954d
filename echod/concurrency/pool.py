"""The pool of threads that run handler code.

Guarantees:

* Pool threads are daemons and are never joined: a handler that blocks for ever cannot keep the
  process from ending. No call waits for a thread; a pool that is busy queues.
* The pool is echod's own: the reactor's pool, which resolves names, is left alone.
* Work of a lost connection waits behind the work of open ones. It is still done: if there is no
  end of open ones, one such task runs for each `OPEN_IN_A_ROW` others. A message is dropped, and
  counted, only when `MOST_LOST` such tasks wait; a handler's `closed` is never dropped, and when
  more of those wait, every second task is one of them.
* `drop` and `stop` drop messages only. A thread calls a handler's `closed`, and closes a stream's
  generator, as long as the process lives. Otherwise the garbage collector would close that,
  anywhere. After `drop` the drain waits for these, and for the running calls; after `stop` it does
  not.

The pool is cheap, and keeps its promises without a lock, as follows:

* Tasks wait in one backlog, from which workers take them (`deque.popleft` is atomic), so a worker
  does many short tasks in a row, and no other worker has to be woken for them.
* Tasks of lost connections wait in a second queue. A task is moved there in two steps: its
  arguments are taken out (`list.pop` is atomic: either the reactor gets them, or a worker, which
  then runs the task), and a new task with them joins the second queue. The first queue keeps an
  empty task, which costs a worker nothing; many of them are removed together.
* Only the reactor thread wakes and starts workers, one at a time, in `_turn`. A turn is requested
  when a task is submitted, and when a worker has just woken and taken a task while others wait. If
  that task is short, the turn finds nothing left to do, because it waits for the interpreter's
  lock until then. If the task blocks, that lock is free, and the turn wakes the next worker. So no
  task waits for a blocked worker while another could run.
* A worker that finds the backlog empty announces that it is idle, then looks again. If a task was
  submitted in between, either that look finds the task, or the task's turn finds the worker.
* A result is stored where the next turn finds it before that turn is requested. A turn that is
  already requested is not requested again: many tasks, and many results, cost one wake-up of the
  event loop.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.concurrency.forking import end_child
from echod.concurrency.model import Busy, Done, Dropped, UnderWay, owner_of
from echod.handlers.per_thread import close_objects_of_this_thread
from echod.reasons import Refusal

log = Logger("echod.concurrency")

# How many tasks of lost connections may wait before messages are dropped. Their replies are
# dropped, so this is generous: with the longest messages of `length` framing it is 128 MiB.
MOST_LOST = 4096

# How many `closed` calls may wait before new connections are refused, because each of these will
# need another. They cannot be dropped; each keeps its handler in memory, 50 MiB in total.
MOST_CLOSING = 4 * MOST_LOST

# How many tasks of open connections a worker runs before one of a lost connection.
OPEN_IN_A_ROW = 15


# A call that waits for a thread: `done`, the function and, until it begins, its arguments. A list,
# because its last item can be taken out in one atomic step.
Task = list[Any]

P = ParamSpec("P")


def check_closing(waiting: int) -> None:
    """Raise `Busy` if the allowed number of calls of `closed` wait."""
    if waiting >= MOST_CLOSING:
        text = f"{MOST_CLOSING} ended connections are waiting already, try again later"
        raise Busy(text, Refusal.MAX_QUEUE)


class _KeptTask(Task):
    """A task that `stop` does not drop."""

    __slots__ = ()


class _Worker:
    """A thread of the pool, and its current task."""

    __slots__ = ("process", "task", "thread")

    def __init__(self) -> None:
        self.process = os.getpid()
        self.thread = threading.get_ident()
        self.task: Task | None = None

    def over(self, result: object) -> None:
        """Note that the task has `result`; a child that the task has forked ends here."""
        if os.getpid() != self.process:
            end_child(result)
        self.task = None


class _Key:
    """A task as a key, compared by identity."""

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

    In the reactor thread it also works as a thread pool for Twisted's `deferToThreadPool`.

    Attributes:
        size: the highest number of threads.
        dropped: how many messages of lost connections were dropped.
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
            size: the highest number of threads.
            call_from_thread: runs a function in the reactor thread, soon; safe in any thread.
            name: the beginning of the threads' names.
            queues: whether a task may wait for a busy thread if the system allows no other.
        """
        self.size = size
        self._queues = queues
        self._call_from_thread = call_from_thread
        self._name = name
        self._threads = 0
        # The number of submitted tasks whose results were not delivered yet.
        self._unfinished = 0
        self._backlog: deque[Task] = deque()
        # Those of connections that are lost.
        self._lost: deque[Task] = deque()
        # The highest possible number of empty tasks in the backlog.
        self._emptied = 0
        self.dropped = 0
        self._results: deque[tuple[Done, object]] = deque()
        self._workers: list[_Worker] = []
        # The locks that idle workers wait for; the reactor releases them.
        self._idle: list[_thread.LockType] = []
        # Whether a woken worker has not looked at the backlog yet.
        self._summoned = False
        self._turn_is_due = False
        self._stopped = False
        self._drained: Deferred[None] | None = None
        self._ended: Deferred[None] | None = None
        # Whether no code waits for the end of threads any more.
        self._let_go = False

    @property
    def available(self) -> int:
        """How many tasks could start at once."""
        return 0 if self._stopped else max(0, self.size - self._unfinished)

    @property
    def waiting(self) -> int:
        """How many tasks wait for a thread, without those of lost connections."""
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
        function: Callable[..., object],
        arguments: tuple[object, ...],
        *,
        lost: bool = False,
        kept: bool = False,
    ) -> Task:
        """Run `function(*arguments)` in a thread, and `done(result or Failure)` in the reactor.

        If no thread can be started, the result is a Failure with `Busy`. After `stop` the task is
        dropped, unless it is to be kept.

        Args:
            done: takes the result.
            function: the function.
            arguments: its arguments.
            lost: whether it is for a lost connection, and has to wait for the others.
            kept: whether `stop` does not drop it.

        Returns:
            The argument for `put_behind`.
        """
        task = [done, function, arguments]
        if kept:
            task = _KeptTask(task)
        if kept or not self._stopped:
            self._unfinished += 1
            (self._lost if lost else self._backlog).append(task)
            # Wake it at the end of this turn of the loop: a worker woken now would compete with
            # the reactor for the interpreter's lock while that still reads the input of other
            # clients.
            if not self._turn_is_due:
                self._ask_for_a_turn()
        return task

    def put_behind(self, task: Task) -> None:
        """Move a task of a lost connection behind those of open ones, unless it has begun.

        If too many such tasks wait, it is dropped: `done` is called with a `Dropped`, at once.
        """
        try:
            arguments = task.pop(2)
        except IndexError:  # a worker has it
            return
        done, function = task
        task.clear()
        if not self._turn_is_due:
            # A worker may have found the empty task before the new one was in the queue.
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

    def has_begun(self, task: Task) -> bool:
        """Return whether a worker has taken a task that was not put behind others."""
        return len(task) < 3

    def _clear_away_the_emptied(self) -> None:
        """Remove empty tasks when they outnumber the others, as while every worker is blocked."""
        # A task that a worker takes meanwhile is put back without its arguments.
        tasks = self._backlog.copy()
        self._backlog.clear()
        self._backlog.extend(filter(None, tasks))
        self._emptied = 0

    def under_way(self) -> list[UnderWay]:
        """Return the running calls."""
        begun = [(worker.task, worker.thread) for worker in self._workers]
        return [
            # No other list has this one's identity while it is kept.
            UnderWay(_Key(task), owner_of(task[0]), thread=thread)
            for task, thread in begun
            if task is not None
        ]

    def callInThread(
        self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Run `function` in a thread; an exception is logged."""
        self.submit(_log_if_failed, partial(function, *args, **kwargs), ())

    def callInThreadWithCallback(
        self,
        on_result: Callable[[bool, Any], object],
        function: Callable[P, object],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Run `function` in a thread, then `on_result(succeeded, result or Failure)`.

        `on_result` runs in the reactor thread; with Twisted's own `ThreadPool` it runs in the
        pool's.
        """

        def done(result: object) -> None:
            on_result(not isinstance(result, Failure), result)

        self.submit(done, partial(function, *args, **kwargs), ())

    def drain(self) -> Deferred[None]:
        """Return a Deferred that fires once no task runs, or waits, or at `stop`."""
        if self._drained is None:
            self._drained = Deferred()
        drained = self._drained
        self._tell_if_drained()
        return drained

    def end(self) -> Deferred[None]:
        """Stop; the Deferred fires when every thread has closed what is its own, or at `stop`."""
        ended = self._ended = Deferred()
        self.drop()
        self._tell_if_ended()
        return ended

    def _tell_if_ended(self) -> None:
        if self._ended is not None and (not self._threads or self._let_go):
            ended, self._ended = self._ended, None
            ended.callback(None)

    def _thread_ended(self) -> None:
        self._threads -= 1
        self._look_after_kept()  # a task may have come after the thread's last look
        self._tell_if_ended()

    def _look_after_kept(self) -> None:
        if (self._backlog or self._lost) and not self._turn_is_due:
            self._ask_for_a_turn()

    def drop(self) -> None:
        """Drop the tasks that have not begun, but not those to be kept.

        Idle threads end now, busy ones after their task.
        """
        self._stopped = True
        for line in (self._backlog, self._lost):
            tasks = line.copy()
            line.clear()
            line.extend(task for task in tasks if not self._dropped(task))
        self._look_after_kept()
        while self._idle:
            self._idle.pop().release()
        self._tell_if_drained()

    def _dropped(self, task: Task) -> bool:
        """Drop a task, unless it is to be kept; return whether it is of no use any more."""
        if isinstance(task, _KeptTask):
            return False
        with contextlib.suppress(IndexError):  # a worker has it, or it is empty
            task.pop(2)
            self._unfinished -= 1
        return True

    def stop(self) -> None:
        """Do the same as `drop`, and let nothing wait for the threads any longer."""
        self._let_go = True
        self.drop()
        self._tell_if_ended()

    def _tell_if_drained(self) -> None:
        if self._drained is not None and (self._let_go or not self._unfinished):
            drained, self._drained = self._drained, None
            drained.callback(None)

    def _ask_for_a_turn(self) -> None:
        self._turn_is_due = True
        self._call_from_thread(self._turn)

    def _turn(self) -> None:
        """In the reactor thread: deliver the results, and wake a worker for the waiting tasks."""
        for _ in range(len(self._results)):
            done, result = self._results.popleft()
            self._unfinished -= 1
            try:
                done(result)
            except Exception:  # an error of one connection must not delay the others' results
                log.failure("A result could not be delivered")
        # Only now, because `done` may have submitted more; later tasks request a turn.
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
        """No thread can be started: fail the waiting tasks, unless a busy thread will run them."""
        if self._threads and self._queues:
            return
        log.warn(
            "No thread can be started ({why}); threads: {count}",
            why=str(error),
            count=self._threads,
        )
        for line in (self._backlog, self._lost):
            while line:
                with contextlib.suppress(IndexError):  # a thread has taken it, or it is empty
                    task = line.popleft()
                    task.pop(2)
                    busy = Busy("no thread can be started, try again later", Refusal.THREADS)
                    self._results.append((task[0], Failure(busy)))
        if not self._turn_is_due:
            self._ask_for_a_turn()

    def _work(self) -> None:
        """Run a worker thread."""
        called = _thread.allocate_lock()
        called.acquire()
        self._summoned = False
        worker = _Worker()
        self._workers.append(worker)
        while not self._stopped:
            self._work_off_backlog(worker)
            self._idle.append(called)
            waits = self._backlog or self._lost or self._stopped
            if not (waits and self._leave_idle(called)):
                called.acquire()
                self._summoned = False
        self._work_off_backlog(worker)  # the tasks that `stop` has kept
        close_objects_of_this_thread()
        self._call_from_thread(self._thread_ended)

    def _leave_idle(self, called: _thread.LockType) -> bool:
        """Stop being idle; return False if the reactor has chosen this worker meanwhile."""
        try:
            self._idle.remove(called)
        except ValueError:
            return False
        return True

    def _work_off_backlog(self, worker: _Worker) -> None:
        """Run tasks until none is left. Keep no reference to them while the thread waits."""
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
            except IndexError:  # another worker has taken it, or the connection is lost
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
            except BaseException:  # any exception ends one connection, but not this thread
                result = Failure()
            worker.over(result)
            results.append((done, result))
            del result  # an exception's traceback has this frame: it would keep all of it alive
            if not self._turn_is_due:
                self._ask_for_a_turn()


def _most_in_a_row(lost: int) -> int:
    """Return how many tasks of open connections come before one of `lost` ones.

    Above `MOST_LOST` the waiting tasks are calls of `closed`, and each connection adds one: with
    an endless supply of the others, their number would only grow.
    """
    return OPEN_IN_A_ROW if lost <= MOST_LOST else 1


def _log_if_failed(result: object) -> None:
    if isinstance(result, Failure):
        log.failure("A function that was called in a thread failed", result)
