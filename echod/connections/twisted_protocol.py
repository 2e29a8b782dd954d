"""Serve connections by a Twisted `Protocol` class or `Factory`, unchanged.

The user's protocol gets a `TwistedTransport`. On plain TCP and uvloop its `write` is uvloop's, and
uvloop calls a method here that only calls the user's `dataReceived`. Guarantees, besides those of
`foreign_protocol`:

* `connectionMade` comes after the TLS handshake, and `handshakeCompleted` right behind it.
* A producer of the user's, of either kind, is paused and resumed by the transport's buffer.
  `loseConnection` waits for it as Twisted's own transports do: for one that is asked for each
  piece, and for one that is paused.
* `startTLS` puts Twisted's own TLS between the transport and the user's protocol, so that no byte
  passes by it. When the connection closes, close_notify is sent, and no answer is awaited.
"""

from __future__ import annotations

from asyncio.trsock import TransportSocket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    INegotiated,
    IPushProducer,
    ISSLTransport,
    ISystemHandle,
    ITCPTransport,
    ITLSTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer, implementer_only

from echod.connections.clients import addresses_of
from echod.connections.foreign_protocol import ForeignProtocol, drop
from echod.connections.kernel import counts_traffic, queued, traffic
from echod.connections.transport_layers import tls_of
from echod.contexts import has_context
from echod.handlers.factories import IClosedByDrain, IEndless
from echod.messages.closing import State
from echod.reasons import EndReason

if TYPE_CHECKING:
    from echod.connections.owner import Owner
    from echod.interfaces import Stream, Writer


class TwistedProtocol(ForeignProtocol):
    """Serves a connection by a Twisted protocol."""

    __slots__ = (
        "_asking",
        "_counts_early",
        "_ends_then",
        "_face",
        "_lost_by",
        "_producer",
        "_pulls",
        "_run",
        "_tls",
    )

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._face: TwistedTransport | None = None
        # The kernel counts the bytes, but cannot be asked when the connection is lost.
        self._counts_early = False
        # As long as it does: calls a function within the conversation's context.
        self._run: Callable[..., object] | None = None
        # Twisted's TLS, after `startTLS`; it stands between the transport and the user's protocol.
        self._tls: Any = None
        # The user's producer; whether it is asked for each piece, and the next such request.
        self._producer: Any = None
        self._pulls = False
        self._asking: IDelayedCall | None = None
        # The end that the user's protocol has asked for, and its producer delays.
        self._ends_then: Callable[[], None] | None = None
        self._lost_by: Failure | None = None

    @property
    def face(self) -> TwistedTransport:
        """The transport that the user's protocol knows."""
        assert self._face is not None
        return self._face

    # As the base asks for it.

    def connect_directly(self, transport: Stream, writer: Writer) -> Callable[[bytes], object]:
        if not counts_traffic(transport) or not has_context(transport):
            return self.dataReceived
        # The user's protocol is made later, when the client's address is known.
        self._kernel_counts = self._is_direct = True
        self._write_directly = writer.write
        return self._receive

    def _make(self) -> object:
        remote, _ = addresses_of(self.client, self.transport)
        factory: Any = self._owner.handler.target
        return factory.buildProtocol(remote)

    def _start(self) -> None:
        stream = self.transport
        is_plain = not self._kernel_counts and not ISSLTransport.providedBy(stream)
        if is_plain and traffic(stream, input_ended=False) is not None:
            # Twisted's own transport: the kernel counts here, too, while the socket is open.
            self._kernel_counts = self._counts_early = True
            self._write_directly = stream.write
            if self._context is not None:
                self._run = self._context.run
            if isinstance(stream, FileDescriptor):
                copy_defaults(stream)
        super()._start()

    def _count_early(self) -> None:
        """Take the kernel's figures, because the transport closes its socket before it tells."""
        if self._counts_early:
            self._counts_early = False
            self._run = None
            waiting = queued(self.transport)
            self._count()
            self._bytes_sent += waiting

    def stopProducing(self) -> None:
        self._count_early()

    def end_output(self) -> None:
        self._count_early()
        super().end_output()

    def dataReceived(self, data: bytes) -> None:
        # In the common case on Twisted's reactors, this is the whole cost of a read.
        run = self._run
        if run is None:
            self._receive_slowly(data)
            return
        try:
            run(self._user.dataReceived, data)
        except BaseException as error:
            self._failed_within(error, data)

    def _failed_within(self, error: BaseException, data: bytes) -> None:
        trace = error.__traceback__
        if isinstance(error, RuntimeError) and trace is not None and trace.tb_next is None:
            self._receive(data)  # the context is entered already: no code of the user's has run
        else:
            self._fail_by_user(Failure())

    def _receive_slowly(self, data: bytes) -> None:
        if not self._kernel_counts:
            self._bytes_received += len(data)
            self._owes = True
        if self._reason is None and not self._told_end:
            self._from_transport(self._receive, data)

    def _receive(self, data: bytes) -> None:
        # The protocol, and its method, may be replaced at any time.
        try:
            self._user.dataReceived(data)
        except BaseException:
            self._fail_by_user(Failure())

    def _receiver(self) -> Callable[[bytes], object]:
        receiver: Callable[[bytes], object] = self._user.dataReceived
        return receiver

    def _connect(self) -> None:
        if self._user is None:  # the factory refuses this client
            self._connected = False
            self.close(EndReason.REFUSED)
            return
        is_tls = ISSLTransport.providedBy(self.transport)
        make = SecureTransport if is_tls else TwistedTransport
        self._face = make(self, self._write_directly or self._write)
        self._user.makeConnection(self._face)
        if is_tls and self._reason is None and IHandshakeListener.providedBy(self._user):
            self._user.handshakeCompleted()

    def _end_input(self) -> object:
        if self._told_why is EndReason.DRAINED and IClosedByDrain.providedBy(self._user):
            return False
        if self._tls is None and IHalfCloseableProtocol.providedBy(self._user):
            self._user.readConnectionLost()
            return True
        return False

    def _end_output(self) -> None:
        if IHalfCloseableProtocol.providedBy(self._user):
            self._user.writeConnectionLost()

    def _mute(self) -> None:
        if self._face is not None:
            self._face.write = drop
            if self._tls is not None:
                self._tls.transport.write = drop

    def _stop(self) -> None:
        self._count_early()
        if self._face is not None:
            if self._tls is not None and not self._told_lost:
                self._call(self._tls.loseConnection)  # which sends close_notify
            self._face.disconnecting = True
        super()._stop()

    def _tell_end(self, reason: EndReason) -> None:
        self._run = None
        super()._tell_end(reason)

    def _note_reset(self) -> None:
        if self._error is None:
            self._lost_by = Failure(ConnectionLost())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._error is None and self._lost_by is None:
            self._lost_by = reason
        super().connectionLost(reason)

    def _lose(self, error: BaseException | None) -> None:
        face, self._ends_then = self.face, None
        face.connected = 0
        if (producer := self._forget_producer()) is not None:
            self._call(producer.stopProducing)
        reason = self._lost_by
        if reason is None and error is not None:
            reason = Failure(error)
        elif reason is None:
            aborted = self._state is State.ABORTED
            reason = Failure(ConnectionAborted() if aborted else ConnectionDone())
        self._user.connectionLost(reason)

    def _drain_on(self) -> None:
        closes = self._told_end and IClosedByDrain.providedBy(self._user)
        if closes and self._is_clients_turn():
            self.close(EndReason.CLIENT if self._input_ended else EndReason.DRAINED)
        else:
            super()._drain_on()

    def _is_clients_turn(self) -> bool:
        if IEndless.providedBy(self._user):
            return True
        has_more = self._face is not None and self._face.has_more
        return not has_more and super()._is_clients_turn()

    @property
    def _has_paused(self) -> bool:
        return self._face is not None and not self._face.reading

    # Producers.

    def produce(self, producer: Any, *, pulls: bool) -> None:
        """Take the user's producer.

        Args:
            producer: the producer.
            pulls: whether it is asked for each piece; otherwise it writes until it is paused.
        """
        if self._producer is not None:
            raise RuntimeError(
                f"Cannot register producer {producer}, because producer {self._producer} was "
                "never unregistered."
            )
        if self._reason is not None or self._lost:
            producer.stopProducing()
            return
        self._producer, self._pulls = producer, pulls
        if pulls:
            self._ask()
        elif self._blocked:
            producer.pauseProducing()

    def end_production(self) -> None:
        """Forget the user's producer, and do what waited for its end."""
        self._forget_producer()
        self._end_now()

    def _forget_producer(self) -> Any:
        producer, self._producer = self._producer, None
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        return producer

    def _ask(self) -> None:
        """Ask for the next piece, and for another one in the loop's next turn."""
        self._asking = None
        if self._blocked or self._producer is None or self._reason is not None:
            return
        self._asking = self._owner.reactor.callLater(0, self._ask_again)
        self._producer.resumeProducing()

    def _ask_again(self) -> None:
        self._asking = None
        self._inside(self._call, self._ask)

    def _pause(self) -> None:
        if self._producer is not None and not self._pulls:
            self._producer.pauseProducing()

    def _resume(self) -> None:
        producer = self._producer
        if producer is None:
            return
        if self._pulls:
            if self._asking is None:
                self._ask()
            return
        producer.resumeProducing()
        # A producer that is itself a transport, and gone, neither writes nor unregisters.
        if any(getattr(producer, one, False) for one in ("disconnected", "disconnecting")):
            self._end_now()

    # The ends that the user's protocol asks for.

    def end_when_produced(self, end: Callable[[], None]) -> None:
        """Call `end` when the producer has written what it has to write."""
        self._ends_then = end
        if self._producer is None or not (self._pulls or self._blocked):
            self._end_now()

    def _end_now(self) -> None:
        end, self._ends_then = self._ends_then, None
        if end is not None and self._reason is None:
            end()

    def lose(self) -> None:
        """Close, after all that was written."""
        asked = self.face.disconnecting
        self.close(self._why_closed() if asked else EndReason.CLIENT)

    def expect_end(self) -> None:
        """Wait not much longer for a client to answer the end of TLS."""
        self._expect_to_be_read()

    def exchange(self, protocol: Any) -> None:
        """Let another protocol of the user's serve the connection."""
        if self._tls is None:
            self._user = protocol
        else:
            self._tls.wrappedProtocol = protocol

    @property
    def user(self) -> Any:
        """The user's protocol."""
        return self._user if self._tls is None else self._tls.wrappedProtocol

    @property
    def tls(self) -> Any:
        """Twisted's TLS; None before `startTLS`."""
        return self._tls

    # TLS by the user's own context.

    def encrypt_by(self, context: Any, *, is_client: bool) -> None:
        """Begin TLS, by Twisted's own code.

        Args:
            context: as `startTLS` takes it.
            is_client: whether the daemon takes the client's part in the handshake.
        """
        from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol

        producer, pulls = self._forget_producer(), self._pulls
        factory = TLSMemoryBIOFactory(context, is_client, None)  # type: ignore[arg-type]
        self._tls = TLSMemoryBIOProtocol(factory, self._user, False)
        below = _BelowTLS(self, self.face.write)
        self._user = self._tls
        self.face.use(self._tls)
        self._tls.makeConnection(below)
        if producer is not None:
            self._tls.registerProducer(producer, not pulls)


def copy_defaults(stream: FileDescriptor) -> None:
    """Give Twisted's own transport what it looks up in its class for each message.

    Python 3.11 takes ten times as long for an attribute of the class as for one of the object.
    """
    for name in ("SEND_LIMIT", "bufferSize", "disconnecting", "producerPaused"):
        setattr(stream, name, getattr(stream, name))


@implementer(ITCPTransport, ITLSTransport, IConsumer, IPushProducer, ISystemHandle)
class TwistedTransport:
    """The transport of the user's protocol.

    Attributes:
        write: writes, by the fastest way that there is.
        connected: 1 while the connection is open.
        disconnecting: whether it is about to be closed.
        reading: whether the user's protocol has not paused reading.
        has_more: whether a producer of the user's is asked for each piece: it has some to send,
            even if the client has received all so far.
        TLS: whether it is encrypted.
    """

    TLS = False
    has_more = False

    def __init__(self, connection: TwistedProtocol, write: Callable[[bytes], None]) -> None:
        self.write = write
        self.connected = 1
        self.disconnecting = False
        self.reading = True
        self._connection = connection
        # Twisted's TLS, after `startTLS`.
        self._tls: Any = None

    def __repr__(self) -> str:
        state = "closing" if self.disconnecting else "open"
        return f"<{type(self).__name__} of {self._connection.client.peer or 'a client'}: {state}>"

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def getPeer(self) -> Any:
        return addresses_of(self._connection.client, self._connection.transport)[0]

    def getHost(self) -> Any:
        return addresses_of(self._connection.client, self._connection.transport)[1]

    @property
    def protocol(self) -> Any:
        """The user's protocol; setting it lets another one serve the connection."""
        return self._connection.user

    @protocol.setter
    def protocol(self, protocol: Any) -> None:
        self._connection.exchange(protocol)

    @property
    def reactor(self) -> object:
        """The reactor."""
        return self._connection.factory.reactor

    def note_mismatch(self, line: int, expected: str, got: str) -> None:
        """Note in the journal, if there is one, where the client left its script."""
        journal = self._connection.factory.journal
        if journal is not None:
            journal.note(self._connection, line, expected, got)

    # The ends.

    def loseConnection(self) -> None:
        if self.disconnecting:
            return
        self.disconnecting = True
        if self._tls is None:
            self._connection.end_when_produced(self._connection.lose)
        else:
            self._connection.expect_end()
            self._tls.loseConnection()

    def loseWriteConnection(self) -> None:
        if self._tls is None:  # which has no half-close
            self._connection.end_when_produced(self._connection.end_output)

    def abortConnection(self) -> None:
        self._abort(EndReason.HANDLER)

    def abort_in_error(self) -> None:
        """Do the same, because the protocol cannot serve its client; it has logged why."""
        self._abort(EndReason.HANDLER_ERROR)

    def _abort(self, reason: EndReason) -> None:
        self.disconnecting = True
        self._connection.abort(reason)

    # A consumer, for the user's producer; and a producer, of what the client sends.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        # Before it is asked: it may end at once.
        self.has_more = self.has_more or not streaming
        if self._tls is None:
            self._connection.produce(producer, pulls=not streaming)
        else:
            self._tls.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self.has_more = False
        if self._tls is None:
            self._connection.end_production()
        else:
            self._tls.unregisterProducer()

    def stopConsuming(self) -> None:
        self.unregisterProducer()
        self.loseConnection()

    def pauseProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = False
            self._connection.transport.pauseProducing()
            self._connection.watch_for_reset()

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = True
            self._connection.transport.resumeProducing()

    def stopProducing(self) -> None:
        self.loseConnection()

    # TLS.

    def startTLS(self, contextFactory: Any, normal: bool = True) -> None:  # noqa: N803
        """Encrypt the connection from now on.

        Args:
            contextFactory: as Twisted's `CertificateOptions`; it needs pyOpenSSL.
            normal: whether this is the server's side.
        """
        if self.TLS or self.disconnecting:
            raise RuntimeError("this connection is encrypted already, or is closing")
        self._connection.encrypt_by(contextFactory, is_client=not normal)

    def use(self, tls: Any) -> None:
        """Pass what is written to Twisted's TLS from now on, and look encrypted."""
        self._tls, self.TLS = tls, True
        self.write = tls.write
        self.getHandle = tls.getHandle  # type: ignore[method-assign]
        self.getPeerCertificate = tls.getPeerCertificate
        alsoProvides(self, ISSLTransport, INegotiated)

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol that ALPN has chosen."""
        if self._tls is not None:
            chosen: bytes | None = self._tls.negotiatedProtocol
            return chosen
        facts = self._connection.client.tls
        return facts.alpn.encode() if facts is not None and facts.alpn else None

    # The socket.

    def getHandle(self) -> TransportSocket | None:
        """Return the socket, for its options only: bytes pass by this object."""
        handle: Any = self._connection.transport.getHandle()
        return TransportSocket(handle) if hasattr(handle, "getsockopt") else None

    @property
    def socket(self) -> TransportSocket | None:
        """The same as `getHandle`."""
        return self.getHandle()

    def getTcpNoDelay(self) -> bool:
        return self._connection.transport.getTcpNoDelay()

    def setTcpNoDelay(self, enabled: bool) -> None:
        self._connection.transport.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> bool:
        return self._connection.transport.getTcpKeepAlive()

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self._connection.transport.setTcpKeepAlive(enabled)


@implementer_only(
    ITCPTransport, ISSLTransport, INegotiated, IConsumer, IPushProducer, ISystemHandle
)
class SecureTransport(TwistedTransport):
    """The transport of the user's protocol, if its listener encrypts."""

    TLS = True

    def getPeerCertificate(self) -> Any:
        """Return the client's certificate, as pyOpenSSL has it; None if it has sent none."""
        transport: Any = self._connection.transport
        tls = tls_of(transport)
        if tls is None:
            return transport.getPeerCertificate()
        found = tls.ssl_object
        encoded = None if found is None else found.getpeercert(binary_form=True)
        if encoded is None:
            return None
        from OpenSSL import crypto

        return crypto.load_certificate(crypto.FILETYPE_ASN1, encoded)


class _BelowTLS(TwistedTransport):
    """The transport of Twisted's TLS after `startTLS`; the client's end of TLS ends it."""

    def loseConnection(self) -> None:
        self._connection.lose()

    def abortConnection(self) -> None:
        if not self._connection.is_closing:
            super().abortConnection()
