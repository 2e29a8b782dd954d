"""Keep the messages that wait to be sent to one client: pushes, and the replies behind them.

A connection has an outbox only once something has to wait: while its client does not read, or if
another thread than the event loop's pushes, or hands over a piece of a stream.

Guarantees:

* Messages leave in the order in which any thread has handed them over: a push when it calls `put`,
  a reply when the handler has returned it, a piece of a stream when the generator has yielded it.
* At most `--max-unsent` bytes of pushes wait; a longer one only if nothing waits.
* No call waits for the client, except `Outbox.drained` in a thread.
* After `end`, nothing is taken.

Only the event loop writes to the transport. Other threads append to `Outbox.parts`, and ask the
loop to come by (`Errands`): many of them at once cost one wake-up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from echod.handlers.contract import BytesLike, checked

if TYPE_CHECKING:
    from typing import Protocol

    from twisted.internet.interfaces import IReactorTime

    class Sender(Protocol):
        """A connection, as its outbox sees it."""

        @property
        def max_unsent(self) -> int:
            """How many bytes may wait; 0: any number."""

        @property
        def errands(self) -> Errands: ...

        @property
        def is_blocked(self) -> bool:
            """Whether the transport's buffer is full: `Outbox.blocked`, from its start."""

        def transmit(self, data: bytes) -> None:
            """Pass `data` to the transport."""


log = Logger("echod.connection")


def sendable(data: BytesLike) -> bytes:
    """Return `data` as bytes; copy a mutable buffer.

    Raises:
        TypeError: it is not bytes.
    """
    return checked(data, "only bytes can be sent")


class Errands:
    """Calls in the event loop for other threads: any number at once costs one wake-up.

    Attributes:
        thread: the `threading.get_ident` of the event loop's thread.
    """

    def __init__(self, reactor: Callable[[], IReactorTime]) -> None:
        """Set up; `reactor` returns the reactor, when it is first needed."""
        self.thread = threading.get_ident()
        self._reactor = reactor
        self._asked: deque[Callable[[], object]] = deque()
        self._is_due = False

    def ask(self, function: Callable[[], object]) -> None:
        """Call `function` in the event loop, soon."""
        self._asked.append(function)
        if not self._is_due:
            self._is_due = True
            cast(IReactorFromThreads, self._reactor()).callFromThread(self._do)

    def _do(self) -> None:
        self._is_due = False  # first: what is asked from here on is done here, or wakes the loop
        for _ in range(len(self._asked)):
            try:
                self._asked.popleft()()
            except Exception:  # an error of one connection must not keep the others waiting
                log.failure("Sending to a client failed")


def fire(deferred: Deferred[None]) -> None:
    """Fire `deferred`, unless its waiter has been cancelled meanwhile."""
    if not deferred.called:
        deferred.callback(None)


class Outbox:
    """The pushes and replies of one connection that wait to be passed to its transport.

    Attributes:
        blocked: whether the transport's buffer is full; the sender sets it.
        parts: what waits, in order. While the event loop answers a long read, it collects its
            replies here, too.
        held: how much of what was passed to the transport waits there, at most.
        transmit: passes data to the transport; until `end` it may be faster than the sender's own.
        ending: whether nothing more is taken.
    """

    __slots__ = (
        "_errands",
        "_is_due",
        "_last",
        "_lock",
        "_sender",
        "_size",
        "_waiting",
        "blocked",
        "ending",
        "held",
        "parts",
        "transmit",
    )

    def __init__(
        self,
        sender: Sender,
        parts: list[bytes] | None = None,
        transmit: Callable[[bytes], None] | None = None,
    ) -> None:
        """Set up.

        Args:
            sender: the connection.
            parts: replies that were handed over before, and are not written yet.
            transmit: passes data to the transport of an open connection; None: the sender's.
        """
        self._sender = sender
        self._errands = sender.errands
        self.transmit = transmit or sender.transmit
        self.parts = [] if parts is None else parts
        self._size = 0
        self.blocked = sender.is_blocked
        self.held = 0
        self.ending = False
        self._lock = threading.Lock()
        self._is_due = False
        # Called in the event loop when all is passed on.
        self._last: Callable[[], None] | None = None
        self._waiting: list[Callable[[], object]] = []

    # In any thread.

    def put(self, data: bytes) -> bool:
        """Take a framed push; return False, and take nothing, if there is no room."""
        with self._lock:
            unsent = self._size + self.held
            if self.ending or (unsent and not self._has_room(unsent + len(data))):
                return False
            self.parts.append(data)
            self._size += len(data)
        if not self._is_due:  # as in `_hurry`: in a broadcast, a call would cost noticeable time
            errands = self._errands
            if threading.get_ident() == errands.thread:
                self.flush()
            else:
                self._is_due = True
                errands.ask(self.flush)
        return True

    def hand_over(self, data: bytes) -> None:
        """Take a framed piece of a reply, which comes from a thread: there is always room."""
        with self._lock:
            if self.ending:
                return
            self.parts.append(data)
            self._size += len(data)
        if not self._is_due:
            self._hurry()

    def _has_room(self, size: int) -> bool:
        most = self._sender.max_unsent
        return not most or size <= most

    def put_last(self, data: bytes, then: Callable[[], None]) -> None:
        """Take the last push, and call `then` in the event loop after it is passed on."""
        with self._lock:
            if self.ending:
                return
            self.ending = True
            self.parts.append(data)
            self._last = then
        self._hurry()

    def _hurry(self) -> None:
        """Flush now in the event loop, and soon from another thread."""
        if threading.get_ident() == self._errands.thread:
            self.flush()
        elif not self._is_due:
            self._is_due = True
            self._errands.ask(self.flush)

    @property
    def is_empty(self) -> bool:
        """Whether no part waits, and more may come."""
        return not (self.parts or self.ending)

    @property
    def is_clear(self) -> bool:
        """Whether nothing waits."""
        return not (self._size or self.held or self.blocked) or self.ending

    def drained(self) -> Awaitable[None]:
        """Wait until nothing waits, or the connection ends: in a thread, before this returns."""
        in_loop = threading.get_ident() == self._errands.thread
        deferred: Deferred[None] = Deferred()
        event = threading.Event()
        with self._lock:
            if self.is_clear:
                return succeed(None)
            self._waiting.append(partial(fire, deferred) if in_loop else event.set)
        if in_loop:
            return deferred
        event.wait()
        return succeed(None)

    # In the event loop.

    def add(self, data: bytes) -> None:
        """Keep a reply for the next `flush`: it is always taken."""
        with self._lock:
            self.parts.append(data)
            self._size += len(data)

    def flush(self) -> None:
        """Pass on what waits, unless the transport's buffer is full."""
        self._is_due = False  # first: what is put from here on is passed on here, or asks again
        if self._last is not None:
            self.empty()
            last, self._last = self._last, None
            last()
        elif not self.blocked:
            self.empty()
            if self._waiting:
                self._tell()

    def empty(self) -> None:
        """Pass on everything."""
        parts = self.parts
        # A push may have left among the replies of a batch (`EchoProtocol._send_batch`).
        if not (parts or self._size):
            return
        with self._lock:  # every other thread adds within it
            if len(parts) == 1:
                data = parts.pop()
            else:
                data = b"".join(parts)
                parts.clear()
            self._size = 0
        if data:
            transmit = self.transmit
            transmit(data)
        if self.blocked:  # from now on, or still
            self.held += len(data)

    def resume(self) -> None:
        """Go on, because the transport has room again."""
        self.held = 0
        self.flush()

    def end(self) -> None:
        """Take nothing more: the connection ends. Calling it again is harmless."""
        with self._lock:
            self.ending = True
        self.transmit = self._sender.transmit
        self._tell()

    def _tell(self) -> None:
        """Wake the senders that wait, if nothing waits to be sent."""
        if self._waiting and self.is_clear:
            with self._lock:
                waiting, self._waiting = self._waiting, []
            for wake in waiting:
                wake()
