"""The protocol of a connection that is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol

from echod.connections.admission import text_of, without_text
from echod.handlers.client import Client
from echod.reasons import Refusal

if TYPE_CHECKING:
    from echod.connections.owner import Owner
    from echod.interfaces import Stream


class RefusedProtocol(Protocol):
    """A refused connection: the client gets a line and the end of the stream; over TLS, a reset.

    Over TLS a line would need the handshake, which costs more than the refusal is worth. The
    connection has no handler and no session, and the daemon does not wait for its client, so that
    a flood of such connections has no effect.
    """

    transport: Stream

    def __init__(self, owner: Owner, refusal: Refusal, client: Client) -> None:
        """Refuse a client.

        Args:
            owner: counts and logs the refusal; has the framing for the line.
            refusal: the reason.
            client: the client.
        """
        self._owner = owner
        self._refusal = refusal
        self._client = client

    def connectionMade(self) -> None:
        if ISSLTransport.providedBy(self.transport):
            why = without_text(self._refusal, "reset")
            self.transport.abortConnection()
        else:
            why = text_of(self._refusal)
            self.transport.write(self._owner.framing.encode_line(why.encode()))
            self.transport.loseConnection()
        self._owner.note_refusal(self._refusal, self._client, why)
