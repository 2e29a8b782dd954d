"""A service manager's end of systemd's notification protocol."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

from tests.support.waiting import block_until


class Manager:
    """Hears what a daemon says of itself.

    Attributes:
        heard: every message that was taken off the socket, as lines.
    """

    def __init__(self, address: str) -> None:
        """Listen.

        Args:
            address: what NOTIFY_SOCKET is to be: a path, or @name.
        """
        self.address = address
        self.heard: list[list[str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(0)

    def hear(self) -> list[list[str]]:
        """Return the messages that have come since the last time."""
        known = len(self.heard)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self._socket.recv(4096).decode().split("\n"))
        return self.heard[known:]

    def hears_within(self, seconds: float) -> bool:
        """Return whether anything comes within so many seconds, without taking it."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def wait_for(self, line: str, count: int = 1) -> None:
        """Wait until that line has been heard so many times."""

        def is_there() -> bool:
            self.hear()
            return sum(line in message for message in self.heard) >= count

        block_until(is_there)

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def managing(address: str) -> Iterator[Manager]:
    """A manager for as long as this lasts."""
    manager = Manager(address)
    try:
        yield manager
    finally:
        manager.close()
