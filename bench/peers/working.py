"""A handler for echod that takes its time; it is copied to where echod starts, and found there."""

from __future__ import annotations

import time

from echod import Handler


class Working(Handler):
    """Works for so many microseconds a message, and answers as the echo does."""

    def __init__(self, work: int) -> None:
        self._seconds = work / 1e6

    def opened(self, client: object) -> bytes:
        return b"Welcome to the server. Type something and hit enter\n"

    def received(self, message: bytes) -> bytes:
        until = time.perf_counter() + self._seconds
        while time.perf_counter() < until:
            pass
        return b"OK..." + message
