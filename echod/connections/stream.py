"""Streams: replies in pieces, from a generator, as fast as the client takes them.

A handler that returns a generator, or is a generator function, sends a stream: each piece is
framed as a message of its own. The next message waits until the stream is over.

Guarantees:

* A piece is asked for when the transport has room, so a stream costs no more memory than a reply.
* In the event loop a stream has its share of a turn (`echod.turns`), and at most `BUDGET` bytes.
* A piece is handed over when the generator yields it, in order with the pushes of its handler: it
  does not wait for the next one.
* In the pool no thread is held while the client is slow. Pieces are taken for up to `HOP_SIZE`
  bytes or `HOP_SECONDS` at a time, then the thread is free; so a generator may go on in another.
* If the client leaves, the generator is closed, where it runs and in the conversation's context;
  the same if the daemon gives up, as long as the process lives: threads have a moment for it.
* A stream that is cut off, by any cause, ends with RST: it must not look complete.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from echod.concurrency.model import Pending
from echod.concurrency.models import InPool, InReactor
from echod.concurrency.pool import Task
from echod.handlers.contract import Close, answer_of, piece_of
from echod.turns import Share

if TYPE_CHECKING:
    from typing import Protocol

    from echod.connections.owner import Owner
    from echod.interfaces import Stream

    class Batch(Protocol):
        """Collects small pieces for one write."""

        def add(self, data: bytes) -> None: ...

        def flush(self) -> None: ...

    class Streaming(Protocol):
        """A connection, as its stream sees it."""

        @property
        def owner(self) -> Owner: ...

        @property
        def transport(self) -> Stream: ...

        @property
        def is_blocked(self) -> bool: ...

        @property
        def is_closing(self) -> bool: ...

        def inside(self, function: Callable[..., None], *arguments: object) -> None:
            """Call `function` in the conversation's context."""

        def in_thread(self, function: Callable[[], object]) -> Callable[[], object]:
            """Return a function that does so in a thread."""

        def gather(self) -> tuple[Batch, Any]:
            """Begin to collect pieces; return the batch, and the argument for `gathered`."""

        def gathered(self, batch: Batch, outer: Any) -> None:
            """Write the collected pieces."""

        def for_pieces(self) -> Callable[[bytes], None]:
            """Return what takes framed pieces from a thread; the event loop sends them soon."""

        def pass_on(self) -> None:
            """Send now what threads have handed over."""

        def stream_over(self, result: object) -> None:
            """Go on after the stream: `result` is None, `Close`, or a Failure."""

        def stream_failed(self, failure: Failure) -> None:
            """Log a failure, and reset the connection."""


# The most that a stream sends in one turn of the event loop, in bytes.
BUDGET = 256 * 1024
# How much a thread of the pool takes at a time, in bytes, and for how long, in seconds.
HOP_SIZE = 64 * 1024
HOP_SECONDS = 0.010

# The types of results that are streams.
STREAMS = (GeneratorType, AsyncGeneratorType)

# The stream is not over.
GOES_ON = object()


class ReplyStream:
    """A stream of one connection.

    All methods are called in the event loop; `begin` and `resume` in the conversation's context.
    """

    def __init__(self, connection: Streaming) -> None:
        self._connection = connection

    def begin(self) -> object:
        """Send the first pieces; return `GOES_ON`, or how it has ended: None, or `Close`."""
        raise NotImplementedError

    def resume(self) -> None:
        """Go on: the transport has room again."""
        raise NotImplementedError

    def progress(self) -> object:
        """Return how many pieces it has given, if its next one is under way; otherwise None."""
        return None

    def cut(self) -> bool:
        """Close the generator: the connection is lost.

        Returns:
            Whether that is done. Otherwise `Streaming.stream_over` follows.
        """
        raise NotImplementedError


def stream_of(connection: Streaming, result: object) -> ReplyStream:
    """Return the stream of a handler's result.

    Raises:
        TypeError: it is an async generator, and the handler runs in a thread.
    """
    if isinstance(connection.owner.model, InPool):
        if not isinstance(result, GeneratorType):
            answer_of(result)  # which raises
        return PooledStream(connection, result)
    if isinstance(result, AsyncGeneratorType):
        return AsyncStream(connection, result)
    assert isinstance(result, GeneratorType)
    return LoopStream(connection, result)


class LoopStream(ReplyStream):
    """A generator that runs in the event loop."""

    def __init__(self, connection: Streaming, generator: Generator[Any, Any, Any]) -> None:
        super().__init__(connection)
        self._generator = generator
        self._resting = False

    def begin(self) -> object:
        connection = self._connection
        batch, outer = connection.gather()
        try:
            result = self._send(batch)
        except BaseException:
            batch.flush()  # the pieces before it
            connection.stream_failed(Failure())
            self._close()
            result = None
        connection.gathered(batch, outer)
        return result

    def _send(self, batch: Batch) -> object:
        connection, owner = self._connection, self._connection.owner
        encode, share, size = owner.framing.encode, Share(owner.turns, connection.transport), 0
        while not (connection.is_blocked or connection.is_closing):
            piece, is_over = piece_of(self._generator)
            reply, is_last = answer_of(piece)
            if reply is not None:
                data = encode(reply)
                batch.add(data)
                size += len(data)
            if is_last:
                self._generator.close()
                return Close()
            if is_over:
                return None
            if size >= BUDGET or share.used_up():
                self._resting = True
                owner.turns.rest(self)
                break
        return GOES_ON

    def resume(self) -> None:
        if not self._resting:
            result = self.begin()
            if result is not GOES_ON:
                self._connection.stream_over(result)

    def take_turn(self) -> None:
        """Go on in this turn of the event loop."""
        self._resting = False
        self._connection.inside(self.resume)

    def cut(self) -> bool:
        if self._resting:
            self._connection.owner.turns.leave(self, self._connection.transport)
        self._close()
        return True

    def _close(self) -> None:
        try:
            self._generator.close()
        except BaseException:
            self._connection.stream_failed(Failure())


class PooledStream(ReplyStream):
    """A generator that runs in the pool."""

    def __init__(self, connection: Streaming, generator: Any) -> None:
        super().__init__(connection)
        self._generator: Generator[Any, Any, Any] = generator
        self._is_cut = False
        self._in_thread = False
        self._task: Task = []
        self._pieces = 0

    def begin(self) -> object:
        self._submit(self._take)
        return GOES_ON

    def _submit(self, function: Callable[[], object], *, lost: bool = False) -> None:
        connection = self._connection
        model = connection.owner.model
        assert isinstance(model, InPool)
        self._in_thread = True
        done = partial(connection.inside, self._arrived)
        # Never refused, because the message has had its thread; nor dropped, because the generator
        # has to be closed.
        work = connection.in_thread(function)
        self._task = model.pool.submit(done, work, (), lost=lost, kept=True)

    def _take(self) -> object:
        """In a thread: hand over some pieces; return `GOES_ON`, None or `Close`."""
        try:
            return self._take_some()
        except BaseException:
            self._generator.close()  # after a piece that is none
            raise

    def _take_some(self) -> object:
        connection = self._connection
        encode, hand_over = connection.owner.framing.encode, connection.for_pieces()
        size, until = 0, time.monotonic() + HOP_SECONDS
        while not self._is_cut:
            piece, is_over = piece_of(self._generator)
            self._pieces += 1
            reply, is_last = answer_of(piece)
            if reply is not None:
                data = encode(reply)
                hand_over(data)
                size += len(data)
            if is_last:
                self._generator.close()
                return Close()
            if is_over:
                return None
            if size >= HOP_SIZE or time.monotonic() >= until:
                break
        return GOES_ON

    def _close(self) -> object:
        self._generator.close()
        return None

    def _arrived(self, result: object) -> None:
        connection = self._connection
        connection.pass_on()  # which may cut this stream, if its handler has closed
        self._in_thread = False
        if isinstance(result, Failure):
            connection.stream_failed(result)
            connection.stream_over(None)
        elif result is not GOES_ON:
            connection.stream_over(result)
        elif self._is_cut:
            self._submit(self._close, lost=True)
        elif not connection.is_blocked:
            self._submit(self._take)

    def resume(self) -> None:
        if not self._in_thread and not self._is_cut:
            self._submit(self._take)

    def progress(self) -> object:
        model = self._connection.owner.model
        return self._pieces if self._in_thread and model.has_begun(self._task) else None

    def cut(self) -> bool:
        self._is_cut = True
        if not self._in_thread:
            self._submit(self._close, lost=True)
        return False


class AsyncStream(ReplyStream):
    """An async generator, which runs in the event loop.

    Attributes:
        handle: of the model's call, once it waits.
    """

    def __init__(self, connection: Streaming, generator: AsyncGenerator[Any, Any]) -> None:
        super().__init__(connection)
        self._generator = generator
        self._pause: Deferred[None] | None = None
        self._resting = False
        self._pieces = 0
        self.handle: object = None

    def begin(self) -> object:
        connection = self._connection
        model = connection.owner.model
        assert isinstance(model, InReactor)
        result = model.run(partial(connection.inside, connection.stream_over), self._send())
        if isinstance(result, Pending):
            self.handle = result.handle
            return GOES_ON
        return result

    async def _send(self) -> object:
        connection, owner = self._connection, self._connection.owner
        encode, share, size = owner.framing.encode, Share(owner.turns, connection.transport), 0
        try:
            async with contextlib.aclosing(self._generator) as pieces:
                async for piece in pieces:
                    self._pieces += 1
                    reply, is_last = answer_of(piece)
                    if reply is not None:
                        data = encode(reply)
                        size += len(data)
                        batch, outer = connection.gather()
                        batch.add(data)
                        connection.gathered(batch, outer)
                    if is_last:
                        return Close()
                    if connection.is_closing:
                        break
                    if connection.is_blocked:
                        await self._paused()
                    elif size >= BUDGET or share.used_up():
                        self._resting = True
                        owner.turns.rest(self)
                        await self._paused()
                    else:
                        continue
                    if connection.is_closing:
                        break
                    share, size = Share(owner.turns, connection.transport), 0
        except BaseException:
            if connection.is_closing:
                raise
            connection.stream_failed(Failure())
        return None

    def _paused(self) -> Deferred[None]:
        self._pause = Deferred()
        return self._pause

    def resume(self) -> None:
        if not self._resting and self._pause is not None:
            pause, self._pause = self._pause, None
            if not pause.called:
                pause.callback(None)

    def take_turn(self) -> None:
        """Go on in this turn of the event loop."""
        self._resting = False
        if not self._connection.is_blocked:
            self.resume()

    def progress(self) -> object:
        return self._pieces if self._pause is None else None

    def cut(self) -> bool:
        if self._resting:
            self._resting = False
            self._connection.owner.turns.leave(self, self._connection.transport)
        if self._pause is not None:
            self.resume()  # at a `yield`: it is closed there
        else:
            self._connection.owner.model.abandon(self.handle)
        return False
