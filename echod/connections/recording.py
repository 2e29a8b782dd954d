"""The facts of a connection for the journal, and the first bytes that its handler gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from echod.addresses import host_and_port, shown_address
from echod.journal import Encryption, Facts, Proxied
from echod.text import clipped, escape

if TYPE_CHECKING:
    from echod.connections.lifecycle import ConnectionProtocol
    from echod.handlers.client import Client
    from echod.interfaces import Stream, Writer
    from echod.proxy_header import Address

    _Base = ConnectionProtocol
else:
    _Base = object

# The longest text from a client, in characters.
LONGEST = 300


def facts_of(connection: ConnectionProtocol) -> Facts:
    """Return what a connection, open or just ended, knows of itself."""
    client = connection.client
    messages, received, sent = connection.figures
    return Facts(
        peer=client.peer,
        local=client.local,
        listener=client.listener,
        tls=_encryption(client),
        proxy=_proxied(client, connection),
        messages=messages if connection.counts_messages else None,
        bytes_in=received,
        bytes_out=sent,
        faults=connection.faults,
    )


def _encryption(client: Client) -> Encryption | None:
    facts = client.tls
    if facts is None:
        return None
    certificate = facts.certificate
    return Encryption(
        version=facts.version,
        cipher=facts.cipher,
        server_name=facts.server_name,
        alpn=None if facts.alpn is None else _short(facts.alpn),
        common_name=None if certificate is None else _short(certificate.common_name),
        resumed=facts.resumed,
    )


def _proxied(client: Client, connection: ConnectionProtocol) -> Proxied | None:
    header = client.proxy
    if header is None:
        return None
    return Proxied(
        through=shown_address(connection.transport.getPeer()),
        version=header.version,
        command=header.command.value,
        source=_place(header.source),
        destination=_place(header.destination),
    )


def _place(address: Address | None) -> str | None:
    if address is None:
        return None
    if isinstance(address, bytes):
        return _short(address)
    return host_and_port(*address)


def _short(text: str | bytes) -> str:
    return clipped(escape(text), LONGEST)


class _Recording(_Base):
    """Tells the journal the first bytes, before the handler gets them.

    The bytes of such a connection always pass through this method: no faster way, and no thread
    that has the socket itself, goes round it.
    """

    __slots__ = ()

    sees_input = True

    def connect_directly(self, transport: Stream, writer: Writer) -> Callable[[bytes], None]:
        """Return the function that the uvloop reactor calls for each read."""
        return self.dataReceived

    def dataReceived(self, data: bytes) -> None:
        journal = self._owner.journal
        # A Twisted protocol may have begun TLS of its own: these bytes are not what it gets.
        if journal is not None and getattr(self, "tls", None) is None:
            journal.hear(self, data)
        super().dataReceived(data)


def recording(kind: type[ConnectionProtocol]) -> type[ConnectionProtocol]:
    """Return a subclass that tells the journal the first bytes."""
    made = type(kind.__name__, (_Recording, kind), {"__slots__": ()})
    return cast("type[ConnectionProtocol]", made)
