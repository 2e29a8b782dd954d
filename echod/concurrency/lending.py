"""Run the coroutines of handlers as asyncio tasks, at the price of a call if they need not wait.

A coroutine that uses asyncio needs a task from its first line on: `asyncio.timeout` and
`TaskGroup` ask for the current one. But to make a task costs a third as much as to answer a short
message. So a real task is kept that waits for work. It is lent to a coroutine for its first step,
which runs at once. Most coroutines end in it, and the task is lent to the next one. If a coroutine
waits, the task takes it over for the rest of its life.

Guarantees:

* A task that other code may still know of, because a coroutine has kept a reference to it or has
  added a callback, or that was cancelled, is not lent again: it ends.
* All steps of a coroutine run in the context (`contextvars`) that it began in.
* The result is delivered in a turn of the loop of its own, outside of every task and context.
"""

from __future__ import annotations

import asyncio
from asyncio import Task, _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from sys import getrefcount
from types import CoroutineType
from types import coroutine as coroutine_function
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from echod.awaiting import BothAwaited, cancel, expected

# Takes the result of a coroutine that had to wait, or a Failure.
Arrived = Callable[[object], object]


class Lender:
    """Lends tasks of one loop.

    Attributes:
        loop: the loop; it runs whenever this is used.
        result: the result of a coroutine that has just ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set up, without a task."""
        self.loop = loop
        self.result: object = None
        # The idle task. One is enough, unless handlers call each other. With its attributes,
        # because a class with `__getattr__`, and all attributes of its objects, are slow to read.
        self._idle: Idle | None = None
        self._start = self.lending(_itself)

    def start(self, coroutine: Coroutine[Any, Any, object]) -> object:
        """Run the first step of `coroutine`.

        Returns:
            Its result; or, if it waits, a `LentTask`, whose `take_over` has to be called at once.

        Raises:
            BaseException: the coroutine's.
        """
        result = self._start(coroutine)
        return result.value if type(result) is Returned else result

    def lending(self, function: Callable[[Any], object]) -> Callable[[Any], object]:
        """Return a function that calls `function`, and runs the first step of a coroutine that it
        returns.

        Any other result is returned as it is; so is a coroutine's if it is bytes. Another one is
        in a `Returned`. If the coroutine waits, the result is a `LentTask`, as that of `start`.

        That function is the whole cost of a handler that need not wait, so there is no avoidable
        call.
        """
        loop = self.loop

        def lend(argument: object) -> object:
            coroutine = function(argument)
            if type(coroutine) is not CoroutineType:
                return coroutine
            idle = self._idle
            if idle is None or idle[1].is_known:  # other code has cancelled it, while it was idle
                idle = self._begin_idle()
            self._idle = None
            lent, task, begin, references = idle
            try:
                _enter_task(loop, task)
            except RuntimeError:  # this is called within a step of another task
                is_within = True
            else:
                is_within = False
            if is_within:  # not above: an error of the coroutine's would have a context
                return self._start_within(idle, coroutine)
            try:
                awaited = begin(coroutine)
            except BaseException:
                _leave_task(loop, task)
                lent.end()  # its error may know the task
                raise
            _leave_task(loop, task)
            if awaited is not ENDED:
                lent.awaited, lent.coroutine = awaited, coroutine
                return lent
            if getrefcount(task) == references and not task.is_known:
                self._idle = idle
            else:
                lent.end()
            result, self.result = self.result, None
            return result if type(result) is bytes else Returned(result)

        return lend

    def _begin_idle(self) -> Idle:
        """Return a new task, with the count of references to it while no other code has one."""
        self.stop()
        lent = LentTask(self)
        task = lent.task  # one of the references, as in `lend`; the tuple has another one
        return lent, task, lent.begin, getrefcount(task)

    def _start_within(self, idle: Idle, coroutine: Coroutine[Any, Any, object]) -> object:
        """Do the same within a step of another task, which goes on after it."""
        outer = asyncio.current_task(self.loop)
        assert outer is not None
        _leave_task(self.loop, outer)
        self._idle = idle
        try:
            return self._start(coroutine)
        finally:
            _enter_task(self.loop, outer)

    def stop(self) -> None:
        """End the idle task."""
        if self._idle is not None:
            self._idle[0].end()
            self._idle = None


class Returned:
    """The result of a coroutine that has ended in its first step, if it is not bytes.

    Attributes:
        value: the result.
    """

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        """Set up."""
        self.value = value


def _itself(coroutine: object) -> object:
    return coroutine


# Yielded by `_relay` at the end of a coroutine.
ENDED = object()


@coroutine_function
def _relay(lender: Lender) -> Generator[object, Any, None]:
    """Run the coroutines that are sent here, one after the other.

    At the end of a coroutine this yields `ENDED`: a `StopIteration` would cost twice as much.
    """
    coroutine = yield None
    while True:
        lender.result = yield from coroutine
        coroutine = yield ENDED


async def _nothing() -> None:
    """Stand for the coroutine of a task that has none yet."""


class LendableTask(Task[object]):
    """An asyncio task that notes if other code adds a callback to it, or cancels it."""

    __slots__ = ("is_known",)

    def __init__(self, coroutine: LentTask, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(coroutine, loop=loop, context=Context())
        self.is_known = False
        # It may be idle when the loop ends.
        self._log_destroy_pending = False

    def add_done_callback(self, function: Any, /, *, context: Context | None = None) -> None:
        self.is_known = True
        super().add_done_callback(function, context=context)

    def cancel(self, msg: Any = None) -> bool:
        self.is_known = True
        return super().cancel(msg)


class LentTask(BothAwaited):
    """A task that waits for work, and its coroutine.

    Attributes:
        task: the task.
        begin: runs a coroutine's first step; returns the object that it waits for, or `ENDED`.
        awaited: the object that its coroutine waits for when the first step has ended.
    """

    __slots__ = ("_context", "_gate", "_lender", "_lent", "_waits", "awaited", "begin", "task")

    def __init__(self, lender: Lender) -> None:
        """Set up an idle one."""
        loop, nothing = lender.loop, _nothing()
        nothing.close()
        super().__init__(nothing, loop)
        relay: Any = _relay(lender)
        relay.send(None)
        self.begin = self._send = relay.send
        self._throw = relay.throw
        self._lender = lender
        # Whether it has a coroutine, and whether that waits for the first time.
        self._lent = self._waits = False
        self.awaited: Any = None
        self._context: Context | None = None
        # While it is idle, it waits for this future.
        self._gate: asyncio.Future[None] = loop.create_future()
        self.task = LendableTask(self, loop)

    def take_over(self, context: Context | None, arrived: Arrived) -> None:
        """Go on with its coroutine, whose first step has ended, in later turns of the loop.

        Args:
            context: the context in which it runs; None for the task's own.
            arrived: takes its result.
        """
        self._lent = self._waits = True
        self._context = context
        if getattr(self.awaited, "_asyncio_future_blocking", False):
            # Only a task takes this mark of `await` away, and no other coroutine could await it.
            self.awaited._asyncio_future_blocking = False

        def over(task: Task[object]) -> None:
            result: object
            try:
                result = task.result()
            except BaseException:
                result = Failure()
            arrived(result)
            del task, result, self.task  # the traceback of an error has this frame and this object

        self.task.add_done_callback(over, context=Context())
        self._open_gate()

    def end(self) -> None:
        """Let the idle task end."""
        self._open_gate()

    def _open_gate(self) -> None:
        if not self._gate.done():
            self._gate.set_result(None)

    def send(self, value: object) -> object:
        if self._waits:  # for the first time
            self._waits = False
            awaited, self.awaited = self.awaited, None
            return self._shown(expected(awaited))
        if self._lent:
            return super().send(value)
        if self._gate.done():
            raise StopIteration
        return expected(self._gate)

    def throw(self, *error: Any) -> object:
        if not self._lent:
            raise error[0]
        if self._waits:
            # It was cancelled before it could wait: cancel that in its place, as a task does.
            self._waits = False
            awaited, self.awaited = self.awaited, None
            if asyncio.isfuture(awaited) and awaited.cancel():
                return expected(awaited)
            if isinstance(awaited, Deferred):
                awaited.addErrback(_ignore)
                cancel(awaited)
        return super().throw(*error)

    def _step(self, resume: Callable[..., object], *arguments: object) -> object:
        try:
            context = self._context
            awaited = resume(*arguments) if context is None else context.run(resume, *arguments)
        except (SystemExit, KeyboardInterrupt):  # a task would end the loop with it
            raise StopIteration(Failure()) from None
        if awaited is ENDED:
            result, self._lender.result = self._lender.result, None
            raise StopIteration(result)
        return awaited


# A task, the asyncio task that it is for, the function that runs a coroutine's first step, and how
# many references to the asyncio task there are as long as no other code has one.
Idle = tuple[LentTask, LendableTask, Callable[..., object], int]


def _ignore(failure: Failure) -> None:
    """Handle the error of a Deferred that was cancelled: no code waits for it."""
