"""The channel between a connection and its thread: the socket itself, or a relay."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from typing import Protocol as TypingProtocol

from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol, ISSLTransport
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.concurrency.thread_socket import ConnectionSocket, RelayedSocket
from echod.connections.kernel import (
    Taken,
    has_room,
    held_in,
    input_ended,
    output_ended,
    queued,
    reset,
    spoke_last,
    taken,
    traffic,
    unread,
    unsent,
)
from echod.connections.traffic import TrafficWatch, WatchedSocket
from echod.connections.transport_layers import Layer
from echod.handlers.client import Client
from echod.stacked import shorten_reads

if TYPE_CHECKING:
    from _socket import _RetAddress

    from echod.interfaces import Stream

# How often a thread is interrupted before its socket is shut down: once a sweep, and more than
# once, because a thread that has just been interrupted may not have run since.
MOST_INTERRUPTIONS = 2


class DirectChannel:
    """The thread has the accepted socket itself."""

    def __init__(self, transport: Stream, handle: socket.socket, watch: TrafficWatch) -> None:
        self._transport = transport
        self._handle = handle
        self._interruptions = 0
        self._traffic: tuple[int, int] | None = None
        self._is_reset = False
        self._watch = watch
        self._watched: WatchedSocket | None = None

    def connect(self) -> ConnectionSocket:
        """Return the thread's socket."""
        self._transport.pauseProducing()
        conn = ConnectionSocket(
            os.dup(self._handle.fileno()),
            peer=_socket_address(self._transport.getPeer()),
            local=_socket_address(self._transport.getHost()),
        )
        if self._handle.family == socket.AF_UNIX:
            # Do it before the thread runs, so that nothing is missed.
            self._watched = self._watch.watch(self._handle.fileno())
        return conn

    def forget(self) -> None:
        """Stop watching for traffic: the descriptor is about to be closed."""
        if self._watched is not None:
            self._watch.forget(self._watched)

    def traffic_seen(self) -> int:
        """Return a number that grows with traffic if no bytes are counted; 0: none was seen."""
        return 0 if self._watched is None else self._watch.look(self._watched)

    def sees_all_traffic(self) -> bool:
        """Return whether `traffic_seen` shows all traffic."""
        return self._watched is not None and has_room(self._handle)

    def returned(self) -> bool:
        """Take the socket back; return whether the connection may be closed now."""
        # The blocking mode belongs to the open file, which both descriptors share.
        self._handle.setblocking(False)
        return True

    def begin_drain(self) -> int:
        """Return how many bytes the thread may still read: all that the client has sent."""
        return self.unread()

    def end_silence(self, conn: ConnectionSocket) -> None:
        """While the daemon drains: let a thread that waits for the client see the end."""
        # An interrupted socket no longer waits, through any of its descriptors; but only a thread
        # that is in a call of this object is interrupted.
        if conn.receiving and conn.interrupt() and self._interruptions < MOST_INTERRUPTIONS:
            self._interruptions += 1
        elif not self.unread() and not self.unsent():
            # From now on, the kernel answers data that the client sends after our FIN with RST;
            # the client's machine has all that was sent so far, so RST destroys none of it.
            self.end_input()

    @property
    def inode(self) -> int:
        """The identity of the thread's socket, the same for each of its descriptors."""
        return os.fstat(self._handle.fileno()).st_ino

    def duplicate(self) -> int | None:
        """Return a new descriptor of the thread's socket; None: it is gone."""
        return os.dup(self._handle.fileno()) if self._handle.fileno() >= 0 else None

    def unread(self) -> int:
        """Return how many bytes are on their way from the client to the thread."""
        return unread(self._transport)

    def unsent(self) -> int:
        """Return how many bytes are on their way from the thread to the client."""
        return unsent(self._transport)

    def taken(self) -> Taken:
        """Return how much of the sent data the client has received."""
        return taken(self._transport)

    def spoke_last(self) -> bool:
        """Return whether the client has, or may have, sent something since the thread last did."""
        return spoke_last(self._transport)

    def traffic(self, *, input_ended: bool) -> tuple[int, int] | None:
        """Return how many bytes were received and sent, in any way; None: they are not counted.

        Args:
            input_ended: whether the reactor has seen the client's end of stream.
        """
        # Twisted closes its socket before it calls `connectionLost`; a reset clears the figures.
        if not self._is_reset:
            self._traffic = traffic(self._transport, input_ended=input_ended) or self._traffic
        return self._traffic

    def input_ended(self) -> bool:
        """Return whether the thread will see the end of the stream after the unread data."""
        return input_ended(self._handle)

    def output_ended(self) -> bool:
        """Return whether the handler has ended our stream, through any descriptor."""
        return output_ended(self._handle)

    def end_input(self) -> None:
        """Let the thread see the end of the stream."""
        self._shutdown(socket.SHUT_RD)

    def wake(self) -> None:
        """Make a thread that is blocked in the socket fail."""
        self._shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Do the same, and let the client see an error instead of an end."""
        if self._handle.fileno() >= 0 and not self._is_reset:
            self.traffic(input_ended=False)
            self._is_reset = reset(self._handle)
        self.wake()

    def _shutdown(self, how: int) -> None:
        with contextlib.suppress(OSError):  # it is shut down already
            self._handle.shutdown(how)


class Relayed(TypingProtocol):
    """A relayed connection, as the relay sees it."""

    transport: Stream
    client: Client

    def adopt(self, ours: socket.socket, factory: ServerFactory) -> None:
        """Let the reactor serve `ours` with the protocol of `factory`, now or soon."""

    def relay_ended(self) -> None:
        """Note that the relay has ended."""


@implementer(IHalfCloseableProtocol)
class RelayChannel(Protocol):
    """The reactor's end of a socket pair; each side pauses the other when it cannot keep up.

    A reactor may adopt that end later. Until then the client is not read from, and requests to the
    relay wait.
    """

    transport: Any = None

    def __init__(self, connection: Relayed) -> None:
        self._connection = connection
        self._asked: list[Callable[[], object]] = []
        # While the daemon drains: how many bytes are still to be relayed.
        self._to_relay = 0
        # The thread's end, too: if it were closed with unread input, data that was written to it
        # and is not relayed yet would be lost.
        self._kept: socket.socket | None = None
        self._over = False
        self._input_ended = False
        self._moved = (0, 0)
        self._spoke_last = False

    def connect(self) -> ConnectionSocket:
        """Return the thread's end."""
        client, proxy = self._connection.transport, self._connection.client.proxy
        client.pauseProducing()
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            self._connection.adopt(ours, _Factory(self))
        self._kept = theirs.dup()
        return RelayedSocket(
            theirs.detach(),
            peer=_socket_address((proxy and proxy.source) or client.getPeer()),
            local=_socket_address((proxy and proxy.destination) or client.getHost()),
        )

    def connectionMade(self) -> None:
        client = self._connection.transport
        shorten_reads(self.transport)  # the data of a read is held until it is sent
        client.registerProducer(self.transport, True)
        self.transport.registerProducer(client, True)
        client.resumeProducing()
        asked, self._asked = self._asked, []
        for ask in asked:
            ask()

    def forward(self, data: bytes) -> None:
        """Relay the client's input."""
        received, sent = self._moved
        self._moved = received + len(data), sent
        self._spoke_last = True
        self._to_relay -= len(data)
        self._when_connected(lambda: self.transport.write(data))

    def returned(self) -> bool:
        """Return whether the connection may be closed: not before all has been relayed."""
        if self._kept is not None:
            # After all that was written; the thread's own descriptor may be in use elsewhere by
            # now.
            with contextlib.suppress(OSError):  # the other end has closed already
                self._kept.shutdown(socket.SHUT_WR)
        return self._over

    def begin_drain(self) -> int:
        """Return how many bytes the thread may still read: all that are still relayed."""
        self._to_relay = unread(self._connection.transport)
        return sys.maxsize

    def end_silence(self, conn: ConnectionSocket) -> None:
        """While the daemon drains: let a thread that waits for the client see the end."""
        # It comes after all the input that had arrived when the drain began.
        if self._to_relay <= 0 or not unread(self._connection.transport):
            self.end_input()

    def end_input(self) -> None:
        """Let the thread read the relayed data, and then the end of the stream."""
        # Only once: to check whether it can write, Twisted's transport would write after its own
        # end, and take EPIPE for the loss of the relay; the thread's further output would be lost.
        if not self._input_ended:
            self._input_ended = True
            self._when_connected(self._end_input)

    def _end_input(self) -> None:
        # A half-close would wait for the producer, whose further output is not wanted.
        self.transport.unregisterProducer()
        self.transport.loseWriteConnection()

    def wake(self) -> None:
        """Make a thread that is blocked in the socket fail."""
        self._when_connected(lambda: self.transport.abortConnection())

    def reset(self) -> None:
        """Relay what the thread has written by now, and let it fail; the client's own connection
        is reset, too.
        """
        if self.transport is not None and not self._over and (size := unread(self.transport)):
            self.dataReceived(os.read(self.transport.getHandle().fileno(), size))
        self.wake()

    def _when_connected(self, ask: Callable[[], object]) -> None:
        if self.transport is None:
            self._asked.append(ask)
        elif not self._over:
            ask()

    def dataReceived(self, data: bytes) -> None:
        received, sent = self._moved
        self._moved = received, sent + len(data)
        self._spoke_last = False
        self._connection.transport.write(data)

    # As in `DirectChannel`.

    @property
    def inode(self) -> int:
        return os.fstat(self._kept.fileno()).st_ino if self._kept else 0

    def duplicate(self) -> int | None:
        return os.dup(self._kept.fileno()) if self._kept else None

    def unread(self) -> int:
        # A transport passes what is written to the kernel later: Twisted's does in its next turn.
        relayed = held_in(self._kept) + queued(self.transport) if self._kept else 0
        return relayed + unread(self._connection.transport)

    def unsent(self) -> int:
        client = self._connection.transport
        written = unread(self.transport) if self.transport else 0
        return written + queued(client) + unsent(client)

    def is_answered(self, conn: RelayedSocket) -> bool:
        """Return whether the thread waits for more than was relayed to it, and its replies are
        relayed.
        """
        # In this order: `waits_at` says that all before it was counted, and so answered.
        waits = conn.receiving and conn.waits_at == self._moved[0]
        return waits and self.transport is not None and not unread(self.transport)

    def taken(self) -> Taken:
        return taken(self._connection.transport)

    def spoke_last(self) -> bool:
        return self._spoke_last

    def traffic(self, *, input_ended: bool) -> tuple[int, int] | None:
        return self._moved

    def traffic_seen(self) -> int:
        return 0  # all bytes are counted

    def sees_all_traffic(self) -> bool:
        return False

    def input_ended(self) -> bool:
        return self._kept is None or input_ended(self._kept)

    def _ended(self) -> None:
        self._over = True
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        self._connection.relay_ended()

    def readConnectionLost(self) -> None:
        self._ended()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended()


class _Factory(ServerFactory):
    """Gives `adoptStreamConnection` the protocol that exists already."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> Protocol:
        return self._protocol


def plain_socket(transport: object) -> socket.socket | None:
    """Return the socket under `transport` if it carries the client's bytes unchanged."""
    if isinstance(transport, ProtocolWrapper | Layer) or ISSLTransport.providedBy(transport):
        return None
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    return handle if isinstance(handle, socket.socket) else None


def _socket_address(address: Any) -> _RetAddress:
    """Convert an address, Twisted's or a PROXY header's, to the form of the `socket` module."""
    if isinstance(address, IPv6Address):
        return (address.host, address.port, address.flowInfo, address.scopeID)
    if isinstance(address, tuple):
        return (*address, 0, 0) if ":" in address[0] else address
    if isinstance(address, UNIXAddress):
        address = address.name or b""
    if isinstance(address, bytes):
        return address if address.startswith(b"\0") else os.fsdecode(address)
    return (address.host, address.port)
