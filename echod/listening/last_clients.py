"""Let no further client connect to a listening socket, while those that wait are accepted.

A client that connects between the last accept and the close of the socket is reset, though it was
told that it is connected. Therefore the kernel is told before the last accept to drop requests for
connections (SYN). A client asks again a second later, as if its request had been lost. Then the
socket is closed, so the client is refused, and knows that no server has got what it sent: it can
safely try elsewhere, and a balancer does.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys
from typing import Any

# <linux/filter.h>, of which Python has no names. One instruction: code, jumps, operand.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06
_FLAGS, _SYN, _ACK = 13, 0x02, 0x10  # of a header of TCP (RFC 9293, 3.1)
_ALL = 0xFFFFFFFF
_DROP_REQUESTS = b"".join(
    _INSTRUCTION.pack(*each)
    for each in (
        (_LOAD_BYTE, 0, 0, _FLAGS),
        (_AND, 0, 0, _SYN | _ACK),
        (_JUMP_IF_EQUAL, 0, 1, _SYN),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, _ALL),
    )
)
_SO_ATTACH_FILTER = 26


def admit_no_more(port: Any) -> None:
    """Let no further client connect to a port; the port still accepts those that wait.

    Args:
        port: a listening port of a reactor, which is about to stop. One of a UNIX socket has a
            function `withdraw`, if its file can be removed before.
    """
    if (withdraw := getattr(port, "withdraw", None)) is not None:
        withdraw()
    elif port.socket.family in (socket.AF_INET, socket.AF_INET6) and sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may not allow it: then it is as elsewhere
            _drop_requests(port.socket)


def _drop_requests(listening: socket.socket) -> None:
    program = ctypes.create_string_buffer(_DROP_REQUESTS, len(_DROP_REQUESTS))
    count = len(_DROP_REQUESTS) // _INSTRUCTION.size
    described = struct.pack("HP", count, ctypes.addressof(program))  # the kernel copies all
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
