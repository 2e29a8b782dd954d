"""The client of a connection, as its handler sees it.

A `Client` exists once for each connection, and is compared by identity: in a set, two clients of a
UNIX socket that have no name are two. Its facts cannot be changed; a handler keeps what belongs to
the client in `Client.state`.

It can be sent to at any time, by any thread (`Client.send`), as long as it is connected.

Ten thousand idle connections have ten thousand of these. So most of them share `local` and
`listener`, and the state is made when it is first used.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from functools import lru_cache
from operator import attrgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Protocol, TypeAlias

    from echod.proxy_header import ProxyHeader
    from echod.tls import TLSFacts

    # As in `echod.handlers.contract`, which imports this file.
    BytesLike: TypeAlias = bytes | bytearray | memoryview

    class Link(Protocol):
        """The open connection of a client, as seen from any thread."""

        @property
        def is_closing(self) -> bool: ...

        def push(self, data: BytesLike) -> bool: ...

        def drained(self) -> Awaitable[None]: ...

        def close_after(self, data: BytesLike) -> None: ...

        def abort_soon(self) -> None: ...

        def start_tls(self) -> None: ...


_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<ipv4>[0-9.]+)):(?P<port>[0-9]+)")

_set = object.__setattr__  # a client's own refuses

# The client whose message a coroutine answers: see `echod.connections.current`.
current: ContextVar[Client | None] = ContextVar("echod.client", default=None)


@lru_cache(maxsize=64)
def place(local: str, listener: str) -> tuple[str, str]:
    """Return the same tuple for the same place."""
    return local, listener


class _Facts:
    """A client that is being made: unlike those of a `Client`, its attributes can be set."""

    __slots__ = ("_link", "_peer", "_place", "_proxy", "_state", "_tls")

    _link: Link | None
    _peer: str
    _place: tuple[str, str]
    _proxy: ProxyHeader | None
    _state: SimpleNamespace | None
    _tls: TLSFacts | None


class Client(_Facts):
    """The client of a connection.

    Attributes:
        peer: the client's address: "127.0.0.1:60225", "[::1]:60225"; a UNIX socket's path, or
            "" if it has none. It is escaped for the log.
        host, port: the two parts of that address, "::1" and 60225; "" and 0 for a UNIX socket.
        local: the address that it connected to, in the form of `peer`.
        listener: the endpoint string that it connected to, as in "tcp:8888".
        tls: how the connection is encrypted; None if it is not, or not yet: see `start_tls`.
        proxy: the header of the proxy in between, with all fields; None without a proxy. With it,
            `peer` and `local` are the real client's.
        state: a namespace for what the handler keeps for this client.
    """

    __slots__ = ()

    def __init__(
        self,
        peer: str,
        local: str = "",
        listener: str = "",
        tls: TLSFacts | None = None,
        proxy: ProxyHeader | None = None,
    ) -> None:
        """Describe a client without a connection, as tests of a handler may need one."""
        _set(self, "_peer", peer)
        _set(self, "_place", place(local, listener))
        _set(self, "_tls", tls)
        _set(self, "_proxy", proxy)
        _set(self, "_state", None)
        _set(self, "_link", None)

    def send(self, data: BytesLike) -> bool:
        """Send `data`, framed like a reply; any thread may call this, at any time.

        Messages arrive in the order in which they were handed over: this one when you call this,
        a reply when the handler has returned it, a piece when the generator has yielded it.

        Args:
            data: a message; a buffer may be reused at once.

        Returns:
            False, and nothing is sent, if the client is gone, or if more than `--max-unsent` bytes
            would wait for it. (If nothing waits, `data` may be longer.)

        Raises:
            TypeError: `data` is not bytes.
            RuntimeError: the handler has the connection itself, and sends by that.
        """
        link = self._link
        return link is not None and link.push(data)

    def drained(self) -> Awaitable[None]:
        """Wait until nothing waits to be sent, or the client is gone.

        In the event loop: `await client.drained()`. In another thread it returns only then.
        """
        from twisted.internet.defer import succeed

        link = self._link
        return succeed(None) if link is None else link.drained()

    def close(self, data: BytesLike = b"") -> None:
        """Send `data`, if it is not empty, after everything before it; then close.

        Replies that the handler returns after that are dropped. Calling it again is harmless.
        """
        if (link := self._link) is not None:
            link.close_after(data)

    def abort(self) -> None:
        """Close at once: the client sees an error (RST), and unsent data is lost."""
        if (link := self._link) is not None:
            link.abort_soon()

    def start_tls(self) -> None:
        """Begin TLS, by the certificate of the listener, which is written `starttls:...`.

        The reply to the message that is being answered is the last one in clear. echod drops what
        the client has sent behind that message, because it may come from an attacker
        (CVE-2011-0411). Pushes wait until the handshake is over; then `tls` is set.

        Raises:
            RuntimeError: the listener offers no TLS, the connection is encrypted already, it is
                closing, or the handler has the connection itself.
        """
        if (link := self._link) is None:
            raise RuntimeError("this client is gone")
        link.start_tls()

    @property
    def closing(self) -> bool:
        """Whether nothing more can be sent: the client is gone, or the connection is closing."""
        link = self._link
        return link is None or link.is_closing

    # Without a frame of Python: each connection asks some times.
    peer = cast("str", property(attrgetter("_peer")))

    @property
    def local(self) -> str:
        return self._place[0]

    @property
    def listener(self) -> str:
        return self._place[1]

    tls = cast("TLSFacts | None", property(attrgetter("_tls")))

    proxy = cast("ProxyHeader | None", property(attrgetter("_proxy")))

    @property
    def host(self) -> str:
        match = self._address()
        return "" if match is None else match["ipv6"] or match["ipv4"]

    @property
    def port(self) -> int:
        match = self._address()
        return 0 if match is None else int(match["port"])

    def _address(self) -> re.Match[str] | None:
        # The client chooses the path of its UNIX socket, which may look like an address; the
        # operator chooses the one that it connected to.
        if self.local and not _ADDRESS.fullmatch(self.local):
            return None
        return _ADDRESS.fullmatch(self.peer)

    @property
    def state(self) -> Any:
        if self._state is None:
            _set(self, "_state", SimpleNamespace())
        return self._state

    def __setattr__(self, name: str, value: object) -> None:
        hint = "" if hasattr(type(self), name) else f": use client.state.{name}"
        raise AttributeError(f"{name!r} of a client cannot be set{hint}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name!r} of a client cannot be deleted")

    def __repr__(self) -> str:
        facts = {"listener": self.listener, "tls": self.tls, "proxy": self.proxy}
        shown = "".join(f", {name}={value!r}" for name, value in facts.items() if value)
        return f"<Client {self.peer or 'without an address'}{shown}>"

    def __reduce__(self) -> tuple[type[Client], tuple[object, ...]]:
        """Copy or pickle the facts alone: the copy has no connection, and no state."""
        return Client, (self.peer, self.local, self.listener, self.tls, self.proxy)


def connected(peer: str, place: tuple[str, str], connection: Link) -> Client:
    """Return the client of an open connection, in a third of the time that `Client` takes.

    Args:
        peer: see `Client`.
        place: see `place`.
        connection: see `link`.
    """
    client: Any = _Facts()
    client._peer = peer
    client._place = place
    client._link = connection
    client._tls = client._proxy = client._state = None
    client.__class__ = Client
    return client  # type: ignore[no-any-return]


def link(client: Client, connection: Link | None) -> None:
    """Connect `client` with its open connection; None: it is gone."""
    _set(client, "_link", connection)


def encrypt(client: Client, facts: TLSFacts) -> None:
    """Set `client.tls`: TLS has begun on the connection."""
    _set(client, "_tls", facts)
