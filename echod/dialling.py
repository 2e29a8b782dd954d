"""Connect to another server: by TCP, TLS or a UNIX socket, with some bytes sent ahead.

Guarantees:

* A destination is checked when it is parsed; its name is looked up for each connection.
* The bytes sent ahead, such as a PROXY header, are the first on the wire, in clear, before TLS.
* Over TLS the server's certificate is verified, for its name, unless that is switched off.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - the look-up of a name would import it
import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from twisted.internet import endpoints
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol

from echod.errors import UserError
from echod.text import clipped, quoted
from echod.tls import Context, TLSConnection

# HOST:PORT; an IPv6 address stands in brackets.
_PLACE = re.compile(
    r"(?P<tls>tls:)?(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d+)"
)


class DestinationError(UserError):
    """A text names no destination; the error's text says what would."""


@dataclass(frozen=True)
class Destination:
    """Another server.

    Attributes:
        text: as it was written.
        host: its name or address; "" for a UNIX socket.
        port: its port.
        path: the UNIX socket's path; "" for TCP.
        uses_tls: whether the connection is encrypted.
    """

    text: str
    host: str = ""
    port: int = 0
    path: str = ""
    uses_tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Parse `HOST:PORT`, `tls:HOST:PORT` or `unix:PATH`.

        Raises:
            DestinationError: it is none of them.
        """
        if text.startswith("unix:") and text != "unix:" and "\0" not in text:
            return cls(text, path=text.removeprefix("unix:"))
        match = _PLACE.fullmatch(text)
        if match is None or not 0 < int(match["port"]) < 65536:
            raise DestinationError(
                f"{quoted(clipped(text, 200))} is not HOST:PORT, tls:HOST:PORT or unix:PATH "
                "(an IPv6 address stands in brackets)"
            )
        host = match["ipv6"] or match["host"]
        if match["ipv6"]:
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                raise DestinationError(f"{quoted(clipped(host))} is no IPv6 address") from None
        return cls(text, host, int(match["port"]), uses_tls=bool(match["tls"]))

    def endpoint(self, reactor: Any, timeout: float) -> IStreamClientEndpoint:
        """Return what connects to it, within `timeout` seconds."""
        if self.path:
            return endpoints.UNIXClientEndpoint(reactor, self.path, timeout)
        try:
            version = ipaddress.ip_address(self.host).version
        except ValueError:
            return endpoints.HostnameEndpoint(reactor, self.host, self.port, timeout)
        endpoint = endpoints.TCP4ClientEndpoint if version == 4 else endpoints.TCP6ClientEndpoint
        return endpoint(reactor, self.host, self.port, timeout)


class _Announced(TLSConnection):
    """TLS behind some bytes in clear."""

    __slots__ = ("_ahead",)

    def __init__(self, protocol: Any, context: Context, clock: IReactorTime, ahead: bytes) -> None:
        super().__init__(protocol, context, clock)
        self._ahead = ahead

    def makeConnection(self, transport: Any) -> None:
        if self._ahead:
            transport.write(self._ahead)
        super().makeConnection(transport)


class _Dialled(Factory):
    noisy = False

    def __init__(self, made: Protocol | TLSConnection) -> None:
        self._made = made

    def buildProtocol(self, addr: object) -> Any:
        return self._made


def dial(
    reactor: Any,
    destination: Destination,
    protocol: Protocol,
    *,
    timeout: float,
    context: Context | None = None,
    ahead: bytes = b"",
) -> Deferred[Any]:
    """Connect `protocol` to another server.

    Args:
        reactor: the reactor.
        destination: the server.
        protocol: gets the connection; over TLS it is an `IHandshakeListener`.
        timeout: how long a connection may take to come about, without TLS, in seconds.
        context: the client's side of TLS; None without.
        ahead: sent in clear before anything else. Without TLS `protocol` itself sends it.

    Returns:
        Fires once it is connected, before a handshake; fails if that fails. Cancel it to give up.
    """
    made = protocol if context is None else _Announced(protocol, context, reactor, ahead)

    def unwrap(_: object) -> Any:
        # Twisted's endpoints put a protocol of theirs around it, which provides only one of its
        # interfaces, and costs a call for each read.
        made.transport.protocol = made  # type: ignore[union-attr]
        return protocol

    return destination.endpoint(reactor, timeout).connect(_Dialled(made)).addCallback(unwrap)
