"""Listening ports: accept in batches, and never go deaf or mad.

libuv's own accepting ends for good at some errors, without a word; so ports accept here, and give
each socket to uvloop.

What accept(2) may say, and what is done:

- The client went away, or the network has a problem (ECONNABORTED, EPROTO, EPERM, ENETDOWN and
  what else the manual tells to treat as "try again"): go on with the next client.
- No descriptor is left (EMFILE, ENFILE): the clients that wait are accepted with a descriptor held
  in reserve and closed at once, so that they know; then the port rests for :data:`REST` seconds.
- No memory (ENOBUFS, ENOMEM), or no reserve either: the port rests, and the clients wait.
- Anything else: logged, and the port rests. So it does when most of a batch fails.

A resting port costs nothing, and logs at most one line in :data:`LOG_INTERVAL` seconds.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
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
from echod.reactor.transport import StreamSocket

if TYPE_CHECKING:
    from _socket import _RetAddress

    from echod.reactor.interfaces import LoopReactor

_log = Logger("echod.reactor")

#: Clients accepted, or turned away, before others get their turn.
BATCH = 64

#: Seconds that a port does not accept after it ran out of something.
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
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}


class _Reserve:
    """A descriptor to give up when there is no other. One for all ports of the process."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Have the descriptor, if there is one to have."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def turn_away(self, listener: socket.socket) -> None:
        """Accept one client in place of the reserve, and close.

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

# What socket.accept() is made of: it makes no socket object, as ours is of another class.
_accept: Callable[[socket.socket], tuple[int, _RetAddress]] = socket.socket._accept  # type: ignore[attr-defined]


class AcceptingPort(tcp.Port):
    """What the ports have in common: the accepting."""

    reactor: LoopReactor  # type: ignore[assignment]
    _watched = False
    _resting: asyncio.TimerHandle | None = None
    _turned_away = 0
    _next_log = 0.0

    def doRead(self) -> None:
        """Accept those who wait."""
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
            else:
                self._accepted(descriptor, address)
        if failures > BATCH // 2:
            # Clients who come again as soon as they are turned away must not keep us busy.
            self._rest()

    def _accepted(self, descriptor: int, address: _RetAddress) -> None:
        skt = StreamSocket(self.addressFamily, socket.SOCK_STREAM, 0, descriptor)
        try:
            # uvloop does the same, but the socket object has to know: a duplicate made of it
            # would set the connection to blocking.
            skt.setblocking(False)
            self._transport(skt, address).attach()
        except Exception:
            _log.failure("cannot take the connection from {address}", address=address)
            skt.close()

    def _transport(self, skt: StreamSocket, address: _RetAddress) -> ServerTransport:
        raise NotImplementedError

    def startListening(self) -> None:
        _reserve.take()
        super().startListening()

    # When accept fails

    def _go_on_after(self, exception: OSError) -> bool:
        """Deal with a failed accept. True: there may be more clients to accept now."""
        if exception.errno in _TRY_NEXT:
            self._report("accept failed ({error})", exception)
            return True
        if exception.errno in _NO_DESCRIPTOR and _reserve.take():
            try:
                _reserve.turn_away(self.socket)
            except OSError:
                pass  # another took the place, or nobody waits
            else:
                self._turned_away += 1
                # No protocol is built for it: a factory that counts those is told.
                if note := getattr(self.factory, "connection_turned_away", None):
                    note()
                self._report("no descriptor left ({error}); {count} turned away", exception)
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
        # Not a callLater: it is no business of those who look at the reactor's timed calls.
        self._resting = self.reactor.loop.call_later(
            REST, self._rested, context=self.reactor.context
        )

    def _rested(self) -> None:
        self._resting = None
        self._watch()

    # Watched by uvloop itself: on Twisted's way every event costs a log context and a system call.

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

    :ivar address: where all its connections arrive; ``None`` where there may be several.
    """

    address: IPv4Address | IPv6Address | None = None

    def startListening(self) -> None:
        super().startListening()
        host = tcp_address(with_scope(self.socket.getsockname()))
        self.address = None if host.host in _ANY else host

    def _transport(self, skt: StreamSocket, address: _RetAddress) -> TCPServerTransport:
        assert self.factory is not None
        host, *rest = with_scope(address)
        # Interned: each connection keeps it, and many may come from the same.
        client = (sys.intern(host), *rest)
        return TCPServerTransport(skt, client, self.factory, self, self.reactor)


class UNIXPort(AcceptingPort, unix.Port):
    """A UNIX port whose connections are uvloop's."""

    def _transport(self, skt: StreamSocket, address: _RetAddress) -> UNIXServerTransport:
        assert self.factory is not None
        return UNIXServerTransport(skt, address, self.factory, self, self.reactor)
