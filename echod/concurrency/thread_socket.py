"""The blocking socket that a connection handler gets.

It is a real `socket.socket`, so code written for one runs unchanged: `recv`, `sendall`,
`makefile`, `settimeout`, `shutdown`, `select`. Its addresses are those at accept, because the
kernel has none for a client that is gone. It also keeps a few figures for the reactor to read:
plain integers that only the handler's thread writes, so no lock is needed:

* `receiving` and `sending` are true while the thread waits for the client to send or to read;
* `received_bytes`, `sent_bytes`, `messages` are for the metrics, and show the idle time-out
  whether bytes move;
* `incomplete` is the number of bytes received so far of an incomplete message;
* `polled` is true if the thread has polled for more since bytes were last moved, and found none:
  it may do other work now and then, but it waits for the client;
* `exposed` is true once the handler has asked for the descriptor. From then on it may move bytes,
  and wait, in ways that this object does not see, and the kernel has to be asked
  (`echod.connections.waiting`);
* `detached` is true once another object has the descriptor, such as TLS around this socket.

`caused` distinguishes an error of the connection, "the client went away", from the handler's own.
`writing_ended` says that the handler itself has sent the FIN.

The reactor calls `drain` and `interrupt` when the daemon drains: the thread then reads the data
that had been received by that time, and after it the end of the stream, which comes from the
daemon and not from the client. The connection itself stays open for reading: if it were shut down,
Linux would answer data that the client sends after our FIN with RST, which destroys the reply.

The four calls that move bytes cost hardly more than the C calls, because with a thread for each
connection they are most of the work: no `super()`, no `finally`, only the one call.
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

from echod.concurrency.socket_outbox import OutboxSocket
from echod.handlers.contract import MOST_ENDS, end_ignored

if TYPE_CHECKING:
    from _socket import _RetAddress
    from socket import _SendableFile

    from _typeshed import ReadableBuffer, WriteableBuffer


# The signal that interrupts a thread's wait in the kernel, and has no other meaning: SIGURG,
# because no program uses it and it is ignored by default. The program has to handle it, with a
# function that does nothing (`echod.daemon.signals` does): an ignored signal does not interrupt a
# wait.
INTERRUPT = signal.SIGURG

# The value of SO_RCVTIMEO for "at once"; zero would mean never.
_AT_ONCE = struct.pack("@ll", 0, 1)

# The errors of a lost connection; all other errors are the handler's.
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
# Shortages of the kernel, in a call of the connection itself.
_SHORTAGES = {errno.EIO, errno.ENOBUFS, errno.ENOMEM}
# How many of its errors a connection remembers: a handler may try again, and fail again, before it
# raises the first.
_REMEMBERED = 8

_recv = socket.socket.recv
_recv_into = socket.socket.recv_into
_send = socket.socket.send
_sendall = socket.socket.sendall
_fileno = socket.socket.fileno
_PEEK = int(socket.MSG_PEEK)

_T = TypeVar("_T")


class ConnectionSocket(OutboxSocket):
    """One client's connection, blocking, owned by one thread.

    Closing it, or returning from the handler, ends the connection gently: what was sent is
    delivered, then the client sees the end of the stream.
    """

    __slots__ = (
        "_end",
        "_ends",
        "_errors",
        "_interrupted",
        "_local",
        "_peer",
        "_polled_at",
        "_released",
        "_sent_at_end",
        "_uncounted_since",
        "detached",
        "draining",
        "exposed",
        "incomplete",
        "messages",
        "received_bytes",
        "receiving",
        "task",
        "thread",
        "writing_ended",
    )

    def __init__(self, descriptor: int, *, peer: _RetAddress, local: _RetAddress) -> None:
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
        self.received_bytes = 0
        self.messages = 0
        self.incomplete = 0
        self._ends = 0
        self._sent_at_end = 0
        self.exposed = False
        self.detached = False
        self._polled_at = -1
        self._errors: tuple[BaseException, ...] = ()
        # The thread that owns this, while its handler runs: its `threading.get_ident`.
        self.thread: int | None = None
        # The same for the kernel: its `threading.get_native_id`.
        self.task: int | None = None
        self.draining = False
        self._interrupted = False
        # While draining: the value of `received_bytes` at which the stream ends.
        self._end = 0
        self._uncounted_since: int | None = None
        self.writing_ended = False
        self._released = False

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if self.draining:
            if (left := self._left()) <= 0:
                self._give_end(bufsize, flags)
                return b""
            bufsize = min(bufsize, left)
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
        if not data:
            self._give_end(bufsize, flags)
        return data

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        if self.draining:
            nbytes = nbytes or memoryview(buffer).nbytes
            if (left := self._left()) <= 0:
                self._give_end(nbytes, flags)
                return 0
            nbytes = min(nbytes, left)
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
        if not count:
            self._give_end(nbytes or memoryview(buffer).nbytes, flags)
        return count

    def _give_end(self, wanted: int, flags: int) -> None:
        """Count the reads of the end of the stream, between which nothing is sent.

        One with flags does not count: it may be a look whether the client is still there.

        Args:
            wanted: how many bytes were asked for; it is no end if none were.
            flags: of the read.

        Raises:
            RuntimeError: a handler does nothing else, which would take a processor for ever.
        """
        if not wanted or flags:
            return
        if self._sent_at_end != self.sent_bytes:
            self._sent_at_end, self._ends = self.sent_bytes, 0
        self._ends += 1
        if self._ends > MOST_ENDS:
            raise end_ignored(MOST_ENDS)

    # These methods are rarely used, so they are written for brevity, not for speed.

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, _RetAddress]:
        return self.recv(bufsize, flags), None  # as for any stream

    def recvfrom_into(
        self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, _RetAddress]:
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, _RetAddress]:
        end: tuple[bytes, list[tuple[int, int, bytes]], int, _RetAddress] = (b"", [], 0, None)
        return self._receive(
            lambda size: super(ConnectionSocket, self).recvmsg(size, ancbufsize, flags),
            lambda received: len(received[0]),
            bufsize,
            flags,
            end,
        )

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, _RetAddress]:
        end: tuple[int, list[tuple[int, int, bytes]], int, _RetAddress] = (0, [], 0, None)
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        return self._receive(
            lambda size: super(ConnectionSocket, self).recvmsg_into(
                _shortened(views, size), ancbufsize, flags
            ),
            lambda received: received[0],
            sum(view.nbytes for view in views),
            flags,
            end,
        )

    def _receive(
        self,
        receive: Callable[[int], _T],
        count: Callable[[_T], int],
        wanted: int,
        flags: int,
        end: _T,
    ) -> _T:
        size = wanted
        if self.draining:
            if (left := self._left()) <= 0:
                self._give_end(wanted, flags)
                return end
            size = min(wanted, left)
        self.receiving = True
        try:
            received = receive(size)
        except BaseException as error:
            if self.ended_by(error):
                self._give_end(wanted, flags)
                return end
            self.failed(error)
            raise
        if not flags & _PEEK:
            self.received_bytes += count(received)
        self.receiving = False
        if not count(received):
            self._give_end(wanted, flags)
        return received

    def failed(self, error: BaseException) -> None:
        """Note that a call that moves bytes, or the code around it, has raised `error`."""
        if self.receiving and is_no_loss_yet(error):
            self._polled_at = self.received_bytes + self.sent_bytes
        elif self.receiving or self.sending:
            short = isinstance(error, OSError) and error.errno in _SHORTAGES
            self._note(error, anyway=short)
        self.receiving = self.sending = False

    @property
    def polled(self) -> bool:
        """Whether the thread has polled for more since bytes were last moved."""
        return self._polled_at == self.received_bytes + self.sent_bytes

    def _note(self, error: BaseException, *, anyway: bool = False) -> None:
        """Remember `error` if it is the connection's, or `anyway`."""
        if anyway or self.may_cause(error):
            self._errors = (*self._errors[1 - _REMEMBERED :], error)

    def may_cause(self, error: BaseException) -> bool:
        """Return whether `error` is of a kind that comes from a lost connection."""
        # After the handler has ended the stream, a write gets EPIPE from any socket.
        own = self.writing_ended and isinstance(error, BrokenPipeError)
        return is_loss(error) and not own

    def caused(self, error: BaseException) -> bool:
        """Return whether `error` is one of the connection itself."""
        if isinstance(error, BaseExceptionGroup):
            return all(self.caused(each) for each in error.exceptions)
        return any(each is error for each in self._errors)

    def drain(self, unread: int) -> None:
        """Let the stream end after `unread` more bytes, those that the kernel holds at this
        moment.
        """
        # The thread may have read bytes that it has not counted yet, while it waits for the
        # interpreter's lock: these are not among the unread bytes.
        self._uncounted_since = self.received_bytes if self.receiving else None
        self._end = self.received_bytes + unread
        self.draining = True

    def interrupt(self) -> bool:
        """While draining: let a waiting `recv` return the end of the stream, unless data arrives.

        Data that arrives in the last moment is returned instead; nothing is lost.

        Returns:
            Whether it will. A `recv` with a time-out (`settimeout`) waits in another call and
            cannot be interrupted, nor can one in a thread that the handler has started.
        """
        if self.thread is None or self.gettimeout() is not None:
            return False
        self._interrupted = True
        with contextlib.suppress(OSError):  # it is closed by now, so no thread waits
            # First, because the interpreter retries a call that a signal has interrupted.
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _AT_ONCE)
            signal.pthread_kill(self.thread, INTERRUPT)
        return True

    def ended_by(self, error: BaseException) -> bool:
        """Return whether `error` only means that an interrupted `recv` has found the end."""
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

    def sendto(self, data: ReadableBuffer, *arguments: object) -> int:
        return self._send_by(super().sendto, data, *arguments)

    def sendmsg(self, buffers: Iterable[ReadableBuffer], *arguments: object) -> int:
        return self._send_by(super().sendmsg, buffers, *arguments)

    def sendfile(self, file: _SendableFile, offset: int = 0, count: int | None = None) -> int:
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
        self.sent_bytes = sent_before + sent  # some paths through it count by themselves
        return sent

    def _send_by(self, send: Callable[..., int], *arguments: object) -> int:
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
        """Return a plain socket for the same connection; the caller has to close it."""
        return socket.socket(fileno=os.dup(self.fileno()))

    def getpeername(self) -> _RetAddress:
        return self._peer

    def getsockname(self) -> _RetAddress:
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
        """Release the descriptor, even if files made from this socket are still open.

        The connection itself goes on: the reactor has its own descriptor, and ends the connection.
        """
        self._released = True
        self.close()
        if _fileno(self) != -1:
            os.close(super().detach())

    def _real_close(self, *arguments: object) -> None:
        # The handler's `close` comes here once the last file made from this socket is closed.
        # The reactor's descriptor keeps the connection open, so the FIN has to be asked for.
        if not self._released:
            with contextlib.suppress(OSError):  # the client, or the handler, has done it already
                self.shutdown(socket.SHUT_WR)
        super()._real_close(*arguments)  # type: ignore[misc]


class RelayedSocket(ConnectionSocket):
    """One end of a socket pair whose other end the reactor relays: for TLS and the like.

    It ignores options meant for a TCP socket.

    Attributes:
        waits_at: how many bytes had been received when the last call that receives began.
    """

    __slots__ = ("waits_at",)

    def __init__(self, descriptor: int, *, peer: _RetAddress, local: _RetAddress) -> None:
        super().__init__(descriptor, peer=peer, local=local)
        self.waits_at = -1

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        self.waits_at = self.received_bytes
        return super().recv(bufsize, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        self.waits_at = self.received_bytes
        return super().recv_into(buffer, nbytes, flags)

    def _receive(
        self,
        receive: Callable[[int], _T],
        count: Callable[[_T], int],
        wanted: int,
        flags: int,
        end: _T,
    ) -> _T:
        self.waits_at = self.received_bytes
        return super()._receive(receive, count, wanted, flags, end)

    def shutdown(self, how: int, /) -> None:
        # If this end were shut for reading, input from the client would break the relay, and
        # replies on their way would be lost.
        super().shutdown(socket.SHUT_WR if how == socket.SHUT_RDWR else how)

    def setsockopt(self, level: int, *arguments: Any) -> None:
        if level not in (socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6):
            super().setsockopt(level, *arguments)


def is_of_a_connection(error: BaseException) -> bool:
    """Return whether any lost connection raised `error`."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConnectionSocket) and owner.caused(error):
            return True
    return False


# How TLS reports an end of the stream beneath it; Python 3.11.2, in Debian 12, by the second one.
TLS_ENDED = ssl.SSLEOFError | ssl.SSLZeroReturnError


def is_loss(error: BaseException) -> bool:
    """Return whether `error` is of the kind that a lost connection raises.

    A `TimeoutError` of `settimeout` is not: it has no error number.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_loss, error.exceptions))
    if isinstance(error, ConnectionError | TLS_ENDED):
        return True
    return isinstance(error, OSError) and error.errno in _LOSSES


def is_no_loss_yet(error: BaseException) -> bool:
    """Return whether `error` only says that nothing has arrived so far."""
    return isinstance(error, BlockingIOError | TimeoutError) and not is_loss(error)


def _shortened(views: Iterable[memoryview], size: int) -> list[memoryview]:
    """Return the first `size` bytes of `views`."""
    shortened = []
    for view in views:
        shortened.append(view[:size])
        size -= shortened[-1].nbytes
    return shortened
