"""One TLS connection: a Twisted protocol towards the network, a transport towards the application.

Between the two is OpenSSL, with a memory buffer on each side (`ssl.MemoryBIO`).

Guarantees:

* The application's output is followed by close_notify, then FIN; the peer's close_notify or FIN
  ends only the input. A FIN without close_notify may come from an attacker who truncates the
  stream: if that matters, messages must mark their ends. Such a FIN is treated as a normal end,
  and all that has arrived is answered.
* After close_notify or an error, further input is ignored.
* A read may contain thousands of short records: no connection decrypts and answers all of them in
  one turn of the event loop. `echod.turns` decides its share; the rest waits.
* Memory is bounded. Input is decrypted only while the application reads; meanwhile only the rest
  of one read waits. Output goes to the transport at once, which pauses the application's producer.
  Before the handshake is over output waits, and a producer is paused above `MOST`. OpenSSL's
  buffers never shrink, so they get at most `MOST` at a time, and `MOST_OUT` to encrypt.
* A server's OpenSSL begins with a whole ClientHello: the host in it chooses the certificate.
* Errors are not logged here: `connectionLost` gets them, as a `TLSError`. The peer gets OpenSSL's
  alert, and `LINGER` seconds to read it.
* Plain bytes are never taken for encrypted ones, or the reverse: TLS begins with the connection,
  or at `take_over`, before which the application drops the bytes that it has not read.

A message takes few calls. One flag, `_direct`, marks the common case. An exception from OpenSSL,
its way of asking for more input, is expensive; it is avoided when the buffer is known to be empty.
Writes within `dataReceived` are collected, and leave in one write. They are encrypted before the
next record is decrypted: after a damaged record OpenSSL encrypts nothing, so the replies to
earlier records would be lost. Only a full record, which a peer's longer write continues, is passed
on together with the records behind it, and so goes unanswered if the next one is damaged.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context as CallContext
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    ILoggingContext,
    INegotiated,
    IProducer,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    ISystemHandle,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.contexts import call_in, context_of
from echod.stacked import StackedTransport, shorten_reads, write_now
from echod.timers import cancel_timer
from echod.tls.base import TLSError, TLSLayer
from echod.tls.context import Context
from echod.tls.facts import TLSFacts, facts_of
from echod.tls.hello import ClientHello
from echod.turns import FREE, LONG, Share, Turns

if TYPE_CHECKING:
    from echod.interfaces import Stream, Writer

# The largest content of a record (RFC 8446, 5.1): a smaller read would leave the rest in OpenSSL.
RECORD = 2**14
# The overhead of a record in TLS 1.3, in bytes: header, type of the content, tag (RFC 8446, 5.2).
AROUND = 22
# How many bytes OpenSSL gets to decrypt at a time: two records, so that hardly any is cut.
MOST = 2 * (RECORD + AROUND)
# How many it gets to encrypt at a time: room for an echo of two records, with a prefix for each.
MOST_OUT = MOST + 1024
# How many of a longer write it gets at a time: full records only.
PIECE = 2 * RECORD
# How many bytes leave in one write: a system call costs more than encrypting a record.
BATCH = 5 * RECORD
# How many full records of one read the application gets together: their echo is a batch at most.
TOGETHER = 4
# How much longer than any other read one of full records may take before it counts against the
# connection's share of a turn, in seconds: its records are four at most, and each costs as much as
# ten short ones. Otherwise a busy loop would answer 64 KiB in two turns and writes.
FULL = 0.0002
# How long a peer has to read an alert and to close, in seconds: an immediate close with unread
# input would send RST, and RST destroys the alert.
LINGER = 2.0
# The approximate overhead of a record, in bytes.
OVERHEAD = 32
NOTHING = memoryview(b"")


class Meddler(Protocol):
    """Meddles on purpose with the server's side of a connection, to test clients by."""

    def hello(
        self, tls: TLSConnection, context: Context, server_name: str | None
    ) -> Context | None:
        """Return the context that is used; None if the meddler has ended TLS (`abandon`).

        Args:
            tls: the connection.
            context: the listener's.
            server_name: the host that the client asks for.
        """

    def handshake(self, data: bytes) -> bytes:
        """Return what of the handshake's next bytes leaves now; `go_on` sends what is held."""

    @property
    def holds(self) -> bool:
        """Whether the handshake waits for `go_on`."""

    @property
    def notifies(self) -> bool:
        """Whether the end of the stream is told by close_notify."""


@implementer(IHalfCloseableProtocol, IProtocol, ILoggingContext)
@implementer(ISSLTransport, INegotiated, IPushProducer, ISystemHandle)
class TLSConnection(StackedTransport, TLSLayer):
    """One connection, either side of it.

    Attributes:
        protocol: the application's protocol.
        transport: the transport that carries what is encrypted; from `makeConnection` on.
        received: how many bytes were passed to an application that does not count them itself.
        sent: how many bytes the application has written.
    """

    transport: Stream

    __slots__ = (
        "_clock",
        "_closing",
        "_collecting",
        "_context",
        "_direct",
        "_eof",
        "_failure",
        "_half_closing",
        "_hello",
        "_incoming",
        "_input_over",
        "_lost",
        "_meddler",
        "_open",
        "_outgoing",
        "_parts",
        "_pass_on",
        "_producer",
        "_producer_paused",
        "_read",
        "_reading",
        "_receiver",
        "_records",
        "_rest",
        "_resting",
        "_server_name",
        "_size",
        "_streaming",
        "_timer",
        "_tls",
        "_turns",
        "_writable",
        "_write",
        "protocol",
        "received",
        "sent",
        "transport",
    )

    def __init__(
        self,
        protocol: IProtocol,
        context: Context,
        clock: IReactorTime,
        turns: Turns | None = None,
        meddler: Meddler | None = None,
    ) -> None:
        """Set up, unconnected.

        Args:
            protocol: the application's protocol, for which this is the transport.
            context: makes OpenSSL's part.
            clock: an `IReactorTime`, for timers.
            turns: shares the turns of that event loop among connections.
            meddler: meddles with the server's side; None for none.
        """
        self.protocol: Any = protocol
        self.received = self.sent = 0
        # The application's faster function for input; None: `dataReceived`.
        self._receiver: Callable[[bytes], None] | None = None
        self._clock = clock
        self._turns = turns or Turns(clock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._context = context
        self._meddler = meddler
        # OpenSSL's part; a server's begins with the client's hello.
        self._tls: ssl.SSLObject | None = None
        # The transport's `write`, or a faster function.
        self._pass_on: Callable[[bytes], None] | None = None
        self._hello: ClientHello | None = None
        self._server_name: str | None = None
        # The handshake is over.
        self._open = False
        # ... and the application may write, reads, and has read all input.
        self._writable = False
        self._direct = False
        self._reading = True
        # It continues to decrypt in a later turn of the event loop.
        self._resting = False
        # The input that was not passed to OpenSSL yet.
        self._rest = NOTHING
        # The output that is not encrypted yet: before the handshake, and within `dataReceived`.
        # Then its size, with that of the records below; within `dataReceived` without the first
        # part, so that one short reply needs no sum.
        self._parts: list[bytes] = []
        self._size = 0
        self._collecting = False
        # The encrypted output that is not sent yet, before the content of OpenSSL's buffer.
        self._records: list[bytes] = []
        self._producer: Any = None
        self._streaming = False
        self._producer_paused = False
        # FIN has arrived; the application knows that its input is over.
        self._eof = False
        self._input_over = False
        # The application wants to end its output; to close the connection.
        self._half_closing = False
        self._closing = False
        self._lost = False
        self._failure: Failure | None = None
        self._timer: IDelayedCall | None = None

    # From the network.

    def connect_directly(self, transport: Stream, writer: Writer) -> Callable[[bytes], None]:
        """Return the function that the uvloop reactor calls for each read.

        Args:
            transport: the transport that `makeConnection` will get.
            writer: the fastest way to write, as long as the connection is open.
        """
        self._pass_on = writer.write
        return self.dataReceived

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self._pass_on = self._pass_on or transport.write
        self.connectionMade()

    def take_over(self, transport: Any) -> None:
        """Begin TLS on a transport on which the application's protocol has spoken in clear."""
        self.transport = transport
        self._pass_on = transport.write
        self._set_up()

    def connectionMade(self) -> None:
        connect_over_tls = getattr(self.protocol, "connect_over_tls", None)
        if connect_over_tls is not None:
            self._receiver = connect_over_tls(self)
        self.protocol.makeConnection(self)
        if not self._lost:
            self._set_up()

    def _set_up(self) -> None:
        """Begin; only now, so that the application is notified if that fails."""
        if self._context.server_side:
            self._hello = ClientHello()
        else:
            self._start_openssl()

    def _start_openssl(self) -> None:
        """Make OpenSSL's part, which answers the input so far; a client's speaks first."""
        context: Context | None = self._context
        try:
            if self._meddler is not None:
                context = self._meddler.hello(self, self._context, self._server_name)
            if context is None:
                return
            tls = context.wrap(self._incoming, self._outgoing, self._server_name)
        except Exception as error:  # a context that is of no use, or no memory
            self._fail(error)
            return
        self._tls = tls
        # Bypassing `SSLObject`, which only forwards, saves two calls a message.
        plain: Any = getattr(tls, "_sslobj", tls)
        self._read: Callable[[int], bytes] = plain.read
        self._write: Callable[[Any], int] = plain.write
        self._shake_hands()

    def dataReceived(self, data: bytes | memoryview) -> None:
        if not self._direct or len(data) > MOST:
            self._receive(data)
            return
        # One short record and its reply: as in `_decrypt` and `_flush`, without their calls. No
        # attribute is called like a method, because the interpreter is slower at that.
        incoming, read = self._incoming, self._read
        self._collecting = True
        try:
            incoming.write(data)
            try:
                content = read(RECORD)
            except OSError as error:
                self._read_nothing(error)
            else:
                if content and not incoming.pending:
                    receive = self._receiver
                    if receive is None:
                        self.protocol.dataReceived(content)
                    else:
                        self.received += len(content)
                        receive(content)
                else:
                    self._decrypt(content)
        finally:
            self._collecting = False
            parts = self._parts
            if parts and not self._size and len(parts[0]) <= RECORD:
                write, outgoing, pass_on = self._write, self._outgoing, self._pass_on
                try:
                    write(parts.pop())
                    pass_on(outgoing.read())  # type: ignore[misc]
                except OSError as error:
                    self._fail(error)
            elif parts or self._size or self._outgoing.pending:
                self._flush()
        if self._resting:
            self._direct = False
            self.transport.pauseProducing()

    def _decrypt(self, content: bytes | None = None) -> None:  # noqa: C901 - calls would cost
        """Pass the application what OpenSSL's buffer holds, and then the rest of the read.

        Args:
            content: of the first record, if that is decrypted already.
        """
        incoming, parts, turns = self._incoming, self._parts, self._turns
        seconds = turns.seconds
        receive = self._receiver
        # A share of the turn is an object only once `FREE` is used up; before, only when it began.
        begun = seconds()
        share = turns.shares.get(self) if turns.shares else None
        if share is not None:
            until = share.until
        else:
            until, rest = begun + FREE, self._rest
            if len(rest) > RECORD and rest[3] >= RECORD >> 8:  # by its length, a full record
                until += FULL
        while self._reading and not self._input_over:
            content, behind = self._next_content(content)
            if content:
                if receive is None:
                    self.protocol.dataReceived(content)
                else:
                    self.received += len(content)
                    receive(content)
            elif behind is None:
                break  # the next record is not complete
            if behind is None and not (incoming.pending or self._rest):
                break
            if parts:
                self._seal()
            if behind is not None:
                self._read_nothing(behind)
                break
            content = None
            if seconds() >= until:
                if share is None:
                    share = turns.shares.get(self) or Share(turns, self, begun)
                if share.used_up():
                    self._wait_in_line()
                    break
                until = share.until

    def _next_content(self, content: bytes | None) -> tuple[bytes, bytes | OSError | None]:
        """Return the content of the next record; of full ones with what continues them.

        A peer's longer write is cut into full records and one that is not. The application gets
        at most so many at a time that their echo leaves in one write.

        Args:
            content: of the first record, if that is decrypted already.

        Returns:
            The content, none if this read has no whole record any more; and what OpenSSL has
            returned or raised behind it: none for the peer's end, an error, or None.
        """
        if content is not None and len(content) < RECORD:
            return content, None if content else b""
        incoming, read, rest = self._incoming, self._read, self._rest
        records = [] if content is None else [content]
        behind: bytes | OSError | None = None
        is_cut = False
        while len(records) < TOGETHER:
            if is_cut or not incoming.pending:
                if not rest:
                    break
                incoming.write(rest[:MOST])
                rest = rest[MOST:]
                is_cut = False
            try:
                content = read(RECORD)
            except ssl.SSLWantReadError:
                is_cut = True
                continue
            except OSError as error:
                behind = error
                self._write = _raising(error)  # OpenSSL encrypts nothing more
                break
            if not content:
                behind = content
                break
            records.append(content)
            if len(content) < RECORD:
                break
        self._rest = rest or NOTHING
        return records[0] if len(records) == 1 else b"".join(records), behind

    def _read_nothing(self, what: bytes | OSError) -> None:
        """Take what OpenSSL has returned or raised in place of a record's content."""
        if isinstance(what, ssl.SSLWantReadError):
            return  # the record is not complete
        if self._closing or self._lost or self._failure is not None:
            return
        if isinstance(what, bytes | ssl.SSLZeroReturnError):
            if self._reading:
                self._end_input()
            else:
                self._eof = True  # it is passed on when the application reads again
        else:
            self._fail(what)

    def _wait_in_line(self) -> None:
        """Continue in the next turn of the event loop."""
        if not self._lost and self._failure is None:
            self._resting = True
            self._turns.rest(self)

    def take_turn(self) -> None:
        """Take this connection's turn; `Turns` calls it."""
        self._resting = False
        self._turns.keep(Share(self._turns, self))  # this turn may bring another read
        context = self.context
        try:
            self._read_on() if context is None else call_in(context, self._read_on)
        except BaseException:  # the transport does not see it, and so does not end the connection
            self.abortConnection()
            raise
        if self._reads:
            self.transport.resumeProducing()

    def _receive(self, data: bytes | memoryview) -> None:
        """Take input outside of the common case."""
        if self._input_over or self._lost:
            return
        if self._open:
            if len(data) >= LONG:
                # The rest of a read may have to wait. Not from the start: each read costs more.
                shorten_reads(self.transport)
            if len(data) > MOST and type(data) is bytes:
                self._read_in_place()
            self._rest = memoryview(bytes(self._rest) + data if self._rest else data)
            try:
                self._read_on()
            finally:
                if self._rest and type(data) is not bytes:  # the next read overwrites that
                    self._rest = memoryview(bytes(self._rest))
        else:
            self._incoming.write(data)
            if self._tls is not None:
                self._shake_hands()
                if self._incoming.pending > MOST:  # nothing reads that while a meddler holds
                    self.transport.pauseProducing()
            elif self._hello is not None and self._hello.feed(bytes(data)):
                self._server_name = self._hello.server_name
                self._hello = None
                self._start_openssl()

    def _read_in_place(self) -> None:
        """Get views of the buffer that the uvloop reactor reads into, instead of copies.

        Do not do so from the beginning: a short read costs more then.
        """
        # Of its class: a wrapper passes on attributes, and is passed bytes.
        read_in_place = getattr(type(self.transport), "readInPlace", None)
        if read_in_place is not None:
            read_in_place(self.transport)

    def _read_on(self) -> None:
        """Decrypt the input as far as the application reads, and this turn of the loop allows;
        then report its end.
        """
        if self._rest or self._incoming.pending:
            turns = self._turns
            share = turns.shares.get(self) if turns.shares else None
            if share is not None:
                if self._reads and share.used_up():
                    self._wait_in_line()
            elif len(self._rest) >= LONG:
                turns.keep(Share(turns, self))  # this turn may bring another read
            self._collecting = True
            try:
                if not self._resting:
                    self._decrypt()
            finally:
                self._collecting = False
                self._flush()
        if self._resting:
            self.transport.pauseProducing()
        elif self._eof and self._reading and not self._input_over:
            self._end_input()
        self._choose()

    @property
    def _reads(self) -> bool:
        """Whether the application reads now."""
        return self._reading and not self._resting

    @property
    def _waiting(self) -> int:
        return self._incoming.pending + len(self._rest)

    @property
    def undelivered(self) -> int:
        """How many bytes, as on the wire, have arrived and are not read by the application.

        Without those of a client's hello that is not complete: more has to come first.
        """
        return 0 if self._input_over or self._hello is not None else self._waiting

    def _choose(self) -> None:
        """Note whether the common case holds from here on."""
        reads = self._open and self._reading and not (self._resting or self._input_over)
        self._direct = reads and not (self._rest or self._incoming.pending)

    def readConnectionLost(self) -> None:
        """Note the peer's FIN."""
        self._eof = True
        if self._failure is not None or not self._open:
            self.transport.loseConnection()
        else:
            self._read_on()

    def writeConnectionLost(self) -> None:
        """Note that our FIN is sent."""
        half_closeable = IHalfCloseableProtocol(self.protocol, None)
        if half_closeable is not None and self._failure is None:
            half_closeable.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._stop()
        self._set_timer(None)
        self.protocol.connectionLost(self._failure or reason)
        # These lead back here, `_write` by an error's traceback: all would wait for the collector.
        # From here on, `_write` takes what it is given, and writes nothing.
        self.protocol = self._receiver = None
        self._write = len

    def _stop(self) -> None:
        """Stop reading and writing."""
        self._writable = self._direct = self._reading = self._resting = False
        self._turns.leave(self, self)
        self._pass_on = self.transport.write  # and drop the reference of the faster function
        self._parts.clear()
        self._rest = NOTHING

    def _end_input(self) -> None:
        """End the application's input: the peer has sent its last byte."""
        self._input_over = True
        self._direct = False
        half_closeable = IHalfCloseableProtocol(self.protocol, None)
        if half_closeable is not None:
            half_closeable.readConnectionLost()
        else:
            self._stop_producer()
            self.loseConnection()

    def _fail(self, error: Exception) -> None:
        """End TLS: send OpenSSL's alert, and close when the peer has had time to read it."""
        reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error
        words = "no memory" if isinstance(error, MemoryError) else str(reason)
        self._end_by(Failure(TLSError(words.lower().replace("_", " "))))

    def abandon(self, last: bytes = b"") -> None:
        """End TLS without an end of its own: send these bytes as they are, and FIN."""
        self._outgoing.read()
        self._end_by(Failure(ConnectionDone()), last)

    def provoke(self, data: bytes) -> None:
        """Take these bytes for the peer's next record, which is an error, and end TLS by its
        alert.
        """
        self._flush()
        self._rest = NOTHING
        self._incoming.read()
        self._incoming.write(data)
        try:
            while True:
                self._read(RECORD)
        except OSError as error:
            self._fail(error)

    def _end_by(self, failure: Failure, last: bytes = b"") -> None:
        """Send what OpenSSL has left, and `last`; close when the peer has had time to read it."""
        self._failure = failure
        self._input_over = True
        self._stop()
        self._stop_producer()
        self._flush()
        if last:
            self.transport.write(last)
        self.transport.resumeProducing()
        self.transport.loseWriteConnection()
        self._set_timer(self._clock.callLater(LINGER, self.transport.abortConnection))

    def _stop_producer(self) -> None:
        """Let go of the application's producer: the connection ends without it."""
        producer, self._producer = self._producer, None
        if producer is not None:
            if self._open:
                self.transport.unregisterProducer()
            producer.stopProducing()

    def _set_timer(self, timer: IDelayedCall | None) -> None:
        cancel_timer(self._timer)
        self._timer = timer

    # The handshake.

    def _shake_hands(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
        except OSError as error:
            self._fail(error)
        else:
            if self._meddler is not None:
                self._send()
                if self._meddler.holds:
                    return
            if self._failure is None:
                self._begin()

    def go_on(self, data: bytes) -> None:
        """Send what a meddler has held of the handshake, and continue."""
        if self._lost or self._failure is not None:
            return
        if data:
            self.transport.write(data)
        self.transport.resumeProducing()
        self._shake_hands()

    def _begin(self) -> None:
        """Begin the application's part: the handshake is over."""
        self._open = self._writable = True
        self._collecting = True
        self._start_producer()
        if IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        self._collecting = False
        self._flush()
        self._end_as_asked()
        if not self._reading and self._failure is None:
            self.transport.pauseProducing()
        self._read_on()

    @property
    def is_shaking_hands(self) -> bool:
        """Whether the handshake is not over, or has failed."""
        return not self._open

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """OpenSSL's part, to look at: its `read` and `write` would disturb this one.

        None as long as a server has no hello.
        """
        return self._tls

    @property
    def facts(self) -> TLSFacts:
        """The facts about the peer, once the handshake is over."""
        assert self._tls is not None
        return facts_of(self._tls, self._server_name)

    # The application's transport: writing.

    def write(self, data: bytes) -> None:
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        if not data:
            return  # OpenSSL would take it for an error
        self.sent += len(data)
        if self._collecting and self._writable:
            parts = self._parts
            if parts:
                self._size += len(data)
            parts.append(data)
            if self._size > BATCH:
                self._flush()
        elif self._writable:
            self._encrypt(data)
        elif not self._open:
            self._hold(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def _hold(self, data: bytes) -> None:
        """Keep output that is written before the handshake is over."""
        if self._closing or self._half_closing or self._lost or self._failure is not None:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > MOST and self._streaming and not self._producer_paused:
            self._producer_paused = True
            self._producer.pauseProducing()

    def _flush(self) -> None:
        """Send the collected output, and OpenSSL's own messages."""
        self._size = 0
        if parts := self._parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            self._encrypt(data)
        else:
            self._send()

    def _send(self) -> None:
        """Send OpenSSL's output."""
        data = self._outgoing.read()
        if records := self._records:
            self._records = []
            records.append(data)
            # Of its class: a wrapper passes on attributes, and this would go past its `write`.
            write_chunks = getattr(type(self.transport), "writeChunks", None)
            if write_chunks is None:
                self.transport.write(b"".join(records))
            else:
                write_chunks(self.transport, records)
            return
        if data and self._meddler is not None and not self._open:
            data = self._meddler.handshake(data)
        if data:
            self.transport.write(data)

    def _seal(self) -> None:
        """Encrypt the collected output, to be sent later."""
        parts, outgoing, write = self._parts, self._outgoing, self._write
        data = parts[0]
        self._size += len(data) + OVERHEAD
        if len(parts) > 1:
            data = b"".join(parts)
        parts.clear()
        try:
            if outgoing.pending + len(data) <= MOST_OUT:
                write(data)
            else:
                self._add(data)
        except OSError as error:
            self._fail(error)

    def _add(self, data: bytes | memoryview) -> None:
        """Make OpenSSL encrypt `data`, after its earlier records."""
        outgoing, write, records = self._outgoing, self._write, self._records
        size, pending = len(data), outgoing.pending
        if pending + size > MOST_OUT:
            if pending:
                records.append(outgoing.read())
            data = memoryview(data)
            while size > MOST_OUT:
                write(data[:PIECE])
                records.append(outgoing.read())
                data = data[PIECE:]
                size -= PIECE
        write(data)

    def _encrypt(self, data: bytes) -> None:
        """Encrypt and send."""
        write, outgoing, pass_on = self._write, self._outgoing, self._pass_on
        assert pass_on is not None
        try:
            if len(data) <= RECORD and not self._records:
                write(data)
                pass_on(outgoing.read())
            elif len(data) <= BATCH:
                self._add(data)
                self._send()
            else:
                for batch in _cut(memoryview(data), BATCH):
                    self._add(batch)
                    self._send()
        except OSError as error:
            self._fail(error)

    # Closing.

    def loseWriteConnection(self) -> None:
        """Send close_notify and FIN after the written data; go on reading."""
        if not self._half_closing:
            self._half_closing = True
            self._end_as_asked()

    def loseConnection(self) -> None:
        """Close, after the written data."""
        if not self._closing:
            self._closing = True
            self._end_as_asked()

    def _end_as_asked(self) -> None:
        """End the streams that the application wants to end, if that is possible now."""
        if self._lost or self._producer is not None or not (self._closing or self._half_closing):
            return
        if self._failure is not None:
            return  # it is closing already
        if not self._open:
            # Wait for the handshake only if there is output.
            if self._closing and not self._parts:
                self.transport.loseConnection()
            return
        notified = not self._writable
        if not notified:
            self._notify()
        if self._closing:
            self._reading = self._direct = False
            self.transport.loseConnection()
        elif not notified:
            self.transport.loseWriteConnection()

    def _notify(self) -> None:
        """Send close_notify, after everything written."""
        self._flush()
        self._writable = False
        assert self._tls is not None
        # OpenSSL would then look for the peer's close_notify, and fail on data before it.
        unread = self._incoming.read()
        if self._meddler is None or self._meddler.notifies:
            with contextlib.suppress(OSError):  # the peer's has not arrived, and may never do so
                self._tls.unwrap()
        self._incoming.write(unread)
        self._flush()

    def closeIfSent(self) -> bool:
        """Close now, if the peer has ended TLS and its stream, and the kernel takes all that is
        written, with our close_notify behind it.

        As of the uvloop reactor's transport, which this needs: that has the rules for the caller.

        Returns:
            Whether it is closed.
        """
        stream: Any = self.transport
        over = self._input_over and self._writable and self._meddler is None
        # A wrapper passes on the attributes of what it wraps, but not those of its class.
        if not over or not hasattr(type(stream), "lookForEnd") or not stream.lookForEnd():
            return False
        self._notify()
        if self._failure is None and stream.closeIfSent():
            return True
        stream.loseWriteConnection()  # once the kernel has all
        self._half_closing = True
        return False

    def abortConnection(self) -> None:
        if self._collecting and self._writable:  # within a read: what was written before leaves
            self._flush()
            write_now(self.transport)
        self._lost = True
        self._stop()
        self.transport.abortConnection()

    @property
    def disconnecting(self) -> bool:
        """Whether the application wants the connection closed."""
        return self._closing

    # The application's transport: producers, both ways.

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._refuse_second(producer)
        if self._lost or self._failure is not None:
            producer.stopProducing()
            return
        self._producer, self._streaming = producer, streaming
        if self._open:
            self._register_below()

    def _start_producer(self) -> None:
        """Start a producer that was registered before the handshake was over."""
        if self._producer is not None:
            self._register_below()
            if self._producer_paused:
                self._producer_paused = False
                self._producer.resumeProducing()

    def _register_below(self) -> None:
        if getattr(self.transport, "queued", 0):
            # A write past the transport would not pause the producer of a buffer that is full.
            self._pass_on = self.transport.write
        self.transport.registerProducer(self._producer, self._streaming)

    def unregisterProducer(self) -> None:
        if self._producer is None:
            return
        self._producer = None
        self._streaming = self._producer_paused = False
        if self._open:
            self.transport.unregisterProducer()
        self._end_as_asked()

    def pauseProducing(self) -> None:
        self._reading = self._direct = False
        if self._open and self._failure is None:  # handshakes and alerts have to be read
            self.transport.pauseProducing()
            self._rest = memoryview(bytes(self._rest))  # release the decrypted part of the read

    def resumeProducing(self) -> None:
        if self._lost or self._closing or self._failure is not None:
            return
        self._reading = True
        if self._resting:
            return
        if self._open and (self._waiting or self._eof) and not self._collecting:
            # Not within this call, because the application may not be ready for data yet.
            self._wait_in_line()
        else:
            self.transport.resumeProducing()
            if not self._collecting:
                self._choose()

    def stopProducing(self) -> None:
        self.loseConnection()

    # The application's transport: the rest.

    @property
    def context(self) -> CallContext | None:
        """The context in which the application is called; None if the transport has none."""
        return context_of(self.transport)

    @property
    def has_context(self) -> bool:
        """Whether it is known without a search that there is one: see `contexts.has_context`."""
        return getattr(self.transport, "has_context", False)

    def getPeerCertificate(self) -> bytes | None:
        """Return the peer's certificate in DER; None if it has shown none, or not yet."""
        return self._tls.getpeercert(binary_form=True) if self._tls and self._open else None

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The application protocol that both sides chose (RFC 7301); None before they did."""
        chosen = self._tls.selected_alpn_protocol() if self._tls and self._open else None
        return None if chosen is None else chosen.encode()

    def logPrefix(self) -> str:
        return _prefix(self.protocol)


class TLSFactory(Factory):
    """Wraps a factory, so that its protocols speak TLS."""

    noisy = False

    def __init__(
        self,
        factory: IProtocolFactory,
        context: Context,
        clock: IReactorTime,
        turns: Turns | None = None,
    ) -> None:
        """Set up.

        Args:
            factory: builds the applications' protocols.
            context: makes OpenSSL's part of each connection.
            clock: the reactor, or another `IReactorTime`.
            turns: shares the turns of the event loop among connections; None for these alone.
        """
        self.wrapped = factory
        self._context = context
        self._clock = clock
        self._turns = turns or Turns(clock)

    def doStart(self) -> None:
        self.wrapped.doStart()

    def doStop(self) -> None:
        self.wrapped.doStop()

    def buildProtocol(self, addr: Any) -> Any:
        protocol = self.wrapped.buildProtocol(addr)
        if protocol is None:
            return None
        meddler = getattr(protocol, "meddler", None)
        return TLSConnection(protocol, self._context, self._clock, self._turns, meddler)

    def logPrefix(self) -> str:
        return f"{_prefix(self.wrapped)} (TLS)"


def _prefix(named: object) -> str:
    provider = ILoggingContext(named, None)
    return str(provider.logPrefix()) if provider is not None else type(named).__name__


def _raising(error: OSError) -> Callable[[Any], int]:
    """Return a function in place of OpenSSL's, which has failed."""

    def write(_: object) -> int:
        raise error

    return write


def _cut(data: memoryview, size: int) -> Iterator[memoryview]:
    """Return `data` in pieces of at most `size` bytes."""
    return (data[start : start + size] for start in range(0, len(data), size))
