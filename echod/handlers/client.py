"""The client of a connection, as its handler sees it.

A `Client` exists once for each connection, and is compared by identity: in a set, two clients of a
UNIX socket that have no name are two. Its facts cannot be changed; a handler keeps what belongs to
the client in `Client.state`.

Ten thousand idle connections have ten thousand of these. So most of them share `local` and
`listener`, and the state is made when it is first used.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echod.proxy_header import ProxyHeader
    from echod.tls import TLSFacts

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<ipv4>[0-9.]+)):(?P<port>[0-9]+)")

_set = object.__setattr__  # a client's own refuses


@lru_cache(maxsize=64)
def _place(local: str, listener: str) -> tuple[str, str]:
    """Return the same tuple for the same place."""
    return local, listener


class Client:
    """The client of a connection.

    Attributes:
        peer: the client's address: "127.0.0.1:60225", "[::1]:60225"; a UNIX socket's path, or
            "" if it has none. It is escaped for the log.
        host, port: the two parts of that address, "::1" and 60225; "" and 0 for a UNIX socket.
        local: the address that it connected to, in the form of `peer`.
        listener: the endpoint string that it connected to, as in "tcp:8888".
        tls: how the connection is encrypted; None if it is not.
        proxy: the header of the proxy in between, with all fields; None without a proxy. With it,
            `peer` and `local` are the real client's.
        state: a namespace for what the handler keeps for this client.
    """

    __slots__ = ("_peer", "_place", "_proxy", "_state", "_tls")

    _peer: str
    _place: tuple[str, str]
    _proxy: ProxyHeader | None
    _state: SimpleNamespace | None
    _tls: TLSFacts | None

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
        _set(self, "_place", _place(local, listener))
        _set(self, "_tls", tls)
        _set(self, "_proxy", proxy)
        _set(self, "_state", None)

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def local(self) -> str:
        return self._place[0]

    @property
    def listener(self) -> str:
        return self._place[1]

    @property
    def tls(self) -> TLSFacts | None:
        return self._tls

    @property
    def proxy(self) -> ProxyHeader | None:
        return self._proxy

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


def encrypt(client: Client, facts: TLSFacts) -> None:
    """Set `client.tls`: TLS has begun on the connection."""
    _set(client, "_tls", facts)
