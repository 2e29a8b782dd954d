"""The faults that make a stream late or slow, or cut it in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

from echod.faults.items import Draws, Item
from echod.faults.keys import key, parse_number, parse_pause, parse_seconds, whole
from echod.faults.stage import Cutter, Fault, Rule, Stage

# A draw of `delay` is for so many bytes: short enough that short messages have a draw each.
BLOCK = 64
# How many pieces `bandwidth` sends a second, and their largest size in bytes.
PACE = 20
LARGEST = 16 * 1024


class _Delaying(Stage):
    fault: Delay

    def work(self, item: Item) -> Iterator[Item]:
        self.happened = True
        if not self.fault.jitter and not self.fault.sigma:
            yield self.on_time(item.due + self.fault.time, item.data)
            return
        parts: list[bytes] = []
        for offset, part in _cut(item.data, self.seen, BLOCK):
            due = item.due + self._drawn(offset // BLOCK)
            if due > self._last and parts:
                yield self.on_time(0.0, b"".join(parts))
                parts.clear()
            self._last = max(self._last, due)
            parts.append(part)
        yield self.on_time(0.0, b"".join(parts))

    def end(self, item: Item) -> Iterator[Item]:
        self.happened = True
        yield self.on_time(item.due + self.fault.time, act=item.act)

    def _drawn(self, block: int) -> float:
        fault, drawn = self.fault, self.draws.uniform(block)
        if fault.sigma:
            return fault.time * math.exp(fault.sigma * NormalDist().inv_cdf(drawn))
        return max(0.0, fault.time + fault.jitter * (2 * drawn - 1))


@dataclass(frozen=True)
class Delay(Fault):
    """Every byte comes later."""

    name = "delay"
    stage = _Delaying
    time: float = key(0.2, parse_seconds, "how much later, in seconds")
    jitter: float = key(0.0, parse_seconds, "up to how much more, or less, for each 64 bytes")
    sigma: float = key(0.0, parse_number, "spread of a lognormal delay, whose median is `time`")


class _Stalling(Stage):
    fault: Stall
    begins_alone = True

    def begin(self, now: float) -> Iterator[Item]:
        self.holds_until = now + self.fault.time
        return iter(())

    def work(self, item: Item) -> Iterator[Item]:
        self.happened = self.happened or item.due < self.holds_until
        yield self.on_time(max(item.due, self.holds_until), item.data)

    def end(self, item: Item) -> Iterator[Item]:
        self.happened = self.happened or item.due < self.holds_until
        yield self.on_time(max(item.due, self.holds_until), act=item.act)


@dataclass(frozen=True)
class Stall(Fault):
    """Nothing passes any more, for a time or for ever."""

    name = "stall"
    stage = _Stalling
    time: float = key(math.inf, parse_seconds, "for how long, in seconds; without it, for ever")


class _Limiting(Stage):
    fault: Bandwidth

    def work(self, item: Item) -> Iterator[Item]:
        self.happened = True
        size = max(1, min(LARGEST, self.fault.rate // PACE))
        for _, part in _cut(item.data, self.seen, size):
            begun = max(item.due, self._last)
            yield self.on_time(begun + len(part) / self.fault.rate, part)


@dataclass(frozen=True)
class Bandwidth(Fault):
    """Bytes pass at a rate."""

    name = "bandwidth"
    stage = _Limiting
    rate: int = key(1024, whole(1, 10**9), "bytes a second")


class _Slicing(Stage):
    fault: Slice

    def __init__(self, rule: Rule, draws: Draws, now: float, cutter: Cutter) -> None:
        super().__init__(rule, draws, now, cutter)
        self._slice = 0
        self._left = self._length(0)
        self._is_new = False

    def _length(self, number: int) -> int:
        fault = self.fault
        drawn = self.draws.uniform(number) if fault.jitter else 0.5
        return max(1, round(fault.size + fault.jitter * (2 * drawn - 1)))

    def work(self, item: Item) -> Iterator[Item]:
        data = item.data
        while data:
            due, gap = item.due, 0.0
            if self._is_new:
                self.happened = True
                # A piece that leaves late makes the pause behind it no shorter.
                gap = self.fault.pause
                due = max(due, self._last + gap)
                self._is_new = False
            part, data = data[: self._left], data[self._left :]
            yield self.on_time(due, part)._replace(gap=gap)
            self._left -= len(part)
            if not self._left:
                self._slice += 1
                self._left = self._length(self._slice)
                self._is_new = True


@dataclass(frozen=True)
class Slice(Fault):
    """The stream comes in short segments, with pauses between them."""

    name = "slice"
    stage = _Slicing
    size: int = key(16, whole(1, 2**20), "bytes in each")
    jitter: int = key(0, whole(0, 2**20), "up to how many more, or fewer")
    pause: float = key(0.01, parse_pause, "seconds between two of them")


@dataclass(frozen=True)
class Drip(Fault):
    """The stream comes byte by byte."""

    name = "drip"
    stage = _Slicing
    jitter: ClassVar[int] = 0
    size: int = key(1, whole(1, 2**20), "bytes at once")
    pause: float = key(0.1, parse_pause, "seconds between two of them")


def _cut(data: bytes, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Cut data that begins at `offset` where the offset is a multiple of `size`."""
    start = 0
    while start < len(data):
        end = start + size - (offset + start) % size
        yield offset + start, data[start:end]
        start = end
