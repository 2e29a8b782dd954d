"""Connections that come through a proxy: its header first, then the client, as if it were direct.

`ProxyFactory` stands between a port and the factory that serves its clients (`EchoFactory`, or the
TLS layer before it).  Only trusted proxies are heard.  Each connection begins as a
`HeaderProtocol`; when the header is complete, the next protocol takes its place at the transport,
with every byte behind the header, and nothing of this module is on the way of a message.

Until then a connection is the factory's to sweep, drain and abort, like any other.  What is
refused here is counted by reason, logged in one line, and never answered.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from echod.addresses import shown_address
from echod.connections.kernel import unread
from echod.handlers.contract import Client
from echod.proxy_header import HeaderParser, ProxyError, ProxyHeader
from echod.reasons import EndReason, Refusal

if TYPE_CHECKING:
    from echod.connections.owner import Owner
from echod.addresses import Network, twisted_address
from echod.connections.clients import ProxiedAddress


class HeaderProtocol(Protocol):
    """Reads the header, then makes room for the next protocol."""

    transport: Any

    def __init__(self, factory: ProxyFactory) -> None:
        self._factory = factory
        self._owner = factory.owner
        self._parser = HeaderParser()
        self._deadline = math.inf
        self._draining = False
        self._over = False
        self._handed_over = False

    def connectionMade(self) -> None:
        self._deadline = self._owner.seconds() + (self._owner.limits.proxy_timeout or math.inf)
        self._owner.watch(self)

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        try:
            header = self._parser.feed(data)
        except ProxyError as error:
            self._refuse(Refusal.PROXY_HEADER, str(error))
            return
        if header is not None:
            self._hand_over(header)
        elif self._draining:
            self.drain()  # there may be nothing more of it

    def _hand_over(self, header: ProxyHeader) -> None:
        self._over = True
        self._handed_over = True
        transport = self.transport
        address = ProxiedAddress(
            twisted_address(header.source) or transport.getPeer(),
            twisted_address(header.destination) or transport.getHost(),
            header,
        )
        protocol = self._factory.wrapped.buildProtocol(address)
        if protocol is None:
            transport.abortConnection()
            return
        others = set(self._owner.connections) if self._draining else set()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self._owner.unwatch(self)
        if self._parser.rest:
            protocol.dataReceived(self._parser.rest)
        if self._draining:
            for each in self._owner.connections - others:
                each.drain()

    def _refuse(self, refusal: Refusal, why: str) -> None:
        self._over = True
        self._factory.refuse(self.transport.getPeer(), refusal, why)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # Some balancers see whether a port is open, and say nothing: that is no error.
        if not self._over and self._parser.received:
            self._factory.refuse(
                self.transport.getPeer(), Refusal.PROXY_HEADER, "it ends within the header"
            )
        self._over = True
        if not self._handed_over:
            self._owner.admission.release()
        self._owner.unwatch(self)

    # As the factory asks of each of its connections.

    def sweep(self, now: float) -> None:
        """Close if the header has not come in time."""
        if now >= self._deadline and not self._over:
            self._refuse(Refusal.PROXY_TIMEOUT, "no PROXY header in time")

    def drain(self) -> None:
        """Close, unless the header is here and was only not read yet."""
        self._draining = True
        if not self._over and not unread(self.transport):
            self.abort(EndReason.DRAINED)

    def abort(self, reason: EndReason) -> None:
        """Close at once; not what is the next protocol's by now."""
        if not self._handed_over:
            self._over = True
            self.transport.abortConnection()


class ProxyFactory(Factory):
    """Lets trusted proxies in, and reads their headers.

    Attributes:
        wrapped: the factory of what comes behind the header.
        owner: the factory that sweeps, drains and counts.
    """

    noisy = False

    def __init__(
        self, wrapped: IProtocolFactory, owner: Owner, trusted: Iterable[Network]
    ) -> None:
        """Set up a factory.

        Args:
            wrapped: makes the protocol that follows; its `buildProtocol` gets a `ProxiedAddress`.
            owner: where connections are registered until then.
            trusted: networks of proxies; who may connect to a UNIX socket is trusted besides.
        """
        self.wrapped = wrapped
        self.owner = owner
        self._trusted = tuple(trusted)

    def doStart(self) -> None:
        self.wrapped.doStart()

    def doStop(self) -> None:
        self.wrapped.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        if not self._trusts(addr):
            self.refuse(
                addr, Refusal.PROXY_TRUST, "PROXY headers are not taken from there (--proxy-trust)"
            )
            return None
        if refusal := self.owner.admission.accept():
            protocol = self.owner.refused(addr, refusal)
            # A client that waits for TLS could not understand it.
            wrapped: object = self.wrapped
            return protocol if wrapped is self.owner else None
        return HeaderProtocol(self)

    def _trusts(self, address: object) -> bool:
        if isinstance(address, UNIXAddress):
            return True
        assert isinstance(address, IPv4Address | IPv6Address)
        host = ipaddress.ip_address(address.host)
        if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped:
            host = host.ipv4_mapped  # a client of IPv4, at a socket that takes both
        return any(host in network for network in self._trusted)

    def refuse(self, address: object, refusal: Refusal, why: str) -> None:
        """Count and log that a connection is refused; closing it is the caller's."""
        self.owner.note_refusal(refusal, Client(shown_address(address)), why)
