"""A transport that stands on another one, and what only the lowest one knows or does."""

from __future__ import annotations

from contextlib import suppress
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


def write_now(transport: Any) -> None:
    """Let the lowest transport write what its socket takes: its connection will be aborted.

    Twisted's own transports write in the next turn of the loop, and drop all at `abortConnection`.
    echod's reactor writes at once, and so does this.
    """
    while (below := getattr(transport, "transport", None)) is not None:
        transport = below
    if hasattr(transport, "doWrite") and transport.connected:
        with suppress(OSError):  # a UNIX socket has no such option
            transport.setTcpNoDelay(True)  # otherwise the kernel waits with it for an ACK
        transport.doWrite()


def shorten_reads(transport: object) -> None:
    """Make a transport read in smaller pieces from now on, if it can.

    Held data costs as much as the longest read, which is 250 KiB on uvloop.
    """
    shorten = getattr(transport, "shortenReads", None)
    if shorten is not None:
        shorten()
