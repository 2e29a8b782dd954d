"""The rules of one connection: which message comes next, whether to read on, when it may close.

Pure: no I/O, no clock, no Twisted.  `EchoProtocol` feeds it in the event loop and the loop of a
connection's own thread feeds it there; the rules are the same, and they are all in this file:

* Messages are answered one at a time, in the order they came: while one is *in flight*, no other
  is handed out.  So replies are in order whatever the handler's speed, thread or Deferred.
* While replies are *blocked* (the client does not read them), no message is handed out.
* Nor is one while the connection is *resting*: it has had its share of the event loop's turn.
* Input is wanted until what is buffered reaches the read-ahead, and again once all of it has been
  handed out; or when a message is still incomplete, which the framing bounds.  (A read may be much
  longer than the read-ahead: two of them are never held.)  A connection that rests has enough.
* After the end of input (the client's, or ours at drain), what was received is still answered;
  then, and not before, the session is finished.
* After `close`, nothing more is handed out: a reply said so, a framing was broken, a turn is over.
"""

from __future__ import annotations

from typing import Protocol

# Where nobody says otherwise; the daemon takes it from `--max-pending`.
READ_AHEAD = 64 * 1024


class MessageSource(Protocol):
    """What a session asks of a framer (see `echod.messages.framing.Framer`)."""

    @property
    def buffered(self) -> int: ...

    def feed(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def next_message(self) -> bytes | None: ...


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

    `full` says that what is held had reached the read-ahead when the last of it came.
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
    )

    def __init__(
        self,
        framer: MessageSource,
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
        self.messages = 0

    def receive(self, data: bytes) -> None:
        """Take what one read gave; after `close` it is forgotten."""
        if not self.closed:
            self._starved = False
            self._framer.feed(data)
            self.full = self._framer.buffered >= self._read_ahead

    def end_input(self, *, cut_off: bool = False) -> None:
        """Note that no more input comes.

        Args:
            cut_off: we stopped reading, the client did not stop sending: an incomplete message
                is neither a message nor the client's error.
        """
        self.input_ended = True
        if not cut_off:
            self._starved = False
            self._framer.end()

    def next_message(self) -> bytes | None:
        """Return the message to hand to the handler now, in flight from here on, or None.

        Raises:
            echod.messages.framing.FramingError: the input cannot be understood from here on.
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

    def take_back(self) -> None:
        """Note that the message in flight has not reached the handler, and never will."""
        self.messages -= 1

    def close(self) -> None:
        """Hand out nothing more; what is held is let go, however long the message in flight is."""
        self.closed = True
        self._framer = NOTHING

    @property
    def holds_more(self) -> bool:
        """Whether there is input that may become a message without any more of it."""
        return not (self.closed or self._starved) and self._framer.buffered > 0

    @property
    def idle(self) -> bool:
        """Whether nothing is held or awaited: the next input may be answered as it comes."""
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
        """How many bytes have come of a message that is not complete: only its client is due."""
        return 0 if self.input_ended or not self._starved else self._framer.buffered

    @property
    def finished(self) -> bool:
        """Whether every message that will be answered has been."""
        return not self.in_flight and (self.closed or (self.input_ended and self._starved))

    @property
    def wants_input(self) -> bool:
        """Whether to read on."""
        return not (self.input_ended or self.closed or self.blocked or self.resting) and (
            self._starved or not self.full or not self._framer.buffered
        )
