"""Shared by all peers written in Python: the command line, and the bytes on the wire.

A peer is run as `python -m bench.peers.NAME PORT READ_SIZE [CERTIFICATE KEY]`. It listens on
127.0.0.1, greets, and answers what it reads with the prefix and the data, in pieces that hold at
most READ_SIZE bytes of data each.
"""

from __future__ import annotations

import ssl
import sys
from dataclasses import dataclass

BANNER = b"Welcome to the server. Type something and hit enter\n"
PREFIX = b"OK..."
HOST = "127.0.0.1"
# How many connections may wait to be accepted.
BACKLOG = 4096


@dataclass(frozen=True)
class Arguments:
    """A peer's command line.

    Attributes:
        port: the TCP port to listen on.
        read_size: the most data in one reply, in bytes.
        certificate: path of the certificate, in PEM; None for plain TCP.
        key: path of its key.
        tickets: how many session tickets a client of TLS 1.3 gets; each costs a handshake a tenth.
    """

    port: int
    read_size: int
    certificate: str | None = None
    key: str | None = None
    tickets: int = 1  # as echod

    def tls(self) -> ssl.SSLContext | None:
        """Return the context to serve TLS with; None for plain TCP."""
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        context.num_tickets = self.tickets
        return context


def arguments() -> Arguments:
    """Read the command line."""
    port, read_size, *tls = sys.argv[1:]
    files, tickets = tls[:2], map(int, tls[2:])
    return Arguments(int(port), int(read_size), *files, *tickets)


def cut(data: bytes, size: int) -> bytes:
    """Return the replies to what one read gave: at most `size` bytes of it in each."""
    if len(data) <= size:
        return PREFIX + data
    return b"".join(PREFIX + data[at : at + size] for at in range(0, len(data), size))
