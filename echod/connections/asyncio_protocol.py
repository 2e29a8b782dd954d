"""Serve connections by an `asyncio.Protocol` or `BufferedProtocol`, unchanged.

The user's protocol gets an `AsyncioTransport`. On plain TCP its `write` is uvloop's, and uvloop
calls the user's `data_received`, or fills the user's buffer: see `foreign_protocol`.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.protocols import _feed_data_to_buffered_proto  # type: ignore[attr-defined]
from asyncio.trsock import TransportSocket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from echod.connections.foreign_protocol import ForeignProtocol, drop
from echod.connections.kernel import queued
from echod.connections.transport_layers import below, tls_of
from echod.reasons import EndReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from echod.connections.owner import Owner
    from echod.tls import Context

# How many bytes may wait before a protocol is told to pause, and when it may go on: asyncio's own.
LIMITS = (16 * 1024, 64 * 1024)


class AsyncioProtocol(ForeignProtocol):
    """Serves a connection by an asyncio protocol."""

    __slots__ = ("_face", "_receive")

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._face: AsyncioTransport | None = None
        # The user's function that takes what is read, in the common case: the connection is open,
        # and the transport calls in the conversation's context.
        self._receive: Callable[[bytes], object] | None = None

    @property
    def face(self) -> AsyncioTransport:
        """The transport that the user's protocol knows."""
        assert self._face is not None
        return self._face

    @property
    def user(self) -> asyncio.BaseProtocol:
        """The user's protocol."""
        protocol: asyncio.BaseProtocol = self._user
        return protocol

    def _receiver(self) -> Callable[[bytes], object]:
        user = self._user
        if isinstance(user, asyncio.BufferedProtocol):
            return self._fill_buffer
        receiver: Callable[[bytes], object] = user.data_received
        return receiver

    def _fill_buffer(self, data: bytes) -> None:
        _feed_data_to_buffered_proto(self._user, data)

    def _connect(self) -> None:
        self._face = AsyncioTransport(self, self._write_directly or self._write)
        if self._is_direct and isinstance(self._user, asyncio.BufferedProtocol):
            self._receive_directly()
        if self._context is None:
            self._receive = self._receiver()
        self._user.connection_made(self._face)

    def dataReceived(self, data: bytes) -> None:
        receive = self._receive
        if receive is None:
            self._receive_slowly(data)
            return
        self._bytes_received += len(data)
        self._owes = True
        try:
            receive(data)
        except BaseException:
            self._fail_by_user(Failure())

    def _receive_slowly(self, data: bytes) -> None:
        super().dataReceived(data)

    def _tell_end(self, reason: EndReason) -> None:
        self._receive = None
        super()._tell_end(reason)

    def _receive_directly(self) -> None:
        """Let uvloop call the user's protocol for each read."""
        self._is_direct = True
        user, stream = self._user, self.transport
        if isinstance(user, asyncio.BufferedProtocol):
            stream.receiveInto(user.get_buffer, user.buffer_updated)  # type: ignore[attr-defined]
        else:
            stream.receiveBy(self._receiver())  # type: ignore[attr-defined]

    def exchange(self, protocol: asyncio.BaseProtocol) -> None:
        """Pass what is read to another protocol from now on."""
        self._user = protocol
        if self._receive is not None:
            self._receive = self._receiver()
        if self._is_direct:
            self._receive_directly()

    def _end_input(self) -> object:
        return self._user.eof_received()

    def _pause(self) -> None:
        self._user.pause_writing()

    def _resume(self) -> None:
        self._user.resume_writing()

    def serve_tls(self, context: Context) -> None:
        super().serve_tls(context)
        self.face.write = self._write  # type: ignore[method-assign,assignment]
        if not self.face.reading:
            self.transport.pauseProducing()

    def _lose(self, error: BaseException | None) -> None:
        self._user.connection_lost(error)

    def _mute(self) -> None:
        if self._face is not None:
            self._face.write = drop  # type: ignore[method-assign]

    def _stop(self) -> None:
        self._receive = None
        if self._face is not None:
            self._face.closing = True
        super()._stop()

    @property
    def _has_paused(self) -> bool:
        return self._face is not None and not self._face.reading

    def close_for_user(self) -> None:
        """Close, as the user's protocol asks for."""
        self.close(self._why_closed())

    def lose_by(self, error: BaseException | None) -> None:
        """Abort the connection, as the user's protocol asks for; tell it of `error`."""
        if self._error is None:
            self._error = error
        self.abort(EndReason.HANDLER)


class AsyncioTransport(asyncio.Transport):
    """The transport of the user's protocol.

    Attributes:
        closing: whether the connection is about to end, or has ended.
        reading: whether the user's protocol has not paused reading.
        write: writes, by the fastest way that there is.
    """

    __slots__ = ("_connection", "closing", "reading", "write")

    def __init__(self, connection: AsyncioProtocol, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._connection = connection
        self.write = write  # type: ignore[method-assign,assignment]
        self.closing = False
        self.reading = True

    def __repr__(self) -> str:
        state = "closing" if self.closing else "open"
        return f"<{type(self).__name__} of {self._connection.client.peer or 'a client'}: {state}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        find = _EXTRA_INFO.get(name)
        found = None if find is None else find(self._connection)
        return default if found is None else found

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._connection.end_output()

    def close(self) -> None:
        self._connection.close_for_user()

    def abort(self) -> None:
        self._connection.lose_by(None)

    def _force_close(self, error: BaseException | None) -> None:
        """Abort, because of an error; asyncio's own TLS calls this."""
        self._connection.lose_by(error)

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading and not self.closing

    def pause_reading(self) -> None:
        if not self.closing and self.reading:
            self.reading = False
            self._connection.transport.pauseProducing()
            self._connection.watch_for_reset()

    def resume_reading(self) -> None:
        if not self.closing and not self.reading:
            self.reading = True
            self._connection.transport.resumeProducing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._connection.exchange(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._connection.user

    def get_write_buffer_size(self) -> int:
        return queued(self._connection.transport)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        limits: tuple[int, int] = getattr(_stream(self._connection), "queueLimits", LIMITS)
        return limits

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        stream = _stream(self._connection)
        if hasattr(stream, "limitQueue"):
            stream.limitQueue(high, low)


def _stream(connection: AsyncioProtocol) -> Any:
    """Return the transport below TLS."""
    transport: Any = connection.transport
    return below(transport)


def _peername(connection: AsyncioProtocol) -> object:
    proxy = connection.client.proxy
    return proxy.source if proxy and proxy.source else _plain(connection.transport.getPeer())


def _sockname(connection: AsyncioProtocol) -> object:
    proxy = connection.client.proxy
    if proxy and proxy.destination:
        return proxy.destination
    return _plain(connection.transport.getHost())


def _plain(address: Any) -> tuple[object, ...] | str | bytes:
    """Return an address of Twisted's as the socket module has it."""
    if not hasattr(address, "host"):
        return address.name or ""
    if ":" in address.host:
        return (address.host, address.port, address.flowInfo, address.scopeID)
    return (address.host, address.port)


def _socket(connection: AsyncioProtocol) -> object:
    handle: Any = connection.transport.getHandle()
    return TransportSocket(handle)


def _ssl_object(connection: AsyncioProtocol) -> ssl.SSLObject | None:
    tls = tls_of(connection.transport)
    return None if tls is None else tls.ssl_object


def _of_tls(read: Callable[[ssl.SSLObject], object]) -> Callable[[AsyncioProtocol], object]:
    def find(connection: AsyncioProtocol) -> object:
        found = _ssl_object(connection)
        return None if found is None else read(found)

    return find


_EXTRA_INFO: Mapping[str, Callable[[AsyncioProtocol], object]] = {
    "peername": _peername,
    "sockname": _sockname,
    "socket": _socket,
    "client": lambda connection: connection.client,
    "ssl_object": _ssl_object,
    "sslcontext": _of_tls(lambda found: found.context),
    "cipher": _of_tls(lambda found: found.cipher()),
    "peercert": _of_tls(lambda found: found.getpeercert()),
    "compression": _of_tls(lambda found: found.compression()),
}
