"""Cut a byte stream into messages, and frame replies.

Pure: bytes in, messages out, no I/O. A `Framing` is the rule, shared by all connections; a
`Framer` applies it to the input of one connection. Messages are pulled from a framer
(`next_message`), not pushed, so that the caller decides how many of them exist at once: a read of
64 KiB that contains 65,536 empty lines costs 64 KiB, not 65,536 objects.

Sizes are enforced here: a message longer than the framing's `max_message` raises
`MessageTooLong` as soon as that is known, before it is buffered whole.

`prefixed.py` has the framings in which a message follows its length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from echod.errors import refuse
from echod.text import plural


class FramingError(ValueError):
    """The peer's bytes violate the framing; the text of the error may be sent to the peer."""


class MessageTooLong(FramingError):
    """A message is longer than the framing allows."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"Message too long: the limit is {limit} {plural(limit, 'byte', 'bytes')}"
        )


class MessageCutShort(FramingError):
    """The stream ended inside a message whose length is known, or inside its length."""

    def __init__(self, missing: int | None = None) -> None:
        unit = plural(missing or 0, "byte", "bytes")
        where = "within its length" if missing is None else f"{missing} {unit} before its end"
        super().__init__(f"Message cut short: the stream ended {where}")


# The most that `max_message` and the like can be, as `--max-message`.
MOST = 2**31 - 1

# Behind a length: room for a record of any usual protocol, while a whole message, a read and the
# replies still fit in what one connection may cost.
MOST_PREFIXED = 32 * 1024

# The longest read whose messages are taken at once, in bytes: a longer one may hold more than
# should exist at the same time.
MOST_WHOLE = 16 * 1024


def check_size(name: str, size: int) -> None:
    """Check an argument that is a number of bytes.

    Raises:
        ValueError: it is less than 1, or too great.
    """
    if not 1 <= size <= MOST:
        raise ValueError(f"{name} is a number from 1 to {MOST}, not {size}")


class Framer(Protocol):
    """Cuts the input of one connection into messages."""

    @property
    def buffered(self) -> int:
        """The size of the held input, in bytes of memory, not of payload."""

    def feed(self, data: bytes) -> None:
        """Take the data of one read, which is not empty."""

    def end(self) -> None:
        """Note that the stream has ended: no more data follows."""

    def next_message(self) -> bytes | None:
        """Return the next message, or None if that needs more input.

        Raises:
            FramingError: the input after this point cannot be parsed. The client gets the text,
                and the connection ends. `MessageTooLong` and `MessageCutShort` are such errors.
        """


class Framing(Protocol):
    """One rule of framing: makes a framer for each connection, and frames replies."""

    @property
    def max_message(self) -> int:
        """The longest message, in bytes; its framers refuse, or cut, a longer one."""

    def framer(self) -> Framer:
        """Return the framer of a new connection."""

    def encode(self, reply: bytes) -> bytes:
        """Frame `reply`.

        Raises:
            ValueError: it cannot be framed. That counts as an error of the handler.
        """

    def encode_line(self, text: bytes) -> bytes:
        """Frame a line of the daemon's own (a banner, an error).

        Args:
            text: the line, without an end.
        """


class DirectFraming(Framing, Protocol):
    """A framing that takes the messages from a read at once, without a framer.

    Attributes:
        tail: all that `encode` puts behind a reply whose last byte is not `last`; None: it does
            something else, and may raise.
        last: the last byte of `tail`.
    """

    tail: bytes | None
    last: int

    def whole(self, data: bytes) -> list[bytes] | None:
        """Return the messages of `data`, which is not empty, in order.

        None means that a framer has to look: the data does not end with a message, or one is too
        long. `encode` of each message gives the data back.
        """


def framed_together(replies: list[bytes], framing: DirectFraming | None) -> bytes:
    """Frame replies that leave together, each as `encode` does, and join them.

    Args:
        replies: as handlers return them.
        framing: None: it leaves them as they are.
    """
    joined = b"".join(replies)
    if framing is None:
        return joined
    if framing.tail is None or framing.last in joined:  # a reply may end with the tail
        return b"".join(map(framing.encode, replies))
    return framing.tail.join([*replies, b""])


@dataclass(frozen=True)
class Chunk:
    """A message is the data of one read, cut into pieces of at most `max_message` bytes.

    The default is the size of `recv(1024)`, common in first servers.
    """

    max_message: int = 1024

    def __post_init__(self) -> None:
        check_size("max_message", self.max_message)

    def framer(self) -> ChunkFramer:
        return ChunkFramer(self.max_message)

    def encode(self, reply: bytes) -> bytes:
        return reply

    def encode_line(self, text: bytes) -> bytes:
        return text + b"\n"


@dataclass(frozen=True)
class Line:
    """A message is a line, without its delimiter; a reply gets one unless it ends in one.

    When the stream ends, the text after the last delimiter is a message too: `printf happy | nc`
    gets its answer.
    """

    delimiter: bytes = b"\n"
    # Long enough for any line that a person types or a log contains; short enough that a client
    # that never sends a delimiter costs less than one read.
    max_message: int = 16 * 1024

    tail: bytes = field(init=False, repr=False, compare=False)
    last: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_size("max_message", self.max_message)
        if not self.delimiter:
            raise ValueError("a delimiter has at least one byte")
        object.__setattr__(self, "tail", self.delimiter)
        object.__setattr__(self, "last", self.delimiter[-1])

    def framer(self) -> LineFramer:
        return LineFramer(self.delimiter, self.max_message)

    def whole(self, data: bytes) -> list[bytes] | None:
        delimiter, longest = self.delimiter, self.max_message
        # `split` looks at one byte after the other, `find` at many at a time.
        end = data.find(delimiter)
        if end < 0:
            return None
        if end + len(delimiter) == len(data):
            return None if end > longest else [data[:end]]
        messages = data.split(delimiter)
        if messages.pop() or (len(data) > longest and max(map(len, messages)) > longest):
            return None
        return messages

    def encode(self, reply: bytes) -> bytes:
        delimiter = self.delimiter
        # A look at the last byte is less than the call, and says it of nearly all replies.
        if reply and reply[-1] == self.last and reply.endswith(delimiter):
            return reply
        return reply + delimiter

    def encode_line(self, text: bytes) -> bytes:
        return text + self.delimiter


@dataclass(frozen=True)
class Fixed:
    """A message, and a reply, has always the same number of bytes, `size`.

    A line of the daemon's own is as many messages as it needs, with spaces before its end.
    """

    size: int
    tail: ClassVar[None] = None
    last: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_size("size", self.size)

    @property
    def max_message(self) -> int:
        return self.size

    def framer(self) -> FixedFramer:
        return FixedFramer(self.size)

    def whole(self, data: bytes) -> list[bytes] | None:
        size = self.size
        if len(data) % size:
            return None
        return [data[start : start + size] for start in range(0, len(data), size)]

    def encode(self, reply: bytes) -> bytes:
        if len(reply) != self.size:
            unit = plural(self.size, "byte", "bytes")
            refuse(ValueError(f"a fixed reply has {self.size} {unit}, not {len(reply)}"))
        return reply

    def encode_line(self, text: bytes) -> bytes:
        missing = -(len(text) + 1) % self.size
        return text + b" " * missing + b"\n"


class ChunkFramer:
    """Keeps reads apart: two reads give at least two messages."""

    __slots__ = ("_max_message", "_offset", "_reads", "buffered")

    # A bytes object and its entry in the list: one-byte reads must count at their real cost.
    _OVERHEAD = 64
    # A long read releases its memory in steps of this many bytes: if replies pile up while
    # messages are passed on, both together cost no more than the read.
    _STEP = 32 * 1024

    def __init__(self, max_message: int) -> None:
        self._max_message = max_message
        # A list, although items are taken from its front: it is short, and in each idle connection
        # an empty list costs a tenth of an empty deque.
        self._reads: list[bytes] = []
        self._offset = 0
        self.buffered = 0

    def feed(self, data: bytes) -> None:
        self._reads.append(data)
        self.buffered += len(data) + self._OVERHEAD

    def end(self) -> None:
        pass

    def next_message(self) -> bytes | None:
        if not self._reads:
            return None
        read = self._reads[0]
        start = self._offset
        if len(read) - start > self._max_message:
            self._offset = start + self._max_message
            message = read[start : self._offset]
            if self._offset >= self._STEP:
                self._reads[0] = read[self._offset :]
                self.buffered -= self._offset
                self._offset = 0
            return message
        del self._reads[0]
        self._offset = 0
        self.buffered -= len(read) + self._OVERHEAD
        return read[start:] if start else read


class BufferingFramer:
    """Base of framers that join reads; a subclass has `next_message`.

    Attributes:
        buffer: the held input; `next_message` takes each message off its front.
        ended: whether the stream has ended.
        max_message: the longest message, in bytes; `next_message` raises for a longer one.
    """

    __slots__ = ("buffer", "ended", "max_message")

    def __init__(self, max_message: int) -> None:
        self.max_message = max_message
        self.buffer = bytearray()
        self.ended = False

    @property
    def buffered(self) -> int:
        return len(self.buffer)

    def feed(self, data: bytes) -> None:
        self.buffer += data

    def end(self) -> None:
        self.ended = True


class LineFramer(BufferingFramer):
    """Examines each byte once, however the line was cut into segments."""

    __slots__ = ("_delimiter", "_searched")

    def __init__(self, delimiter: bytes, max_message: int) -> None:
        super().__init__(max_message)
        self._delimiter = delimiter
        self._searched = 0

    def next_message(self) -> bytes | None:
        buffer, delimiter, limit = self.buffer, self._delimiter, self.max_message
        at = buffer.find(delimiter, self._searched, limit + len(delimiter))
        if at >= 0:
            message = bytes(buffer[:at])
            del buffer[: at + len(delimiter)]
            self._searched = 0
            return message
        if len(buffer) >= limit + len(delimiter) or (self.ended and len(buffer) > limit):
            raise MessageTooLong(limit)
        if self.ended and buffer:
            message = bytes(buffer)
            buffer.clear()
            self._searched = 0
            return message
        # The last bytes may be the beginning of a delimiter.
        self._searched = max(0, len(buffer) - len(delimiter) + 1)
        return None


class FixedFramer(BufferingFramer):
    """Needs no search: the size says where a message ends."""

    __slots__ = ()

    def next_message(self) -> bytes | None:
        buffer, size = self.buffer, self.max_message
        if len(buffer) >= size:
            message = bytes(buffer[:size])
            del buffer[:size]
            return message
        if self.ended and buffer:
            raise MessageCutShort(size - len(buffer))
        return None


def encode_greeting(framing: Framing, greeting: bytes) -> bytes:
    """Frame a handler's greeting; a line gets the line end of the framing."""
    if greeting.endswith(b"\n"):
        return framing.encode_line(greeting[:-1])
    return framing.encode(greeting)
