"""Clients of a daemon that echoes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from tests.daemon import BANNER, Daemon, connect, receive

PREFIX = b"OK..."

# The models that serve several clients at a time.
MODELS = ("reactor", "defer-to-thread", "thread-per-connection")


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
