"""Find a port that stays free until a test binds it."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Any


def free_address(
    interface: str = "127.0.0.1",
    family: int = socket.AF_INET,
    type: int = socket.SOCK_STREAM,  # noqa: A002 - the name is Twisted's
) -> tuple[Any, ...]:
    """Return an address that is free, with a port that the kernel assigns to no process.

    The usual way is to let the kernel choose a port and to give it back. Then the kernel may give
    it to another process before the test has bound it.

    Args:
        interface: the host.
        family: of the socket.
        type: of the socket.

    Raises:
        OSError: every port is in use.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    first, last = map(int, given)
    others = [port for port in range(10_000, 1 << 16) if not first <= port <= last]
    for port in random.sample(others, len(others)):
        address = socket.getaddrinfo(interface, port, family, type)[0][4]
        with socket.socket(family, type) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
        # A link-local host goes with its interface.
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        return (socket.getnameinfo(address, numeric)[0], port)
    raise OSError("every port is in use")


def free_port() -> int:
    """Return the port of an address of this machine that is free: see `free_address`."""
    return int(free_address()[1])
