"""How many clients may wait in the kernel's queue of a listening socket."""

from __future__ import annotations

import os
import socket
import struct

# sock_diag(7): a header of netlink, then the question about one socket.
_SOCK_DIAG = 4
_REQUEST = struct.Struct("=IHHII BBHIIIii")
_ATTRIBUTES = 16 + 16
_UNIX_DIAG_RQLEN = 4


def backlog_of(listening: socket.socket) -> int:
    """Return how many clients may wait in a socket's queue; the most there can be if unknown."""
    if listening.family != socket.AF_UNIX:
        # Of a listening socket, these are what it holds and what it may hold.
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        return int(struct.unpack_from("I", info, 28)[0])
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as diagnosis:
            number = os.fstat(listening.fileno()).st_ino
            diagnosis.settimeout(1)
            diagnosis.sendto(
                _REQUEST.pack(40, 20, 1, 0, 0, 1, 0, 0, 0, number, 16, -1, -1), (0, 0)
            )
            return _backlog_in(diagnosis.recv(4096))
    except OSError:
        return socket.SOMAXCONN


def _backlog_in(answer: bytes) -> int:
    """Return the length of the queue in an answer of sock_diag."""
    place = _ATTRIBUTES
    while place + 4 <= len(answer):
        size, kind = struct.unpack_from("=HH", answer, place)
        if kind == _UNIX_DIAG_RQLEN:
            return int(struct.unpack_from("=I", answer, place + 8)[0])
        place += max(4, size + 3 & ~3)
    return socket.SOMAXCONN
