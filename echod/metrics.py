"""What the daemon counts.  Plain integers, no I/O: whoever wants to show them reads them.

Written in the reactor thread only, but for the stalls of that thread, which `echod.stalls` counts;
a connection's own figures are added when it ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple


class Totals(NamedTuple):
    """What has been counted over all listeners: since the start, or of the last minute."""

    accepted: int = 0
    ended: int = 0
    refused: int = 0
    handler_errors: int = 0
    lines_lost: int = 0

    def since(self, before: Totals) -> Totals:
        """Return how much more this is than `before`."""
        return Totals(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass
class Metrics:
    """Counters since the start, over all connections; sizes in bytes."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    # What handlers have raised: in `closed`, too, when the connection has ended by something else.
    handler_errors: int = 0
    messages: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    # How often the event loop stood still, and for how many seconds in all.
    stalls: int = 0
    stalled: float = 0.0

    @property
    def open(self) -> int:
        """How many connections there are now."""
        return self.accepted - self.ended.total()

    def end(self, reason: str, *, messages: int, received: int, sent: int) -> None:
        """Count the end of one connection, and what it had moved.

        Args:
            reason: why it ended, one of a fixed few.
            messages: how many messages it was handed.
            received: bytes from the client.
            sent: bytes to the client.
        """
        self.ended[reason] += 1
        self.messages += messages
        self.bytes_received += received
        self.bytes_sent += sent


class Histogram:
    """How often values fell into which range.

    Attributes:
        bounds: the upper bounds of the ranges, ascending; a value on a bound is below it.
        counts: how many values were in each range; one more than bounds.
        total: the sum of all values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start with nothing counted."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def cumulative(self) -> list[int]:
        """How many values were at most each bound; the last is all of them."""
        return list(accumulate(self.counts))
