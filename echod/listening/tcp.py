"""TCP ports, for `tcp:` and `tcp6:`.

Twisted's own stand in a module whose import, and the search for its plugins, take a hundredth of
the start.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from zope.interface import implementer

if TYPE_CHECKING:
    from echod.interfaces import Reactor

# How many connections the kernel queues: its maximum. When the queue is full, the kernel reports
# some further clients as connected, and these would wait for a greeting for ever.
BACKLOG = socket.SOMAXCONN


@implementer(IStreamServerEndpoint)
class TCPEndpoint:
    """Listens on a TCP port.

    Attributes:
        port: its number; 0: the system chooses one.
        interface: the address, or the name of a host; "" for every address.
        backlog: how many connections wait to be accepted.
        family: that of the address.
    """

    family = socket.AF_INET

    def __init__(self, reactor: Reactor, port: int, interface: str, backlog: int) -> None:
        # By its types, Twisted's method takes subclasses of Twisted's `ServerFactory` alone.
        self._reactor: Any = reactor
        self.port = port
        self.interface = interface
        self.backlog = backlog
        if isIPv6Address(interface):
            self.family = socket.AF_INET6

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        return execute(self._listen, factory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        port: IListeningPort = self._reactor.listenTCP(
            self.port, factory, backlog=self.backlog, interface=self.interface
        )
        return port


class IPv6Endpoint(TCPEndpoint):
    """Listens for IPv6 only, so that `tcp:` can use the same port, on every system."""

    family = socket.AF_INET6

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        if not isIPv6Address(self.interface):
            return super()._listen(factory)
        found = socket.getaddrinfo(
            self.interface, self.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as made:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(found[0][4])
            made.listen(self.backlog)
            port: IListeningPort = self._reactor.adoptStreamPort(
                made.fileno(), socket.AF_INET6, factory
            )
        return port


@implementer(IStreamServerEndpoint)
class PluginEndpoint:
    """Listens as a plugin of Twisted's does, but with `BACKLOG`: Twisted lets 50 clients wait."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self._endpoint.listen(factory).addCallback(_lengthen_queue)


def _lengthen_queue(port: Any) -> Any:
    if hasattr(port, "socket"):
        port.socket.listen(BACKLOG)
    return port
