"""The client side: Twisted's connectors connect, uvloop's transports carry the stream.

Name look-up, binding, timeouts and failures are Twisted's own, on its epoll descriptors; once the
socket is connected it is given to uvloop.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IFileDescriptorReceiver, IProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from echod.reactor.server import tcp_address, with_scope
from echod.reactor.transport import StreamSocket, StreamTransport
from echod.reactor.unix import DescriptorSender


class ClientTransport(StreamTransport):
    """A connection that this side opened.

    :ivar connector: the connector that asked for it.
    """

    _tlsClientDefault = True
    _built = False
    _reads_at_start: bool | None = None  # None once the start is over

    def __init__(self, attempt: Any) -> None:
        super().__init__(attempt.socket, attempt.reactor)
        self._attempt = attempt
        self.addr = attempt.addr
        self.realAddress = attempt.realAddress
        self.connector = attempt.connector

    def _build_protocol(self) -> IProtocol | None:
        if not hasattr(self._attempt, "connector"):
            # It was cancelled while uvloop took the socket; the connector knows.
            self._built = True
            self.connector = None
            return None
        protocol: IProtocol | None = self.connector.buildProtocol(self.getPeer())
        self._built = True
        self.connector.transport = self
        return protocol

    def _begin(self, protocol: IProtocol) -> None:
        # Data may have arrived already. As with Twisted's own reactors, it is delivered after the
        # calls that connectionMade has scheduled by ``callLater(0, ...)``.
        self._uv.pause_reading()
        self._reads_at_start = True
        self.reactor.after_due_calls(self._start_reading)
        super()._begin(protocol)

    def _start_reading(self) -> None:
        reads, self._reads_at_start = self._reads_at_start, None
        if reads:
            self.resumeProducing()

    @property
    def reading(self) -> bool:
        """Whether the stream is read from."""
        if self._reads_at_start is None:
            return super().reading
        return bool(self.connected and self._reads_at_start)

    def pauseProducing(self) -> None:
        if self._reads_at_start is None:
            super().pauseProducing()
        else:
            self._reads_at_start = False

    def resumeProducing(self) -> None:
        if self._reads_at_start is None:
            super().resumeProducing()
        else:
            self._reads_at_start = True

    startReading = resumeProducing
    stopReading = pauseProducing

    def _refused(self) -> None:
        # The connector is notified of the end of a connection without a protocol.
        self.protocol = Protocol()
        self.loseConnection()

    def _lost(self, reason: Failure) -> None:
        connector, self.connector = self.connector, None
        if connector is not None:
            if self._built:
                connector.connectionLost(reason)
            else:
                connector.connectionFailed(reason)

    def _whence(self) -> str:
        return "client"

    def __repr__(self) -> str:
        return f"<{type(self)} to {self.addr} at {id(self):x}>"


class TCPClientTransport(ClientTransport):
    """A TCP connection that this side opened."""

    def getHost(self) -> IPv4Address | IPv6Address:
        return tcp_address(with_scope(self.socket.getsockname()))

    def getPeer(self) -> IPv4Address | IPv6Address:
        return tcp_address(self.realAddress)


class UNIXClientTransport(DescriptorSender, ClientTransport):
    """A UNIX stream that this side opened."""

    def _begin(self, protocol: IProtocol) -> None:
        if IFileDescriptorReceiver.providedBy(protocol):
            # uvloop reads without looking for descriptors: Twisted's transport takes over.
            self._attempt.take_over(self._surrender(), protocol)
        else:
            super()._begin(protocol)

    def getHost(self) -> UNIXAddress:
        return UNIXAddress(None)

    def getPeer(self) -> UNIXAddress:
        return UNIXAddress(self.addr)


class _Attempt:
    """Twisted's client up to the moment it is connected; mixed into one."""

    addressFamily: socket.AddressFamily
    socketType: socket.SocketKind

    def createInternetSocket(self) -> StreamSocket:
        skt = StreamSocket(self.addressFamily, self.socketType)
        skt.setblocking(False)
        return skt

    def _connectDone(self) -> None:
        # The event of the connection may also be one of data to read, which is no longer for this
        # object.
        self.doRead = self.doWrite = _nothing
        self._stream().attach()

    def _stream(self) -> ClientTransport:
        raise NotImplementedError


def _nothing() -> None:
    pass


class _TCPAttempt(_Attempt, tcp.Client):
    def _stream(self) -> TCPClientTransport:
        return TCPClientTransport(self)


class _UNIXAttempt(_Attempt, unix.Client):
    def _stream(self) -> UNIXClientTransport:
        return UNIXClientTransport(self)

    def take_over(self, skt: socket.socket, protocol: IProtocol) -> None:
        """Go on as Twisted's transport, for a protocol that receives descriptors."""
        del self.doRead, self.doWrite
        self.socket = skt
        self.fileno = skt.fileno
        self.protocol = protocol
        self.connected = 1
        self.connector.transport = self
        self.logstr = f"{self._getLogPrefix(protocol)},client"
        self.startReading()
        protocol.makeConnection(self)


class TCPConnector(tcp.Connector):
    """As Twisted's, with a uvloop transport once connected."""

    def _makeTransport(self) -> Any:
        return _TCPAttempt(self.host, self.port, self.bindAddress, self, self.reactor)


class UNIXConnector(unix.Connector):
    """As Twisted's, with a uvloop transport once connected."""

    def _makeTransport(self) -> Any:
        return _UNIXAttempt(self.address, self, self.reactor, self.checkPID)
