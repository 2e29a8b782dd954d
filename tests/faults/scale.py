"""How much a test does: a little in `make test`, a lot in `make soak`.

A test that has a long form takes its count from the fixture `scale`::

    def test_nothing_is_lost(scale):
        for number in scale(ci=300, soak=100_000):
            ...

Threads may share what `scale` returns. In a soak it shows how far it is, and it ends early when
the test has had its share of SOAK_HOURS, though not below the count of `make test`; the summary
says how much of it was done.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

SOAK = bool(os.environ.get("SOAK"))

# How long a soak may take altogether.
HOURS = float(os.environ.get("SOAK_HOURS", "8"))

# Seconds between two lines that show how far a test is.
SHOWN_EVERY = 15.0


def number(*, ci: int, soak: int) -> int:
    """Return how many, without a count of progress: for a decorator, such as hypothesis's."""
    return soak if SOAK else ci


@dataclass
class Part:
    """The planned and the actual count of one loop of a test."""

    wanted: int
    least: int
    done: int = 0


@dataclass
class Report:
    """The work of one test in the soak."""

    name: str
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Budget:
    """The time of the soak, shared out among its tests."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self.tests_left = 1

    def share(self) -> float:
        """Return when the test that begins now has to end; the others get its unused time."""
        now = self._clock()
        share = max(0.0, self._end - now) / max(1, self.tests_left)
        self.tests_left -= 1
        return now + share


class Rounds:
    """The numbers from 0 on, for one thread or several, until all are done or time is up."""

    def __init__(self, part: Part, deadline: float, show: Callable[[str], None]) -> None:
        self._part = part
        self._deadline = deadline
        self._show = show
        self._lock = threading.Lock()
        self._began = self._shown = time.monotonic()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            now = time.monotonic()
            late = now > self._deadline and self._part.done >= self._part.least
            if self._part.done >= self._part.wanted or late:
                raise StopIteration
            if now - self._shown > SHOWN_EVERY:
                self._shown = now
                self._show(
                    f"{self._part.done:,} of {self._part.wanted:,}, {now - self._began:.0f} s"
                )
            self._part.done += 1
            return self._part.done - 1


class Scale:
    """The size of one test's work; the fixture `scale` gives it."""

    def __init__(self, name: str, deadline: float | None) -> None:
        """Begin a test.

        Args:
            name: the test's.
            deadline: when it has to end, in monotonic seconds; None outside a soak.
        """
        self.soak = deadline is not None
        self.report = Report(name)
        self._deadline = float("inf") if deadline is None else deadline

    def __call__(self, *, ci: int, soak: int) -> Rounds:
        """Return the numbers from 0 to `ci`, or in a soak to `soak`."""
        part = Part(soak if self.soak else ci, ci)
        self.report.parts.append(part)
        return Rounds(part, self._deadline, self._show if self.soak else _silent)

    def for_seconds(self, *, ci: float, soak: float) -> Iterator[float]:
        """Yield the seconds that have passed, until they are `ci`, or in a soak `soak`."""
        began = shown = time.monotonic()
        end = max(began + ci, min(self._deadline, began + soak)) if self.soak else began + ci
        while (now := time.monotonic()) < end:
            if self.soak and now - shown > SHOWN_EVERY:
                shown = now
                self._show(f"{now - began:.0f} of {end - began:.0f} s")
            yield now - began

    @property
    def seconds_left(self) -> float:
        """How long the test may still take."""
        return max(1.0, self._deadline - time.monotonic())

    def note(self, text: str) -> None:
        """Tell the summary a figure."""
        self.report.notes.append(text)

    def _show(self, text: str) -> None:
        print(f"  {self.report.name}: {text}", file=sys.__stderr__, flush=True)


def _silent(text: str) -> None:
    pass
