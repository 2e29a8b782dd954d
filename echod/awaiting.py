"""Let a coroutine that runs as an asyncio task await Twisted's Deferreds too.

asyncio's `Task` takes only asyncio's futures from its coroutine. `BothAwaited` stands between the
two: it hands the task a future in place of each Deferred, which is done when the Deferred fires.
The result stays in the Deferred, where `await` looks for it.

If the task is cancelled, the Deferred that its coroutine awaits is cancelled too, and the
coroutine gets asyncio's `CancelledError`, as with any other awaitable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger("echod.concurrency")


def loop_of(reactor: IReactorTime) -> asyncio.AbstractEventLoop | None:
    """Return the asyncio loop that a reactor runs on; None if it does not."""
    loop = getattr(reactor, "_asyncioEventloop", None)
    return loop if isinstance(loop, asyncio.AbstractEventLoop) else None


class BothAwaited(Coroutine[Any, Any, object]):
    """A coroutine whose awaited Deferreds an asyncio task sees as futures."""

    __slots__ = ("_deferred", "_loop", "_send", "_throw", "coroutine")

    def __init__(
        self, coroutine: Coroutine[Any, Any, object], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Set up, without running any of it.

        Args:
            coroutine: the coroutine.
            loop: the loop of its task.
        """
        self.coroutine = coroutine
        self._loop = loop
        self._send: Callable[..., object] = coroutine.send
        self._throw: Callable[..., object] = coroutine.throw
        # The Deferred that it awaits.
        self._deferred: Deferred[object] | None = None

    def send(self, value: object) -> object:
        self._deferred = None
        return self._shown(self._step(self._send, value))

    def throw(self, *error: Any) -> object:
        deferred, self._deferred = self._deferred, None
        if deferred is not None:
            cancel(deferred)
        return self._shown(self._step(self._throw, *error))

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Any:
        raise TypeError("only a task runs this coroutine")

    def __getattr__(self, name: str) -> Any:
        # Such as `cr_frame` and `cr_running`: debuggers, and anyio, ask a task's coroutine.
        return getattr(self.coroutine, name)

    def _step(self, resume: Callable[..., object], *arguments: object) -> object:
        """Run the coroutine up to the next object that it waits for, and return that."""
        return resume(*arguments)

    def _shown(self, awaited: object) -> object:
        """Return what the task has to wait for in place of `awaited`."""
        if not isinstance(awaited, Deferred):
            return awaited
        self._deferred = awaited
        future = self._loop.create_future()
        awaited.addBoth(_tell, future)
        return expected(future)


def _tell(result: object, future: asyncio.Future[None]) -> object:
    if not future.done():
        future.set_result(None)
        return result
    # The coroutine has gone on already, so the error of a cancelled Deferred interests no code.
    return None if isinstance(result, Failure) else result


def cancel(deferred: Deferred[object]) -> None:
    """Cancel `deferred`; log an error of its canceller."""
    try:
        deferred.cancel()
    except Exception:
        log.failure("Cancelling a handler's pending result failed")


def fire(deferred: Deferred[None]) -> None:
    """Fire `deferred`, unless its waiter has been cancelled meanwhile."""
    if not deferred.called:
        deferred.callback(None)


def expected(awaited: Any) -> Any:
    """Mark a future as `await` does, so that a task accepts it; other objects stay as they are.

    Another task may have begun to wait for it meanwhile, which takes the mark away.
    """
    if getattr(awaited, "_asyncio_future_blocking", None) is False:
        awaited._asyncio_future_blocking = True
    return awaited


def make_task(
    loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
) -> asyncio.Task[Any]:
    """Make a task whose coroutine may await Deferreds too: a loop's task factory."""
    if isinstance(coroutine, Coroutine):  # otherwise asyncio raises the error
        coroutine = BothAwaited(coroutine, loop)
    return asyncio.Task(coroutine, loop=loop, **options)
