"""Ask the kernel about a connection: waiting bytes, bytes received and sent, its end."""

from __future__ import annotations

import array
import ctypes
import fcntl
import select
import socket
import struct
import termios
from typing import Any, NamedTuple

from twisted.internet.abstract import FileDescriptor
from twisted.protocols.policies import ProtocolWrapper

from echod.connections.transport_layers import Layer, below, layer_of, tls_of

# Making the union would cost more than the question.
_ABOVE = (ProtocolWrapper, Layer)


def unread(transport: object) -> int:
    """Return how many bytes, as on the wire, `transport` has received and not read yet."""
    tls, layer = tls_of(transport), layer_of(transport)
    undelivered = (tls.undelivered if tls else 0) + (layer.held_in if layer else 0)
    return _held_by_kernel(transport, termios.FIONREAD) + undelivered


def has_read(transport: object, left: int) -> bool:
    """Return whether all is read that a drain has found unread.

    Args:
        transport: the connection.
        left: how many of those bytes have not been read so far. Bytes that come meanwhile are
            counted as some of them, so it is the most.
    """
    return left <= 0 or not unread(transport)


def is_reset(transport: object) -> bool:
    """Return whether the client has reset the connection, which may not be read from."""
    handle = _handle(transport)
    return handle is not None and bool(events(handle) & select.POLLERR)


def events(handle: socket.socket, asked: int = 0) -> int:
    """Return the events of poll(2) that hold now: of those `asked`, and any error or hang-up."""
    poll = select.poll()
    poll.register(handle, asked)
    return next((found for _, found in poll.poll(0)), 0)


def unsent(transport: object) -> int:
    """Return how many bytes the kernel holds that have not reached the client's machine yet.

    Those of a UNIX socket arrive at once. While there is room for more they count as sent, read or
    not, as over TCP: the client finds them even after the connection has been closed.
    """
    layer, handle = layer_of(transport), _handle(transport)
    held = layer.held_out if layer else 0
    if handle is not None and handle.family == socket.AF_UNIX and has_room(handle):
        return held
    return held + _held_by_kernel(transport, termios.TIOCOUTQ)


class Taken(NamedTuple):
    """How much of our data the client has received, as far as the kernel knows.

    Attributes:
        acknowledged: how many bytes the client's kernel has acknowledged.
        held: if the kernel does not count those (it is not TCP, or not Linux): how many bytes it
            holds. Its buffer is refilled as the client reads, so this says less.
    """

    acknowledged: int = 0
    held: int = 0

    @property
    def mark(self) -> int:
        """A number that changes whenever one of them does."""
        return self.acknowledged - self.held

    def has_grown(self, since: Taken, least: float) -> bool:
        """Return whether the client has received `least` bytes since an earlier check.

        If they are not counted, it can only be seen that something has moved.
        """
        return self.acknowledged - since.acknowledged >= least or self.held != since.held


NOTHING_TAKEN = Taken()


def taken(transport: object) -> Taken:
    """Return how much the client has received."""
    handle = _handle(transport)
    if handle is not None and handle.family in (socket.AF_INET, socket.AF_INET6):
        info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        if len(info) == _BYTES_ACKED.size:
            return Taken(acknowledged=_BYTES_ACKED.unpack(info)[0])
    return Taken(held=_held_by_kernel(transport, termios.TIOCOUTQ))


def spoke_last(transport: object) -> bool:
    """Return whether the client has sent something since we last did, as far as the kernel knows.

    Then the handler may owe an answer. If the kernel does not know, return True.
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
    # The kernel's clock is coarse: if a client sends as soon as it is connected, the kernel gives
    # the same time for our last sending, although we have sent nothing.
    return received > 0 and (sent == 0 or since_received < since_sent)


def has_answered(transport: object, figures: tuple[int, int, int], quiet: float) -> bool:
    """Return whether it is the client's turn to speak, as far as the kernel of a TCP connection
    knows: we have spoken since the client last did, or it has not spoken yet.

    Args:
        transport: the connection.
        figures: the last two are how many bytes it has received and sent.
        quiet: the kernel's clock is coarse, so both may have spoken at the same time. Then it is
            the client's turn after so many seconds in which neither did.
    """
    _, received, sent = figures
    handle = _handle(transport)
    if handle is None or not received:
        return True
    info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SINCE.size)
    if not sent or len(info) < _SINCE.size:
        return False
    since_sent, since_received = _SINCE.unpack(info)
    if since_sent == since_received:
        return bool(since_sent >= quiet * 1000)
    return bool(since_sent < since_received)


def queued(transport: Any) -> int:
    """Return how many written bytes wait in a transport, because the kernel takes no more."""
    layer, stream = layer_of(transport), below(transport)
    held = layer.held_out if layer else 0
    if isinstance(stream, FileDescriptor):  # Twisted's own
        return held + len(stream.dataBuffer) - stream.offset + stream._tempDataLen
    return held + int(getattr(stream, "queued", 0))


def hung_up(transport: object) -> bool:
    """Return whether no more data can move: the connection is lost, or shut down."""
    handle = _handle(transport)
    return handle is None or bool(events(handle))


def has_room(handle: socket.socket) -> bool:
    """Return whether the kernel would accept more data to send."""
    return bool(events(handle, select.POLLOUT))


def reset(handle: socket.socket) -> bool:
    """Reset a TCP connection, whichever descriptors of it are open; return whether that worked.

    A close resets only when the last descriptor is closed, and a shutdown sends FIN. Threads that
    wait for the socket see an error.
    """
    if handle.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    # connect(2): "may dissolve the association by connecting to an address with the sa_family
    # member of sockaddr set to AF_UNSPEC". Python's `connect` takes no such address.
    library = ctypes.CDLL(None, use_errno=True)
    return bool(library.connect(handle.fileno(), bytes(16), 16) == 0)


def output_ended(handle: socket.socket) -> bool:
    """Return whether our stream has ended, through any descriptor."""
    try:
        handle.send(b"", socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


def client_ended(transport: object) -> bool:
    """Return whether the client has ended its stream, which may not be read from."""
    handle = _handle(transport)
    return handle is None or input_ended(handle)


def input_ended(handle: socket.socket) -> bool:
    """Return whether the input stream of a socket has ended, after the unread data."""
    return bool(events(handle, getattr(select, "POLLRDHUP", 0)))


# `struct tcp_info` of linux/tcp.h, up to tcpi_bytes_acked.
_BYTES_ACKED = struct.Struct("=120xQ")
# tcpi_last_data_sent, tcpi_last_data_recv: how long ago, in milliseconds.
_SINCE = struct.Struct("=44xI4xI")
# tcpi_state, tcpi_bytes_received, tcpi_notsent_bytes, tcpi_bytes_sent, tcpi_bytes_retrans; the
# last two since Linux 4.19.
_TRAFFIC = struct.Struct("=B127xQ8xI52xQQ")
# Each connection asks once, at its end.
_TRAFFIC_SIZE, _TCP, _TCP_INFO = _TRAFFIC.size, socket.IPPROTO_TCP, socket.TCP_INFO
# The states in which the kernel has received the other side's FIN, which it counts as a byte:
# TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING.
_FIN_HAS_COME = {6, 8, 9, 11}
# The state in which it may have received one.
_CLOSED = 7
# The families whose bytes the kernel counts. As numbers: members of the enum are slow to compare.
_COUNTED = (int(socket.AF_INET), int(socket.AF_INET6))
# The states in which our own FIN may still wait to be sent, and counts as a byte: FIN_WAIT1,
# LAST_ACK, CLOSING.
_FIN_GOES = {4, 9, 11}


# Whether this kernel counts, once a connection has been asked: the restrictions of a unit may
# allow no other TCP socket.
_counts: list[bool] = []


def counts_traffic(transport: object) -> bool:
    """Return whether `traffic` has figures for an open connection."""
    handle = _handle(transport)
    return (
        handle is not None
        and layer_of(transport) is None  # it may drop some, or invent some
        and counts_bytes(handle)
    )


def counts_bytes(handle: socket.socket) -> bool:
    """Return whether the kernel counts the bytes of a socket: see `counted`."""
    if handle.family not in _COUNTED:
        return False
    if not _counts:
        info = handle.getsockopt(_TCP, _TCP_INFO, _TRAFFIC_SIZE)
        _counts.append(len(info) >= _TRAFFIC_SIZE)
    return _counts[0]


def traffic(transport: object, *, input_ended: bool) -> tuple[int, int] | None:
    """Return how many bytes a TCP connection has received and sent, as the kernel counts them.

    Args:
        transport: the connection.
        input_ended: whether the other side's end of stream has been seen.

    Returns:
        Bytes received and sent; None if the kernel does not count them.
    """
    handle = _handle(transport)
    if handle is None or layer_of(transport) is not None:  # it may drop some, or invent some
        return None
    return counted(handle, input_ended=input_ended) if counts_bytes(handle) else None


def counted(handle: socket.socket, *, input_ended: bool) -> tuple[int, int]:
    """Return the same as `traffic` for an open socket, for which `counts_bytes` is true."""
    info = handle.getsockopt(_TCP, _TCP_INFO, _TRAFFIC_SIZE)
    state, received, waiting, sent, again = _TRAFFIC.unpack(info)
    # Data that waits for room at the client counts too: the kernel sends it even after a close.
    if waiting and state in _FIN_GOES:
        waiting -= 1
    # An apparent end may be our own: a socket that we have shut down for reading.
    if received and (state in _FIN_HAS_COME or (input_ended and state == _CLOSED)):
        received -= 1
    return received, sent - again + waiting


def _held_by_kernel(transport: object, request: int) -> int:
    handle = _handle(transport)
    return 0 if handle is None else held_in(handle, request)


def held_in(handle: socket.socket, request: int = termios.FIONREAD) -> int:
    """Return how many bytes the kernel holds for a socket, by default those not read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(handle, request, count)
    return count[0]


def _handle(transport: Any) -> socket.socket | None:
    """Return the open socket under `transport`, if there is one."""
    while isinstance(transport, _ABOVE):
        transport = transport.transport
    try:
        handle = transport.getHandle()
    except AttributeError:  # it has none, or, if it is Twisted's own, no longer has one
        return None
    return handle if isinstance(handle, socket.socket) and handle.fileno() >= 0 else None
