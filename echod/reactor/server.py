"""The server side of a connection: accepted by a port, or adopted from another process."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Self

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import (
    IAddress,
    IFileDescriptorReceiver,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.unix import Server as DescriptorReceivingServer

from echod.reactor.transport import StreamSocket, StreamTransport
from echod.reactor.unix import DescriptorSender

if TYPE_CHECKING:
    from _socket import _RetAddress

    from echod.reactor.interfaces import LoopReactor, Port, TCPAddressed


class ServerTransport(StreamTransport):
    """A connection that the other side opened.

    :ivar server: the port that accepted it; ``None`` for an adopted connection.
    :ivar client: the peer's address, as the socket module gives it.
    """

    sessionno = 0
    _local: _RetAddress = None

    def __init__(
        self,
        skt: StreamSocket,
        client: _RetAddress,
        factory: IProtocolFactory,
        server: Port | None,
        reactor: LoopReactor,
    ) -> None:
        self.socket = skt
        self._client = client
        self.factory = factory
        self.server = server
        self.reactor = reactor

    @classmethod
    def adopted(cls, skt: StreamSocket, factory: IProtocolFactory, reactor: LoopReactor) -> Self:
        """A transport for a connection that was accepted elsewhere."""
        raise NotImplementedError

    @property
    def client(self) -> _RetAddress:
        return self._client

    def _build_protocol(self) -> IProtocol | None:
        protocol: IProtocol | None = self.factory.buildProtocol(self._protocol_address())
        if protocol is not None and self.server is not None:
            self.sessionno = self.server.sessionno
            self.server.sessionno += 1
        return protocol

    def _protocol_address(self) -> IAddress:
        peer: IAddress = self.getPeer()
        return peer

    def _whence(self) -> str:
        return f"{self.sessionno},{self.hostname}"

    @property
    def hostname(self) -> object:
        """The peer's host."""
        return self.client[0]

    def __repr__(self) -> str:
        where = self._local if self.server is None else self.server._realPortNumber
        return f"<{self._name()} #{self.sessionno} on {where}>"


class TCPServerTransport(ServerTransport):
    """A TCP connection that a client opened."""

    server: TCPAddressed | None

    @property
    def client(self) -> tuple[Any, ...]:
        client: tuple[Any, ...] = self._client or self._uv.get_extra_info("peername")
        return client

    def _open(self) -> None:
        ServerTransport._open(self)
        # uvloop has the address of an IPv4 client too, in less memory; but not that of a client
        # that had reset the connection before. A later look would spare it to a connection that
        # ends at once, but the memory that it frees would be in pieces.
        if len(self._client) == 2 and self._uv.get_extra_info("peername") == self._client:
            self._client = None

    @classmethod
    def adopted(cls, skt: StreamSocket, factory: IProtocolFactory, reactor: LoopReactor) -> Self:
        client = with_scope(skt.getpeername())
        adopted = cls(skt, client, factory, None, reactor)
        adopted.sessionno = client[1]
        adopted._local = skt.getsockname()[1]
        return adopted

    def getHost(self) -> IPv4Address | IPv6Address:
        if self.server is not None and self.server.address is not None:
            return self.server.address
        return tcp_address(with_scope(self.socket.getsockname()))

    def getPeer(self) -> IPv4Address | IPv6Address:
        return tcp_address(self._client or self.client)  # as it begins, without a call

    def _protocol_address(self) -> IPv4Address | IPv6Address:
        return tcp_address(self._client)


class UNIXServerTransport(DescriptorSender, ServerTransport):
    """A UNIX stream that a client opened."""

    @classmethod
    def adopted(cls, skt: StreamSocket, factory: IProtocolFactory, reactor: LoopReactor) -> Self:
        adopted = cls(skt, skt.getpeername(), factory, None, reactor)
        adopted._local = skt.getsockname()
        return adopted

    def _begin(self, protocol: IProtocol) -> None:
        if IFileDescriptorReceiver.providedBy(protocol):
            # uvloop reads without looking for descriptors: Twisted's transport takes over.
            skt = self._surrender()
            protocol.makeConnection(
                DescriptorReceivingServer(
                    skt, protocol, self.client, self.server, self.sessionno, self.reactor
                )
            )
        else:
            super()._begin(protocol)

    def getHost(self) -> UNIXAddress:
        return UNIXAddress(self.socket.getsockname())

    def getPeer(self) -> UNIXAddress:
        return UNIXAddress(self.client or None)

    def _protocol_address(self) -> UNIXAddress:
        return self.getHost() if self.server is None else UNIXAddress(self.client)

    @property
    def hostname(self) -> object:
        return self._local if self.server is None else self.client


# An address, and what `tcp_address` has made of it: a connection asks twice as it begins, and need
# not keep it. Not `lru_cache`: that computes a hash.
_newest: tuple[tuple[Any, ...], IPv4Address | IPv6Address] | None = None


def tcp_address(address: tuple[Any, ...]) -> IPv4Address | IPv6Address:
    """Convert an address to Twisted's form."""
    global _newest
    newest = _newest
    if newest is not None and newest[0] is address:
        return newest[1]
    made: IPv4Address | IPv6Address
    if len(address) == 4:
        made = IPv6Address("TCP", *address)
    else:
        # Its constructor would take long to see that TCP is a protocol.
        made = IPv4Address.__new__(IPv4Address)
        made.type = "TCP"
        made.host, made.port = address
    _newest = address, made
    return made


def with_scope(address: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same address, with a link-local host's interface in its text (RFC 4007, 11)."""
    if len(address) == 4 and address[3]:
        flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        return (socket.getnameinfo(address, flags)[0], *address[1:])
    return address


# The attributes that each connection sets, from its beginning to its end.
_SET = (
    *("socket", "_client", "factory", "server", "reactor"),
    *("_uv", "connected", "sessionno", "protocol", "data_received"),
    *("producer", "streamingProducer", "producerPaused", "_divert", "_read_ended"),
    *("_drain_scheduled", "_write_ending", "_write_ended", "_write_paused"),
    *("disconnecting", "disconnected", "_protocol_name"),
)


def _share_names(kind: type[ServerTransport]) -> None:
    """Let all objects of a class share the names of their attributes, from the first one on.

    Python lets only the first thirty objects add a name. So if more clients than that came at
    once, before any had all its attributes, each later connection kept a dictionary of its own.
    """
    first = kind.__new__(kind)
    for name in _SET:
        setattr(first, name, None)


_share_names(TCPServerTransport)
_share_names(UNIXServerTransport)
