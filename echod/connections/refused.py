"""The protocol of a connection that is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import (
    ISSLTransport,
)
from twisted.internet.protocol import Protocol

if TYPE_CHECKING:
    pass


class RefusedProtocol(Protocol):
    """A connection that is not let in: it is told so, in the clear, and closed.

    It costs no handler and no session, and nobody waits for its client: a flood of such
    connections shall not be worth anything.
    """

    transport: Any

    def __init__(self, why: bytes) -> None:
        """Refuse with `why`, a line as the framing has it."""
        self._why = why

    def connectionMade(self) -> None:
        if ISSLTransport.providedBy(self.transport):
            self.transport.abortConnection()
        else:
            self.transport.write(self._why)
            self.transport.loseConnection()
