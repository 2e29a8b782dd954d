"""The echo as a handler of one's own, twice: a plain function, and one that could wait."""

from __future__ import annotations

from bench.peers.wire import PREFIX


def plain(message: bytes) -> bytes:
    """Answer a message."""
    return PREFIX + message


async def awaiting(message: bytes) -> bytes:
    """Answer a message, without waiting."""
    return PREFIX + message
