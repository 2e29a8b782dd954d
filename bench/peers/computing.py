"""A handler for echod that computes; it is copied to where echod starts, and found there."""

from __future__ import annotations

import time

from echod import message_handler

SECONDS = 0.01


@message_handler(framing="line", banner=b"")
def compute(message: bytes) -> bytes:
    """Echo, after 10 ms by the clock of this thread: no other program shortens them."""
    until = time.thread_time() + SECONDS
    while time.thread_time() < until:
        pass
    return message
