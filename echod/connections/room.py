"""Wait until the kernel has room for more data on a socket that a thread writes to.

The reactor's own transport of that socket is idle, and has its descriptor: so this waits with a
duplicate of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(IWriteDescriptor)
class Room:
    """One wait."""

    def __init__(
        self, reactor: IReactorTime, descriptor: int, has_room: Callable[[], None]
    ) -> None:
        """Begin to wait.

        Args:
            reactor: the reactor.
            descriptor: of the socket; it is closed at the end, in the next turn of the event loop:
                the reactor may still have an event for its number in this one.
            has_room: called once.
        """
        self._clock = reactor
        self._reactor = IReactorFDSet(reactor)
        self._descriptor = descriptor
        self._has_room = has_room
        self._reactor.addWriter(self)

    def fileno(self) -> int:
        return self._descriptor

    def doWrite(self) -> None:
        self.stop()
        self._has_room()

    def stop(self) -> None:
        """Wait no more. Calling it again is harmless."""
        if self._descriptor >= 0:
            self._reactor.removeWriter(self)
            self._clock.callLater(0, os.close, self._descriptor)
            self._descriptor = -1

    def connectionLost(self, reason: Failure) -> None:
        self.stop()

    def logPrefix(self) -> str:
        return "echod"
