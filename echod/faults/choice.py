"""The choice of the connections that get faults, and the stages that these get."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from echod.faults.items import Direction, Draws, Item
from echod.faults.keys import Network
from echod.faults.stage import Rule, Stage


class Course:
    """The stages of one direction of a connection.

    Attributes:
        wake_at: when `wake` has to be called at the latest, in seconds; inf: never.
    """

    def __init__(self, named: Sequence[tuple[str, Stage]]) -> None:
        """Set up with stages in the order in which data passes them, each with its name."""
        self._named = named
        self._told: set[str] = set()
        self.wake_at = min((stage.wake_at for _, stage in named), default=math.inf)

    def start(self, now: float) -> list[Item]:
        """Begin those that begin with the connection."""
        return self._each(lambda stage: stage.start(now))

    def take(self, data: bytes, now: float) -> list[Item]:
        """Take data that comes now."""
        return self._pass_on([Item(now, data)], 0)

    def end(self, now: float) -> list[Item]:
        """Take the end of the stream."""
        return self._pass_on([Item(now)], 0)

    def wake(self, now: float) -> list[Item]:
        """Begin those whose time has come."""
        return self._each(lambda stage: stage.wake(now))

    def client_spoke(self) -> None:
        """Note that the client's first byte is passed to the handler."""
        for _, stage in self._named:
            stage.client_spoke()

    def fresh(self) -> list[str]:
        """Return the names of the faults that have happened since the last call."""
        names = [name for name, one in self._named if one.happened and name not in self._told]
        self._told.update(names)
        return names

    def _each(self, ask: Callable[[Stage], Iterable[Item]]) -> list[Item]:
        items: list[Item] = []
        for number, (_, stage) in enumerate(self._named):
            items += self._pass_on(list(ask(stage)), number + 1)
        return items

    def _pass_on(self, items: list[Item], start: int) -> list[Item]:
        for _, stage in self._named[start:]:
            items = [one for item in items for one in stage.take(item)]
        self.wake_at = min((stage.wake_at for _, stage in self._named), default=math.inf)
        return items


@dataclass(frozen=True)
class Chosen:
    """The faults of one connection.

    Attributes:
        rules: which, each with its number among all.
        seed, listener, number: the connection.
    """

    rules: tuple[tuple[int, Rule], ...]
    seed: int
    listener: int
    number: int

    def course(self, direction: Direction, now: float) -> Course:
        """Return the course of one direction, for a connection that begins now."""
        ours = [(number, rule) for number, rule in self.rules if rule.direction is direction]
        if direction is Direction.OUT:  # the first fault is the client's nearest
            ours.reverse()
        return Course(
            [
                (
                    rule.fault.name,
                    rule.fault.stage(
                        rule,
                        Draws(self.seed, number, self.listener, self.number, direction.value),
                        now,
                    ),
                )
                for number, rule in ours
            ]
        )


class Faults:
    """The faults of one listener: chooses those of each connection."""

    def __init__(self, rules: Iterable[Rule], seed: int, listener: int, endpoint: str) -> None:
        """Set up.

        Args:
            rules: all faults.
            seed: the seed.
            listener: the listener's number, from 1.
            endpoint: its endpoint string.
        """
        self._seed = seed
        self._listener = listener
        self._rules = [
            (number, rule)
            for number, rule in enumerate(rules)
            if rule.selection.listener in ("", str(listener), endpoint)
        ]
        self._connections = 0
        self._hit: Counter[int] = Counter()

    @property
    def names(self) -> list[str]:
        """The names of the faults that may happen here."""
        return [rule.fault.name for _, rule in self._rules]

    def choose(self, host: str) -> Chosen | None:
        """Return the faults of the next connection; None if it has none.

        Args:
            host: the client's address; "" if it has none.
        """
        self._connections += 1
        chosen = tuple(one for one in self._rules if self._selects(*one, host))
        self._hit.update(number for number, _ in chosen)
        if not chosen:
            return None
        return Chosen(chosen, self._seed, self._listener, self._connections)

    def _selects(self, number: int, rule: Rule, host: str) -> bool:
        wanted, connection = rule.selection, self._connections
        if connection % wanted.every or (wanted.first and connection > wanted.first):
            return False
        if wanted.at_most and self._hit[number] >= wanted.at_most:
            return False
        if wanted.source is not None and not _is_within(host, wanted.source):
            return False
        draws = Draws(self._seed, number, self._listener, connection, "choice")
        return wanted.p >= 1 or draws.uniform(0) < wanted.p


def _is_within(host: str, network: Network) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a UNIX socket's client has none
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped in network or address in network
    return address in network
