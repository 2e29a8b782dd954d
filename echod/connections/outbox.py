"""Keep the messages that wait to be sent to one client: pushes, and the replies behind them.

A connection has an outbox only once something has to wait: while its client does not read, or if
another thread than the event loop's pushes, or hands over a piece of a stream.

Guarantees:

* Messages leave in the order in which any thread has handed them over: a push when it calls `put`,
  a reply when the handler has returned it, a piece of a stream when the generator has yielded it.
  From a pool's thread a reply counts once the event loop has got it. A push of another thread may
  come between: no program could tell that the handler had returned before.
* At most `--max-unsent` bytes of pushes wait; a longer one only if nothing waits.
* No call waits for the client, except `Outbox.drained` in a thread.
* After `end`, nothing is taken.

Only the event loop writes to the transport. Other threads append to `Outbox.parts`, and ask the
loop to come by (`Errands`): many of them at once cost one wake-up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from echod.awaiting import fire
from echod.handlers.contract import BytesLike, checked

if TYPE_CHECKING:
    from typing import Protocol

    from twisted.internet.interfaces import IReactorTime

    from echod.handlers.client import Client

    class Sender(Protocol):
        """A connection, as its outbox sees it."""

        @property
        def client(self) -> Client: ...

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


def emptied(parts: list[bytes]) -> bytes:
    """Empty `parts` and return its contents, joined; a part that a thread adds meanwhile stays."""
    replies = parts[:]
    del parts[: len(replies)]
    return b"".join(replies)


class Errand:
    """A call that is not an outbox's, in the form of one."""

    __slots__ = ("flush",)

    def __init__(self, function: Callable[[], object]) -> None:
        self.flush = function


class Errands:
    """Calls in the event loop for other threads: any number at once costs one wake-up.

    Attributes:
        thread: the `threading.get_ident` of the event loop's thread.
        asked: what waits for the loop to come by, and is flushed then.
        is_due: whether the loop will come by.
    """

    def __init__(self, reactor: Callable[[], IReactorTime]) -> None:
        """Set up; `reactor` returns the reactor, when it is first needed."""
        self.thread = threading.get_ident()
        self.asked: deque[Outbox | Errand] = deque()
        self.is_due = False
        self._reactor = reactor

    def ask(self, function: Callable[[], object]) -> None:
        """Call `function` in the event loop, soon."""
        self.add(Errand(function))

    def add(self, errand: Outbox | Errand) -> None:
        """Flush `errand` in the event loop, soon."""
        self.asked.append(errand)
        if not self.is_due:
            self.wake()

    def wake(self) -> None:
        """Let the loop come by."""
        self.is_due = True
        self.call(self._do)

    def call(self, function: Callable[[], object]) -> None:
        """Call `function` in the event loop, after all that was to be called there before."""
        cast(IReactorFromThreads, self._reactor()).callFromThread(function)

    def _do(self) -> None:
        self.is_due = False  # first: what is asked from here on is done here, or wakes the loop
        asked = self.asked
        for _ in range(len(asked)):
            try:
                asked.popleft().flush()
            except Exception:  # an error of one connection must not keep the others waiting
                log.failure("Sending to a client failed")


def put_in_each(outboxes: Iterable[Outbox], data: bytes) -> list[Client]:
    """In another thread: put a framed push in each outbox, and wake the loop once for all.

    This does what `Outbox.put` does, without its calls: in a broadcast by a thread they would cost
    as much as the writes themselves.

    Args:
        outboxes: of connections that have the same `Errands`.
        data: the push.

    Returns:
        The clients whose outboxes have taken nothing.
    """
    size = len(data)
    full: list[Client] = []
    due: list[Outbox] = []
    for outbox in outboxes:
        lock = outbox._lock
        lock.acquire()
        unsent = outbox._taken - outbox._passed + outbox.held
        if outbox.ending or (unsent and not outbox._has_room(unsent + size)):
            lock.release()
            full.append(outbox._sender.client)
            continue
        outbox.parts.append(data)
        outbox._taken += size
        lock.release()
        if not outbox._is_due:
            outbox._is_due = True
            due.append(outbox)
    if due:
        errands = due[0]._errands
        errands.asked.extend(due)
        if not errands.is_due:
            errands.wake()
    return full


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
        "_final",
        "_is_due",
        "_last",
        "_lock",
        "_passed",
        "_sender",
        "_taken",
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
        # How many bytes were ever taken, and how many of them passed on. Only the event loop
        # changes the second, so that it passes on without the lock.
        self._taken = self._passed = 0
        self.blocked = sender.is_blocked
        self.held = 0
        self.ending = False
        self._lock = threading.Lock()
        self._is_due = False
        # The last push until the event loop takes it, with the later `_last`.
        self._final: tuple[bytes, Callable[[], None]] | None = None
        # Called in the event loop when all is passed on.
        self._last: Callable[[], None] | None = None
        self._waiting: list[Callable[[], object]] = []

    # In any thread. In a broadcast by a thread most of the cost is here, and in `flush`: so there
    # is no avoidable call, and a lock is not used by `with`, which makes two objects for it.

    def put(self, data: bytes, in_loop: bool = False) -> bool:
        """Take a framed push; return False, and take nothing, if there is no room.

        Args:
            data: the push.
            in_loop: whether this is the event loop's thread.
        """
        lock = self._lock
        lock.acquire()
        try:
            size = len(data)
            if self.ending:
                return False
            unsent = self._taken - self._passed + self.held
            if unsent and not self._has_room(unsent + size):
                return False
            self.parts.append(data)
            self._taken += size
        finally:
            lock.release()
        if in_loop:
            if not self._is_due:
                self.flush()
        elif not self._is_due:  # as in `hand_over`, without its calls
            self._is_due = True
            errands = self._errands
            errands.asked.append(self)
            if not errands.is_due:
                errands.wake()
        return True

    def hand_over(self, data: bytes) -> None:
        """Take a framed piece of a reply, which comes from a thread: there is always room."""
        with self._lock:
            if self.ending:
                return
            self.parts.append(data)
            self._taken += len(data)
        if self._is_due:
            return
        if threading.get_ident() == self._errands.thread:
            self.flush()
        else:
            self._is_due = True
            self._errands.add(self)

    def _has_room(self, size: int) -> bool:
        most = self._sender.max_unsent
        return not most or size <= most

    def put_last(self, data: bytes, then: Callable[[], None]) -> None:
        """Take the last push, and call `then` in the event loop after it is passed on.

        From another thread the loop gets it behind the replies that pool threads have returned.
        """
        with self._lock:
            if self.ending:
                return
            self.ending = True
            self._final = data, then
        if threading.get_ident() == self._errands.thread:
            self._pass_on_last()
        else:
            self._errands.call(self._pass_on_last)

    @property
    def is_empty(self) -> bool:
        """Whether no part waits, and more may come."""
        return not (self.parts or self.ending)

    @property
    def is_clear(self) -> bool:
        """Whether nothing waits."""
        return self.ending or not (self._taken - self._passed or self.held or self.blocked)

    def drained(self) -> Awaitable[None]:
        """Wait until nothing waits, or the connection ends: in a thread, before this returns."""
        in_loop = threading.get_ident() == self._errands.thread
        deferred: Deferred[None] = Deferred()
        event = threading.Event()
        if self.is_clear:
            return succeed(None)
        with self._lock:
            self._waiting.append(partial(fire, deferred) if in_loop else event.set)
        if in_loop:
            return deferred
        self._errands.ask(self._tell)  # all may have been passed on before this waited
        event.wait()
        return succeed(None)

    # In the event loop.

    def add(self, data: bytes) -> None:
        """Keep a reply for the next `flush`: it is always taken."""
        with self._lock:
            self.parts.append(data)
            self._taken += len(data)

    def _pass_on_last(self) -> None:
        if self._final is not None:  # the connection has not ended meanwhile
            data, self._last = self._final
            self._final = None
            self.parts.append(data)
            self.flush()

    def flush(self) -> None:
        """Pass on what waits, unless the transport's buffer is full."""
        self._is_due = False  # first: what is put from here on is passed on here, or asks again
        last = self._last
        if self.blocked and last is None:
            return
        parts = self.parts
        # Without the lock. Other threads add a part, then count it, and then look at `_is_due`. So
        # what leaves here uncounted is counted by the next flush, which that thread asks for.
        counted = self._taken
        # A push may have left among the replies of a batch (`EchoProtocol._send_batch`).
        if parts or self._passed != counted:
            data = parts.pop(0) if len(parts) == 1 else emptied(parts)
            if data:
                transmit = self.transmit
                transmit(data)
            if self.blocked:  # from now on, or still
                with self._lock:  # so that `put` counts it once
                    self.held += len(data)
                    self._passed = counted
            else:
                self._passed = counted
        if last is not None:
            self._last = None
            last()
        elif self._waiting:
            self._tell()

    def empty(self) -> None:
        """Pass on everything, also if the transport's buffer is full: the end, or TLS, begins."""
        self.blocked = False
        self.flush()

    def resume(self) -> None:
        """Go on, because the transport has room again."""
        self.held = 0
        self.flush()

    def end(self) -> None:
        """Take nothing more: the connection ends. Calling it again is harmless."""
        with self._lock:
            self.ending = True
            if self._final is not None:
                self.parts.append(self._final[0])
            self._final = self._last = None
        self.transmit = self._sender.transmit
        self._tell()

    def _tell(self) -> None:
        """Wake the senders that wait, if nothing waits to be sent."""
        if self._waiting and self.is_clear:
            with self._lock:
                waiting, self._waiting = self._waiting, []
            for wake in waiting:
                wake()
