"""Give each log event the prefix of its connection, at almost no cost.

Twisted's own transports push a log context around each read, which costs more than the read. Here
a stream only registers in `running` when it calls its protocol; the prefix is looked up when an
event is logged.
"""

from __future__ import annotations

from typing import Protocol

from twisted.python import context
from twisted.python.log import ILogContext
from twisted.python.threadable import isInIOThread


class HasLogPrefix(Protocol):
    """An object with a log prefix: a transport."""

    def logPrefix(self) -> str: ...


class Running:
    """The stream that is calling its protocol, in the reactor's thread.

    :ivar stream: the stream; ``None`` between its calls.
    """

    __slots__ = ("stream",)

    def __init__(self) -> None:
        self.stream: HasLogPrefix | None = None


running = Running()


class _LogContext(dict[str, str]):
    """Twisted's outermost log context, with the running connection's prefix as its system."""

    def __getitem__(self, key: str) -> str:
        if key == "system" and (stream := running.stream) is not None and isInIOThread():
            return stream.logPrefix()
        return super().__getitem__(key)

    def copy(self) -> dict[str, str]:
        """The plain dict that ``twisted.python.log`` merges each event into."""
        return {key: self[key] for key in self}


def install() -> None:
    """Make ``twisted.python.log`` look up the prefix; calling it twice changes nothing."""
    context.setDefault(ILogContext, _LogContext(system="-"))
