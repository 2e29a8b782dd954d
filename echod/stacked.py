"""A transport that stands on another one, and passes on what only the lowest one knows."""

from __future__ import annotations

from typing import Any


class StackedTransport:
    """The part of a transport's methods that are the same on each layer.

    Attributes:
        transport: the transport below.
    """

    __slots__ = ()

    transport: Any
    _producer: Any

    def _refuse_second(self, producer: object) -> None:
        """Raise RuntimeError if a producer is registered already, as Twisted's transports do."""
        if self._producer is not None:
            raise RuntimeError(
                f"{producer} cannot be registered: {self._producer} was never unregistered"
            )

    # `ITCPTransport` has addresses of TCP alone, by its types; UNIX sockets come here, too.

    def getPeer(self) -> Any:
        return self.transport.getPeer()

    def getHost(self) -> Any:
        return self.transport.getHost()

    def getHandle(self) -> Any:
        """Return the socket, which carries what the lowest layer sends."""
        return self.transport.getHandle()

    def getTcpNoDelay(self) -> bool:
        return bool(self.transport.getTcpNoDelay())

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.transport.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> bool:
        return bool(self.transport.getTcpKeepAlive())

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.transport.setTcpKeepAlive(enabled)
