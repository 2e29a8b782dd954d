"""A fault: its keys, the connections that it selects, and its stage in a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from echod.faults.items import Act, Direction, Draws, Item
from echod.faults.keys import After, Network, key, parse_after, parse_network, parse_share, whole


@dataclass(frozen=True)
class Selection:
    """Which connections a fault selects, and from when on it works there. All must hold."""

    after: After = key(
        After(),
        parse_after,
        "from which byte of its direction on, or after how many seconds (`2s`)",
    )
    p: float = key(1.0, parse_share, "the share of the connections")
    every: int = key(1, whole(1), "only each so many connections of a listener: 10 is the tenth")
    first: int = key(0, whole(1), "only so many connections, the first of a listener")
    at_most: int = key(0, whole(1), "at most so many connections of a listener")
    source: Network | None = key(None, parse_network, "only clients of this network")
    listener: str = key("", str, "only this listener: its number, from 1, or its endpoint")


class Stage:
    """One fault at work in one direction of one connection.

    This base passes everything on, and finds the place where the fault begins.

    Attributes:
        happened: whether it has changed anything so far.
        wake_at: when `wake` has to be called although nothing comes, in seconds; inf: never.
        holds_until: until when it holds what has come since it began, in seconds.
    """

    # Whether the fault begins by itself, also while nothing comes.
    begins_alone: ClassVar[bool] = False
    # The act of a fault that acts on the whole connection.
    act: ClassVar[Act | None] = None

    def __init__(self, rule: Rule, draws: Draws, now: float) -> None:
        """Set up, at the start of a connection."""
        self.fault: Any = rule.fault
        self.draws = draws
        self.happened = False
        self.wake_at = math.inf
        self.holds_until = 0.0
        self._after = rule.selection.after
        self._working = False
        # How many bytes have come; how many of them since the fault began.
        self._offset = 0
        self.seen = 0
        # When the last item is due.
        self._last = 0.0
        self._begins = math.inf if self._after.seconds is None else now + self._after.seconds
        if self.begins_alone:
            self.wake_at = self._begins

    def start(self, now: float) -> Iterator[Item]:
        """Begin at once, if it is to begin with the connection, and has not."""
        if not (self._working or self._after.size or self._after.seconds):
            yield from self._begin_at(now)

    def wake(self, now: float) -> Iterator[Item]:
        """Begin by time."""
        if not self._working and now >= self._begins:
            yield from self._begin_at(now)

    def take(self, item: Item) -> Iterator[Item]:
        """Take the next item, and pass on others."""
        if not self._working and item.due >= self._begins:
            yield from self._begin_at(item.due)
        if not item.data:
            yield from self._other(item)
        elif self._working:
            yield from self._work_on(item)
        else:
            yield from self._before(item)

    def _before(self, item: Item) -> Iterator[Item]:
        """Take data before, or around, the place where it begins."""
        room = len(item.data) if self._after.seconds else self._after.size - self._offset
        early, late = item.data[:room], item.data[room:]
        self._offset += len(item.data)
        if early:
            yield self.on_time(item.due, early)
        if not self._after.seconds and self._offset >= self._after.size:
            yield from self._begin_at(item.due)
            if late:
                yield from self._work_on(Item(item.due, late))

    def _begin_at(self, now: float) -> Iterator[Item]:
        self._working = True
        self.wake_at = math.inf
        yield from self.begin(now)

    def _work_on(self, item: Item) -> Iterator[Item]:
        yield from self.work(item)
        self.seen += len(item.data)

    def _other(self, item: Item) -> Iterator[Item]:
        if self._working:
            yield from self.end(item)
        else:
            yield self.on_time(item.due, act=item.act)

    def on_time(self, due: float, data: bytes = b"", act: Act | None = None) -> Item:
        """Return an item that is due then, or with the last one if that is later."""
        self._last = max(self._last, due)
        return Item(self._last, data, act)

    def release(self, now: float) -> None:
        """Note that another fault holds nothing more: what it has passed on is due now."""
        self._last = min(self._last, now)

    # For each fault.

    def begin(self, now: float) -> Iterator[Item]:
        """Return what is sent, or done, where the fault begins."""
        return iter(())

    def work(self, item: Item) -> Iterator[Item]:
        """Take data from where it begins on; `seen` bytes came before."""
        yield self.on_time(item.due, item.data)

    def end(self, item: Item) -> Iterator[Item]:
        """Take an item without data, from where it begins on."""
        yield self.on_time(item.due, act=item.act)

    def client_spoke(self) -> None:
        """Note that the client's first byte is passed to the handler."""


OUT_FIRST = (Direction.OUT, Direction.IN)


@dataclass(frozen=True)
class Fault:
    """A fault, with its own keys."""

    name: ClassVar[str]
    stage: ClassVar[type[Stage]]
    # The directions in which it can work, the default first.
    directions: ClassVar[tuple[Direction, ...]] = OUT_FIRST


@dataclass(frozen=True)
class Rule:
    """One `--fault`.

    Attributes:
        text: as it was written.
        fault: the fault.
        direction: the direction in which it works.
        selection: which connections it selects, and when it begins there.
    """

    text: str
    fault: Fault
    direction: Direction
    selection: Selection

    def __str__(self) -> str:
        return self.text
