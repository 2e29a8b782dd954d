"""The blocking socket that a connection handler gets.

A real `socket.socket`, so that code written for one runs unchanged: `recv`, `sendall`,
`makefile`, `settimeout`, `shutdown`, `select`.  Its addresses are those at accept: a client that
is gone has none that the kernel would tell.  Beyond that it keeps a few figures for the reactor to
read, written by the handler's thread only, plain integers, so no lock is needed:

* `receiving` and `sending` are true while the thread waits for the client to send or to read;
* `received_bytes`, `sent_bytes`, `messages` are for the metrics, and tell the idle time-out
  whether bytes move;
* `incomplete` is how many bytes have come of a message that is under way;
* `polled` is true if the thread has looked for more since bytes were moved last, and found none:
  it may do something else now and then, but what it waits for is the client;
* `exposed` is true once the descriptor has been asked for.  From then on bytes may be moved, and
  waited for, where nothing of this is told, and the kernel has to be asked
  (`echod.connections.waiting`);
* `detached` is true once another object has the descriptor, as TLS around this socket has.

`caused` tells an error of the connection, "the client went away", from one of the handler's.
`writing_ended` says that the handler itself has sent the FIN.

`drain` and `interrupt` are called by the reactor, when the daemon drains: the thread then reads
what had been received when that began, and after it the end of the stream, which is the daemon's
doing and not the client's.  The connection itself stays open for reading: were it shut down, Linux
would answer what the client still sends behind our FIN with RST, which takes the reply with it.

The four calls that move bytes cost what the C calls cost and little more, since with a thread for
each connection they are most of the work: no `super()`, no `finally`, no call but the one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import ssl
import struct
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


# Interrupts what a thread waits for in the kernel, and means nothing: SIGURG, because no program
# uses it and its default is to be ignored.  Whoever runs the process has to handle it, with a
# function that does nothing (`echod.daemon.signals` does): an ignored signal interrupts nobody.
INTERRUPT = signal.SIGURG

# What SO_RCVTIMEO takes for "at once"; zero would be never.
_AT_ONCE = struct.pack("@ll", 0, 1)

# What a connection that is lost gives rise to; whatever else goes wrong is the handler's doing.
_LOSSES = {
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.EPIPE,
    errno.EPROTO,
    errno.ESHUTDOWN,
    errno.ETIMEDOUT,
}
# What the kernel may be short of in a call of the connection's own.
_SHORTAGES = {errno.EIO, errno.ENOBUFS, errno.ENOMEM}
# How many of its errors a connection remembers: a handler may well try again, and fail again,
# before it lets go of the first.
_REMEMBERED = 8

_recv = socket.socket.recv
_recv_into = socket.socket.recv_into
_send = socket.socket.send
_sendall = socket.socket.sendall
_fileno = socket.socket.fileno
_PEEK = int(socket.MSG_PEEK)

_T = TypeVar("_T")


class ConnectionSocket(socket.socket):
    """One client's connection, blocking, owned by one thread.

    Closing it, or returning from the handler, ends the connection gently: what was sent is
    delivered, then the client sees the end of the stream.
    """

    __slots__ = (
        "_end",
        "_errors",
        "_interrupted",
        "_local",
        "_peer",
        "_polled_at",
        "_released",
        "_uncounted_since",
        "detached",
        "draining",
        "exposed",
        "incomplete",
        "messages",
        "received_bytes",
        "receiving",
        "sending",
        "sent_bytes",
        "task",
        "thread",
        "writing_ended",
    )

    def __init__(self, descriptor: int, *, peer: Any, local: Any) -> None:
        """Take over a connected stream socket.

        Args:
            descriptor: its file descriptor, which belongs to this object from now on.
            peer: what `getpeername` returns: the client's address.
            local: what `getsockname` returns.
        """
        super().__init__(fileno=descriptor)
        self._peer = peer
        self._local = local
        self.setblocking(True)
        self.receiving = False
        self.sending = False
        self.received_bytes = 0
        self.sent_bytes = 0
        self.messages = 0
        self.incomplete = 0
        self.exposed = False
        self.detached = False
        self._polled_at = -1
        self._errors: tuple[BaseException, ...] = ()
        # Whose this is, while its handler runs: what `threading.get_ident` says there.
        self.thread: int | None = None
        # The same as the kernel has it: `threading.get_native_id`.
        self.task: int | None = None
        self.draining = False
        self._interrupted = False
        # While draining: the value of `received_bytes` at which the stream ends.
        self._end = 0
        self._uncounted_since: int | None = None
        self.writing_ended = False
        self._released = False

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if self.draining and (bufsize := min(bufsize, self._left())) <= 0:
            return b""
        self.receiving = True
        try:
            data = _recv(self, bufsize, flags)
        except BaseException as error:
            if self.ended_by(error):
                return b""
            self.failed(error)
            raise
        if not (flags and flags & _PEEK):
            self.received_bytes += len(data)
        self.receiving = False
        return data

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        if self.draining:
            nbytes = min(nbytes or memoryview(buffer).nbytes, self._left())
            if nbytes <= 0:
                return 0
        self.receiving = True
        try:
            count = _recv_into(self, buffer, nbytes, flags)
        except BaseException as error:
            if self.ended_by(error):
                return 0
            self.failed(error)
            raise
        if not (flags and flags & _PEEK):
            self.received_bytes += count
        self.receiving = False
        return count

    # What few programs use is written for brevity, not for speed.

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        return self.recv(bufsize, flags), None  # as for any stream

    def recvfrom_into(
        self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, Any]:
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        end: tuple[bytes, list[tuple[int, int, bytes]], int, Any] = (b"", [], 0, None)
        if self.draining and (bufsize := min(bufsize, self._left())) <= 0:
            return end
        return self._receive(
            lambda: super(ConnectionSocket, self).recvmsg(bufsize, ancbufsize, flags),
            lambda received: len(received[0]),
            flags,
            end,
        )

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        end: tuple[int, list[tuple[int, int, bytes]], int, Any] = (0, [], 0, None)
        if self.draining:
            buffers = _shortened(buffers, self._left())
            if not buffers:
                return end
        return self._receive(
            lambda: super(ConnectionSocket, self).recvmsg_into(buffers, ancbufsize, flags),
            lambda received: received[0],
            flags,
            end,
        )

    def _receive(
        self, receive: Callable[[], _T], count: Callable[[_T], int], flags: int, end: _T
    ) -> _T:
        self.receiving = True
        try:
            received = receive()
        except BaseException as error:
            if self.ended_by(error):
                return end
            self.failed(error)
            raise
        if not flags & _PEEK:
            self.received_bytes += count(received)
        self.receiving = False
        return received

    def failed(self, error: BaseException) -> None:
        """Note that a call that was to move bytes, or the code around it, has raised `error`."""
        if self.receiving and is_no_loss_yet(error):
            self._polled_at = self.received_bytes + self.sent_bytes
        elif self.receiving or self.sending:
            short = isinstance(error, OSError) and error.errno in _SHORTAGES
            self._note(error, anyway=short)
        self.receiving = self.sending = False

    @property
    def polled(self) -> bool:
        """Whether the thread has looked for more since bytes were moved last."""
        return self._polled_at == self.received_bytes + self.sent_bytes

    def _note(self, error: BaseException, *, anyway: bool = False) -> None:
        """Remember `error` if it is the connection's, or `anyway`."""
        if anyway or self.may_cause(error):
            self._errors = (*self._errors[1 - _REMEMBERED :], error)

    def may_cause(self, error: BaseException) -> bool:
        """Return whether `error` is of a kind that comes from a connection that is lost."""
        # Who has ended the stream, and writes, gets EPIPE from any socket.
        own = self.writing_ended and isinstance(error, BrokenPipeError)
        return is_loss(error) and not own

    def caused(self, error: BaseException) -> bool:
        """Return whether `error` is one of the connection itself."""
        if isinstance(error, BaseExceptionGroup):
            return all(self.caused(each) for each in error.exceptions)
        return any(each is error for each in self._errors)

    def drain(self, unread: int) -> None:
        """Let the stream end after `unread` bytes more: what the kernel held at that moment."""
        # The thread may have read something that it has not counted yet, as it waits for the
        # interpreter's lock: that is not among the unread bytes.
        self._uncounted_since = self.received_bytes if self.receiving else None
        self._end = self.received_bytes + unread
        self.draining = True

    def interrupt(self) -> bool:
        """While draining: let a `recv` that waits return the end of the stream, if nothing comes.

        What comes in the last moment is returned instead; nothing is lost.

        Returns:
            Whether it will.  A `recv` with a time-out (`settimeout`) waits elsewhere and cannot
            be interrupted, nor can one in a thread that the handler has started itself.
        """
        if self.thread is None or self.gettimeout() is not None:
            return False
        self._interrupted = True
        with contextlib.suppress(OSError):  # closed by now, so nobody waits
            # First, since the interpreter tries again what a signal has interrupted.
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _AT_ONCE)
            signal.pthread_kill(self.thread, INTERRUPT)
        return True

    def ended_by(self, error: BaseException) -> bool:
        """Return whether `error` is no error: an interrupted `recv`, which has found the end."""
        ended = self._interrupted and self.receiving and isinstance(error, BlockingIOError)
        if ended:
            self.receiving = False
            self._end, self._uncounted_since = self.received_bytes, None
        return ended

    def _left(self) -> int:
        """Return how many bytes the thread may still read."""
        if self._uncounted_since is not None:
            self._end += self.received_bytes - self._uncounted_since
            self._uncounted_since = None
        return self._end - self.received_bytes

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        self.sending = True
        try:
            count = _send(self, data, flags)
        except BaseException as error:
            self.failed(error)
            raise
        self.sending = False
        self.sent_bytes += count
        return count

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        self.sending = True
        try:
            _sendall(self, data, flags)
        except BaseException as error:
            self.failed(error)
            raise
        self.sending = False
        self.sent_bytes += len(data) if data.__class__ is bytes else memoryview(data).nbytes

    def sendto(self, data: ReadableBuffer, *arguments: Any) -> int:
        return self._send_by(super().sendto, data, *arguments)

    def sendmsg(self, buffers: Iterable[ReadableBuffer], *arguments: Any) -> int:
        return self._send_by(super().sendmsg, buffers, *arguments)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        exposed, sent_before = self.exposed, self.sent_bytes
        self.sending = True
        try:
            sent = super().sendfile(file, offset, count)
        except BaseException as error:
            self._note(error)  # the file may have errors as well
            raise
        finally:
            self.sending = False
            self.exposed = exposed  # the descriptor has not left this call
        self.sent_bytes = sent_before + sent  # some ways through it count by themselves
        return sent

    def _send_by(self, send: Callable[..., int], *arguments: Any) -> int:
        self.sending = True
        try:
            count = send(*arguments)
        except BaseException as error:
            self.failed(error)
            raise
        self.sending = False
        self.sent_bytes += count
        return count

    def fileno(self) -> int:
        self.exposed = True
        return _fileno(self)

    def detach(self) -> int:
        self.exposed = self.detached = True
        return super().detach()

    def dup(self) -> socket.socket:  # type: ignore[override]
        """Return a plain socket for the same connection; it is the caller's to close."""
        return socket.socket(fileno=os.dup(self.fileno()))

    def getpeername(self) -> Any:
        return self._peer

    def getsockname(self) -> Any:
        return self._local

    def setsockopt(self, *arguments: Any) -> None:
        try:
            super().setsockopt(*arguments)
        except OSError as error:
            self._note(error)
            raise

    def shutdown(self, how: int, /) -> None:
        try:
            super().shutdown(how)
        except OSError as error:
            self._note(error)
            raise
        self.writing_ended = self.writing_ended or how != socket.SHUT_RD

    def release(self) -> None:
        """Give the descriptor up, even if files made from this socket are still open.

        The connection itself goes on: the reactor, which has a descriptor of its own, ends it.
        """
        self._released = True
        self.close()
        if _fileno(self) != -1:
            os.close(super().detach())

    def _real_close(self, *arguments: Any) -> None:
        # The handler's `close` comes here once the last file made from this socket is closed.
        # The reactor's descriptor keeps the connection open, so the FIN has to be asked for.
        if not self._released:
            with contextlib.suppress(OSError):  # the client was faster, or the handler
                self.shutdown(socket.SHUT_WR)
        super()._real_close(*arguments)  # type: ignore[misc]


class RelayedSocket(ConnectionSocket):
    """One end of a socket pair whose other end the reactor relays: for TLS and the like.

    It ignores options meant for a TCP socket.
    """

    __slots__ = ()

    def shutdown(self, how: int, /) -> None:
        # With this end shut for reading, what the client sends would break the relay, and with it
        # go the replies on their way.
        super().shutdown(socket.SHUT_WR if how == socket.SHUT_RDWR else how)

    def setsockopt(self, level: int, *arguments: Any) -> None:
        if level not in (socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6):
            super().setsockopt(level, *arguments)


def is_of_a_connection(error: BaseException) -> bool:
    """Return whether a connection that is lost raised `error`, whichever connection it is."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConnectionSocket) and owner.caused(error):
            return True
    return False


def is_loss(error: BaseException) -> bool:
    """Return whether `error` is of the kind that a lost connection gives rise to.

    A `TimeoutError` of `settimeout` is not: it has no error number.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_loss, error.exceptions))
    if isinstance(error, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return True
    return isinstance(error, OSError) and error.errno in _LOSSES


def is_no_loss_yet(error: BaseException) -> bool:
    """Return whether `error` says only that nothing has come so far."""
    return isinstance(error, BlockingIOError | TimeoutError) and not is_loss(error)


def _shortened(buffers: Iterable[WriteableBuffer], size: int) -> list[memoryview]:
    """Return as much of `buffers` as holds `size` bytes."""
    shortened = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")[: max(0, size)]
        size -= view.nbytes
        if view.nbytes:
            shortened.append(view)
    return shortened
