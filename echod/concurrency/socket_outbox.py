"""Send to a client whose connection has its own thread, from that thread and from others.

The thread writes to a blocking socket. No other thread, above all the event loop's, may wait in a
write; but every descriptor of an open file has the same mode. So others send with MSG_DONTWAIT.
The rest waits here, for the thread's next reply, or until the event loop sees that there is room.

Guarantees:

* Messages leave in the order in which they were handed over. Only one thread sends at a time.
* Only the connection's own thread ever waits for the client.
* After `end` no other thread uses the socket: its descriptor may belong to another client.

While others send nothing there is no outbox, and the thread pays one look for each reply. It
may be made in the middle of a reply. The thread sets `OutboxSocket.sending`, then looks for an
outbox; others make the outbox, then look at `sending`. So one of the two sees the other.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

# The most that is passed to the kernel at once, in bytes, if it consists of several parts.
AT_ONCE = 256 * 1024

_send = socket.socket.send
_sendall = socket.socket.sendall

_opening = threading.Lock()


class OutboxSocket(socket.socket):
    """A thread's socket, by which others may send.

    Attributes:
        cut_off: whether the thread is in the middle of a stream, so that an end looks like the
            stream's.
        sending: whether the thread waits for the client to read.
        sent_bytes: how many bytes were sent.
        outbox: the messages of others that wait; None: there were none so far.
        ended: whether the thread is done with the socket.
    """

    __slots__ = ("cut_off", "ended", "outbox", "sending", "sent_bytes")

    def __init__(self, *, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.outbox: SocketOutbox | None = None
        self.ended = False
        self.cut_off = False
        self.sending = False
        self.sent_bytes = 0


def outbox_of(
    conn: OutboxSocket, most: Callable[[], int], ask: Callable[[], object]
) -> SocketOutbox | None:
    """Return the outbox of `conn`, a new one if it has none; None if its thread is done with it.

    Args:
        conn: the socket.
        most: returns how many bytes may wait; 0: any number.
        ask: called, in any thread, if something waits until there is room.
    """
    with _opening:
        if conn.outbox is None and not conn.ended:
            conn.outbox = SocketOutbox(conn, most, ask)
        return conn.outbox


def end_outbox(conn: OutboxSocket) -> None:
    """In the connection's thread: send what waits; then no other thread uses the socket."""
    with _opening:
        conn.ended = True
    if conn.outbox is not None:
        if conn.cut_off:
            conn.outbox.lose()
        conn.outbox.end()


class SocketOutbox:
    """The messages that wait to be sent to one client.

    Attributes:
        ending: whether nothing more is taken.
    """

    __slots__ = (
        "_ask",
        "_conn",
        "_held",
        "_known",
        "_lock",
        "_most",
        "_over",
        "_parts",
        "_sending",
        "_size",
        "_waiting",
        "ending",
    )

    def __init__(
        self, conn: OutboxSocket, most: Callable[[], int], ask: Callable[[], object]
    ) -> None:
        """Set up: see `outbox_of`."""
        self._conn = conn
        self._most = most
        self._ask = ask
        self._parts: list[bytes | memoryview] = []
        self._size = 0
        # How much of it is being sent at this moment.
        self._held = 0
        self.ending = False
        self._over = False
        # Guards the parts; and the socket.
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        # Whether the connection's thread sends by this outbox.
        self._known = False
        self._waiting: list[Callable[[], object]] = []

    @property
    def waits(self) -> bool:
        """Whether something waits, or is being sent."""
        return bool(self._size or self._held)

    def put(self, data: bytes) -> bool:
        """Take a framed push; return False, and take nothing, if there is no room."""
        with self._lock:
            unsent, most = self._size + self._held, self._most()
            if self.ending or (unsent and most and unsent + len(data) > most):
                return False
            self._append(data)
        self.flush()
        return True

    def put_last(self, data: bytes) -> None:
        """Take the last push: nothing more is taken from here on."""
        with self._lock:
            if not self.ending:
                self.ending = True
                self._append(data)
        self.flush()

    def _append(self, data: bytes) -> None:
        if data:
            self._parts.append(data)
            self._size += len(data)

    def reply(self, data: bytes) -> None:
        """In the connection's thread: send what waits, then `data`; wait for the client."""
        self._known = True
        with self._lock:
            if not self.ending:
                self._append(data)
        self._send_all()

    def _send_all(self) -> None:
        while self._parts:
            with self._sending:
                if data := self._take():
                    _sendall(self._conn, data)
                    self._sent(len(data))
        self._tell()

    def flush(self) -> None:
        """In any thread: send what waits as far as the kernel takes it now."""
        # The thread that holds the lock looks again after it has released it.
        while self._parts and self._sending.acquire(blocking=False):
            try:
                goes_on = self._send_without_waiting()
            finally:
                self._sending.release()
            if not goes_on:
                self._ask()
                return
        if not self.waits:
            self._tell()

    def _send_without_waiting(self) -> bool:
        """Send a piece; return False if the kernel, or the thread, is not ready for it."""
        if self._over:
            self._drop()
            return True
        if self.is_unknown:
            return False
        data = self._take()
        try:
            count = _send(self._conn, data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            count = 0
        except OSError:  # the connection is lost, which its thread and the event loop will see
            self._held = 0
            self._drop()
            return True
        self._sent(count)
        if count == len(data):
            return True
        with self._lock:
            rest = memoryview(data)[count:]
            self._parts.insert(0, rest)
            self._size += len(rest)
            self._held = 0
        return False

    @property
    def is_unknown(self) -> bool:
        """Whether the thread may be in a reply that it began before there was an outbox."""
        self._known = self._known or not self._conn.sending
        return not self._known

    def _take(self) -> bytes | memoryview:
        """Take out what to send next."""
        with self._lock:
            size = count = 0
            for part in self._parts:
                if count and size + len(part) > AT_ONCE:
                    break
                size, count = size + len(part), count + 1
            parts = self._parts[:count]
            del self._parts[:count]
            self._size -= size
            self._held = size
        return parts[0] if count == 1 else b"".join(parts)

    def _sent(self, count: int) -> None:
        self._conn.sent_bytes += count
        if count >= self._held:
            self._held = 0

    def _drop(self) -> None:
        with self._lock:
            self._parts.clear()
            self._size = 0

    def lose(self) -> None:
        """Drop what waits: the connection is lost, or closed at once."""
        self.ending = True
        self._drop()
        self._tell()

    def end(self) -> None:
        """In the connection's thread: send what waits, then leave the socket alone."""
        with self._lock:
            self.ending = True
        self._conn.sending = True
        with contextlib.suppress(OSError):
            self._send_all()
        self._conn.sending = False
        with self._sending:
            self._over = True
        self._drop()
        self._held = 0
        self._tell()

    def when_clear(self, call: Callable[[], object]) -> None:
        """Call `call`, in any thread, once nothing waits, or the connection ends."""
        with self._lock:
            clear = not self.waits or self._over
            if not clear:
                self._waiting.append(call)
        if clear:
            call()

    def _tell(self) -> None:
        if self._waiting:
            with self._lock:
                waiting, self._waiting = self._waiting, []
            for call in waiting:
                call()
