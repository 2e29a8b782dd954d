"""Check the deadlines of connections in turn, so that none needs a timer of its own.

There are two rounds. Every connection is checked once an `interval`, which is a small part of the
shortest time that it may stay silent. Connections with an urgent deadline, such as to read our
data or to shake hands, are checked twice a second.

Checking ten thousand connections at once would keep the event loop busy for ten milliseconds and
more. So a round is cut into slices of `SLICE` connections, each well below a millisecond.

If the event loop was held up, by a handler or because the process was stopped, it first reads what
came meanwhile: a client that has sent something in time is not silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from echod.timers import cancel_timer

log = Logger("echod.connection")

# How often connections with an urgent deadline are checked, in seconds.
URGENT_INTERVAL = 0.5
# The longest time between two checks of a connection, in seconds.
LONGEST_INTERVAL = 10.0
# How many connections are checked at once.
SLICE = 250
# How late a check may be, in seconds; later, the event loop was held up.
LATE = 0.1
# How long it then has to read what came meanwhile, in seconds: at least one turn.
CATCH_UP = 0.01


class Watched(Protocol):
    """An object that a sweeper checks."""

    def sweep(self, now: float) -> None:
        """Close if a deadline has passed; `now` in seconds."""


Member = TypeVar("Member", bound=Watched)


def interval_for(timeouts: Iterable[float]) -> float:
    """Return the interval of checks that keeps the shortest time-out to within a twentieth.

    Args:
        timeouts: in seconds; 0 is none.
    """
    shortest = min(filter(None, timeouts), default=math.inf)
    return max(URGENT_INTERVAL, min(shortest / 20, LONGEST_INTERVAL))


class Sweeper(Generic[Member]):
    """Has one timer for all connections, and none while there are none.

    Attributes:
        members: all connections.
        urgent: those that are checked more often.
    """

    def __init__(self, clock: Callable[[], IReactorTime], interval: float) -> None:
        """Set up, without a timer.

        Args:
            clock: returns a provider of `IReactorTime`, when it is first needed.
            interval: seconds between two checks of a connection.
        """
        self.members: set[Member] = set()
        self.urgent: set[Member] = set()
        self._clock = clock
        self._rounds = (
            _Round(self.urgent, URGENT_INTERVAL),
            _Round(self.members, interval),
        )
        self._timer: IDelayedCall | None = None
        self._due = 0.0

    def look_every(self, interval: float) -> None:
        """Check each connection once in `interval` seconds, from the next round on."""
        self._rounds[1].interval = interval

    def add(self, member: Member) -> None:
        """Check `member` from now on, and soon."""
        self.members.add(member)
        self.urgent.add(member)
        if self._timer is None:
            for one in self._rounds:
                one.restart(self._clock().seconds())
            self._wait(URGENT_INTERVAL)

    def discard(self, member: Member) -> None:
        """Stop checking `member`."""
        self.members.discard(member)
        self.urgent.discard(member)
        if not self.members and self._timer is not None:
            cancel_timer(self._timer)
            self._timer = None

    def _wait(self, seconds: float) -> None:
        self._due = self._clock().seconds() + seconds
        self._timer = self._clock().callLater(seconds, self._begin)

    def _begin(self) -> None:
        if self._clock().seconds() - self._due > LATE:
            self._timer = self._clock().callLater(CATCH_UP, self._sweep)
        else:
            self._sweep()

    def _sweep(self) -> None:
        now, fired = self._clock().seconds(), self._timer
        for one in self._rounds:
            for member in one.take(now):
                self._look_at(member, now)
        if not self.urgent:
            self.urgent.clear()  # otherwise it keeps the memory of ten thousand members
        if self._timer is fired:  # it was not stopped and restarted meanwhile
            self._wait(min(one.pause(now) for one in self._rounds))

    def _look_at(self, member: Member, now: float) -> None:
        if member in self.members:
            try:
                member.sweep(now)
            except Exception:  # the others' deadlines still apply
                log.failure("Checking a connection's deadlines failed")


class _Round(Generic[Member]):
    """Goes through a set once an interval, a slice at a time."""

    def __init__(self, members: set[Member], interval: float) -> None:
        self.interval = interval
        self._members = members
        self._left: list[Member] = []
        self._next = 0.0
        self._slices = 1

    def restart(self, now: float) -> None:
        """Begin an interval from now."""
        self._left.clear()
        self._next = now + self.interval

    def take(self, now: float) -> list[Member]:
        """Return the members whose turn it is."""
        if not self._left and now >= self._next:
            self._left = list(self._members)
            self._slices = max(1, math.ceil(len(self._left) / SLICE))
            self._next = now + self.interval
        taken = self._left[-SLICE:]
        del self._left[-SLICE:]
        return taken

    def pause(self, now: float) -> float:
        """Return how long after `now` the next slice, or the next round, is due, in seconds."""
        if self._left:
            return self.interval / self._slices
        return max(0.0, self._next - now)
