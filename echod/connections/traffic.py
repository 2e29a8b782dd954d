"""Detect traffic on sockets whose bytes the kernel does not count.

Linux counts the bytes of a TCP connection, but not those of a UNIX socket. It does wake threads
that wait for a UNIX socket, at each arrival and each time the other side has read data of ours.
An epoll object notes these wake-ups, and no thread waits for it: the next look reads the notes.
They stay, even if a thread or a child process has read the bytes meanwhile.

This relies on two properties of epoll(7). The kernel notes an edge-triggered item once for any
number of wake-ups. At the look it asks the socket again, and drops the note if the socket is not
ready: one with room to write always is. So the notes of a socket without room may be lost.

Guarantees:

* All sockets together cost one descriptor, and none while none is watched.
* A look is one system call, however many sockets there are, and takes no byte.

Only the reactor's thread may call this.
"""

from __future__ import annotations

import contextlib
import select
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class WatchedSocket:
    """A watched socket.

    Attributes:
        descriptor: its descriptor.
        count: grows whenever there was traffic before a look; 0 if there was none so far.
    """

    descriptor: int
    count: int = 0


class TrafficWatch:
    """Watches any number of sockets."""

    def __init__(self) -> None:
        """Set up, without a descriptor."""
        self._epoll: select.epoll | None = None
        self._sockets: dict[int, WatchedSocket] = {}

    def watch(self, descriptor: int) -> WatchedSocket | None:
        """Watch a socket from now on; unread data counts as traffic.

        Args:
            descriptor: the socket's. It has to be forgotten before that is closed, or the kernel
                goes on watching for as long as a duplicate is open.

        Returns:
            The socket, for `look`; None if it cannot be watched: this is not Linux, or descriptors
            or memory are short.
        """
        if not hasattr(select, "epoll"):
            return None
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        except OSError:
            self._close_if_unused()
            return None
        watched = self._sockets[descriptor] = WatchedSocket(descriptor)
        # The first note of a new item only tells that the socket is ready.
        watched.count = self._look().get(descriptor, 0) & select.EPOLLIN
        return watched

    def look(self, watched: WatchedSocket) -> int:
        """Return the count of a socket; it has grown if there was traffic since the last look."""
        if self._sockets.get(watched.descriptor) is watched:
            self._look()
        return watched.count

    def _look(self) -> dict[int, int]:
        assert self._epoll is not None
        woken = dict(self._epoll.poll(0, len(self._sockets)))
        for descriptor in woken:
            # One that was closed before it was forgotten may still be told of.
            if watched := self._sockets.get(descriptor):
                watched.count += 1
        return woken

    def forget(self, watched: WatchedSocket) -> None:
        """Stop watching a socket. Calling it again is harmless."""
        # Another file may have its descriptor by now.
        if self._sockets.get(watched.descriptor) is watched:
            del self._sockets[watched.descriptor]
            if self._epoll is not None:
                with contextlib.suppress(OSError):  # closed already
                    self._epoll.unregister(watched.descriptor)
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._epoll is not None and not self._sockets:
            self._epoll.close()
            self._epoll = None
