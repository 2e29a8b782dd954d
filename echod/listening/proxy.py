"""Connections through a proxy: read its header, then serve the client as if it were direct.

`ProxyFactory` is between a port and the factory that serves its clients (`EchoFactory`, or the TLS
layer before it). It accepts only trusted proxies. Each connection begins as a `HeaderProtocol`;
when the header is complete, the next protocol replaces it at the transport and gets every byte
after the header, so no message passes through this module.

Until then the factory sweeps, drains and aborts the connection like any other. A refused
connection is counted by reason, logged in one line, and never answered.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from echod.addresses import Network, shown_address, twisted_address
from echod.connections.admission import without_text
from echod.connections.clients import ProxiedAddress
from echod.connections.kernel import unread
from echod.connections.transport_layers import hand_over
from echod.handlers.client import Client
from echod.proxy_header import HeaderParser, ProxyError, ProxyHeader
from echod.reasons import Check, EndReason, Refusal

if TYPE_CHECKING:
    from echod.connections.owner import Owner


class HeaderProtocol(Protocol):
    """Reads the header, then hands over to the next protocol."""

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
            self.drain()  # the rest of the header may never come

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
        hand_over(transport, protocol)
        self._owner.unwatch(self)
        if self._parser.rest:
            protocol.dataReceived(self._parser.rest)
        if self._draining:
            for each in self._owner.connections - others:
                each.drain()

    def _refuse(self, refusal: Refusal, why: str) -> None:
        self._over = True
        self._factory.refuse(self.transport.getPeer(), refusal, why)
        if refusal is Refusal.PROXY_TIMEOUT:  # an end, as of any client that is silent
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._over:
            if self._parser.received:
                self._factory.refuse(
                    self.transport.getPeer(), Refusal.PROXY_HEADER, "it ends within the header"
                )
            else:  # some balancers only check that the port is open, and send nothing
                self._owner.note_check(Check.CONNECT)
        self._over = True
        if not self._handed_over:
            self._owner.admission.release()
        self._owner.unwatch(self)

    # The interface that the factory needs of each connection.

    def sweep(self, now: float) -> None:
        """Close if the header, or after a drain the proxy's FIN, has not arrived in time."""
        if now < self._deadline:
            return
        if self._over:
            self.transport.abortConnection()
        else:
            self._refuse(Refusal.PROXY_TIMEOUT, "no PROXY header in time")

    def drain(self) -> None:
        """Close gently, unless the header has arrived and is only unread."""
        self._draining = True
        if not self._over and not unread(self.transport):
            self._over = True
            self._deadline = self._owner.seconds() + (self._owner.limits.linger or math.inf)
            self.transport.loseWriteConnection()  # an end at once would reset a header on its way

    def abort(self, reason: EndReason) -> None:
        """Close at once, unless the next protocol has the connection already."""
        if not self._handed_over:
            self._over = True
            self.transport.abortConnection()

    def let_go(self) -> None:
        """Do nothing: no handler has begun."""


class ProxyFactory(Factory):
    """Accepts trusted proxies, and reads their headers.

    Attributes:
        wrapped: the factory of the protocol after the header.
        owner: the factory that sweeps, drains and counts.
    """

    noisy = False

    def __init__(
        self, wrapped: IProtocolFactory, owner: Owner, trusted: Iterable[Network]
    ) -> None:
        """Set up a factory.

        Args:
            wrapped: makes the protocol that follows; its `buildProtocol` gets a `ProxiedAddress`.
            owner: connections are registered there until then.
            trusted: networks of proxies; all clients of a UNIX socket are trusted too.
        """
        self.wrapped = wrapped
        self.owner = owner
        self._trusted = tuple(trusted)
        # Proxies connect again and again, and `ipaddress` is slow.
        self._trusts_host = lru_cache(maxsize=1024)(self._look_up)

    def doStart(self) -> None:
        self.wrapped.doStart()

    def doStop(self) -> None:
        self.wrapped.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        if not self._trusts(addr):
            self.refuse(addr, Refusal.PROXY_TRUST, "PROXY headers are not taken from there")
            return None
        if refusal := self.owner.admission.accept():
            wrapped: object = self.wrapped
            if wrapped is self.owner:
                return self.owner.refused(addr, refusal)
            # A client that expects TLS could not understand a line.
            self.refuse(addr, refusal, without_text(refusal, "closed"))
            return None
        return HeaderProtocol(self)

    def _trusts(self, address: object) -> bool:
        if isinstance(address, UNIXAddress):
            return True
        assert isinstance(address, IPv4Address | IPv6Address)
        return self._trusts_host(address.host)

    def _look_up(self, text: str) -> bool:
        host = ipaddress.ip_address(text)
        if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped:
            host = host.ipv4_mapped  # a client of IPv4, at a socket that takes both
        return any(host in network for network in self._trusted)

    def refuse(self, address: object, refusal: Refusal, why: str) -> None:
        """Count and log the refusal of a connection; the caller closes it."""
        self.owner.note_refusal(refusal, Client(shown_address(address)), why)
