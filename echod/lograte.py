"""How many events of a kind the log takes, and which are too many.

Pure: the time is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# Over how many seconds events of a kind are counted.  Long enough for a burst, as of clients that
# all come back at once, to be written whole.
WINDOW = 10.0

# How many kinds are told apart; formats are few unless somebody makes them from what comes in.
MOST_KINDS = 1000


class EventKind(NamedTuple):
    """What makes events alike."""

    logger: str
    format: str
    level: str


_OTHERS = EventKind("-", "(others)", "info")


@dataclass
class _Window:
    """What was seen of a kind since the time it `began`."""

    began: float
    admitted: int = 0
    excess: int = 0


class Limiter:
    """Counts events by kind, and says which are too many.

    Attributes:
        rate: how many events of one kind may be written a second, over `WINDOW` seconds; 0: all.
        suppressed: how many were too many.
    """

    def __init__(self, rate: float) -> None:
        """Start with nothing counted."""
        self.rate = rate
        self.suppressed = 0
        self._windows: dict[EventKind, _Window] = {}
        self._unreported = 0

    def admits(self, kind: EventKind, now: float) -> bool:
        """Count an event; return whether it may be written."""
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
        self._exceed(window)
        return False

    def refuses(self, kind: EventKind, now: float) -> bool:
        """Return whether an event that is yet to be made would be too many; count it if so.

        One that would not be is counted by `admits`, when it comes.
        """
        window = self._windows.get(kind)
        if window is None or self._has_room(window):
            return False
        if now - window.began >= WINDOW and not window.excess:
            return False  # `admits` begins another window
        self._exceed(window)
        return True

    def _has_room(self, window: _Window) -> bool:
        return not self.rate or window.admitted < self.rate * WINDOW

    def _exceed(self, window: _Window) -> None:
        window.excess += 1
        self.suppressed += 1
        self._unreported += 1

    def _make_room(self, kind: EventKind, now: float) -> EventKind:
        for known, window in list(self._windows.items()):
            if now - window.began >= WINDOW and not window.excess:
                del self._windows[known]
        return kind if len(self._windows) < MOST_KINDS else _OTHERS

    @property
    def holding(self) -> bool:
        """Whether there is something to report sooner or later."""
        return self._unreported > 0

    def report(self, now: float, *, everything: bool = False) -> list[tuple[EventKind, int, int]]:
        """Return kinds, how many of each were not written, and over how many seconds.

        Args:
            now: the time.
            everything: also those whose window is not over yet.
        """
        reports = []
        for kind, window in list(self._windows.items()):
            lasted = now - window.began
            if window.excess and (everything or lasted >= WINDOW):
                self._unreported -= window.excess
                del self._windows[kind]
                reports.append((kind, window.excess, max(1, round(lasted))))
        return reports
