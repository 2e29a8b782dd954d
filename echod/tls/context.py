"""The two sides of TLS 1.2 and 1.3, with neither renegotiation nor compression nor early data."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias

from echod.tls.pem import CERTIFICATE, FilesError, explained, read

# Applies what was read again, and returns steps that free what was in use before.
Exchange: TypeAlias = Callable[[], Iterator[None]]
ALWAYS = datetime.datetime.min.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True)
class ServedCertificate:
    """A certificate that is sent to clients.

    Attributes:
        path: the file that it was read from.
        serial: its serial number, in hexadecimal.
        valid_until: when its validity ends.
        valid_from: when it begins.
        content: differs if its files do, such as its key, its chain, or `client_ca`.
    """

    path: str
    serial: str
    valid_until: datetime.datetime
    valid_from: datetime.datetime = ALWAYS
    content: int = field(default=0, compare=False)


class Context(Protocol):
    """Makes one side of a TLS connection.

    Attributes:
        server_side: whether that is the server's.
    """

    @property
    def server_side(self) -> bool: ...

    def wrap(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_name: str | None
    ) -> ssl.SSLObject:
        """Return a connection that reads `incoming` and writes `outgoing`.

        Args:
            incoming: gets what comes from the network; on the server's side it holds the hello.
            outgoing: gets what is for the network.
            server_name: the host that the client asks for; None on the client's side.
        """


class ServerSide(Context, Protocol):
    """Makes the server's side, for a listener."""

    @property
    def served(self) -> tuple[ServedCertificate, ...]:
        """The certificates that new connections get, and whose expiry is watched."""

    def reread(self) -> Generator[None, None, Exchange]:
        """Read files again, in steps, and return a function that applies them.

        Raises:
            FilesError: they cannot be used.
        """


def new_server_context(alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """Return a server's context, without a certificate.

    Args:
        alpn: the application protocols to offer, the preferred one first.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # OpenSSL would send two, for a client that reconnects with two connections at once.
    context.num_tickets = 1
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class ClientContext:
    """The client side of TLS 1.2 and 1.3, for connections to one server."""

    server_side: ClassVar[bool] = False

    def __init__(
        self, server_name: str, authorities: str | None = None, *, verify: bool = True
    ) -> None:
        """Set up.

        Args:
            server_name: the host whose certificate is expected, and that is asked for (SNI).
            authorities: path of the certificates, in PEM, that its certificate is verified by;
                None for those of the system.
            verify: whether the server's certificate is verified.

        Raises:
            FilesError: the file cannot be used.
        """
        self._name = server_name
        self._context = ssl.create_default_context()
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        if authorities is not None:
            if CERTIFICATE not in (text := read(authorities)):
                raise FilesError(f"{authorities} holds no certificate in PEM to verify servers by")
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            with explained(f"a certificate in {authorities} is damaged"):
                self._context.load_verify_locations(cadata=text)
        if not verify:
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    def wrap(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_name: str | None
    ) -> ssl.SSLObject:
        """Return a new connection's client side."""
        return self._context.wrap_bio(incoming, outgoing, server_hostname=self._name)
