"""The blocking socket that a connection handler gets.

A real `socket.socket`, so that code written for one runs unchanged: `recv`, `sendall`,
`makefile`, `settimeout`, `shutdown`, `select`.  Beyond that it keeps a few figures for the
reactor to read, written by the handler's thread only, plain integers, so no lock is needed:

* `activity` changes whenever bytes move; `receiving` and `sending` are true while the thread waits
  for the client to send or to read: the idle time-out looks at all three;
* `received_bytes`, `sent_bytes`, `messages` are for the metrics;
* `error` is the last error of the connection itself, so that "the client went away" can be told
  from an error of the handler's.

`writing_ended` says that the handler itself has sent the FIN.

`drain` is called by the reactor: the thread then reads what had been received, and after it the
end of the stream, which is the daemon's doing and not the client's.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class ConnectionSocket(socket.socket):
    """One client's connection, blocking, owned by one thread.

    Closing it, or returning from the handler, ends the connection gently: what was sent is
    delivered, then the client sees the end of the stream.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over a connected stream socket.

        Args:
            descriptor: its file descriptor, which belongs to this object from now on.
        """
        super().__init__(fileno=descriptor)
        self.setblocking(True)
        self.activity = 0
        self.receiving = False
        self.sending = False
        self.received_bytes = 0
        self.sent_bytes = 0
        self.messages = 0
        self.error: OSError | None = None
        self.draining = False
        self._allowance = 0
        self.writing_ended = False
        self._released = False

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if self.draining and not (bufsize := min(bufsize, self._allowance)):
            return b""
        self.receiving = True
        try:
            data = super().recv(bufsize, flags)
        except OSError as error:
            self.error = error
            raise
        finally:
            self.receiving = False
        self._count_received(len(data))
        return data

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0, /) -> int:
        if self.draining:
            nbytes = min(nbytes or memoryview(buffer).nbytes, self._allowance)
            if not nbytes:
                return 0
        self.receiving = True
        try:
            count = super().recv_into(buffer, nbytes, flags)
        except OSError as error:
            self.error = error
            raise
        finally:
            self.receiving = False
        self._count_received(count)
        return count

    def _count_received(self, count: int) -> None:
        self.activity += 1
        self.received_bytes += count
        if self.draining:
            self._allowance = max(0, self._allowance - count)

    def drain(self, unread: int) -> None:
        """Let the stream end after `unread` bytes more: what the kernel held at that moment.

        The socket is not shut down for reading: after that and a FIN, Linux answers whatever the
        client still sends with RST, which takes the reply with it.
        """
        self._allowance = unread
        self.draining = True

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        self.sending = True
        try:
            count = super().send(data, flags)
        except OSError as error:
            self.error = error
            raise
        finally:
            self.sending = False
        self.activity += 1
        self.sent_bytes += count
        return count

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        self.sending = True
        try:
            super().sendall(data, flags)
        except OSError as error:
            self.error = error
            raise
        finally:
            self.sending = False
        self.activity += 1
        self.sent_bytes += memoryview(data).nbytes

    def dup(self) -> socket.socket:  # type: ignore[override]
        """Return a plain socket for the same connection; it is the caller's to close."""
        return socket.socket(fileno=os.dup(self.fileno()))

    def shutdown(self, how: int, /) -> None:
        super().shutdown(how)
        self.writing_ended = self.writing_ended or how != socket.SHUT_RD

    def release(self) -> None:
        """Give the descriptor up, even if files made from this socket are still open.

        The connection itself goes on: the reactor, which has a descriptor of its own, ends it.
        """
        self._released = True
        self.close()
        if self.fileno() != -1:
            os.close(self.detach())

    def _real_close(self, *arguments: Any) -> None:
        # The handler's `close` comes here once the last file made from this socket is closed.
        # The reactor's descriptor keeps the connection open, so the FIN has to be asked for.
        if not self._released:
            with contextlib.suppress(OSError):  # the client was faster, or the handler
                self.shutdown(socket.SHUT_WR)
        super()._real_close(*arguments)  # type: ignore[misc]


class RelayedSocket(ConnectionSocket):
    """One end of a socket pair whose other end the reactor relays: for TLS and the like.

    It gives the client's addresses as its own, and ignores options meant for a TCP socket.
    """

    def __init__(self, descriptor: int, *, peer: Any, local: Any) -> None:
        """Take over one end of a socket pair.

        Args:
            descriptor: as for `ConnectionSocket`.
            peer: what `getpeername` returns: the client's address.
            local: what `getsockname` returns.
        """
        super().__init__(descriptor)
        self._peer = peer
        self._local = local

    def getpeername(self) -> Any:
        return self._peer

    def getsockname(self) -> Any:
        return self._local

    def setsockopt(self, level: int, *arguments: Any) -> None:
        if level not in (socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6):
            super().setsockopt(level, *arguments)
