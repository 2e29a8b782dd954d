"""A connection and a reactor in memory: no socket, no waiting, a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

PEER = IPv4Address("TCP", "127.0.0.1", 50000)
HOST = IPv4Address("TCP", "127.0.0.1", 8888)

# More calls than that at the same time are an endless loop of the handler's.
_MOST_CALLS = 100_000


@implementer(IReactorFromThreads)
class VirtualReactor(Clock):
    """A clock whose time the test moves; calls that are due run in `run_due`."""

    _made = 0  # how many calls were made since the test has moved the time

    def callFromThread(
        self,
        callable: Callable[..., Any],
        *args: object,
        **kwargs: object,
    ) -> None:
        """Call a function in the next turn."""
        self.callLater(0, callable, *args, **kwargs)

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        """Call a function later, by this clock.

        Raises:
            RuntimeError: it calls itself again and again at the same time.
        """
        self._made += 1
        if self._made > _MOST_CALLS:
            raise RuntimeError(f"the handler calls itself again and again: {_MOST_CALLS} times")
        return super().callLater(delay, callable, *args, **kw)

    def run_due(self) -> None:
        """Run the calls that are due, and those that become due by them, at the same time.

        Raises:
            RuntimeError: that does not end.
        """
        self._made = 0
        self.advance(0)

    def run_for(self, seconds: float) -> None:
        """Move the time, and run each call at its own time on the way."""
        end = self.seconds() + seconds
        self.run_due()
        while due := [one.getTime() for one in self.getDelayedCalls() if one.getTime() <= end]:
            self._made = 0
            self.advance(max(0.0, min(due) - self.seconds()))
        self.advance(max(0.0, end - self.seconds()))


class MemoryTransport:
    """The server's transport of a client that reads everything at once.

    Attributes:
        written: all bytes that were sent.
        ended: whether the server has ended its stream.
        lost: whether the connection is closed.
        aborted: whether the server has closed it at once, which a client sees as a reset.
    """

    disconnecting = False

    def __init__(self, reactor: VirtualReactor, protocol: Any) -> None:
        """Set up; `connect` makes the connection."""
        self.written = bytearray()
        self.ended = False
        self.lost = False
        self.aborted = False
        self._reactor = reactor
        self._protocol = protocol
        self._client_ended = False
        self._reading = True
        self._held: list[bytes] = []

    # The client's side.

    def connect(self) -> None:
        """Let the server see a new connection."""
        self._protocol.makeConnection(self)

    def deliver(self, data: bytes) -> None:
        """Let the server read `data`, now or when it reads again."""
        self._held.append(data)
        self._pass_on()

    def finish(self) -> None:
        """End the client's stream (FIN), behind what was sent."""
        self._client_ended = True
        self._pass_on()

    def vanish(self) -> None:
        """Lose the client, as by a reset."""
        self._lose(ConnectionLost())

    def _pass_on(self) -> None:
        while self._held and self._reading and not self.lost:
            self._protocol.dataReceived(self._held.pop(0))
        if self._client_ended and not self._held and self._reading and not self.lost:
            self._client_ended = False
            self._protocol.readConnectionLost()

    def _lose(self, error: Exception) -> None:
        if not self.lost:
            self.lost = True
            self._protocol.connectionLost(Failure(error))

    # The server's side, by Twisted's names.

    def write(self, data: bytes) -> None:
        """Send `data`."""
        if not self.lost and not self.ended:
            self.written += data

    def writeSequence(self, iovec: list[bytes]) -> None:
        """Send each of them."""
        self.write(b"".join(iovec))

    def loseWriteConnection(self) -> None:
        """End our stream; the client ends its own as soon as it sees that."""
        if not self.ended:
            self.ended = True
            self._reactor.callLater(0, self._half_closed)

    def _half_closed(self) -> None:
        if not self.lost:
            self._protocol.writeConnectionLost()
        if not self.lost:
            self._protocol.readConnectionLost()

    def loseConnection(self) -> None:
        """Close, once all is sent."""
        self.ended = self.disconnecting = True
        self._reactor.callLater(0, self._lose, ConnectionDone())

    def abortConnection(self) -> None:
        """Close at once."""
        self.aborted = True
        self._reactor.callLater(0, self._lose, ConnectionAborted())

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self._reading = False

    def resumeProducing(self) -> None:
        """Read on."""
        if not self._reading:
            self._reading = True
            self._reactor.callLater(0, self._pass_on)

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Ignore the producer: this client reads everything at once."""

    def unregisterProducer(self) -> None:
        """Ignore it, too."""

    def getPeer(self) -> IPv4Address:
        """Return the client's address."""
        return PEER

    def getHost(self) -> IPv4Address:
        """Return the server's address."""
        return HOST
