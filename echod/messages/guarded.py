"""Hold a framing of a user's own to the interface.

Guarantees: an incomplete message costs at most `ALLOWANCE` more than `max_message`, even if the
framer forgets to look; no message is longer than `max_message`; every error of a framer is raised
by `next_message`, behind the messages before it, wherever the framer raised it; `encode` returns
bytes of its own, or raises; and `max_message` is read once.

A framing that comes with echod does all this by itself, and pays nothing here.
"""

from __future__ import annotations

from echod.errors import refuse
from echod.messages.framing import Chunk, Fixed, Framer, Framing, Line, MessageTooLong

# How many bytes of a header, or of escapes, a framer may hold besides a message, before the
# message counts as too long.
ALLOWANCE = 64 * 1024


def guarded(framing: Framing) -> Framing:
    """Return a framing that keeps to the interface; a built-in or guarded one as it is."""
    if type(framing) in (Chunk, Guarded):
        return framing
    from echod.messages.prefixed import Length, Netstring, Varint  # not for the default framing

    trusted = (Line, Fixed, Length, Netstring, Varint)
    return framing if type(framing) in trusted else Guarded(framing)


class Guarded:
    """A framing whose framers are watched."""

    __slots__ = ("encode_line", "framing", "max_message")

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self.max_message = framing.max_message
        self.encode_line = framing.encode_line

    def framer(self) -> Framer:
        return GuardedFramer(self.framing.framer(), self.max_message)

    def encode(self, reply: bytes) -> bytes:
        framed: object = self.framing.encode(reply)
        if type(framed) is bytes:
            return framed
        # Later, where several replies are sent at once, it would cost the others too.
        if not isinstance(framed, bytes | bytearray | memoryview):
            name = f"{type(self.framing).__qualname__}.encode"
            refuse(TypeError(f"{name} returns bytes, not {type(framed).__name__}"))
        return bytes(framed)  # the framing may use its buffer again


class GuardedFramer:
    """Passes everything on to a framer, and checks its results.

    `buffered`: as of the framer; an error that has not been raised yet counts as held input.
    """

    __slots__ = ("_error", "_framer", "_max_message", "buffered")

    def __init__(self, framer: Framer, max_message: int) -> None:
        self._framer = framer
        self._max_message = max_message
        self._error: BaseException | None = None
        self.buffered = 0

    def feed(self, data: bytes) -> None:
        if self._error is not None:
            return
        try:
            self._framer.feed(data)
            self.buffered = self._framer.buffered
        except BaseException as error:  # `sys.exit`, too, ends no more than the connection
            self._error = error
            self.buffered += len(data)

    def end(self) -> None:
        if self._error is not None:
            return
        try:
            self._framer.end()
        except BaseException as error:
            self._error = error

    def next_message(self) -> bytes | None:
        message = self._framer.next_message()
        self.buffered = self._framer.buffered + (self._error is not None)
        if message is None:
            if self._error is not None:
                raise self._error
            if self.buffered > self._max_message + ALLOWANCE:
                raise MessageTooLong(self._max_message)
            return None
        if type(message) is not bytes:
            name = f"{type(self._framer).__qualname__}.next_message"
            refuse(TypeError(f"{name} returns bytes or None, not {type(message).__name__}"))
        if len(message) > self._max_message:
            raise MessageTooLong(self._max_message)
        return message
