"""Ask the kernel about a connection: bytes that wait, bytes that have come and gone, its end."""

from __future__ import annotations

import array
import fcntl
import select
import socket
import struct
import termios
from dataclasses import dataclass
from typing import Any

from twisted.protocols.policies import ProtocolWrapper

from echod.tls import TLSConnection


def unread(transport: object) -> int:
    """Return how many bytes have come for `transport`, as on the wire, that were not read yet."""
    undelivered = transport.undelivered if isinstance(transport, TLSConnection) else 0
    return _held_by_kernel(transport, termios.FIONREAD) + undelivered


def is_reset(transport: object) -> bool:
    """Return whether the client has reset the connection, where nobody reads who would notice."""
    handle = _handle(transport)
    if handle is None:
        return False
    poller = select.poll()
    poller.register(handle, 0)
    return any(events & select.POLLERR for _, events in poller.poll(0))


def unsent(transport: object) -> int:
    """Return how many bytes the kernel holds that have not come to the client's machine yet.

    A UNIX socket's are there at once.  While there is room for more they count as sent, read or
    not, as over TCP: the client finds them even after the connection has been closed.
    """
    handle = _handle(transport)
    if handle is not None and handle.family == socket.AF_UNIX and has_room(handle):
        return 0
    return _held_by_kernel(transport, termios.TIOCOUTQ)


@dataclass(frozen=True)
class Taken:
    """How much of what we sent the client has taken, as far as the kernel knows.

    Attributes:
        acknowledged: how many bytes the client's kernel has acknowledged.
        held: where the kernel does not count those (it is not TCP, or not Linux): how many bytes
            it holds.  They are filled up again as the client reads, so they tell less.
    """

    acknowledged: int = 0
    held: int = 0

    @property
    def mark(self) -> int:
        """A number that changes whenever either of them does."""
        return self.acknowledged - self.held

    def has_grown(self, since: Taken, least: float) -> bool:
        """Return whether the client has taken `least` bytes since an earlier look.

        Where they are not counted, it can only be seen that something has moved.
        """
        return self.acknowledged - since.acknowledged >= least or self.held != since.held


NOTHING_TAKEN = Taken()


def taken(transport: object) -> Taken:
    """Return how much the client has taken."""
    handle = _handle(transport)
    if handle is not None and handle.family in (socket.AF_INET, socket.AF_INET6):
        info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        if len(info) == _BYTES_ACKED.size:
            return Taken(acknowledged=_BYTES_ACKED.unpack(info)[0])
    return Taken(held=_held_by_kernel(transport, termios.TIOCOUTQ))


def spoke_last(transport: object) -> bool:
    """Return whether the client has sent something since we have, as far as the kernel knows.

    Then an answer may be owed.  Where the kernel knows nothing of it, it may be so.
    """
    handle = _handle(transport)
    if handle is None or handle.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    counted = traffic(transport, input_ended=False)
    info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SINCE.size)
    if counted is None or len(info) < _SINCE.size:
        return True
    received, sent = counted
    since_sent, since_received = _SINCE.unpack(info)
    # The kernel's clock is coarse: a client that sends as soon as it is connected does so at the
    # moment at which, as the kernel has it, we sent nothing.
    return received > 0 and (sent == 0 or since_received < since_sent)


def hung_up(transport: object) -> bool:
    """Return whether nothing more can come or go: the connection is lost, or shut down."""
    handle = _handle(transport)
    if handle is None:
        return True
    poll = select.poll()
    poll.register(handle, 0)  # an error and a hang-up are told in any case
    return bool(poll.poll(0))


def has_room(handle: socket.socket) -> bool:
    """Return whether the kernel would take more to send at once."""
    poll = select.poll()
    poll.register(handle, select.POLLOUT)
    return bool(poll.poll(0))


def input_ended(handle: socket.socket) -> bool:
    """Return whether the stream that a socket brings has ended, behind what was not read yet."""
    poll = select.poll()
    poll.register(handle, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


# `struct tcp_info` of linux/tcp.h, as far as tcpi_bytes_acked.
_BYTES_ACKED = struct.Struct("=120xQ")
# tcpi_last_data_sent, tcpi_last_data_recv: how long ago, in milliseconds.
_SINCE = struct.Struct("=44xI4xI")
# tcpi_state, tcpi_bytes_received, tcpi_notsent_bytes, tcpi_bytes_sent, tcpi_bytes_retrans; the
# last two of Linux 4.19.
_TRAFFIC = struct.Struct("=B127xQ8xI52xQQ")
# The states in which the kernel has had the other side's FIN, which it counts as a byte received:
# TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING.
_FIN_HAS_COME = {6, 8, 9, 11}
# That in which there may have been one.
_CLOSED = 7
# Those in which our own FIN may still be to send, behind what waits, as a byte of it: FIN_WAIT1,
# LAST_ACK, CLOSING.
_FIN_GOES = {4, 9, 11}


def traffic(transport: object, *, input_ended: bool) -> tuple[int, int] | None:
    """Return how many bytes a TCP connection has brought and taken, as the kernel counts.

    Args:
        transport: the connection.
        input_ended: whether the other side's end of stream has been seen.

    Returns:
        Bytes received and sent; None where the kernel does not count.
    """
    handle = _handle(transport)
    if handle is None or handle.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TRAFFIC.size)
    if len(info) < _TRAFFIC.size:
        return None
    state, received, waiting, sent, again = _TRAFFIC.unpack(info)
    # What waits for the client to make room counts too: the kernel sends it, closed or not.
    waiting -= waiting > 0 and state in _FIN_GOES
    # What looks like the end may be our own doing: a socket that we have shut down for reading.
    fin_came = state in _FIN_HAS_COME or (input_ended and state == _CLOSED)
    return max(0, received - fin_came), sent - again + waiting


def shorten_reads(transport: object) -> None:
    """Have a transport read in smaller pieces from now on, if it can.

    What is held costs as much as the longest read, and that is 250 KiB on uvloop.
    """
    shorten = getattr(transport, "shortenReads", None)
    if shorten is not None:
        shorten()


def _held_by_kernel(transport: object, request: int) -> int:
    handle = _handle(transport)
    return 0 if handle is None else held_in(handle, request)


def held_in(handle: socket.socket, request: int = termios.FIONREAD) -> int:
    """Return how many bytes the kernel holds for a socket: such as were not read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(handle, request, count)
    return count[0]


def _handle(transport: Any) -> socket.socket | None:
    """Return the open socket under `transport`, if there is one."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    try:
        handle = transport.getHandle()
    except AttributeError:  # it has none, or, being Twisted's own, none any more
        return None
    return handle if isinstance(handle, socket.socket) and handle.fileno() >= 0 else None
