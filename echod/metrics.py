"""The daemon's counters: plain integers, without I/O; the status and the log read them.

Only the reactor thread writes them, with one exception: `daemon.stalls` counts the stalls of that
thread. A connection's own figures are added when it ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple


class Totals(NamedTuple):
    """Totals over all listeners, since the start or of the last minute."""

    accepted: int = 0
    ended: int = 0
    refused: int = 0
    handler_errors: int = 0
    lines_lost: int = 0

    def since(self, before: Totals) -> Totals:
        """Return the difference from `before`."""
        return Totals(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass
class Metrics:
    """Counters since the start, over all connections; sizes in bytes."""

    accepted: int = 0
    # Connections of a load balancer's own, by `reasons.Check`; else only their traffic counts.
    checks: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    # The connections in which a fault on purpose has happened, by fault.
    faults: Counter[str] = field(default_factory=Counter)
    # Exceptions of handlers, also those in `closed` of a connection that ended for another reason.
    handler_errors: int = 0
    messages: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    # How often the event loop was blocked, and for how many seconds in total.
    stalls: int = 0
    stalled: float = 0.0

    @property
    def open(self) -> int:
        """The number of open connections."""
        return self.accepted - self.ended.total()

    def end(self, reason: str, *, messages: int, received: int, sent: int) -> None:
        """Count the end of one connection, and its traffic.

        Args:
            reason: why it ended, one of a fixed few.
            messages: how many messages its handler got.
            received: bytes from the client.
            sent: bytes to the client.
        """
        self.ended[reason] += 1
        self.messages += messages
        self.bytes_received += received
        self.bytes_sent += sent

    def end_check(
        self, check: str, *, messages: int = 0, received: int = 0, sent: int = 0
    ) -> None:
        """Count a health check that has ended, and its traffic.

        Args:
            check: its kind, one of a fixed few.
            messages: how many messages its handler got.
            received: bytes from the load balancer.
            sent: bytes to it.
        """
        self.checks[check] += 1
        self.messages += messages
        self.bytes_received += received
        self.bytes_sent += sent


class Histogram:
    """Counts how many values fell into each range.

    Attributes:
        bounds: the upper bounds of the ranges, ascending; a range includes its upper bound.
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
        """The number of values up to each bound; the last item is the number of all values."""
        return list(accumulate(self.counts))
