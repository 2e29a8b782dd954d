"""Serve connections by an `async def handle(reader, writer)`, as for `asyncio.start_server`.

The handler runs in a task of its own, in its connection's context. Guarantees, besides those of
`foreign_protocol`:

* The connection is the handler's until its task ends; then it is closed.
* When the client has ended its stream, the handler may still write, over TLS, too.
* When the daemon drains, the reader gets the bytes that had arrived, and then the end.
* When the connection is lost, reads and `drain` say so. A task that has not ended `linger`
  later is cancelled, at the drain's deadline at once; once only, so that it may wait in its
  `finally`. The connection counts until its task has ended, but does not hold up the end of the
  daemon: after the drain's deadline it has the time of `echod.daemon.drain.LAST_CALLS`, and a few
  turns of the event loop.
* A cancelled task is no error, nor is an exception that tells the handler of the end.
* A handler that reads on at the end, without a pause in between, gets an error: it would hold the
  event loop for ever.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, cast

from twisted.python.failure import Failure

from echod.concurrency.model import UnderWay
from echod.concurrency.models import TURNS_TO_END
from echod.connections.asyncio_protocol import AsyncioProtocol
from echod.connections.foreign_protocol import QUIET
from echod.connections.kernel import has_answered, has_read, unread
from echod.handlers.contract import MOST_ENDS, end_ignored
from echod.reasons import EndReason

if TYPE_CHECKING:
    from echod.connections.owner import Owner

# The limit of `asyncio.start_server`, in bytes.
LIMIT = 2**16


class StreamsProtocol(AsyncioProtocol):
    """Serves a connection by a task with a reader and a writer."""

    __slots__ = (
        "_cancelled",
        "_cancels",
        "_drain_left",
        "_forgotten",
        "_lets_go",
        "_lost_at",
        "_reader",
        "_shaken",
        "_task",
    )

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._reader: asyncio.StreamReader | None = None
        self._task: asyncio.Task[None] | None = None
        self._shaken: asyncio.Future[None] | None = None
        self._drain_left = 0
        self._lost_at = 0.0
        # The drain's deadline has passed; so has the time for the `finally` of its task.
        self._cancels = False
        self._lets_go = False
        self._cancelled = False
        # It is counted out, though its task may run on.
        self._forgotten = False

    def _make(self) -> object:
        loop = asyncio.get_running_loop()
        limit = self._owner.limits.max_pending or LIMIT
        self._reader = _Reader(limit=limit, loop=loop)
        return _ReaderProtocol(self._reader, loop=loop)

    def _connect(self) -> None:
        super()._connect()
        assert self._reader is not None
        loop = asyncio.get_running_loop()
        writer = Writer(self, self._user, self._reader, loop)
        # Not by the loop's factory, whose tasks may await Deferreds, too: each step costs so much
        # more there that this would be a fifth dearer than `asyncio.start_server`.
        self._task = asyncio.Task(self._talk(self._reader, writer), loop=loop)
        self._task.add_done_callback(self._over)

    def _receiver(self) -> Callable[[bytes], object]:
        if type(self._user) is _ReaderProtocol:
            assert self._reader is not None
            return self._reader.feed_data  # which is all that it does with what is read
        return super()._receiver()

    async def _talk(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        # Without this, a `SystemExit` would end the event loop.
        try:
            await cast("Awaitable[object]", self._owner.handler.converse(reader, writer))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not self._tells_of_the_end(error):
                self.fail(Failure())
        finally:
            # Before the writer is dropped, which would warn that it is open.
            self.close(self._why_closed())

    def _tells_of_the_end(self, error: BaseException) -> bool:
        """Return whether a handler has raised `error` because its client has left."""
        if isinstance(error, asyncio.IncompleteReadError):
            return self._told_end or self._told_lost
        assert self._reader is not None
        told = isinstance(error, ConnectionError) or error is self._reader.exception()
        return self._told_lost and told

    def _over(self, task: asyncio.Task[None]) -> None:
        """Close, if the task has ended before it began; or count the connection out."""
        self._task = None
        self.close(self._why_closed())
        if self._lost and not self._forgotten:
            self._forget()

    @property
    def call(self) -> UnderWay | None:
        """The call of its handler; None if that has ended, or it does not keep its client waiting.

        It does not while it reads or waits for room, and when it has spoken last: then it may wait
        for something to tell its client.
        """
        if self._task is None or not (self._lost or self._owes_an_answer()):
            return None
        coroutine = cast("Coroutine[object, Any, object]", self._task.get_coro())
        return UnderWay(self, self, coroutine=coroutine, gone=self._lost)

    # The end of the connection, and of the task.

    def abort(self, reason: EndReason) -> None:
        self._cancels = self._cancels or reason is EndReason.ABORTED
        if not self._lost:
            super().abort(reason)
        else:
            self._cancel()

    def let_go(self) -> None:
        self._lets_go = True
        if self._lost:
            self._let_go()

    def _forget(self) -> None:
        if self._task is None:
            self._forgotten = True
            super()._forget()
            return
        self._lost_at = self._owner.seconds()
        self._owner.urgent.add(self)
        if self._cancels:
            self._cancel()
        if self._lets_go:
            self._let_go()

    def _let_go(self) -> None:
        """Cancel the task, and give it a few turns to end before the connection is forgotten."""
        self._cancel()
        self._wait_for_task(TURNS_TO_END)

    def _wait_for_task(self, turns: int) -> None:
        if self._task is None or self._forgotten:
            return
        if turns:
            loop = self._task.get_loop()
            loop.call_soon(self._wait_for_task, turns - 1, context=Context())
            return
        # The process may end before the task does.
        self._task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._forgotten = True
        super()._forget()

    def progress(self) -> object:
        reader = self._reader
        if self._task is None or reader is None or self._blocked or self._handshaking:
            return None
        if reader._waiter is not None:  # type: ignore[attr-defined]
            return None
        _, received, sent = self.figures
        unread_bytes = unread(self.transport) if self._kernel_counts else 0
        return received - unread_bytes - len(reader._buffer), sent  # type: ignore[attr-defined]

    def _owes_an_answer(self) -> bool:
        """Return whether the handler has input that it has not read, or not answered."""
        if self.progress() is None or self._reader is None:
            return False
        if self._reader._buffer or unread(self.transport):  # type: ignore[attr-defined]
            return True
        if self._kernel_counts:
            return not has_answered(self.transport, self.figures, QUIET)
        return self._owes

    def end_slow_handler(self, allowed: float) -> None:
        # Its output may be a part of an answer, which must not look complete.
        self.abort(EndReason.HANDLER_TIMEOUT)
        self._cancel(f"the handler has made no progress for {allowed:g} s")

    def _cancel(self, why: str = "the connection is lost") -> None:
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel(why)

    def sweep(self, now: float) -> None:
        if not self._lost:
            super().sweep(now)
        elif self._owner.limits.linger and now - self._lost_at >= self._owner.limits.linger:
            self._cancel()

    # Drain: read the data that the kernel holds at that moment, and no more.

    def _cut_input(self) -> None:
        self._take_back()
        self._receive = None
        self._drain_left = unread(self.transport)
        self._drain_on()

    def _drain_on(self) -> None:
        if self._handshaking:
            self._drain_handshake()
        elif has_read(self.transport, self._drain_left):
            self._tell_end(EndReason.DRAINED)

    def _receive_slowly(self, data: bytes) -> None:
        super()._receive_slowly(data)
        if self._draining and not self._told_end:
            self._drain_left -= len(data)
            self._from_transport(self._drain_on)

    # TLS that the handler begins.

    def begin_tls(self, context: ssl.SSLContext | None) -> None:
        """Begin TLS, and drop the bytes that have come in clear."""
        assert self._reader is not None
        self._reader._buffer.clear()  # type: ignore[attr-defined]
        offered = self._owner.starts_tls
        if context is not None:
            self.serve_tls(_Given(context))
        elif offered is not None:
            self.serve_tls(offered.context)
        else:
            raise RuntimeError(
                "writer.start_tls needs a context, or a listener as in "
                "starttls:8888:certificate=cert.pem:key=key.pem"
            )

    async def handshake(self) -> None:
        """Wait until the handshake that `begin_tls` began is over.

        Raises:
            ConnectionError: it has failed.
        """
        if self._handshaking:
            self._shaken = asyncio.get_running_loop().create_future()
            await self._shaken
        if self._told_lost or self._lost:
            raise ConnectionResetError("Connection lost")

    def _encrypted(self) -> None:
        self._end_handshake()

    def _lose(self, error: BaseException | None) -> None:
        super()._lose(error)
        self._end_handshake()

    def _end_handshake(self) -> None:
        if self._shaken is not None and not self._shaken.done():
            self._shaken.set_result(None)


class _Given:
    """A context of the handler's."""

    server_side = True

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_name: str | None
    ) -> ssl.SSLObject:
        return self._context.wrap_bio(incoming, outgoing, server_side=True)


class _Reader(asyncio.StreamReader):
    """Becomes another reader at its end, so that the reads before cost nothing more."""

    def feed_eof(self) -> None:
        super().feed_eof()
        self.__class__ = _EndedReader


class _EndedReader(_Reader):
    """Ends a handler that reads on: no such read waits, so it would hold the loop for ever."""

    # How often it has been read in this turn of the loop.
    _ends = 0

    def _give_end(self, wanted: int = -1) -> None:
        if self._buffer or not wanted:  # type: ignore[attr-defined]
            return
        if not self._ends:
            asyncio.get_running_loop().call_soon(self._turned, context=Context())
        self._ends += 1
        if self._ends > MOST_ENDS:
            raise end_ignored(MOST_ENDS)

    def _turned(self) -> None:
        self._ends = 0

    async def read(self, n: int = -1) -> bytes:
        self._give_end(n)
        return await super().read(n)

    async def readline(self) -> bytes:
        self._give_end()
        return await super().readline()

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        self._give_end()
        return await super().readuntil(separator)

    async def readexactly(self, n: int) -> bytes:
        self._give_end(n)
        return await super().readexactly(n)


class _ReaderProtocol(asyncio.StreamReaderProtocol):
    """Feeds the reader, and keeps the writing side open when the client has ended its own."""

    def eof_received(self) -> bool:
        super().eof_received()  # which would close over TLS
        return True


class Writer(asyncio.StreamWriter):
    """The writer of a handler."""

    def __init__(
        self,
        connection: StreamsProtocol,
        protocol: asyncio.StreamReaderProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(connection.face, protocol, reader, loop)
        self._connection = connection

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext | None = None,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Begin TLS on this connection, as its server.

        Args:
            sslcontext: the context, with a certificate; None for that of a `starttls:` listener.
            server_hostname: has no meaning for a server.
            ssl_handshake_timeout: seconds; None for `--handshake-timeout`.
            ssl_shutdown_timeout: has no meaning here: `--write-timeout` and `linger` apply.
        """
        await self.drain()
        self._connection.begin_tls(sslcontext)
        await asyncio.wait_for(self._connection.handshake(), ssl_handshake_timeout)
