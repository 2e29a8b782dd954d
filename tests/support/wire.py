"""The packets of a TCP port on the loopback interface, as the wire has them."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple, Self

from tests.support.needs import needs_root

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_IPV4, _IPV6, _TCP = 0x0800, 0x86DD, 6
_ALL = 3
_OUTGOING = 4


class Packet(NamedTuple):
    """One TCP segment."""

    source: int
    destination: int
    flags: int
    size: int


class Wire:
    """The packets of one port since the start."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind(("lo", 0))
        self._socket.setblocking(False)

    def packets(self) -> Iterator[Packet]:
        """Yield those that have come since the last call."""
        while True:
            try:
                frame, address = self._socket.recvfrom(65535)
            except BlockingIOError:
                return
            if address[2] == _OUTGOING:  # each packet of the loopback interface comes twice
                continue
            packet = parsed(frame)
            if packet is not None and self._port in (packet.source, packet.destination):
                yield packet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()


def parsed(frame: bytes) -> Packet | None:
    """Return the TCP segment of an Ethernet frame; None if it is none."""
    kind = struct.unpack_from("!H", frame, 12)[0]
    if kind == _IPV4 and frame[23] == _TCP:
        start, end = 14 + (frame[14] & 15) * 4, 14 + struct.unpack_from("!H", frame, 16)[0]
    elif kind == _IPV6 and frame[20] == _TCP:
        start, end = 54, 54 + struct.unpack_from("!H", frame, 18)[0]
    else:
        return None
    source, destination = struct.unpack_from("!HH", frame, start)
    offset, flags = frame[start + 12] >> 4, frame[start + 13]
    return Packet(source, destination, flags, end - start - offset * 4)


@contextlib.contextmanager
def watched(port: int) -> Iterator[Wire]:
    """Watch a port; the test is skipped without the permission."""
    needs_root("to see packets")
    with Wire(port) as wire:
        yield wire
