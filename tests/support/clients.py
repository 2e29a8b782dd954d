"""Clients of a daemon that echoes, on blocking sockets."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import socket
import struct
import termios
from collections.abc import Iterator, Sequence

from tests.support.daemon import TERMINATED, Daemon
from tests.support.waiting import PATIENCE

# The echo begins with the one, and puts the other before each message.
BANNER = b"Welcome to the server. Type something and hit enter\n"
PREFIX = b"OK..."


@functools.cache
def numbered(size: int) -> bytes:
    """Return bytes of which no two places are equal: eight for each number."""
    return b"".join(b"%07d\n" % number for number in range(-(-size // 8)))[:size]


def connect(to: Daemon | int, **options: object) -> socket.socket:
    """Connect to a daemon, or a port; each call on the socket fails after `PATIENCE`."""
    port = to if isinstance(to, int) else to.port
    return socket.create_connection(("127.0.0.1", port), PATIENCE, **options)  # type: ignore[arg-type]


def end_while_idle(
    running: Daemon, clients: Sequence[socket.socket], silent: Sequence[socket.socket] = ()
) -> float:
    """Let clients of an echo speak, then end the daemon: each sees the end, and no reset.

    Args:
        running: the daemon.
        clients: those that speak.
        silent: those that do not, such as within a handshake of TLS.

    Returns:
        How many seconds the daemon took to end, once the clients had closed.
    """
    for each in clients:
        each.sendall(b"happy")
    assert all(receive(each, 5) == b"happy" for each in clients)
    running.signal()
    assert all(receive_all(each) == b"" for each in (*clients, *silent))
    for each in (*clients, *silent):
        each.close()
    seconds = running.wait()
    assert running.process.returncode in TERMINATED
    assert "Drain time-out" not in running.log
    return seconds


def connect_narrow(running: Daemon) -> socket.socket:
    """Connect as a client for which the daemon's kernel cannot send much ahead."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", running.port))
    return connection


def is_over(connection: socket.socket, within: float = PATIENCE) -> bool:
    """Return whether the connection ends within so many seconds, by an end or a reset."""
    connection.settimeout(within)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def receive(connection: socket.socket, size: int) -> bytes:
    """Read exactly `size` bytes, or what there is before the end."""
    data = bytearray()
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return bytes(data)


def receive_all(connection: socket.socket) -> bytes:
    """Read to the end of the stream."""
    data = bytearray()
    while piece := connection.recv(1 << 16):
        data += piece
    return bytes(data)


def unacknowledged(connection: socket.socket) -> int:
    """Return how many of the bytes sent the other end's kernel has not received."""
    return struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]


@contextlib.contextmanager
def greeted(running: Daemon) -> Iterator[socket.socket]:
    """A client that was greeted."""
    with connect(running) as connection:
        assert receive(connection, len(BANNER)) == BANNER
        yield connection


def is_served(connection: socket.socket, message: bytes = b"happy\n") -> bool:
    """Return whether a client that was greeted gets an answer."""
    connection.sendall(message)
    return receive(connection, len(PREFIX) + len(message)) == PREFIX + message


def serves(running: Daemon) -> bool:
    """Return whether a new client is served."""
    with connect(running) as connection:
        return receive(connection, len(BANNER)) == BANNER and is_served(connection)


def warm_up(*daemons: Daemon) -> None:
    """Let daemons open what they open once, before their descriptors are counted."""
    for running in daemons:
        with connect(running) as connection:
            connection.shutdown(socket.SHUT_WR)
            receive_all(connection)
        running.wait_for("Disconnected from")
