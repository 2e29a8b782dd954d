"""Types of Twisted's objects, as far as the daemon uses them.

Most are Twisted's own interfaces: `IReactorTime` is a clock, and a part that needs more of a
reactor adapts it, as in `IReactorUNIX(reactor)`. This file has the types that Twisted lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from twisted.internet.interfaces import IConsumer, IPushProducer, ISystemHandle, ITransport

if TYPE_CHECKING:
    from typing import TypeAlias

    from twisted.internet import _IReactorCommon

    # Twisted's type of `twisted.internet.reactor`, only for type checkers.
    Reactor: TypeAlias = _IReactorCommon


class Stream(ITransport, IPushProducer, IConsumer, ISystemHandle):
    """The transport of a stream.

    The transports of TCP, TLS and UNIX sockets provide it, on Twisted's reactors and on uvloop's.
    Twisted's `ITCPTransport` is similar, but has only addresses of TCP.
    """

    def loseWriteConnection() -> None:
        """Close the writing side, once all is written."""

    def abortConnection() -> None:
        """Close at once."""

    def getTcpNoDelay() -> bool:
        """Return whether short writes are sent at once."""

    def setTcpNoDelay(enabled: bool) -> None:
        """Set whether short writes are sent at once."""

    def getTcpKeepAlive() -> bool:
        """Return whether the kernel checks that the peer is there."""

    def setTcpKeepAlive(enabled: bool) -> None:
        """Set whether the kernel checks that the peer is there."""


class Writer(Protocol):
    """Takes bytes, and sends them."""

    def write(self, data: bytes, /) -> None:
        """Send `data`, in order."""
