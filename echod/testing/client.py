"""A blocking client, for tests."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from echod.handlers.contract import checked
from echod.messages.framing import Chunk, Framing

# For `checked`: what a test may send as a message.
MESSAGE_RULE = "a message is bytes"

_READ = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection:
    """A client's connection to a served handler; every wait of it has a time-out.

    As a context manager it closes at the end.

    Attributes:
        socket: the socket itself, blocking, for all that is not here.
        framing: how messages and replies are framed.
    """

    def __init__(
        self,
        connected: socket.socket | ssl.SSLSocket,
        framing: Framing,
        last_error: Callable[[], BaseException | None] = lambda: None,
    ) -> None:
        """Wrap a connected socket, which closes with this object.

        Args:
            connected: the socket.
            framing: how messages and replies are framed.
            last_error: returns the handler's last exception, the likely cause of an early end.
        """
        self.socket = connected
        self.framing = framing
        self._last_error = last_error
        self._framer = framing.framer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, message: bytes) -> bytes:
        """Send a message, and return the next reply.

        Raises:
            TimeoutError: none has come in time.
            EOFError: the server has ended the stream instead.
        """
        self.send_message(message)
        return self.receive_message()

    def send_message(self, message: bytes) -> None:
        """Frame a message, and send it.

        Raises:
            TypeError: it is not bytes.
        """
        self.sendall(self.framing.encode(checked(message, MESSAGE_RULE)))

    def receive_message(self) -> bytes:
        """Return the next reply without its framing; with chunk framing, the data of one read.

        Raises:
            TimeoutError: none has come in time.
            EOFError: the server has ended the stream instead.
        """
        if isinstance(self.framing, Chunk):
            with self._expecting("no reply"):
                data = self.recv(_READ)
            if not data:
                raise self._ended("the server has ended the stream")
            return data
        while (message := self._framer.next_message()) is None:
            with self._expecting("no whole reply" if self._framer.buffered else "no reply"):
                data = self.recv(_READ)
            if not data:
                raise self._ended("the server has ended the stream, and no reply is left")
            self._framer.feed(data)
        return message

    def sendall(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, as `socket.socket.recv` does; b"" at the end."""
        return self.socket.recv(size)

    def receive_exactly(self, size: int) -> bytes:
        """Return exactly `size` bytes.

        Raises:
            TimeoutError: they have not come in time.
            EOFError: the server has ended the stream before that.
        """
        data = bytearray()
        while len(data) < size:
            with self._expecting(f"{len(data)} of {size} bytes", data):
                more = self.recv(size - len(data))
            if not more:
                raise self._ended(f"the server has ended the stream after {bytes(data)!r}")
            data += more
        return bytes(data)

    def receive_all(self) -> bytes:
        """Return all bytes up to the server's end of the stream.

        Raises:
            TimeoutError: it has not come in time.
        """
        data = bytearray()
        with self._expecting("no end of the stream", data):
            while more := self.recv(_READ):
                data += more
        return bytes(data)

    @contextmanager
    def _expecting(self, what: str, data: bytearray | None = None) -> Iterator[None]:
        """Say at a time-out what has come instead, and in which time."""
        try:
            yield
        except TimeoutError:
            came = f": {bytes(data)!r}" if data else ""
            text = f"{what} in {self.socket.gettimeout():g} s{came}"
            raise TimeoutError(text) from None

    def _ended(self, text: str) -> EOFError:
        """Return the error of an early end, which names the handler's own error."""
        cause = self._last_error()
        if cause is None:
            return EOFError(text)
        error = EOFError(f"{text}: the handler has raised {cause!r}")
        error.__cause__ = cause
        return error

    def begin_tls(self, tls: ssl.SSLContext, *, server_name: str = "") -> None:
        """Begin TLS on this connection, after the server's reply to STARTTLS.

        Bytes that have come in clear behind that reply are dropped.

        Args:
            tls: the client's TLS.
            server_name: the name that the certificate has to be for; "localhost" by default, if
                `tls` checks names.

        Raises:
            ssl.SSLError: the handshake has failed.
            RuntimeError: the connection is encrypted already.
        """
        if isinstance(self.socket, ssl.SSLSocket):
            raise RuntimeError("this connection is encrypted already")
        name = server_name or ("localhost" if tls.check_hostname else None)
        self.socket = tls.wrap_socket(self.socket, server_hostname=name)
        self._framer = self.framing.framer()

    def finish(self) -> None:
        """End the client's stream (FIN), and go on reading; harmless if the server is gone."""
        if isinstance(self.socket, ssl.SSLSocket):
            raise TypeError("Python's TLS sockets cannot end one stream only")
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST, as a client that crashes."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.socket.close()

    def close(self) -> None:
        """Close; harmless if it is closed."""
        self.socket.close()
