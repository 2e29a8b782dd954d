"""Framings in which each message follows its length: `length`, `netstring` and `varint`.

A length that is too great, or no length at all, is refused as soon as that is known, before any
of the message is buffered.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from echod.errors import refuse
from echod.messages.framing import (
    MOST_PREFIXED,
    BufferingFramer,
    FramingError,
    MessageCutShort,
    MessageTooLong,
    check_size,
)
from echod.text import plural

# Within `Length`, `bytes` is the name of an argument.
Data = bytes


class Header(Protocol):
    """Writes and reads a length: a `struct.Struct`, or a class with these of its attributes."""

    @property
    def size(self) -> int: ...

    def pack(self, length: int, /) -> bytes: ...

    def unpack_from(self, buffer: Data | bytearray, offset: int = 0, /) -> tuple[int, ...]: ...


class _OwnHeader:
    """A length that no `Struct` has: of three bytes, or one that counts itself."""

    __slots__ = ("_counted", "_order", "size")

    def __init__(self, size: int, order: Literal["big", "little"], counted: int) -> None:
        self.size = size
        self._order: Literal["big", "little"] = order
        self._counted = counted

    def pack(self, length: int, /) -> bytes:
        return (length + self._counted).to_bytes(self.size, self._order)

    def unpack_from(self, buffer: Data | bytearray, offset: int = 0, /) -> tuple[int, ...]:
        if len(buffer) - offset < self.size:
            raise struct.error(f"a length has {self.size} bytes")
        length = int.from_bytes(buffer[offset : offset + self.size], self._order) - self._counted
        if length < 0:
            raise FramingError(
                f"Bad length: it counts its own {self._counted} "
                f"{plural(self._counted, 'byte', 'bytes')}, so it cannot be less"
            )
        return (length,)


@dataclass(frozen=True)
class Length:
    """A message, and a reply, follows its length (1 byte announces at most 255), unsigned.

    Attributes:
        max_message: the longest message, in bytes; by default less if the length allows no more.
        bytes: the size of the length itself.
        order: of the bytes of the length.
        inclusive: whether the length counts its own bytes, too.
    """

    max_message: int = MOST_PREFIXED
    bytes: Literal[1, 2, 3, 4, 8] = 4
    order: Literal["big", "little"] = "big"
    inclusive: bool = False
    header: Header = field(init=False, repr=False, compare=False)
    tail: ClassVar[None] = None
    last: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_size("max_message", self.max_message)
        letter = {1: "B", 2: "H", 4: "I", 8: "Q"}.get(self.bytes)
        if self.bytes not in (1, 2, 3, 4, 8) or self.order not in ("big", "little"):
            raise ValueError("bytes is 1, 2, 3, 4 or 8, and order is big or little")
        header: Header
        if letter is None or self.inclusive:
            header = _OwnHeader(self.bytes, self.order, self.bytes if self.inclusive else 0)
        else:
            header = struct.Struct((">" if self.order == "big" else "<") + letter)
        object.__setattr__(self, "header", header)
        if self.max_message == MOST_PREFIXED:
            object.__setattr__(self, "max_message", min(MOST_PREFIXED, self._most))
        elif self.max_message > self._most:
            raise ValueError(
                f"a length of {self.bytes} {plural(self.bytes, 'byte', 'bytes')} announces "
                f"at most {self._most} bytes, so max_message is at most that"
            )

    @property
    def _most(self) -> int:
        """How many bytes a length can announce."""
        greatest: int = 256**self.bytes - 1
        return greatest - self.bytes if self.inclusive else greatest

    def framer(self) -> LengthFramer:
        return LengthFramer(self.header, self.max_message)

    def whole(self, data: Data) -> list[Data] | None:
        unpack, size, end = self.header.unpack_from, self.header.size, len(data)
        messages, start = [], 0
        try:
            while start < end:
                (length,) = unpack(data, start)
                begin = start + size
                start = begin + length
                messages.append(data[begin:start])
        except (struct.error, FramingError):
            return None
        # Each message but the last one is as long as its length says.
        longest = self.max_message
        if start != end or (end > longest and max(map(len, messages)) > longest):
            return None
        return messages

    def encode(self, reply: Data) -> Data:
        try:
            return self.header.pack(len(reply)) + reply
        except (struct.error, OverflowError):
            refuse(
                ValueError(
                    f"a length of {self.bytes} {plural(self.bytes, 'byte', 'bytes')} announces at "
                    f"most {self._most} bytes, not {len(reply)}"
                )
            )

    def encode_line(self, text: Data) -> Data:
        return self.encode(text + b"\n")


class LengthFramer(BufferingFramer):
    """Refuses a message by its header, before any of it is buffered."""

    __slots__ = ("_header",)

    def __init__(self, header: Header, max_message: int) -> None:
        super().__init__(max_message)
        self._header = header

    def next_message(self) -> bytes | None:
        buffer, header = self.buffer, self._header
        start = wanted = header.size
        if len(buffer) >= wanted:
            (length,) = header.unpack_from(buffer)
            if length > self.max_message:
                raise MessageTooLong(self.max_message)
            wanted += length
            if len(buffer) >= wanted:
                message = bytes(buffer[start:wanted])
                del buffer[:wanted]
                return message
        if self.ended and buffer:
            raise MessageCutShort(wanted - len(buffer))
        return None


@dataclass(frozen=True)
class Netstring:
    """A message, and a reply, is a netstring, such as `5:happy,`.

    Its length in digits, a colon, the message, a comma: https://cr.yp.to/proto/netstrings.txt.
    """

    max_message: int = MOST_PREFIXED

    def __post_init__(self) -> None:
        check_size("max_message", self.max_message)

    def framer(self) -> NetstringFramer:
        return NetstringFramer(self.max_message)

    def encode(self, reply: bytes) -> bytes:
        return b"%d:%b," % (len(reply), reply)

    def encode_line(self, text: bytes) -> bytes:
        return self.encode(text + b"\n")


class NetstringFramer(BufferingFramer):
    """Refuses a length with its first wrong byte, or the digit that makes it too great."""

    __slots__ = ("_longest",)

    # A length without leading zeros.
    _DIGITS = re.compile(rb"0|[1-9][0-9]*")

    def __init__(self, max_message: int) -> None:
        super().__init__(max_message)
        # Of the lengths that are refused as too great, the shortest has so many digits.
        self._longest = len(str(max_message)) + 1

    def next_message(self) -> bytes | None:
        buffer = self.buffer
        if not buffer:
            return None
        colon = buffer.find(b":", 0, self._longest)
        digits = buffer[: self._longest if colon < 0 else colon]
        if not self._DIGITS.fullmatch(digits):
            raise FramingError("Bad length: a netstring begins with digits and a colon")
        length = int(digits)
        if length > self.max_message:
            raise MessageTooLong(self.max_message)
        if colon < 0:
            if self.ended:
                raise MessageCutShort
            return None
        end = colon + 1 + length
        if len(buffer) > end:
            if not buffer.startswith(b",", end):
                raise FramingError("Bad netstring: no comma behind its last byte")
            message = bytes(buffer[colon + 1 : end])
            del buffer[: end + 1]
            return message
        if self.ended:
            raise MessageCutShort(end + 1 - len(buffer))
        return None


@dataclass(frozen=True)
class Varint:
    """A message, and a reply, follows its length in bytes, a varint as protobuf writes it.

    Seven bits in a byte, the lowest first; `writeDelimitedTo` of protobuf writes messages so:
    https://protobuf.dev/programming-guides/encoding/#varints.
    """

    max_message: int = MOST_PREFIXED

    def __post_init__(self) -> None:
        check_size("max_message", self.max_message)

    def framer(self) -> VarintFramer:
        return VarintFramer(self.max_message)

    def encode(self, reply: bytes) -> bytes:
        length, prefix = len(reply), bytearray()
        while length > 0x7F:
            prefix.append(length & 0x7F | 0x80)
            length >>= 7
        prefix.append(length)
        return bytes(prefix) + reply

    def encode_line(self, text: bytes) -> bytes:
        return self.encode(text + b"\n")


class VarintFramer(BufferingFramer):
    """Refuses a length with the byte that makes it too great, or too long."""

    __slots__ = ()

    # Of 64 bits, as protobuf has them. Zeros above the highest bit are valid there.
    _LONGEST = 10

    def next_message(self) -> bytes | None:
        buffer = self.buffer
        length = shift = start = 0
        for byte in buffer[: self._LONGEST]:
            length |= (byte & 0x7F) << shift
            if length > self.max_message:
                raise MessageTooLong(self.max_message)
            start += 1
            if byte < 0x80:
                break
            shift += 7
        else:
            if len(buffer) >= self._LONGEST:
                raise FramingError(f"Bad length: a varint has at most {self._LONGEST} bytes")
            if self.ended and buffer:
                raise MessageCutShort
            return None
        wanted = start + length
        if len(buffer) >= wanted:
            message = bytes(buffer[start:wanted])
            del buffer[:wanted]
            return message
        if self.ended:
            raise MessageCutShort(wanted - len(buffer))
        return None
