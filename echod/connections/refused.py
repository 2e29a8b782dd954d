"""The protocol of a connection that is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol

if TYPE_CHECKING:
    from echod.interfaces import Stream


class RefusedProtocol(Protocol):
    """A refused connection: the client gets a line and the end of the stream; over TLS, a reset.

    Over TLS a line would need the handshake, which costs more than the refusal is worth. The
    connection has no handler and no session, and the daemon does not wait for its client, so that
    a flood of such connections has no effect.
    """

    transport: Stream

    def __init__(self, why: bytes) -> None:
        """Refuse with `why`, a line in the form of the framing."""
        self._why = why

    def connectionMade(self) -> None:
        if ISSLTransport.providedBy(self.transport):
            self.transport.abortConnection()
        else:
            self.transport.write(self._why)
            self.transport.loseConnection()
