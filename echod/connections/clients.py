"""The client of a connection: its addresses, its encryption, its name in logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.interfaces import (
    IAddress,
    ISSLTransport,
    ITransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.addresses import shown_address, twisted_address
from echod.connections.transport_layers import tls_of
from echod.handlers.client import Client, connected, place
from echod.log.event import LogLine
from echod.log.tracebacks import traceback_of_handler

if TYPE_CHECKING:
    from echod.handlers.client import Link
    from echod.proxy_header import ProxyHeader
    from echod.tls import TLSFacts

_failed = LogLine(Logger("echod.connection"), "error", "Error while serving {peer}:\n{traceback}")

# The client until the transport is known.
NOBODY = Client("")


class Places:
    """Makes the place of each client of a listener, as `Client` keeps it."""

    def __init__(self, listener: str) -> None:
        """Set up.

        Args:
            listener: the endpoint.
        """
        self._listener = listener
        self._local: IAddress | None = None
        self._place = place("", listener)

    def at(self, local: IAddress) -> tuple[str, str]:
        """Return the place of a client that connected to the address `local`."""
        if local is not self._local:  # mostly it is one object for all clients of a port
            self._local, self._place = local, place(shown_address(local), self._listener)
        return self._place


def client_of(connection: Link, transport: ITransport, places: Places) -> Client:
    """Return the client of a connection that begins.

    Args:
        connection: the connection.
        transport: its transport.
        places: of its listener.
    """
    peer = shown_address(transport.getPeer())
    return connected(peer, places.at(transport.getHost()), connection)


def addresses_of(client: Client, transport: ITransport) -> tuple[IAddress, IAddress]:
    """Return the client's address, and the one that it connected to; behind a proxy, those that
    the proxy's header gives.
    """
    header = client.proxy
    remote = twisted_address(header.source) if header else None
    local = twisted_address(header.destination) if header else None
    return remote or transport.getPeer(), local or transport.getHost()


def tls_facts(transport: Any) -> TLSFacts:
    """Return how a transport whose handshake is over is encrypted."""
    if (tls := tls_of(transport)) is not None:
        return tls.facts
    from echod.tls import TLSFacts  # only over Twisted's own TLS

    handle, alpn = transport.getHandle(), transport.negotiatedProtocol
    return TLSFacts(
        version=handle.get_protocol_version_name(),
        cipher=handle.get_cipher_name() or "",
        alpn=alpn.decode() if alpn else None,
    )


def is_twisted_tls(transport: object) -> bool:
    """Return whether `transport` is Twisted's own TLS, which has no half-close."""
    return ISSLTransport.providedBy(transport) and tls_of(transport) is None


def shown(client: Client) -> str:
    """Return the name of `client` for logs."""
    return client.peer or "a client without an address"


def log_failure(failure: Failure, client: Client) -> None:
    """Log a traceback, escaped, because it may contain text from the client."""
    if _failed.wanted(client.peer):
        _failed.write(peer=shown(client), traceback=traceback_of_handler(failure))


@implementer(IAddress)
class ProxiedAddress(NamedTuple):
    """The address for the next factory's `buildProtocol`: the client's, from the proxy's header.

    Attributes:
        peer: the client's address, or the socket's if the header names no client.
        local: the address that the client connected to, likewise.
        header: the whole header.
    """

    peer: IAddress
    local: IAddress
    header: ProxyHeader

    def client(self, listener: str) -> Client:
        """Return the client for handlers and logs."""
        return Client(
            shown_address(self.peer), shown_address(self.local), listener, proxy=self.header
        )
