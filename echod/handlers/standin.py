"""The `self.server` of a `socketserver` request handler: the attributes known without a server.

Some handlers need more of their server, as wsgiref's needs the application. Use a server object
that does not listen for these: docs/handlers.md shows how.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _socket import _RetAddress


class StandInServer:
    """Stands in for the server of all connections of a listener.

    Handlers may keep shared state here.

    Attributes:
        RequestHandlerClass: the handler's class.
        server_address: the address that the first client connected to, as in the `socket` module.
        socket_type, request_queue_size, allow_reuse_address, timeout: as `socketserver` has them.
    """

    socket_type = socket.SOCK_STREAM
    request_queue_size = 5
    allow_reuse_address = True
    timeout = None

    def __init__(self, handler: Callable[..., object]) -> None:
        """Set up.

        Args:
            handler: the request handler's class, or a function that makes one.
        """
        self.RequestHandlerClass = handler
        self.server_address: _RetAddress = ("", 0)
        self._met = False

    def meet(self, address: _RetAddress) -> None:
        """Note the address that a client connected to."""
        if not self._met:
            self.server_address, self._met = address, True

    def shutdown_request(self, request: socket.socket) -> None:
        """End a connection, as `socketserver.TCPServer` does."""
        with contextlib.suppress(OSError):  # the client has closed it already
            request.shutdown(socket.SHUT_WR)
        self.close_request(request)

    def close_request(self, request: socket.socket) -> None:
        """Close a connection's socket."""
        request.close()

    @property
    def address_family(self) -> socket.AddressFamily:
        """The family of `server_address`."""
        if not isinstance(self.server_address, tuple):
            return socket.AF_UNIX
        return socket.AF_INET6 if len(self.server_address) == 4 else socket.AF_INET

    @property
    def server_name(self) -> str:
        """The host of `server_address`; a UNIX socket's path."""
        address = self.server_address
        return str(address[0] if isinstance(address, tuple) else address)

    @property
    def server_port(self) -> int:
        """The port of `server_address`; 0 for a UNIX socket."""
        return int(self.server_address[1]) if isinstance(self.server_address, tuple) else 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = getattr(self.RequestHandlerClass, "__name__", "this handler")
        raise AttributeError(
            f"self.server has no {name!r} here, because echod listens itself; use a server object "
            f"that does not listen for {made}: 'A server that does not listen' in docs/handlers.md"
        )
