"""The faults that change the bytes of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from echod.faults.items import Draws, Item
from echod.faults.keys import key, parse_share, whole
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
