"""The faults that change the bytes of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from echod.faults.items import Direction, Draws, Item
from echod.faults.keys import key, one_of, parse_share, whole
from echod.faults.stage import Cutter, Fault, Rule, Stage


class _Sprinkling(Stage):
    """Hits single bytes, a share of all: draws say how many are skipped before the next."""

    def __init__(self, rule: Rule, draws: Draws, now: float, cutter: Cutter) -> None:
        super().__init__(rule, draws, now, cutter)
        self._hits = 0
        self._next = self._skip()

    def _skip(self) -> int:
        rate = self.fault.rate
        if rate >= 1:
            return 0
        return int(math.log(self.draws.uniform(self._hits)) / math.log1p(-rate))

    def work(self, item: Item) -> Iterator[Item]:
        parts: list[bytes] = []
        begun, data = 0, item.data
        while (place := self._next - self.seen) < len(data):
            self.happened = True
            parts += [data[begun:place], self.hit(data[place])]
            begun = place + 1
            self._hits += 1
            self._next += 1 + self._skip()
        parts.append(data[begun:])
        if result := b"".join(parts):
            yield self.on_time(item.due, result)

    def hit(self, byte: int) -> bytes:
        """Return what takes the place of a byte."""
        raise NotImplementedError


class _Corrupting(_Sprinkling):
    def hit(self, byte: int) -> bytes:
        changes = 1 + int(255 * self.draws.uniform(2**62 + self._hits))
        return bytes([byte ^ changes])


@dataclass(frozen=True)
class Corrupt(Fault):
    """Bytes are changed."""

    name = "corrupt"
    stage = _Corrupting
    rate: float = key(0.01, parse_share, "the share of the bytes")


class _Dropping(_Sprinkling):
    def hit(self, byte: int) -> bytes:
        return b""


@dataclass(frozen=True)
class Drop(Fault):
    """Bytes are left out."""

    name = "drop"
    stage = _Dropping
    rate: float = key(0.01, parse_share, "the share of the bytes")


class _Duplicating(_Sprinkling):
    def hit(self, byte: int) -> bytes:
        return bytes([byte, byte])


@dataclass(frozen=True)
class Duplicate(Fault):
    """Bytes come twice."""

    name = "duplicate"
    stage = _Duplicating
    rate: float = key(0.01, parse_share, "the share of the bytes")


class _Truncating(Stage):
    def work(self, item: Item) -> Iterator[Item]:
        self.happened = True
        return iter(())


@dataclass(frozen=True)
class Truncate(Fault):
    """The rest of the stream is left out; its end comes."""

    name = "truncate"
    stage = _Truncating


class _Inserting(Stage):
    fault: Garbage
    begins_alone = True

    def begin(self, now: float) -> Iterator[Item]:
        self.happened = True
        size = self.fault.size
        garbage = b"".join(map(self.draws.block, range(size // 64 + 1)))
        yield self.on_time(now, garbage[:size])


@dataclass(frozen=True)
class Garbage(Fault):
    """Bytes that belong nowhere stand in the stream."""

    name = "garbage"
    stage = _Inserting
    size: int = key(64, whole(1, 2**20), "how many")


# The data of one turn, which all connections share.
PIECE = b"endless " * 512
# The length that lies: the greatest that a signed number of 32 bits can be.
LENGTH = (2**31 - 1).to_bytes(4, "big")


class _Endless(Stage):
    """Sends the same bytes again and again, and drops what the handler sends.

    An end of the handler's stream waits until the daemon drains.
    """

    fault: Endless
    begins_alone = True

    _stopped = False
    _has_end = False

    def begin(self, now: float) -> Iterator[Item]:
        self.happened = True
        if self.fault.kind == "length":
            yield self.on_time(now, LENGTH)

    def work(self, item: Item) -> Iterator[Item]:
        return iter(())

    def end(self, item: Item) -> Iterator[Item]:
        if item.act is not None or self._stopped:
            yield self.on_time(item.due, act=item.act)
        else:
            self._has_end = True

    @property
    def generates(self) -> bool:
        return self.has_begun and not self._stopped

    def generate(self, now: float) -> Iterator[Item]:
        if self.generates:
            yield self.on_time(now, PIECE)

    def stop_generating(self, now: float) -> Iterator[Item]:
        self._stopped = self.has_begun
        if self._has_end:
            self._has_end = False
            yield self.on_time(now)


@dataclass(frozen=True)
class Endless(Fault):
    """A line, or a message behind a length, has no end."""

    name = "endless"
    stage = _Endless
    directions = (Direction.OUT,)
    kind: str = key(
        "line",
        one_of("line", "length"),
        "`line`: bytes without a line end; `length`: the same, behind the length 2147483647",
    )
