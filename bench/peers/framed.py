"""Lines, and messages behind their length, cut and framed by hand: for the peers with threads.

Such a peer is run with one more argument at the end: `line` or `length`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable

from bench.peers.wire import BANNER

# As of echod's framings, in bytes.
LONGEST_LINE = 16 * 1024
LONGEST = 32 * 1024
HEADER = struct.Struct(">I")

# Takes what has arrived, and returns its messages and the rest.
Cut = Callable[[bytes], tuple[list[bytes], bytes]]
Frame = Callable[[bytes], bytes]


def cut_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """Cut off the lines."""
    *lines, rest = data.split(b"\n")
    if len(rest) > LONGEST_LINE:
        raise ValueError("a line is too long")
    return lines, rest


def cut_lengths(data: bytes) -> tuple[list[bytes], bytes]:
    """Cut off the messages that are whole."""
    messages, start, end, size = [], 0, len(data), HEADER.size
    while start + size <= end:
        (length,) = HEADER.unpack_from(data, start)
        if length > LONGEST:
            raise ValueError("a message is too long")
        begin = start + size
        if begin + length > end:
            break
        start = begin + length
        messages.append(data[begin:start])
    return messages, data[start:]


def as_line(reply: bytes) -> bytes:
    """Frame a reply as a line."""
    return reply + b"\n"


def as_length(reply: bytes) -> bytes:
    """Frame a reply behind its length."""
    return HEADER.pack(len(reply)) + reply


def framing() -> tuple[Cut, Frame, bytes]:
    """Read the last argument; return how to cut and frame, and the greeting."""
    if sys.argv.pop() == "line":
        return cut_lines, as_line, BANNER
    return cut_lengths, as_length, as_length(BANNER)
