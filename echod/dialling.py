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
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet import endpoints
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHostnameResolver,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThreadPool
from zope.interface import implementer

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
            return _NamedEndpoint(reactor, self.host, self.port, timeout)
        endpoint = endpoints.TCP4ClientEndpoint if version == 4 else endpoints.TCP6ClientEndpoint
        return endpoint(reactor, self.host, self.port, timeout)


@dataclass(frozen=True)
@implementer(IStreamClientEndpoint)
class _NamedEndpoint:
    """Connects to a name, and fails at once if no thread can be started to look it up.

    Twisted's endpoint would then neither connect nor fail.
    """

    reactor: Any
    host: str
    port: int
    timeout: float

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._connect(factory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        pool, kind = self.reactor.getThreadPool(), socket.SOCK_STREAM
        try:
            looking = deferToThreadPool(
                self.reactor, pool, socket.getaddrinfo, self.host, self.port, 0, kind
            )
        except RuntimeError as error:  # at the system's limit, or the unit's
            # Twisted would wait for it at the end of the process.
            pool.threads[:] = [one for one in pool.threads if one.ident]
            raise RuntimeError(
                f"no thread can look up its name ({error}; see ulimit -u)"
            ) from None
        try:
            found = await looking
        except socket.gaierror:
            found = []
        named = _Named(self.reactor, [place for *_, place in found])
        return await endpoints.HostnameEndpoint(named, self.host, self.port, self.timeout).connect(
            factory
        )


@implementer(IReactorPluggableNameResolver, IHostnameResolver)
class _Named:
    """The reactor, where a name has the addresses that have been found."""

    def __init__(self, reactor: Any, found: Sequence[tuple[Any, ...]]) -> None:
        self._reactor = reactor
        self._found = found
        self.nameResolver = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def resolveHostName(self, receiver: Any, *_: object, **__: object) -> None:  # type: ignore[override]
        for host, port, *more in self._found:
            kind = IPv6Address if more else IPv4Address
            receiver.addressResolved(kind("TCP", host, port, *more))
        receiver.resolutionComplete()


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
