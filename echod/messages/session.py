"""The rules of one connection: which message comes next, whether to read on, when it may close.

Pure: no I/O, no clock, no Twisted. In the event loop `EchoProtocol` uses it, otherwise the loop of
a connection's own thread; the rules are the same, and they are all in this file:

* Messages are answered one at a time, in the order in which they arrived: while one is *in
  flight*, no other is passed on. So replies are in order at any speed of the handler, in threads
  and with Deferreds.
* While replies are *blocked* (the client does not read them), no message is passed on.
* The same holds while the connection is *resting*: it has had its share of the event loop's turn.
* Input is wanted until the buffer reaches the read-ahead, and again once all of it has been passed
  on; or when a message is still incomplete, which the framing bounds. (A read may be much longer
  than the read-ahead: two of them are never held.) A resting connection wants no input.
* After the end of input (the client's, or ours at drain), everything received is still answered;
  then, and not before, the session is finished.
* After `close`, no message is passed on: a reply demanded it, a framing was violated, or a turn is
  over.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from echod.messages.framing import Framer

# The default; the daemon uses `--max-pending`.
READ_AHEAD = 64 * 1024

# The rules of this file as a table: each question is answered by no while one of these conditions
# holds, and by yes otherwise. The methods of `Session` are these rows, written out, because a
# look-up would make each turn of a session a quarter more expensive. A test walks through every
# combination. The conditions are attributes of `Session`, and:
#
# * starved: the framer has no further message in what it holds;
# * holding, empty: the framer holds input, or none;
# * choked: the framer holds a message, or has not looked for one, and the buffer is full;
# * unheard: the framer has not looked yet whether the input holds a message;
# * unended: neither is the session closed nor has the framer passed on all input before its end.
NO_WHILE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        # May a message be passed on?
        "next_message": frozenset({"in_flight", "blocked", "resting", "closed", "starved"}),
        # May the held input contain a message?
        "holds_more": frozenset({"closed", "starved", "empty"}),
        # May the next input be answered directly, without a session?
        "idle": frozenset({"in_flight", "blocked", "resting", "closed", "input_ended", "holding"}),
        # Is input wanted?
        "wants_input": frozenset({"blocked", "resting", "closed", "input_ended", "choked"}),
        # Does the client owe the rest of a message?
        "incomplete": frozenset({"input_ended", "unheard", "empty"}),
        # Is the last answer given?
        "finished": frozenset({"in_flight", "unended"}),
    }
)

# Which conditions an event changes, and to what; all others stay as they are. After `close` the
# framer holds nothing. `receive` changes nothing then.
SETS: Mapping[str, Mapping[str, bool]] = MappingProxyType(
    {
        "receive": MappingProxyType({"starved": False}),
        "end_input": MappingProxyType({"input_ended": True, "starved": False}),
        "cut_off": MappingProxyType({"input_ended": True}),
        "message": MappingProxyType({"in_flight": True}),
        "no message": MappingProxyType({"starved": True}),
        "answered": MappingProxyType({"in_flight": False}),
        "close": MappingProxyType({"closed": True}),
    }
)


class _Nothing:
    """The framer of a session that is closed."""

    buffered = 0

    def feed(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def next_message(self) -> None:
        return None


NOTHING = _Nothing()


class Session:
    """The state of one connection's conversation.

    `full`: the buffer had reached `read_ahead` at the last read.
    `unread`: how many bytes a drain has found before the session, and the connection has not read.
    """

    __slots__ = (
        "_framer",
        "_max_messages",
        "_read_ahead",
        "_starved",
        "blocked",
        "closed",
        "full",
        "in_flight",
        "input_ended",
        "messages",
        "resting",
        "unread",
    )

    def __init__(
        self,
        framer: Framer,
        *,
        max_messages: int | None = None,
        read_ahead: int = READ_AHEAD,
    ) -> None:
        """Start a session.

        Args:
            framer: cuts this connection's input into messages.
            max_messages: how many messages are answered before the session closes; None: all.
            read_ahead: how much input to hold while a message is in flight, in bytes.
        """
        self._framer = framer
        self._max_messages = max_messages
        self._read_ahead = read_ahead
        self._starved = True
        self.full = False
        self.blocked = False
        self.closed = False
        self.in_flight = False
        self.input_ended = False
        self.resting = False
        self.unread = 0
        self.messages = 0

    def receive(self, data: bytes) -> None:
        """Take the data of one read; after `close` it is dropped."""
        if not self.closed:
            self._starved = False
            self._framer.feed(data)
            self.full = self._framer.buffered >= self._read_ahead

    def end_input(self, *, cut_off: bool = False) -> None:
        """Note that no more input comes.

        Args:
            cut_off: the daemon stopped reading, not the client sending: an incomplete message is
                neither a message nor an error of the client.
        """
        self.input_ended = True
        if not cut_off:
            self._starved = False
            self._framer.end()

    def next_message(self) -> bytes | None:
        """Return the message to pass to the handler now, in flight from here on, or None.

        Raises:
            echod.messages.framing.FramingError: the input cannot be parsed from here on.
        """
        if self.in_flight or self.blocked or self.closed or self._starved or self.resting:
            return None
        message = self._framer.next_message()
        if message is None:
            self._starved = True
            return None
        self.in_flight = True
        self.messages += 1
        return message

    def answered(self) -> None:
        """Note that the handler is done with the message in flight."""
        self.in_flight = False
        if self.messages == self._max_messages:
            self.closed = True

    def uncount(self) -> None:
        """Note that the message in flight has not reached the handler, and never will."""
        self.messages -= 1

    def close(self) -> None:
        """Pass on no more messages, and drop the held input, even while a message is in flight."""
        self.closed = True
        self._framer = NOTHING

    @property
    def holds_more(self) -> bool:
        """Whether the held input may contain a message without further input."""
        return not (self.closed or self._starved) and self._framer.buffered > 0

    @property
    def may_answer(self) -> bool:
        """Whether `next_message` may return one now, without further input."""
        return self.holds_more and not (self.in_flight or self.blocked or self.resting)

    @property
    def idle(self) -> bool:
        """Whether nothing is held or awaited, so that the next input may be answered directly."""
        return not (
            self.in_flight
            or self.resting
            or self.blocked
            or self.closed
            or self.input_ended
            or self._framer.buffered
        )

    @property
    def incomplete(self) -> int:
        """How many bytes of an incomplete message have arrived, whose rest the client owes."""
        return 0 if self.input_ended or not self._starved else self._framer.buffered

    @property
    def finished(self) -> bool:
        """Whether the last message that will be answered has been answered."""
        return not self.in_flight and (self.closed or (self.input_ended and self._starved))

    @property
    def wants_input(self) -> bool:
        """Whether to read on."""
        return not (self.input_ended or self.closed or self.blocked or self.resting) and (
            self._starved or not self.full or not self._framer.buffered
        )


class ClosedSession(Session):
    """A session that is closed from the beginning and holds nothing, for all connections.

    Setting an attribute has no effect.
    """

    __slots__ = ()

    _framer = NOTHING
    _max_messages = None
    _read_ahead = READ_AHEAD
    _starved = True
    full = False
    blocked = False
    closed = True
    in_flight = False
    input_ended = False
    messages = 0
    resting = False
    unread = 0

    def __init__(self) -> None:
        super().__init__(NOTHING)

    def __setattr__(self, name: str, value: object) -> None:
        """Stay closed."""


CLOSED = ClosedSession()
