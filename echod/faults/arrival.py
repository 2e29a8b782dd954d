"""The faults of a listener, before there is a connection.

They take `listener=` and times alone: who comes is not known yet. `echod.listening.arrivals`
closes and opens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from echod.faults.keys import key, parse_pause
from echod.faults.stage import Fault

if TYPE_CHECKING:
    from echod.faults.stage import Rule

Kind = TypeVar("Kind", bound="Arrival")

# The common keys that these faults take.
KEYS = ("after", "listener")


@dataclass(frozen=True)
class Arrival(Fault):
    """A fault of a listener."""

    lasts: float = key(math.inf, parse_pause, "for how long, in seconds; without it, for ever")


@dataclass(frozen=True)
class Refuse(Arrival):
    """Connections are refused."""

    name = "refuse"


@dataclass(frozen=True)
class ConnectTimeout(Arrival):
    """The first packet of a connection gets no answer."""

    name = "connect-timeout"


@dataclass(frozen=True)
class SlowAccept(Arrival):
    """Connections are accepted late."""

    name = "slow-accept"
    time: float = key(1.0, parse_pause, "how much later, in seconds")


def is_arrival(rule: Rule) -> bool:
    """Return whether a rule is about a listener."""
    return isinstance(rule.fault, Arrival)


def at_work(rules: Sequence[Rule], elapsed: float, *kinds: type[Kind]) -> Rule | None:
    """Return the first rule of these kinds that is at work.

    Args:
        rules: faults of a listener.
        elapsed: how long they have been there, in seconds.
        kinds: the kinds.
    """
    for rule in rules:
        begins, ends = _window(rule)
        if isinstance(rule.fault, kinds) and begins <= elapsed < ends:
            return rule
    return None


def next_change(rules: Sequence[Rule], elapsed: float) -> float:
    """Return how long it takes until one begins or ends, in seconds; inf: none does."""
    times = [time for rule in rules for time in _window(rule)]
    return min((time - elapsed for time in times if time > elapsed), default=math.inf)


def _window(rule: Rule) -> tuple[float, float]:
    assert isinstance(rule.fault, Arrival)
    begins = rule.selection.after.seconds or 0.0
    return begins, begins + rule.fault.lasts
