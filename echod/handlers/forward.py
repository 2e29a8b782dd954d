"""`forward`: the handler that passes each connection on to another server.

It is a Twisted factory, so that echod's own protocol for those holds its limits, its drain, its
log line and its TLS. Guarantees, besides those of `echod.connections.twisted_protocol`:

* Either side's end of stream is passed on by itself, after all that came before it; the other
  direction goes on.
* Each side pauses the other while it does not keep up.
* A reset is passed on as a reset; behind an end of stream, which says that nothing is missing, as
  a close, after all that came before. An upstream that cannot be reached resets the client, and
  says why in one line of the log.
* The client is not read while its upstream is being connected.

It imports TLS and `echod.dialling` once it is used: the table of built-in handlers imports it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.addresses import shown_address
from echod.handlers.contract import HandlerError
from echod.log.event import LogLine
from echod.proxy_header import ProxyHeader, encode
from echod.stacked import write_now
from echod.text import escape, excerpt
from echod.timers import cancel_timer

if TYPE_CHECKING:
    from echod.interfaces import Stream
    from echod.tls import ClientContext

_failed = LogLine(Logger("echod.forward"), "warn", "Cannot forward {peer} to {to}: {why}")
_lost = LogLine(Logger("echod.forward"), "warn", "{to} has broken off for {peer}: {why}")


class Forward(Factory):
    """Passes each connection on to another server, and its replies back.

    Attributes:
        descriptors: how many each client needs: its own, and the one to the other server.
    """

    descriptors = 2
    noisy = False

    def __init__(
        self,
        *,
        to: str,
        proxy: Literal["v1", "v2"] | None = None,
        connect_timeout: float = 10.0,
        ca: str | None = None,
        verify: bool = True,
        server_name: str | None = None,
    ) -> None:
        """Set up.

        Args:
            to: the other server: HOST:PORT, tls:HOST:PORT or unix:PATH.
            proxy: the version of the PROXY header that is sent ahead; None for none.
            connect_timeout: how long connecting may take, with the handshake of TLS, in seconds.
            ca: path of the certificates that the server's is verified by; the system's by default.
            verify: whether the server's certificate is verified.
            server_name: the name that is asked for and verified; by default that of `to`.

        Raises:
            HandlerError: an argument is wrong.
        """
        from echod.dialling import Destination, DestinationError

        try:
            self.destination = Destination.parse(to)
        except DestinationError as error:
            raise HandlerError(f"forward:to={error}") from None
        if connect_timeout <= 0:
            raise HandlerError("forward:connect_timeout= must be above 0")
        self.version = {"v1": 1, "v2": 2}.get(proxy or "")
        self.timeout = connect_timeout
        self.context = self._context(server_name, ca, verify=verify)

    def _context(self, name: str | None, ca: str | None, *, verify: bool) -> ClientContext | None:
        if not self.destination.uses_tls:
            if ca is not None or name is not None or not verify:
                raise HandlerError("forward: ca, verify and server_name are for to=tls:HOST:PORT")
            return None
        from echod.tls import ClientContext, FilesError

        try:
            return ClientContext(name or self.destination.host, ca, verify=verify)
        except FilesError as error:
            raise HandlerError(f"forward: {error}") from None

    def buildProtocol(self, addr: IAddress | None) -> ForwardProtocol:
        return ForwardProtocol(self)


@implementer(IHalfCloseableProtocol, IPushProducer)
class ForwardProtocol(Protocol):
    """The client's side of one forwarded connection."""

    transport: Any  # Twisted's face of echod's connection

    def __init__(self, factory: Forward) -> None:
        self._settings = factory
        self._upstream: Upstream | None = None
        self._dialling: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._ready = False
        # The bytes that came before that: the rest of a read, such as one behind a PROXY header.
        self._early: list[bytes] = []
        self._client_ended = False
        self._upstream_ended = False
        self._over = False

    def connectionMade(self) -> None:
        from echod.dialling import dial

        settings, reactor = self._settings, self.transport.reactor
        self.transport.pauseProducing()
        ahead = self._header()
        self._upstream = Upstream(self, b"" if settings.context else ahead)
        # One timer, because a name has several addresses, and TLS a handshake.
        self._timer = reactor.callLater(settings.timeout, self._timed_out)
        self._dialling = dial(
            reactor,
            settings.destination,
            self._upstream,
            timeout=settings.timeout + 1,
            context=settings.context,
            ahead=ahead,
        )
        self._dialling.addCallbacks(self._connected, self._not_connected)

    def _header(self) -> bytes:
        version = self._settings.version
        if version is None:
            return b""
        source, destination = (
            (one.host, one.port) if isinstance(one, IPv4Address | IPv6Address) else None
            for one in (self.transport.getPeer(), self.transport.getHost())
        )
        if source is None or destination is None:
            return encode(ProxyHeader(version))
        return encode(ProxyHeader(version, source=source, destination=destination))

    def dataReceived(self, data: bytes) -> None:
        self._early.append(data)

    @property
    def encrypts(self) -> bool:
        """Whether the upstream's connection is encrypted."""
        return self._settings.context is not None

    # The way to the upstream.

    def _connected(self, _: object) -> None:
        self._dialling = None

    def _not_connected(self, failure: Failure) -> None:
        self._dialling = None
        if not failure.check(CancelledError):
            self._give_up(_told(failure))

    def _timed_out(self) -> None:
        self._timer = None  # a timer that has fired keeps its method, and so this object
        seconds = self._settings.timeout
        self._give_up(f"it has not answered within {seconds:g} s")

    def _give_up(self, why: str) -> None:
        if not self._over:
            self._log(_failed, why)
            self._end()
            self.transport.abort_in_error()

    def _log(self, line: LogLine, why: str) -> None:
        peer = shown_address(self.transport.getPeer())
        if line.wanted(peer):
            to = excerpt(self._settings.destination.text, 200)
            line.write(peer=peer or "a client without an address", to=to, why=why)

    def upstream_ready(self, stream: Stream) -> None:
        """Begin to forward: the upstream is connected."""
        cancel_timer(self._timer)
        if self._over:
            stream.abortConnection()
            return
        self._ready = True
        stream.write(b"".join(self._early))
        self._early.clear()
        stream.registerProducer(self, True)
        self.transport.registerProducer(self._upstream, True)
        # From here on, without a call in between.
        self.dataReceived = stream.write  # type: ignore[method-assign]
        if self._client_ended:
            self._end_upstreams_input()
        self.transport.resumeProducing()

    # The producer of what the upstream gets. (The transport itself is one, too, but would close
    # the connection when it is stopped, and a reset would be a close.)

    def pauseProducing(self) -> None:
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: `upstream_lost` follows."""

    # The ends of the two streams.

    def readConnectionLost(self) -> None:
        self._client_ended = True
        if self._ready:
            self._end_upstreams_input()

    def _end_upstreams_input(self) -> None:
        stream = self._stream
        if stream is None or self._over:
            return
        stream.unregisterProducer()
        if self._upstream_ended:
            self._close()
        else:
            stream.loseWriteConnection()

    def upstream_ended(self) -> None:
        """End the client's input: the upstream has sent its last byte."""
        self._upstream_ended = True
        if self._over:
            return
        self.transport.unregisterProducer()
        if self._client_ended:
            self._close()
        else:
            self.transport.loseWriteConnection()

    def _close(self) -> None:
        """Close both: both streams have ended."""
        stream = self._stream
        self._end()
        if stream is not None:
            stream.loseConnection()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: the client goes on."""

    def upstream_lost(self, reason: Failure) -> None:
        """Pass the end of the upstream's connection on: a reset as a reset."""
        if self._over:
            return
        is_clean = reason.check(ConnectionDone)
        if not (is_clean or self._ready):
            self._give_up(_told(reason))
            return
        if not is_clean:
            self._log(_lost, _told(reason))
        self._end()
        if is_clean or self._upstream_ended:
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._over:
            return
        stream = self._stream
        self._end()
        if stream is None:
            return
        if self._client_ended or reason.check(ConnectionDone):
            stream.loseConnection()
        else:
            write_now(stream)
            stream.abortConnection()

    def _end(self) -> None:
        """Let go of the upstream; nothing follows."""
        self._over = True
        cancel_timer(self._timer)
        stream = self._stream
        if stream is not None and self._ready and not self._client_ended:
            stream.unregisterProducer()
        if self._ready and not self._upstream_ended:
            self.transport.unregisterProducer()
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.cancel()
        elif stream is not None and not self._ready:
            stream.abortConnection()

    @property
    def _stream(self) -> Stream | None:
        return None if self._upstream is None else self._upstream.stream


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class Upstream(Protocol):
    """The other server's side of one forwarded connection.

    Attributes:
        stream: its transport while it is connected; None before and after.
    """

    transport: Any

    def __init__(self, client: ForwardProtocol, ahead: bytes) -> None:
        self._client = client
        self._ahead = ahead
        self.stream: Stream | None = None

    def connectionMade(self) -> None:
        self.stream = self.transport
        if self._ahead:
            self.transport.write(self._ahead)
        if self._client.encrypts:
            return
        self._begin()

    def handshakeCompleted(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._face = self._client.transport
        self._client.upstream_ready(self.transport)

    def dataReceived(self, data: bytes) -> None:
        # Not the `write` itself: another one takes its place when the client's connection closes.
        self._face.write(data)

    # The producer of what the client gets, as above.

    def pauseProducing(self) -> None:
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: the client's `connectionLost` follows."""

    def readConnectionLost(self) -> None:
        self._client.upstream_ended()

    def writeConnectionLost(self) -> None:
        """Do nothing: it may go on to send."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.stream = None
        self._client.upstream_lost(reason)


def _told(failure: Failure) -> str:
    """Return an error of the network in a few words."""
    from echod.tls import TLSError

    error = failure.value
    if failure.check(TLSError):
        return f"TLS: {escape(str(error))}"
    system = getattr(error, "osError", None)
    words = os.strerror(system) if isinstance(system, int) else str(error)
    return excerpt(words.strip().removesuffix("."), 200).lower()
