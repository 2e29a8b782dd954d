"""Limit events of one kind to a rate, and count the rest by source.

Pure: the time is passed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from echod.addresses import network_of

# The seconds over which events of a kind are counted: long enough to write a whole burst, such as
# clients that all reconnect at once.
WINDOW = 10.0

# How many addresses are told apart in the suppressed events of a kind, and how many are named.
MOST_SOURCES = 64
NAMED = 3

# How many suppressed events of a kind are noted before they are counted by address.
MOST_NOTED = 256

# How many kinds are told apart; there are few formats, unless a handler makes them from input.
MOST_KINDS = 1000


class EventKind(NamedTuple):
    """The properties that events of one kind share."""

    logger: str
    format: str
    level: str


_OTHERS = EventKind("-", "(others)", "info")


class Tally:
    """Counts sources, and finds the most frequent ones among any number of different ones.

    The algorithm is by Misra and Gries (1982): it keeps a count of each source that makes up more
    than one in `MOST_SOURCES`; the count is too low by at most that share of all, and exact if
    there are fewer sources.

    Attributes:
        counts: how many there were of each source that is kept.
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.counts: dict[str, int] = {}

    def add(self, source: str, count: int = 1) -> None:
        """Count `count` more of `source`."""
        counts = self.counts
        if source in counts:
            counts[source] += count
        elif len(counts) < MOST_SOURCES:
            counts[source] = count
        else:
            fewest = min(count, *counts.values())
            self.counts = {name: n - fewest for name, n in counts.items() if n > fewest}
            if count > fewest:
                self.counts[source] = count - fewest

    def top(self, most: int) -> list[tuple[str, int]]:
        """Return up to `most` of the most frequent sources, with their counts."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:most]


class Excess(NamedTuple):
    """The suppressed events of a kind.

    Attributes:
        kind: the kind.
        events: their number.
        seconds: the seconds over which they came.
        top: the addresses that most of them were about, each with its count.
    """

    kind: EventKind
    events: int
    seconds: int
    top: list[tuple[str, int]]


@dataclass
class _Window:
    """The events of a kind since the time `began`."""

    began: float
    admitted: int = 0
    excess: int = 0
    sources: Tally = field(default_factory=Tally)


class Limiter:
    """Counts events by kind, and decides which are above the rate.

    Only one thread at a time may call it. But any thread may append to a list in `above`.

    Attributes:
        rate: how many events of one kind may be written a second, over `WINDOW` seconds; 0: all.
        above: the kinds of which all events are above the rate until the next report, and for
            each a list: to append the source of such an event is to suppress it. Call `count`
            when it is longer than `MOST_NOTED`.
        counted: how many events were above the rate, without those that are in a list.
        reported: how many of them `report` has returned.
    """

    def __init__(self, rate: float) -> None:
        """Start with nothing counted."""
        self.rate = rate
        self.above: dict[EventKind, list[str]] = {}
        self.counted = 0
        self.reported = 0
        self._windows: dict[EventKind, _Window] = {}
        # Each list is kept: a thread that has got it from `above` may append to it later.
        self._noted: dict[EventKind, list[str]] = {}

    def change(self, rate: float) -> None:
        """Use another rate from now on."""
        self.rate = rate
        self.above.clear()

    def admits(self, kind: EventKind, now: float, peer: str = "") -> bool:
        """Count an event; return whether it may be written.

        Args:
            kind: its kind.
            now: the time, in seconds.
            peer: the client that it is about, as `ADDRESS:PORT`; "" if it is about none.
        """
        window = self._windows.get(kind)
        if window is None:
            if len(self._windows) >= MOST_KINDS:
                kind = self._make_room(kind, now)
            window = self._windows.setdefault(kind, _Window(now))
        elif now - window.began >= WINDOW and not window.excess:
            window.began, window.admitted = now, 0
        if self._has_room(window):
            window.admitted += 1
            return True
        self._exceed(window, source_of(peer))
        return False

    def refuses(self, kind: EventKind, clock: Callable[[], float], source: str = "") -> bool:
        """Return whether an event that is not made yet would be above the rate; count it if so.

        Otherwise `admits` counts it when it is written.

        Args:
            kind: its kind.
            clock: returns the time, in seconds; it is asked only if that matters.
            source: see `source_of`.
        """
        window = self._windows.get(kind)
        if window is None or self._has_room(window):
            return False
        if not window.excess and clock() - window.began >= WINDOW:
            return False  # `admits` begins another window
        self._exceed(window, source)
        self.above[kind] = self._noted.setdefault(kind, [])
        return True

    def _has_room(self, window: _Window) -> bool:
        return not self.rate or window.admitted < self.rate * WINDOW

    def _exceed(self, window: _Window, source: str, count: int = 1) -> None:
        window.excess += count
        self.counted += count
        if source:
            window.sources.add(source, count)

    def count(self, kind: EventKind, now: float) -> None:
        """Count the events of `kind` that were only noted, in `above`.

        Args:
            kind: the kind.
            now: the time.
        """
        noted = self._noted[kind]
        sources = noted[:]
        del noted[: len(sources)]  # another thread may have appended more
        window = self._windows.setdefault(kind, _Window(now))
        for source, count in Counter(sources).items():
            self._exceed(window, source, count)

    def _make_room(self, kind: EventKind, now: float) -> EventKind:
        for known, window in list(self._windows.items()):
            if now - window.began >= WINDOW and not window.excess:
                del self._windows[known]
        return kind if len(self._windows) < MOST_KINDS else _OTHERS

    @property
    def suppressed(self) -> int:
        """How many events were above the rate."""
        return self.counted + sum(map(len, self._noted.values()))

    @property
    def holding(self) -> int:
        """How many suppressed events are to be reported, now or later; of each kind, not all."""
        return self.counted - self.reported

    def report(self, now: float, *, everything: bool = False) -> list[Excess]:
        """Return the suppressed events, and forget them.

        Args:
            now: the time.
            everything: include kinds whose window is not over yet.
        """
        reports = []
        for kind, noted in self._noted.items():
            if noted:
                self.count(kind, now)
        for kind, window in list(self._windows.items()):
            lasted = now - window.began
            if window.excess and (everything or lasted >= WINDOW):
                self.reported += window.excess
                del self._windows[kind]
                self.above.pop(kind, None)
                seconds, top = max(1, round(lasted)), window.sources.top(NAMED)
                reports.append(Excess(kind, window.excess, seconds, top))
        return reports


def source_of(peer: str) -> str:
    """Return what the events about a client are counted under: its IPv4 address, or IPv6 network.

    It is "" if the client has no such address.

    Args:
        peer: its address, as `ADDRESS:PORT`; an IPv6 address is in brackets.
    """
    host = peer.rpartition(":")[0]
    if ":" not in host:
        return host
    try:
        return network_of(host.strip("[]"))
    except ValueError:
        return ""
