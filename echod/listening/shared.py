"""Listening sockets that several processes accept from.

The supervisor binds them once, keeps them for life, and gives each worker its own:

* A TCP port has a socket for each worker (SO_REUSEPORT): the kernel draws one for each client. One
  more is bound before, without that option, so that a port of another daemon, even of the same
  user's, is an error, and is not shared in silence.
* A UNIX socket, or a socket from systemd, has one queue: all workers accept from it.

A worker that dies leaves its socket, with the clients that wait there, to its successor. The
processes that accept do so through duplicates: no client is reset before the last is closed. While
its successors cannot start, the socket is withdrawn, so that no client waits there for ever.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IStreamServerEndpoint

from echod.listening.endpoints import ListenError
from echod.listening.socket_activation import ActivatedEndpoint, InheritedSockets
from echod.listening.tcp import TCPEndpoint
from echod.listening.unix import UNIXEndpoint

if TYPE_CHECKING:
    from echod.interfaces import Reactor
    from echod.tls import Copies


class SharedSockets:
    """The sockets of one listener, for all workers."""

    def __init__(self, endpoint: IStreamServerEndpoint, count: int) -> None:
        """Set up, without binding.

        Args:
            endpoint: where to listen.
            count: how many workers there are.

        Raises:
            ListenError: workers cannot share this kind of endpoint.
        """
        if not isinstance(endpoint, TCPEndpoint | UNIXEndpoint | ActivatedEndpoint):
            raise ListenError(
                "workers can share tcp:, tcp6:, unix: and systemd: only, also below tls:, "
                "starttls: and proxy:"
            )
        self._endpoint = endpoint
        self._count = count
        self._sockets: list[socket.socket] = []
        # For each worker.
        self._shares: list[list[int]] = []
        self._withdrawn: set[int] = set()

    def bind(self) -> None:
        """Bind and listen.

        Raises:
            OSError: that failed.
        """
        endpoint = self._endpoint
        if isinstance(endpoint, ActivatedEndpoint):
            self._sockets = [socket.socket(fileno=each) for each in endpoint.descriptors]
        elif isinstance(endpoint, UNIXEndpoint):
            self._sockets = [endpoint.bind()]
        else:
            self._sockets = _reusing(endpoint, self._count)
            self._shares = [[each.fileno()] for each in self._sockets]
            return
        self._shares = [[each.fileno() for each in self._sockets]] * self._count

    def descriptors_of(self, number: int) -> Sequence[int]:
        """Return the descriptors for the worker with this number, from 1 on."""
        return self._shares[number - 1]

    def withdraw(self, number: int) -> None:
        """Reset the clients that wait for one worker alone, and let the others have the next ones.

        Args:
            number: the worker's, from 1 on.
        """
        if isinstance(self._endpoint, TCPEndpoint):
            with contextlib.suppress(OSError):  # this system cannot: they wait on
                self._sockets[number - 1].shutdown(socket.SHUT_RD)
                self._withdrawn.add(number)

    def restore(self, number: int) -> None:
        """Let a worker have clients again, after `withdraw`.

        Raises:
            OSError: the system refuses that for now.
        """
        if number in self._withdrawn:
            assert isinstance(self._endpoint, TCPEndpoint)
            self._sockets[number - 1].listen(self._endpoint.backlog)
            self._withdrawn.remove(number)

    @property
    def end_with_service(self) -> bool:
        """Whether no later process accepts from them: systemd keeps its own for the next one."""
        return not isinstance(self._endpoint, ActivatedEndpoint)

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def drawn_port(self) -> int:
        """The TCP port, if the system has chosen it; 0 otherwise."""
        return 0 if getattr(self._endpoint, "port", 1) else self.port

    def close(self) -> None:
        """Close the sockets here; the workers still have theirs. Calling it again is harmless."""
        if isinstance(self._endpoint, UNIXEndpoint):
            self._endpoint.remove()
        while self._sockets:
            self._sockets.pop().close()


def _reusing(endpoint: TCPEndpoint, count: int) -> list[socket.socket]:
    """Return a listening socket for each worker, all on one port."""
    family = endpoint.family
    found = socket.getaddrinfo(
        endpoint.interface or None,
        endpoint.port,
        family,
        socket.SOCK_STREAM,
        flags=socket.AI_PASSIVE,
    )
    address = found[0][4]
    with contextlib.ExitStack() as undo, _bound(family, address, shared=False) as first:
        # A worker's socket has to name its port: one that was drawn is lost by `withdraw`.
        address = (address[0], first.getsockname()[1], *address[2:])
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made = []
        for _ in range(count):
            made.append(_bound(family, address, shared=True))
            undo.callback(made[-1].close)
        for one in made:
            one.listen(endpoint.backlog)
        undo.pop_all()
    return made


def _bound(family: int, address: Any, *, shared: bool) -> socket.socket:
    """Return a socket that is bound to an address, alone or with others that share it."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


class PassedSockets(InheritedSockets):
    """The sockets that a worker got from its supervisor: some for each listener, in their order.

    Attributes:
        number: the worker's.
    """

    shared = True

    def __init__(
        self,
        number: int,
        descriptors: Sequence[Sequence[int]],
        copies: Copies | None = None,
    ) -> None:
        """Set up.

        Args:
            number: see above.
            descriptors: for each listener.
            copies: of the files of TLS; None for none.
        """
        super().__init__({})
        self.copies = copies
        self.number = number
        self._left = [list(each) for each in descriptors]

    def endpoint(self, reactor: Reactor) -> ActivatedEndpoint | None:
        """Return the endpoint of the next listener; None if there is no further one."""
        return ActivatedEndpoint(reactor, self._left.pop(0)) if self._left else None


def close_on_exec(descriptors: Sequence[Sequence[int]]) -> None:
    """Keep the sockets from the programs that a worker starts."""
    for each in descriptors:
        for descriptor in each:
            os.set_inheritable(descriptor, False)
