"""Listening ports: accept in batches; keep accepting after errors, without spinning.

libuv stops accepting for good at some errors, without notice; so ports accept here, and pass each
socket to uvloop.

The errors of accept(2) are handled as follows:

- The client went away, or the network has a problem (ECONNABORTED, EPROTO, EPERM, ENETDOWN and the
  other errors that the manual says to treat as "try again"): continue with the next client.
- No descriptor is left (EMFILE, ENFILE): accept the waiting clients with a reserved descriptor and
  close them at once, so that they know; then the port rests for :data:`REST` seconds.
- No memory (ENOBUFS, ENOMEM), or no reserve either: the port rests, and the clients wait.
- Any other error: it is logged, and the port rests. It also rests when most of a batch fails.

A resting port costs nothing, and logs at most one line in :data:`LOG_INTERVAL` seconds.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING

from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.logger import Logger

from echod.reactor.server import (
    ServerTransport,
    TCPServerTransport,
    UNIXServerTransport,
    tcp_address,
    with_scope,
)
from echod.reactor.transport import Attaching, StreamSocket, attach_soon

if TYPE_CHECKING:
    from _socket import _RetAddress

    from echod.reactor.interfaces import LoopReactor

_log = Logger("echod.reactor")

#: Clients accepted, or refused, before other events get their turn.
BATCH = 64

#: Seconds for which a port does not accept after a shortage.
REST = 0.1

#: Seconds between two log lines of one port about failing accepts.
LOG_INTERVAL = 5.0

_TRY_NEXT = {
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.EPERM,
    errno.EINTR,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
}
_ANY = {"0.0.0.0", "::"}  # noqa: S104 - not bound here
_NON_BLOCKING_STREAM = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}


class _Reserve:
    """A reserved descriptor, for when no other is left. One for all ports of the process."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Reserve a descriptor, if one is available."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def turn_away(self, listener: socket.socket) -> None:
        """Accept one client with the reserved descriptor, and close it.

        :raise OSError: as accept(2).
        """
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None
        try:
            os.close(_accept(listener)[0])
        finally:
            self.take()


_reserve = _Reserve()

# The function beneath socket.accept(): it makes no socket object, because ours is of another
# class.
_accept: Callable[[socket.socket], tuple[int, _RetAddress]] = socket.socket._accept  # type: ignore[attr-defined]


class AcceptingPort(tcp.Port):
    """Base of the ports: accepts connections."""

    reactor: LoopReactor  # type: ignore[assignment]
    _watched = False
    _resting: asyncio.TimerHandle | None = None
    _turned_away = 0
    _next_log = 0.0

    def doRead(self) -> None:
        """Accept the waiting clients."""
        begun: list[tuple[ServerTransport, Attaching]] = []
        try:
            self._accept_batch(begun)
        finally:
            if begun:
                attach_soon(self.reactor, begun)

    def _accept_batch(self, begun: list[tuple[ServerTransport, Attaching]]) -> None:
        failures = 0
        for _ in range(BATCH):
            try:
                descriptor, address = _accept(self.socket)
            except BlockingIOError:
                return
            except OSError as exception:
                failures += 1
                if not self._go_on_after(exception):
                    return
                continue
            # uvloop makes it non-blocking, but the socket object has to know: a duplicate of it
            # would make the connection blocking. The flag tells it, without a system call.
            skt = StreamSocket(self.addressFamily, _NON_BLOCKING_STREAM, 0, descriptor)
            try:
                stream = self._transport(skt, address)
                begun.append((stream, stream.attaching()))
            except Exception:
                # Clients of UNIX sockets have no address.
                _log.failure(
                    "cannot take the connection from {client}",
                    client=address or f"a client of {self.getHost()}",
                )
                skt.close()
        if failures > BATCH // 2:
            # Clients that reconnect as soon as they are refused must not keep the loop busy.
            self._rest()

    def _transport(self, skt: StreamSocket, address: _RetAddress) -> ServerTransport:
        raise NotImplementedError

    def startListening(self) -> None:
        _reserve.take()
        super().startListening()

    # When accept fails

    def _go_on_after(self, exception: OSError) -> bool:
        """Handle a failed accept. True: there may be more clients to accept now."""
        if exception.errno in _TRY_NEXT:
            self._report("accept failed ({error})", exception)
            return True
        if exception.errno in _NO_DESCRIPTOR and _reserve.take():
            try:
                _reserve.turn_away(self.socket)
            except OSError:
                pass  # another thread took the descriptor, or no client waits
            else:
                self._turned_away += 1
                # It gets no protocol, so notify a factory that counts such clients.
                if note := getattr(self.factory, "connection_turned_away", None):
                    note()
                self._report("no descriptor left ({error}); clients refused: {count}", exception)
                return True
        else:
            self._report("cannot accept ({error}); resting", exception)
        self._rest()
        return False

    def _report(self, message: str, exception: OSError) -> None:
        now = self.reactor.seconds()
        if now >= self._next_log:
            self._next_log = now + LOG_INTERVAL
            count, self._turned_away = self._turned_away, 0
            what = message.format(error=exception.strerror, count=count)
            _log.warn("{port}: {what}", port=self.getHost(), what=what)

    def _rest(self) -> None:
        self._unwatch()
        # Not a callLater, because code that inspects the reactor's timed calls must not see it.
        self._resting = self.reactor.loop.call_later(
            REST, self._rested, context=self.reactor.context
        )

    def _rested(self) -> None:
        self._resting = None
        self._watch()

    # uvloop itself watches it: with Twisted, every event costs a log context and a system call.

    def startReading(self) -> None:
        self.reactor.ports.add(self)
        if self._resting is None:
            self._watch()

    def stopReading(self) -> None:
        self.reactor.ports.discard(self)
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self._unwatch()

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            Context().run(self.reactor.loop.add_reader, self.fileno(), self._readable)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self.reactor.loop.remove_reader(self.fileno())

    def _readable(self) -> None:
        try:
            self.doRead()
        except Exception:
            _log.failure("accepting failed on {port}", port=self)
            self._rest()


class TCPPort(AcceptingPort):
    """A TCP port whose connections are uvloop's.

    :ivar address: the local address of all its connections; ``None`` if there may be several.
    """

    address: IPv4Address | IPv6Address | None = None

    def startListening(self) -> None:
        super().startListening()
        host = tcp_address(with_scope(self.socket.getsockname()))
        self.address = None if host.host in _ANY else host

    def _transport(self, skt: StreamSocket, address: _RetAddress) -> TCPServerTransport:
        assert self.factory is not None
        return TCPServerTransport(skt, with_scope(address), self.factory, self, self.reactor)


class UNIXPort(AcceptingPort, unix.Port):
    """A UNIX port whose connections are uvloop's."""

    def startListening(self) -> None:
        passed, self._preexistingSocket = self._preexistingSocket, None
        if passed is None:
            super().startListening()
            return
        # Twisted would make its file writable for all users, or fail if another one owns it.
        _reserve.take()
        text = f"{self._getLogPrefix(self.factory)} starting on {os.fsdecode(self._bindPath)!r}"
        # As a tuple it is for observers of Twisted's old kind: its own port has no other.
        _log.info("{text}", text=text, message=(text,))
        assert self.factory is not None
        self.factory.doStart()
        self.socket = passed
        self.fileno = passed.fileno  # type: ignore[method-assign]
        self.connected = True
        self.startReading()

    def _transport(self, skt: StreamSocket, address: _RetAddress) -> UNIXServerTransport:
        assert self.factory is not None
        return UNIXServerTransport(skt, address, self.factory, self, self.reactor)
