"""A stream as Twisted protocols see it, over uvloop's C transport.

A :class:`StreamTransport` connects the two: it is the Twisted transport of a Twisted protocol, and
the asyncio protocol of a uvloop transport. For each message it does almost nothing:

- ``data_received`` looks up the protocol's ``dataReceived``, which may be replaced at any time;
- ``write`` calls the uvloop transport's, unless it is diverted: for TLS, for a pull producer, for
  a descriptor to send, while the stream is about to end, or to nothing once it has ended.

(Binding them directly to the other side's methods gains less than 1 %, and fails if other code has
kept the bound method.)

Differences from ``twisted.internet.tcp``, each for a reason:

- A write is tried at once, not in the loop's next turn, and the producer is paused when the
  kernel takes no more, not when a count of bytes is reached. Many small writes are best given to
  ``writeSequence``.
- When the peer ends its stream and the protocol is not an ``IHalfCloseableProtocol``, written data
  is still delivered before the connection closes (``tcp`` drops it), for at most
  :data:`FLUSH_TIMEOUT` seconds.
- An exception in ``connectionMade`` ends the connection.
- ``loseConnection`` does not wait for a producer that is a transport which has ended itself, or
  is about to.
- TCP_NODELAY is set, as uvloop does.
- Closing does not shut down the socket for other holders of a duplicate of its descriptor.
- Closing the *socket* (:meth:`getHandle`) removes the connection from the reactor at once, without
  any callback: so a connection can be passed, as a duplicate of that socket, to a thread or to
  another process.
"""

from __future__ import annotations

import _socket
import asyncio
import gc
import socket
import struct
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.internet import error, main
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    ILoggingContext,
    IProducer,
    IProtocol,
    IPushProducer,
    ISystemHandle,
    ITCPTransport,
    ITLSTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.reactor.logprefix import running

try:
    from twisted.internet import _newtls as newtls
    from twisted.protocols.tls import TLSMemoryBIOProtocol
except ImportError:  # pyOpenSSL is not installed
    newtls = None  # type: ignore[assignment]
    TLSMemoryBIOProtocol = ()  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from echod.reactor.interfaces import LoopReactor

_log = Logger("echod.reactor")

#: Seconds to deliver data written before the peer's end of stream was seen.
FLUSH_TIMEOUT = 30.0

#: The longest read after :meth:`StreamTransport.shortenReads`, in bytes: as in ``tcp``, and a
#: little more, so that 64 KiB with the overhead of TLS are one read.
SHORT_READ = 65536 + 1024

#: How many bytes may wait to be sent before a streaming producer is paused: uvloop's own limit.
BACKLOG = 65536

#: The same after :meth:`StreamTransport.shortenReads`.
SHORT_BACKLOG = 16384

# A coroutine of uvloop that has a socket, and waits for the end: its call of ``connection_made``.
Attaching: TypeAlias = Coroutine[object, None, object]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# Shared by all connections, as in Twisted.
_DONE = Failure(main.CONNECTION_DONE)
_LOST = Failure(main.CONNECTION_LOST)


def _has_ended(producer: object) -> bool:
    """Whether a producer is a transport that is gone, or will be as soon as it can."""
    states = ("disconnected", "disconnecting", "_aborting")
    return any(getattr(producer, state, False) for state in states)


def _ignore(data: bytes) -> None:
    """Replace ``write`` once nothing can be written."""


class StreamSocket(socket.socket):
    """The socket of a stream: a real one, but closing it ends the stream."""

    __slots__ = ("stream",)

    stream: StreamTransport | None

    # Plain numbers: making enum members of them costs a microsecond each time uvloop asks.
    family = _socket.socket.family  # type: ignore[assignment]
    type = _socket.socket.type  # type: ignore[assignment]

    detach = _socket.socket.detach  # as uvloop does when it closes; `close` is ours

    def close(self) -> None:
        """Release the connection: the reactor drops it, and the protocol gets no more calls."""
        stream, self.stream = getattr(self, "stream", None), None
        if stream is None:
            super().close()
        else:
            stream._release()


@implementer(
    ITCPTransport, ITLSTransport, IPushProducer, IConsumer, ISystemHandle, ILoggingContext
)
class StreamTransport:
    """One connected stream.

    Subclasses build the protocol (:meth:`_build_protocol`) and give the addresses.

    :ivar socket: the connection's socket. Duplicate it to keep it: its descriptor is -1 once the
        connection is closed.
    :ivar bufferSize: one ``writeSequence`` of more bytes pauses a streaming producer.
    """

    socket: StreamSocket
    has_context = True

    # Defaults live in the class: an idle connection stores only what differs.
    connected = 0
    disconnected = 0
    disconnecting = 0
    TLS = False
    producer: Any = None
    streamingProducer = False
    producerPaused = False
    bufferSize = 65536
    protocol: Any = None
    _divert: Callable[[bytes], None] | None = None
    _reason: Failure | None = None
    _aborting = False
    _read_ended = False
    _write_ending = False
    _write_ended = False
    _write_paused = False
    _backlog: int | None = None  # SHORT_BACKLOG, or the protocol's, or uvloop's own
    _backlog_left: int | None = None  # how many bytes may wait when a paused producer is resumed
    _reads_are_short = False
    _reads_are_views = False
    _starts_paused = False
    _buffer_error: BaseException | None = None
    _drain_scheduled = False
    _flush_timer: asyncio.TimerHandle | None = None
    _tlsClientDefault = False

    def __init__(self, skt: StreamSocket, reactor: LoopReactor) -> None:
        self.socket = skt
        self.reactor = reactor

    # From a connected socket to a running protocol

    def attach(self) -> None:
        """Give the socket to uvloop; :meth:`_build_protocol` follows in this turn of the loop.

        :raise OSError: uvloop cannot take the socket, which still belongs to the caller.
        """
        attach_soon(self.reactor, [(self, self.attaching())])

    def attaching(self) -> Attaching:
        """Begin to give the socket to uvloop; pass the result to :func:`attach_soon`.

        :raise OSError: as :meth:`attach`.
        """
        attaching: Attaching = self.reactor.loop.connect_accepted_socket(
            self._as_protocol, self.socket
        )
        # The coroutine only waits for connection_made, which is now queued.
        attaching.send(None)
        return attaching

    def _as_protocol(self) -> Any:
        return self

    def connection_made(self, uv: Any) -> None:
        """Open, in the stream's own context: uvloop calls this there."""
        self._uv = uv
        self.connected = 1
        self.socket.stream = self
        self.reactor.streams.add(self)
        uv.resume_reading()  # uvloop does so after this call: see `attached`
        self._open()
        if not uv.is_reading():
            self._starts_paused = True

    def attached(self, attaching: Attaching) -> None:
        """End what :meth:`attaching` has begun, after ``connection_made``."""
        try:
            attaching.send(None)
        except StopIteration:
            pass
        except Exception:
            _log.failure("cannot attach {socket}", socket=self.socket)
        if self._starts_paused and self.connected:
            self._uv.pause_reading()

    @property
    def context(self) -> Context | None:
        """The context in which uvloop calls this stream, which no other stream has."""
        # uvloop does not expose it, but the garbage collector has to know it.
        for one in gc.get_referents(self._uv):
            if type(one) is Context:
                return one
        return None

    def _open(self) -> None:
        try:
            protocol = self._build_protocol()
            if protocol is None:
                self._refused()
            else:
                self._begin(protocol)
        except BaseException:
            self._fail("cannot start")

    def _build_protocol(self) -> IProtocol | None:
        raise NotImplementedError

    def getHost(self) -> Any:
        raise NotImplementedError

    def getPeer(self) -> Any:
        raise NotImplementedError

    def _refused(self) -> None:
        """Close without any callback, because the factory built no protocol."""
        self._release()

    def _begin(self, protocol: IProtocol) -> None:
        self.handOver(protocol)

    def handOver(self, protocol: IProtocol) -> None:
        """Connect ``protocol``; another one may have served the stream so far."""
        self.protocol = protocol
        connect_directly = getattr(protocol, "connect_directly", None)
        if connect_directly is not None:
            self.data_received = connect_directly(self, self._uv)  # type: ignore[method-assign]
            self._announce()
        elif self._is_below_tls:
            self._watch_writes()
        protocol.makeConnection(self)

    def receiveBy(self, data_received: Callable[[bytes], object]) -> None:
        """Let uvloop call ``data_received`` for each read from now on."""
        if self.connected:
            self.data_received = data_received  # type: ignore[method-assign,assignment]
            self._reads_are_views = False
            if self._reads_are_short:
                self.get_buffer, self.buffer_updated = self._buffer, self._take_from_buffer
            else:
                self._forget_buffer()
            self._announce()

    def receiveInto(
        self, get_buffer: Callable[[int], Any], buffer_updated: Callable[[int], object]
    ) -> None:
        """Let uvloop call these for each read from now on, as of a ``BufferedProtocol``."""

        def get_buffer_or_keep_error(hint: int) -> Any:
            try:
                return get_buffer(hint)
            except BaseException as exception:
                self._buffer_error = exception
                raise

        if self.connected:
            self.get_buffer = get_buffer_or_keep_error
            self.buffer_updated = buffer_updated  # type: ignore[assignment]
            self._announce()

    def _forget_readers(self) -> None:
        """Drop what uvloop calls for a read, which keeps other objects alive."""
        # Not by `__dict__`, which would be made for that.
        try:  # noqa: SIM105 - each connection comes here, and `suppress` would double the cost
            del self.data_received
        except AttributeError:
            pass
        if hasattr(self, "get_buffer"):
            self._forget_buffer()

    def _forget_buffer(self) -> None:
        for name in ("get_buffer", "buffer_updated"):
            self.__dict__.pop(name, None)

    def _announce(self) -> None:
        """Make uvloop look up the methods again that it calls, because it keeps them."""
        self._uv.set_protocol(self)

    # Callbacks from uvloop

    def data_received(self, data: bytes) -> None:
        running.stream = self
        try:
            self.protocol.dataReceived(data)
        except BaseException:
            self._fail("dataReceived failed on")
        finally:
            running.stream = None

    def eof_received(self) -> bool:
        """The peer ended its stream. True keeps the writing side open; it is ours to close."""
        self._read_ended = True
        running.stream = self
        half_closeable = self.protocol
        if not IHalfCloseableProtocol.providedBy(half_closeable):  # which is faster to ask first
            half_closeable = IHalfCloseableProtocol(half_closeable, None)
        if half_closeable is None:
            self._close_after_flush()
        else:
            try:
                half_closeable.readConnectionLost()
            except BaseException:
                self._fail("readConnectionLost failed on")
        running.stream = None
        return True

    def pause_writing(self) -> None:
        self._write_paused = True
        # It is also called when _await_drain sets the limit to 0.
        self._pause_if_full()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._drained()

    def connection_lost(self, exception: BaseException | None) -> None:
        if not self.disconnected:
            running.stream = self
            if exception is None and self._reason is None and not self._aborting:
                self._finish(_DONE)  # as most connections end
            else:
                if isinstance(exception, OSError) and _was_raised(exception) and not self._reason:
                    self.failed(exception)  # uvloop reports all errors but these
                self._finish(self._reason or self._reason_for(exception))
                self._reason = None  # the frames of its traceback have this transport
            running.stream = None

    # Closing

    def _reason_for(self, exception: BaseException | None) -> Failure:
        if self._aborting:
            return Failure(error.ConnectionAborted())
        if exception is None:
            return _DONE
        if isinstance(exception, OSError):
            return _LOST
        return Failure(exception)

    def _finish(self, reason: Failure) -> None:
        """End the connection; the only place where that happens, for any reason."""
        producer = self.producer
        protocol = self.protocol
        self._detach()
        if producer is not None:
            try:
                producer.stopProducing()
            except BaseException:
                _log.failure("stopProducing failed on {stream}", stream=self)
        try:
            if protocol is not None:
                protocol.connectionLost(reason)
        except BaseException:
            _log.failure("connectionLost failed on {stream}", stream=self)
        self._lost(reason)

    def _detach(self) -> None:
        """Disconnect, and drop all references that would keep other objects alive."""
        self.connected = 0
        self.disconnected = 1
        self._divert = _ignore
        self.socket.stream = None
        self.reactor.streams.discard(self)
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        if self.protocol is not None:
            self._protocol_name = type(self.protocol).__name__
        self.producer = self.protocol = None
        self._forget_readers()

    def _release(self) -> None:
        """Drop the connection without any callback; a duplicate of the socket stays connected."""
        self._detach()
        self._uv.abort()

    def _lost(self, reason: Failure) -> None:
        """For subclasses: the protocol has been notified that the connection is lost."""

    def connectionLost(self, reason: Failure) -> None:
        """End the connection at once, as the reactor does when it stops."""
        if not self.disconnected:
            context = self.context
            self._uv.abort()
            _call_in(context, self._finish, reason)

    def _fail(self, what: str) -> None:
        """Log the exception being handled, and end the connection with it."""
        self._reason = Failure()
        _log.failure("{what} {stream}", self._reason, what=what, stream=self)
        self._uv.abort()

    def failed(self, exception: BaseException) -> None:
        """Note an exception that uvloop caught from the protocol; uvloop is closing the
        connection.
        """
        if self._buffer_error is not None:  # uvloop has dropped it
            exception, self._buffer_error = self._buffer_error, None
        self._reason = Failure(exception, type(exception), exception.__traceback__)
        failed_directly = getattr(self.protocol, "failed_directly", None)
        if failed_directly is not None:
            failed_directly(self._reason)
        else:
            _log.failure("Unhandled error in {stream}", self._reason, stream=self)

    def loseConnection(self) -> None:
        if self.TLS:
            if self.connected and not self.disconnecting:
                self.protocol.loseConnection()
        else:
            self._lose_connection()

    def closeIfSent(self) -> bool:
        """Close now, if the peer has ended its stream and the kernel has all that was written.

        It takes neither a turn of the loop nor shutdown(2) then. So the peer sees the end only if
        no duplicate of the descriptor is open elsewhere: the caller has to know that.

        :return: whether it is closed.
        """
        uv = self._uv
        # A diverted write is TLS's, or watched, or the stream is about to end already.
        if not self._read_ended or self._divert is not None or uv.get_write_buffer_size():
            return False
        self.disconnecting = 1
        uv.close()
        return True

    def lookForEnd(self) -> bool:
        """Note the peer's end of stream, if it is the next thing to be read; return whether it is.

        The protocol is not notified: this is for one that has read the end of TLS, behind which
        nothing else can come.
        """
        if not self._read_ended:
            try:
                self._read_ended = not self.socket.recv(1, socket.MSG_PEEK)
            except OSError:  # nothing is there yet, or the connection is lost
                return False
        return self._read_ended

    def _lose_connection(self) -> None:
        if self.connected and not self.disconnecting:
            self.pauseProducing()
            self.disconnecting = 1
            if self._write_ended:
                self._uv.close()
            else:
                self._end_when_drained()

    def _end_when_drained(self) -> None:
        """End the connection, or its writing side, once all is sent, as ``tcp`` does.

        A producer does not delay that, unless it is a pull producer or is paused: such a producer,
        asked for more, has the time to write it. :meth:`_drained` does all this.
        """
        self._watch_writes()
        self._await_drain()

    def _close_after_flush(self) -> None:
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        if self.connected:
            self.disconnecting = 1
            self._uv.close()
            if self.writing:
                loop = self.reactor.loop
                self._flush_timer = loop.call_later(
                    FLUSH_TIMEOUT, self._uv.abort, context=self.reactor.context
                )

    def abortConnection(self) -> None:
        if self.connected and not self._aborting:
            self._aborting = True
            self._divert = _ignore
            with suppress(OSError):  # the connection is gone already
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._uv.abort()

    # Half-close

    def loseWriteConnection(self) -> None:
        if self.connected and not self._write_ending:
            self._write_ending = True
            self._end_when_drained()

    def _end_writing(self) -> None:
        """Send FIN, because all is written."""
        self._write_ended = True
        self._divert = _ignore
        with suppress(OSError):  # the peer is gone; connection_lost is on its way
            self.socket.shutdown(socket.SHUT_WR)
        half_closeable = IHalfCloseableProtocol(self.protocol, None)
        if half_closeable is not None:
            try:
                half_closeable.writeConnectionLost()
            except BaseException:
                self._fail("writeConnectionLost failed on")

    # Writing

    def write(self, data: bytes) -> None:
        divert = self._divert
        if divert is None:
            self._uv.write(data)
        else:
            divert(data)

    def writeChunks(self, chunks: list[bytes]) -> None:
        """Write long chunks by one system call, without copying them into one object."""
        if self._divert is None:
            self._uv.writelines(chunks)
        else:
            self._divert(b"".join(chunks))

    @property
    def _is_below_tls(self) -> bool:
        """Whether the protocol is Twisted's TLS."""
        return isinstance(self.protocol, TLSMemoryBIOProtocol)

    def _send(self, data: bytes) -> None:
        """Write, even if ``write`` is diverted."""
        if self._is_below_tls and self.protocol._aborted:
            return  # it is its close_notify, by which a reset would look like a clean end
        self._uv.write(data)
        if self.connected and self._writes_are_watched():
            self._await_drain()
            self._pause_if_full()

    def _writes_are_watched(self) -> bool:
        """Whether writes need more than uvloop's handling.

        A pull producer is asked for more, and a connection ended, when all is sent. And uvloop
        reports a full buffer a second time only after it has reported a drained one.
        """
        if self.disconnecting or self._write_ending:
            return True
        if self.producer is None:
            return False
        return not self.streamingProducer or (self._write_paused and not self.producerPaused)

    def _watch_writes(self) -> None:
        """Divert ``write``, or stop that, after ``_writes_are_watched`` has changed."""
        if self.connected and not self.TLS and not self._write_ended and not self._aborting:
            watched = self._is_below_tls or self._writes_are_watched()
            self._divert = self._send if watched else None

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        chunks = list(iovec)
        for chunk in chunks:
            if not isinstance(chunk, bytes):
                raise TypeError("Data must be bytes")
        data = b"".join(chunks)
        self.write(data)
        if len(data) > self.bufferSize and self.producer is not None and not self.TLS:
            self._producer_overran()

    def _producer_overran(self) -> None:
        if self.streamingProducer and not self.producerPaused:
            self._pause_producer()
            self._await_drain()

    def _await_drain(self) -> None:
        """Arrange for :meth:`_drained` once the kernel has all the written data."""
        if self._uv.get_write_buffer_size():
            self._uv.set_write_buffer_limits(0)
        elif not self._drain_scheduled:
            self._drain_scheduled = True
            self.reactor.loop.call_soon(self._drained_later, context=self.context)

    def _drained_later(self) -> None:
        self._drain_scheduled = False
        if not self.connected:
            return
        if self.writing:
            self._await_drain()
        else:
            self._drained()

    def _drained(self) -> None:
        """Continue, now that the kernel has the written data, or nearly all of it."""
        ending = self.disconnecting or (self._write_ending and not self._write_ended)
        if ending and self.writing:
            self._await_drain()
            return
        if self._divert is not None:
            self._watch_writes()
        producer = self.producer
        if producer is not None and self.streamingProducer and not ending:
            self._uv.set_write_buffer_limits(self._backlog, self._backlog_left)
        if producer is not None and (self.producerPaused or not self.streamingProducer):
            self._resume_producer()
            if ending and _has_ended(producer):
                # It neither writes nor unregisters, which is what would end this one.
                self._await_drain()
        elif self.disconnecting:
            self._uv.close()
        elif ending:
            self._end_writing()

    def limitQueue(self, high: int | None, low: int | None = None) -> None:
        """Pause a streaming producer when more than ``high`` bytes wait to be sent, and resume it
        when no more than ``low`` do; ``None`` for uvloop's own limits.
        """
        if self.connected:
            self._uv.set_write_buffer_limits(high, low)  # which checks the two
            self._backlog_left, self._backlog = self._uv.get_write_buffer_limits()
            # uvloop has called `pause_writing` before the new limit was known here.
            if self._write_paused:
                self._pause_if_full()

    @property
    def queueLimits(self) -> tuple[int, int]:
        """The low and high limit: see :meth:`limitQueue`."""
        if self._backlog is None or self._backlog_left is None:
            return BACKLOG // 4, BACKLOG
        return self._backlog_left, self._backlog

    @property
    def queued(self) -> int:
        """How many written bytes wait, because the kernel takes no more."""
        return int(self._uv.get_write_buffer_size()) if self.connected else 0

    @property
    def writing(self) -> bool:
        """Whether written data still waits for the kernel."""
        return bool(self.connected and self._uv.get_write_buffer_size())

    # IConsumer

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        if self.TLS:
            self.protocol.registerProducer(producer, streaming)
        else:
            self._register_producer(producer, streaming)

    def unregisterProducer(self) -> None:
        if self.TLS and self.protocol is not None:
            self.protocol.unregisterProducer()
        else:
            self._unregister_producer()

    def _register_producer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError(
                f"Cannot register producer {producer}, because producer {self.producer} was "
                "never unregistered."
            )
        if self.disconnected:
            producer.stopProducing()
            return
        self.producer = producer
        self.streamingProducer = streaming
        self.producerPaused = False
        # A streaming one changes nothing for writes before the first of them is held up.
        if not streaming or self._write_paused or self._divert is not None:
            self._watch_writes()
        if not streaming:
            producer.resumeProducing()
            # It is asked again when the earlier data is sent, as in tcp.
            if self.connected:
                self._await_drain()

    def _unregister_producer(self) -> None:
        self.producer = None
        if self.connected and self._divert is not None:
            self._watch_writes()
            if self._writes_are_watched():
                self._await_drain()

    def stopConsuming(self) -> None:
        self.unregisterProducer()
        self.loseConnection()

    def _pause_if_full(self) -> None:
        """Pause a streaming producer, if the allowed amount waits to be sent."""
        if self.producer is None or not self.streamingProducer or self.producerPaused:
            return
        if self.queued > (BACKLOG if self._backlog is None else self._backlog):
            self._pause_producer()

    def _pause_producer(self) -> None:
        self.producerPaused = True
        try:
            self.producer.pauseProducing()
        except BaseException:
            self._fail("pauseProducing failed on")

    def _resume_producer(self) -> None:
        self.producerPaused = False
        try:
            self.producer.resumeProducing()
        except BaseException:
            self._fail("resumeProducing failed on")

    # IPushProducer: reading

    @property
    def reading(self) -> bool:
        """Whether the stream is read from."""
        return bool(self.connected and self._uv.is_reading())

    def pauseProducing(self) -> None:
        if self.connected:
            self._uv.pause_reading()

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting and not self._read_ended:
            if self._starts_paused:
                self._starts_paused = False  # `attached` may come later
            self._uv.resume_reading()
            self.reactor.streams.add(self)  # it may have been removed, as by removeAll

    def stopProducing(self) -> None:
        self.loseConnection()

    def shortenReads(self) -> None:
        """Read at most :data:`SHORT_READ` bytes at once from now on; uvloop's limit is 256,000.

        This is for a protocol that keeps its input. The data that waits to be sent is then bounded
        by :data:`SHORT_BACKLOG`, plus the answer to one read.
        """
        if self.connected and not self._reads_are_short:
            self._reads_are_short = True
            self.limitQueue(SHORT_BACKLOG)
            self._read_into_buffer()

    def readInPlace(self) -> None:
        """Pass each read to the protocol as a view of uvloop's buffer, which the next read
        overwrites, and read at most :data:`SHORT_READ` bytes at once.

        This is for a protocol that copies what it keeps.
        """
        if self.connected and not self._reads_are_views:
            self._reads_are_views = True
            self._read_into_buffer()

    def _read_into_buffer(self) -> None:
        # With these, uvloop takes it for an asyncio ``BufferedProtocol``.
        self.get_buffer = self._buffer
        self.buffer_updated = self._take_from_buffer
        self._announce()

    def _buffer(self, hint: int) -> memoryview:
        """Return uvloop's buffer for a read: all connections share it, because a read is used or
        copied at once.
        """
        return self.reactor.read_buffer

    def _take_from_buffer(self, size: int) -> None:
        view = self.reactor.read_buffer[:size]
        self.data_received(view if self._reads_are_views else bytes(view))  # type: ignore[arg-type]

    startReading = resumeProducing
    stopReading = pauseProducing

    # TLS

    def startTLS(self, contextFactory: object, normal: bool = True) -> None:
        newtls.startTLS(self, contextFactory, normal, _BelowTLS)
        if self.connected:
            self._divert = self.protocol.write

    # The socket

    def getHandle(self) -> StreamSocket:
        return self.socket

    def fileno(self) -> int:
        return self.socket.fileno()

    def getTcpNoDelay(self) -> bool:
        return bool(self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        with suppress(OSError):  # only a hint, as in tcp; it may fail at the connection's end
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    # Names

    @property
    def logstr(self) -> str:
        """The log prefix: the protocol's, and where the connection came from."""
        return f"{self._prefix()},{self._whence()}"

    def logPrefix(self) -> str:
        return self.logstr

    def _prefix(self) -> str:
        if ILoggingContext.providedBy(self.protocol):
            return str(self.protocol.logPrefix())
        return self._name()

    def _name(self) -> str:
        return self._protocol_name if self.protocol is None else _name(self.protocol)

    def _whence(self) -> str:
        raise NotImplementedError

    _protocol_name = "no protocol"


def attach_soon(reactor: LoopReactor, begun: Sequence[tuple[StreamTransport, Attaching]]) -> None:
    """End what :meth:`StreamTransport.attaching` has begun, in this turn of the loop.

    The callback is queued right behind each ``connection_made``, so it finds them done: no task
    and no future callback is needed. Only the others' ``connection_made`` can come between.
    """
    reactor.loop.call_soon(_attach, begun, context=reactor.context)


def _attach(begun: Sequence[tuple[StreamTransport, Attaching]]) -> None:
    for stream, attaching in begun:
        stream.attached(attaching)


def _call_in(context: Context | None, function: Callable[..., None], *arguments: object) -> None:
    """Call in ``context``; call directly if it is entered already, as by the protocol."""
    try:
        if context is not None:
            context.run(int)
    except RuntimeError:
        context = None
    function(*arguments) if context is None else context.run(function, *arguments)


def _name(protocol: object) -> str:
    return "no protocol" if protocol is None else type(protocol).__name__


def _was_raised(exception: BaseException) -> bool:
    """Whether Python code has raised ``exception``; uvloop's own errors come from the kernel."""
    step = exception.__traceback__
    while step is not None and step.tb_frame.f_code.co_filename.startswith("uvloop/"):
        step = step.tb_next
    return step is not None


class _BelowTLS:
    """The stream's own operations, for the TLS layer that replaced its public ones."""

    @staticmethod
    def write(stream: StreamTransport, data: bytes) -> None:
        if stream.connected and not stream._write_ended:
            stream._send(data)

    @staticmethod
    def writeSequence(stream: StreamTransport, iovec: Iterable[bytes]) -> None:
        _BelowTLS.write(stream, b"".join(iovec))

    @staticmethod
    def loseConnection(stream: StreamTransport) -> None:
        stream._lose_connection()

    @staticmethod
    def registerProducer(stream: StreamTransport, producer: IProducer, streaming: bool) -> None:
        stream._register_producer(producer, streaming)

    @staticmethod
    def unregisterProducer(stream: StreamTransport) -> None:
        stream._unregister_producer()
