"""A TLS client that can end its stream in every way, on Python's `ssl` and blocking sockets."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from echod.tls import ServerContext
from echod.tls.context import Exchange
from tests.support.waiting import PATIENCE

# How a client ends its stream.
End = Literal["close_notify", "fin", "both"]
ENDS: tuple[End, ...] = ("close_notify", "fin", "both")
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)

# OpenSSL is given as much at a time.
PIECE = 1 << 16


def client_context(
    version: ssl.TLSVersion | None = None, *, ca: Path | None = None
) -> ssl.SSLContext:
    """Return a context that trusts every server, or those of `ca`, and speaks one version only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(ca)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def hello_of(server_name: str | None, context: ssl.SSLContext | None = None) -> bytes:
    """Return the first bytes of a client that asks for this host."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = (context or client_context()).wrap_bio(
        incoming, outgoing, server_hostname=server_name
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def records(hello: bytes, *sizes: int) -> bytes:
    """Return the same hello in records of these sizes, in turns (RFC 8446, 5.1)."""
    message, turns = memoryview(hello)[5:], itertools.cycle(sizes)
    cut = b""
    while message:
        piece, message = message[: (size := next(turns))], message[size:]
        cut += b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
    return cut


class Peer:
    """One connection.

    Attributes:
        notified: whether the server's close_notify has come.
        socket: what is below TLS.
    """

    def __init__(
        self,
        port: int = 0,
        context: ssl.SSLContext | None = None,
        *,
        narrow: bool = False,
        server_name: str | None = None,
        over: socket.socket | None = None,
    ) -> None:
        """Connect.

        Args:
            port: where to, on 127.0.0.1, unless `over` is.
            context: how to shake hands.
            narrow: whether the server's kernel shall not be able to send much ahead.
            server_name: the host that it asks for.
            over: what is connected already.
        """
        self.socket = over or socket.socket()
        if narrow:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(PATIENCE)
        if over is None:
            self.socket.connect(("127.0.0.1", port))
        self.notified = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or client_context()).wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_name
        )

    def __enter__(self) -> Self:
        self.shake_hands()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def hello(self) -> bytes:
        """Return the client's first bytes on the wire."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.written()

    def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                assert self._fill(), "the server has closed instead of shaking hands"
            else:
                self._flush()
                return

    def finished(self) -> bytes:
        """Shake hands except for the client's last message; return that (TLS 1.3)."""
        self.socket.sendall(self.hello())
        while True:
            assert self._fill(), "the server has closed instead of shaking hands"
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                return self.written()

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self.socket.sendall(data)

    def _fill(self) -> bool:
        """Read from the network; return False at its end."""
        data = self.socket.recv(PIECE)
        self._incoming.write(data)
        return bool(data)

    def written(self) -> bytes:
        """Take the client's output, as on the wire."""
        return self._outgoing.read()

    def encrypted(self, data: bytes, end: End | None = None) -> bytes:
        """Return `data` as on the wire, followed by close_notify."""
        for start in range(0, len(data), PIECE):
            self.tls.write(data[start : start + PIECE])
        if end in ("close_notify", "both"):
            # OpenSSL would look for the server's, too, and fail on data before that.
            unread = self._incoming.read()
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()
            self._incoming.write(unread)
        return self._outgoing.read()

    def send(self, data: bytes, end: End | None = None) -> None:
        """Send all, then end the stream."""
        self.socket.sendall(self.encrypted(data, end))
        self._fin(end)

    def _fin(self, end: End | None) -> None:
        if end in ("fin", "both"):
            self.socket.shutdown(socket.SHUT_WR)

    def receive(self, size: int) -> bytes:
        """Return exactly `size` bytes, or fewer at the end."""
        came = bytearray()
        while len(came) < size:
            try:
                piece = self.tls.read(min(PIECE, size - len(came)))
            except ssl.SSLWantReadError:
                if not self._fill():
                    break
                continue
            except ssl.SSLZeroReturnError:
                piece = b""
            if not piece:
                self.notified = True
                break
            came += piece
        return bytes(came)

    def receive_all(self) -> bytes:
        """Return all bytes until close_notify or FIN."""
        return self.receive(1 << 62)

    def exchange(self, data: bytes, end: End) -> bytes:
        """Send all and end the stream at once; return all bytes until the server's end."""
        encrypted = self.encrypted(data, end)

        def send() -> None:
            self.socket.sendall(encrypted)
            self._fin(end)

        if len(encrypted) <= PIECE // 4:  # the kernel takes that much at once
            send()
            return self.receive_all()
        # Replies that are not read would keep the server from reading.
        sender = threading.Thread(target=send)
        sender.start()
        try:
            return self.receive_all()
        finally:
            sender.join(PATIENCE)

    def at_fin(self) -> bool:
        """Return whether only FIN follows now."""
        return self.socket.recv(1) == b""


def reread(server: ServerContext) -> Exchange:
    """Read the files again, and return the function that applies them."""
    steps = server.reread()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            apply: Exchange = end.value
            return apply
