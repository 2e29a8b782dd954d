"""Say in the log which connection an event belongs to, at no cost to the events.

Twisted's own transports push a log context around each read, which costs more than the read.
uvloop enters a :class:`contextvars.Context` around each callback of a connection anyway: so a
variable in it names the connection, and the prefix is looked up only when something is logged.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol

from twisted.python import context
from twisted.python.log import ILogContext


class HasLogPrefix(Protocol):
    """What the log prefix is asked of: a transport."""

    def logPrefix(self) -> str: ...


current: ContextVar[HasLogPrefix | None] = ContextVar("current transport", default=None)


class _LogContext(dict[str, Any]):
    """Twisted's outermost log context, with the running connection's prefix as its system."""

    def __getitem__(self, key: str) -> Any:
        if key == "system" and (transport := current.get()) is not None:
            return transport.logPrefix()
        return super().__getitem__(key)

    def copy(self) -> dict[str, Any]:
        """The plain dict that ``twisted.python.log`` merges each event into."""
        return {key: self[key] for key in self}


def install() -> None:
    """Let ``twisted.python.log`` ask for the prefix; doing so twice changes nothing."""
    context.setDefault(ILogContext, _LogContext(system="-"))
