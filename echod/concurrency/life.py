"""The life of a service: open it, serve with the handler that it yields, close it.

The generator of a service runs where its handlers run:

* An async generator runs in the event loop: in one asyncio task from its beginning to its end, so
  that `asyncio.timeout` and `TaskGroup` may enclose its `yield`. Without an asyncio loop it runs
  as Twisted's coroutines do.
* A plain generator of a model of threads runs in a thread of its own, both parts of it; so what it
  opens may belong to that thread. Otherwise it runs in the event loop, and must not block.

Guarantees: the Deferreds of `open` and `close` fire once each, in the reactor thread. After `skip`
none of its code is begun any more; a part that waits in the event loop is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from echod.concurrency.model import Model
from echod.concurrency.models import InPool, InReactor
from echod.errors import UserError
from echod.handlers.contract import HandlerError
from echod.handlers.kinds import Kind
from echod.handlers.lookup import ResolvedHandler, adopt
from echod.handlers.per_thread import close_objects_of_this_thread
from echod.handlers.remedies import NO_LOOP
from echod.handlers.service import Service, ServiceDefinition
from echod.text import escape, excerpt
from echod.user_code import told_with_place


class ServiceError(UserError):
    """A service cannot be opened; the text says why, in one line."""


class Life:
    """The life of one service.

    Attributes:
        name: its name.
        service: the service, as its function sees it.
        blocks: whether `open` runs all of it before it returns.
        on_failure: gets the Failure of a service that ends while it serves.
        generator: the generator; None before it is made.
        thread: the `threading.get_ident` of its own thread; None if it has none.
    """

    def __init__(
        self,
        resolved: ResolvedHandler,
        model: Model,
        call_from_thread: Callable[..., object],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Set up, without running any of it.

        Args:
            resolved: the service, as `lookup.resolve` returns it.
            model: the model in which the handler that it yields will run.
            call_from_thread: runs a function in the reactor thread, soon.
            loop: the asyncio loop of the reactor; None if it has none.
        """
        assert isinstance(resolved.target, ServiceDefinition)
        self.name = resolved.name
        self.service = Service(resolved.name)
        self.on_failure: Callable[[Failure], object] = lambda _: None
        self._definition = resolved.target
        self._arguments = resolved.arguments
        self._model = model
        self._call_from_thread = call_from_thread
        self._loop = loop
        self.blocks = not (self._definition.is_async or isinstance(model, InPool))
        self._opening: Deferred[ResolvedHandler] = Deferred()
        self._ended: Deferred[None] = Deferred()
        self._closing: Deferred[None] = Deferred()
        self._open = self._closes = self._over = self._skipped = False
        self._task: asyncio.Task[object] | Deferred[object] | None = None
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.generator: Any = None
        self.thread: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it serves: the part after `yield` has neither begun nor been skipped."""
        return self._open and not (self._over or self._closes or self._skipped)

    @property
    def is_closing(self) -> bool:
        """Whether the part after `yield` runs, and is waited for."""
        return self._closes and not (self._over or self._skipped)

    def open(self) -> Deferred[ResolvedHandler]:
        """Run the part before `yield`.

        Returns:
            Fires with the handler that it yields; fails with `ServiceError`.
        """
        try:
            self.generator = self._definition(self.service, **self._arguments)
        except Exception:
            self._finish(Failure())
            return self._opening
        if self._definition.is_async:
            self._start_task(self._live_in_task(self.generator))
        elif isinstance(self._model, InPool):
            thread = threading.Thread(
                target=self._live_in_thread, name="echod-service", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no more threads are allowed
                self._finish(Failure())
            else:
                self.thread = thread.ident
        else:
            self._live_here(self.generator)
        return self._opening

    def close(self) -> Deferred[None]:
        """Run the part after `yield`; fires when it has ended. Errors go to `on_failure`."""
        if not self._open or self._over or self._skipped:
            return succeed(None)
        self._closes = True
        if self._definition.is_async:
            self._closing.callback(None)
        elif isinstance(self._model, InPool):
            self._orders.put(True)
        else:
            self._finish(_result_of(_end, self.generator))
        return self._ended

    def skip(self) -> None:
        """Begin no part of it any more, and cancel a part that waits in the event loop."""
        begun = not self._open or self._closes
        self._skipped = True
        if begun and self._task is not None and not self._over:
            self._task.cancel()
        if self._closes and not self._ended.called:
            self._ended.callback(None)

    # Where it runs.

    def _start_task(self, coroutine: Any) -> None:
        if self._loop is None:
            self._task = Deferred.fromCoroutine(coroutine)
            self._task.addBoth(self._finish)
        else:
            task = self._task = self._loop.create_task(coroutine)
            task.add_done_callback(lambda _: self._finish(_result_of(task.result)))
            # The process may end before it does, after a second signal.
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    async def _live_in_task(self, generator: AsyncGenerator[object, None]) -> None:
        try:
            await self._live_in_loop(generator)
        except (SystemExit, KeyboardInterrupt):  # which a task raises out of the event loop, too
            self._finish(Failure())

    async def _live_in_loop(self, generator: AsyncGenerator[object, None]) -> None:
        try:
            handler = await anext(generator)
        except StopAsyncIteration:
            raise HandlerError("it has yielded no handler") from None
        try:
            self._serve(handler)
            await self._closing
        except BaseException as error:  # such as of a task in a group around the `yield`
            await generator.athrow(error)
            raise
        with contextlib.suppress(StopAsyncIteration):
            await anext(generator)
            raise HandlerError("it has yielded twice")

    def _live_in_thread(self) -> None:
        generator = self.generator
        handler = _result_of(_first, generator)
        self._call_from_thread(self._take, handler)
        if isinstance(handler, Failure):
            close_objects_of_this_thread()
            return
        # Whether to go on after `yield`, or to end there.
        goes_on = self._orders.get()
        result = _result_of(_end, generator) if goes_on else _result_of(generator.close)
        close_objects_of_this_thread()
        self._call_from_thread(self._finish, result)

    def _live_here(self, generator: Generator[object, None, None]) -> None:
        self._take(_result_of(_first, generator))

    def _take(self, handler: object) -> None:
        """Take the handler of a plain generator, or a Failure."""
        if isinstance(handler, Failure):
            self._finish(handler)
            return
        try:
            self._serve(handler)
        except Exception:
            failure = Failure()
            if isinstance(self._model, InPool):
                self._orders.put(False)
            else:
                self.generator.close()
            self._finish(failure)

    def _serve(self, handler: object) -> None:
        """Check the handler that was yielded, and let it serve."""
        adopted = adopt(handler, self._model.name, self.name, service=self.service)
        if adopted.kind is Kind.SERVICE:
            raise HandlerError("it has yielded another service, not a handler")
        self._open = True
        self._opening.callback(adopted)

    def _finish(self, result: object) -> None:
        """Note that the generator has ended."""
        if self._over:
            return
        self._over = True
        if not self._open:
            assert isinstance(result, Failure)
            self._opening.errback(ServiceError(self._why(result)))
            return
        if isinstance(result, Failure) and not self._skipped:
            self.on_failure(result)
        if not self._ended.called:
            self._ended.callback(None)

    def _why(self, failure: Failure) -> str:
        error = failure.value
        assert error is not None
        name = excerpt(self.name)
        if isinstance(error, UserError):
            said = escape(str(error))
            return said if said.startswith(f"{name} ") else f"{name}: {said}"
        return f"{name} cannot be opened: {told_with_place(error)}{_hint(error)}"


def _result_of(function: Callable[..., object], *arguments: object) -> object:
    try:
        return function(*arguments)
    except BaseException:
        return Failure()


def _first(generator: Generator[object, None, None]) -> object:
    try:
        return next(generator)
    except StopIteration:
        raise HandlerError("it has yielded no handler") from None


def _end(generator: Generator[object, None, None]) -> None:
    with contextlib.suppress(StopIteration):
        next(generator)
        raise HandlerError("it has yielded twice")


def _hint(error: BaseException | None) -> str:
    """Return the remedy, after a semicolon, if asyncio was used where no loop of it runs."""
    if isinstance(error, RuntimeError) and str(error) in NO_LOOP:
        return "; leave out --reactor, so that the uvloop reactor runs"
    return ""


@asynccontextmanager
async def opened(
    definition: ServiceDefinition, model: Model | None = None, **arguments: object
) -> AsyncIterator[ResolvedHandler]:
    """Open a service in a program of your own, and close it at the end.

    The value is its handler, for `EchoFactory`. Use it in the event loop, while that runs.

    Args:
        definition: the service.
        model: the model in which its handler will run; the event loop by default.
        arguments: the arguments of the service.

    Raises:
        ServiceError: it cannot be opened.
    """
    from twisted.internet import reactor

    used = InReactor() if model is None else model
    name = definition.function.__name__
    if used.name not in definition.models:
        raise HandlerError(f"{name} is an async service: it runs in the event loop")
    definition.run_checks(arguments)
    given = ResolvedHandler(name, Kind.SERVICE, definition, arguments)
    loop = getattr(reactor, "_asyncioEventloop", None)
    life = Life(given, used, reactor.callFromThread, loop)  # type: ignore[attr-defined]
    failures: list[Failure] = []
    life.on_failure = failures.append
    handler = await life.open()
    try:
        yield handler
    finally:
        await life.close()
        if failures:
            failures[0].raiseException()
