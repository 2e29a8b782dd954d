"""The choice of the connections that get faults, and the stages that these get.

The faults may change while connections are open (`FaultPlan.change`). A rule that stays goes on
where it is: its counts, and its stages in open connections. A new rule counts connections, bytes
and seconds from the change on; the open connections come first, in the order in which they came.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from echod.faults.arrival import is_arrival
from echod.faults.items import Act, Direction, Draws, Item
from echod.faults.keys import Network
from echod.faults.stage import Cutter, Reads, Rule, Stage


@dataclass(eq=False)
class Armed:
    """A rule at work on a listener.

    Attributes:
        rule: the rule.
        number: its number among all; chance depends on it.
        change: the change of the faults that has brought it; 0 for the start.
        connections: the number of the last connection that has come, as it counts them: those that
            were open at the change are the first.
        asked: how many of those it has been asked about.
        hits: how many of them it has selected.
    """

    rule: Rule
    number: int
    change: int = 0
    connections: int = 0
    asked: int = 0
    hits: int = 0

    def hit(self, server_name: str | None) -> bool:
        """Return whether it hits a connection that it has selected, and count that.

        Args:
            server_name: the host that the client has asked for in TLS; None for none, or not yet.
        """
        wanted = self.rule.selection
        hits = wanted.is_for(server_name) and not 0 < wanted.at_most <= self.hits
        self.hits += hits
        return hits


class Pick(NamedTuple):
    """A rule that has selected a connection.

    Attributes:
        armed: the rule.
        connection: the number of the connection, as the rule counts them.
    """

    armed: Armed
    connection: int


class Course:
    """The stages of one direction of a connection.

    Attributes:
        stages: the stages by their rules, in the order in which data passes them.
        wake_at: when `wake` has to be called at the latest, in seconds; inf: never.
    """

    def __init__(self, stages: Mapping[Armed, Stage]) -> None:
        """Set up with stages in the order in which data passes them."""
        self.stages = stages
        self._named = [(armed.rule.fault.name, stage) for armed, stage in stages.items()]
        self._told: set[str] = set()
        self.wake_at = min((stage.wake_at for _, stage in self._named), default=math.inf)

    def start(self, now: float) -> list[Item]:
        """Begin those that begin with the connection, or with the change that brought them."""
        return self._each(lambda stage: stage.start(now))

    def release(self, items: Iterable[Item], now: float) -> list[Item]:
        """Return held items as they are due now that a stage has been taken away.

        They pass at once, unless a stall that is left holds them; the acts of stages that are gone
        do not happen.
        """
        stages = self.stages.values()
        for stage in stages:
            stage.release(now)
        # An act by time does not happen before its own.
        acts: dict[Act | None, float] = {stage.act: stage.begins_at for stage in stages}
        acts[None] = now
        holds = [stage.holds_until for stage in stages]
        return [
            item._replace(
                due=max([now, acts[item.act], *(until for until in holds if until <= item.due)]),
                gap=0.0,
            )
            for item in items
            if item.act in acts
        ]

    def take(self, data: bytes, now: float) -> list[Item]:
        """Take data that comes now."""
        return self._pass_on([Item(now, data)], 0)

    def end(self, now: float) -> list[Item]:
        """Take the end of the stream."""
        return self._pass_on([Item(now)], 0)

    def wake(self, now: float) -> list[Item]:
        """Begin those whose time has come."""
        return self._each(lambda stage: stage.wake(now))

    def handshaken(self, now: float) -> list[Item]:
        """Begin those that begin with the end of the handshake."""
        return self._each(lambda stage: stage.handshaken(now))

    @property
    def awaits_message(self) -> bool:
        """Whether a fault of the other direction's stream begins with a message of the client."""
        return any(one.begins_with_message and not one.has_begun for _, one in self._named)

    def begins_with(self, message: bytes, now: float) -> bool:
        """Return whether a fault would begin with this message, the next one of the client."""
        return any(stage.begins_with(message, now) for _, stage in self._named)

    def heard(self, message: bytes, now: float) -> list[Item]:
        """Note that this message of the client is passed to the handler, after this call."""
        return self._each(lambda stage: stage.heard(message, now))

    @property
    def generates(self) -> bool:
        """Whether a fault sends data of its own, for as long as the other side takes it."""
        return any(stage.generates for _, stage in self._named)

    def generate(self, now: float) -> list[Item]:
        """Return the next data of a fault's own."""
        return self._each(lambda stage: stage.generate(now))

    def stop_generating(self, now: float) -> list[Item]:
        """Let the stream end, if it has: the daemon drains."""
        return self._each(lambda stage: stage.stop_generating(now))

    def acted(self, act: Act) -> None:
        """Note that an act has taken place: until then another fault may hide it."""
        for _, stage in reversed(self._named):
            if stage.act is act and stage.has_begun:
                stage.happened = True
                return

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
            items = [one for item in items for one in _with_gap(item, stage.take(item))]
        self.wake_at = min((stage.wake_at for _, stage in self._named), default=math.inf)
        return items


def _with_gap(item: Item, results: Iterable[Item]) -> Iterator[Item]:
    """Let the first that follows from an item keep its distance to the one ahead."""
    gap = item.gap
    for one in results:
        yield one._replace(gap=max(gap, one.gap)) if gap else one
        gap = 0.0


class Changing(Protocol):
    """An open connection whose faults may change."""

    def change(self, chosen: Chosen) -> None:
        """Use these faults from now on."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """The faults of one connection.

    Attributes:
        picks: the rules that have selected it.
        faults: the listener's faults, which have chosen them.
        host: the client's address; "" if it has none.
        change: the last change of the faults that it takes in.
    """

    picks: tuple[Pick, ...]
    faults: Faults
    host: str
    change: int = 0

    @property
    def names(self) -> list[str]:
        """The names of the faults."""
        return [pick.armed.rule.fault.name for pick in self.picks]

    def course(
        self,
        direction: Direction,
        now: float,
        before: Course | None = None,
        cutter: Callable[[], Cutter] = Reads,
    ) -> Course:
        """Return the course of one direction, for a connection that begins now.

        Args:
            direction: which.
            now: the time.
            before: the course so far, whose stages go on if their rules are still there.
            cutter: makes what finds the messages in the client's stream.
        """
        ours = [pick for pick in self.picks if pick.armed.rule.direction is direction]
        if direction is Direction.OUT:  # the first fault is the client's nearest
            ours.reverse()
        stages = before.stages if before else {}
        return Course(
            {
                pick.armed: stages.get(pick.armed)
                or self.faults.stage(pick, direction, now, cutter())
                for pick in ours
            }
        )


class Faults:
    """The faults of one listener: chooses those of each connection.

    Attributes:
        changeable: whether they may change, for open connections too.
        arrivals: the faults of the listener itself.
        arrivals_changed: is called when those have changed.
        open: the open connections, in the order in which they came, if the faults may change.
        seed: on which all chance depends; a rule keeps, in a connection, the one that it began by.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        seed: int,
        listener: int,
        endpoint: str,
        *,
        changeable: bool = False,
    ) -> None:
        """Set up.

        Args:
            rules: all faults.
            seed: the seed.
            listener: the listener's number, from 1.
            endpoint: its endpoint string.
            changeable: see above.
        """
        self.changeable = changeable
        self.open: dict[Changing, Chosen] = {}
        self.seed = seed
        self._listener = listener
        self._endpoint = endpoint
        self._armed: list[Armed] = []
        # The number of the last change.
        self._change = -1
        self.arrivals: list[Rule] = []
        self.arrivals_changed: Callable[[], None] = lambda: None
        self.change(enumerate(rules))

    @property
    def names(self) -> list[str]:
        """The names of the faults that may happen here."""
        return [rule.fault.name for rule in (*(one.rule for one in self._armed), *self.arrivals)]

    def choose(self, host: str) -> Chosen | None:
        """Return the faults of the next connection; None if it has none, and never will.

        Args:
            host: the client's address; "" if it has none.
        """
        picks = []
        for armed in self._armed:
            armed.connections += 1
            if self._picks(armed, armed.connections, host):
                picks.append(Pick(armed, armed.connections))
        if not picks and not self.changeable:
            return None
        return Chosen(tuple(picks), self, host, self._change)

    def change(self, numbered: Iterable[tuple[int, Rule]]) -> Iterator[None]:
        """Use these rules, each with its number among all, for new connections from now on.

        Returns:
            Uses them in one more open connection at each step.
        """
        before = {one.number: one for one in self._armed}
        self._armed = []
        self._change += 1
        arrivals: list[Rule] = []
        for number, rule in numbered:
            if not rule.selection.covers(self._listener, self._endpoint):
                continue
            if is_arrival(rule):
                arrivals.append(rule)
                continue
            armed = before.get(number)
            if armed is None or armed.rule is not rule:
                armed = Armed(rule, number, self._change, len(self.open))
            self._armed.append(armed)
        if arrivals != self.arrivals:
            self.arrivals = arrivals
            self.arrivals_changed()
        return self._change_open()

    def _change_open(self) -> Iterator[None]:
        for connection in list(self.open):
            chosen = self.open.get(connection)
            # It may have ended; or a later change was quicker.
            if chosen is not None and chosen.change < self._change:
                self._change_one(connection, chosen)
            yield

    def _change_one(self, connection: Changing, chosen: Chosen) -> None:
        picks = {pick.armed: pick for pick in chosen.picks}
        for armed in self._armed:
            if armed.change > chosen.change:
                armed.asked += 1
                if self._picks(armed, armed.asked, chosen.host):
                    picks[armed] = Pick(armed, armed.asked)
        left = tuple(picks[armed] for armed in self._armed if armed in picks)
        changed = self.open[connection] = Chosen(left, self, chosen.host, self._change)
        connection.change(changed)

    def stage(self, pick: Pick, direction: Direction, now: float, cutter: Cutter) -> Stage:
        """Return the stage of a rule in a connection, for one direction."""
        armed, connection = pick
        key = (self.seed, armed.number, self._listener, connection, direction.value)
        return armed.rule.fault.stage(armed.rule, Draws(*key), now, cutter)

    def _picks(self, armed: Armed, connection: int, host: str) -> bool:
        """Return whether a rule picks a connection of this number that is new to it."""
        # Without `sni`; with it the hit is counted once the client has asked for a host.
        return self._selects(armed, connection, host) and (
            bool(armed.rule.selection.sni) or armed.hit(None)
        )

    def _selects(self, armed: Armed, connection: int, host: str) -> bool:
        wanted = armed.rule.selection
        if connection % wanted.every or (wanted.first and connection > wanted.first):
            return False
        if wanted.source is not None and not _is_within(host, wanted.source):
            return False
        draws = Draws(self.seed, armed.number, self._listener, connection, "choice")
        return wanted.p >= 1 or draws.uniform(0) < wanted.p


class FaultPlan:
    """The faults of a service, over all of its listeners.

    Attributes:
        seed: on which all chance depends.
        changeable: whether they may change while the service runs.
    """

    def __init__(self, rules: Iterable[Rule], seed: int, *, changeable: bool = False) -> None:
        """Set up, without listeners."""
        self.seed = seed
        self.changeable = changeable
        self._numbered = list(enumerate(rules))
        self._listeners: list[Faults] = []

    @property
    def rules(self) -> list[Rule]:
        """The faults, in their order."""
        return [rule for _, rule in self._numbered]

    def for_listener(self, number: int, endpoint: str) -> Faults | None:
        """Return the faults of a listener; None if it has none, and never will.

        Args:
            number: its number, from 1.
            endpoint: its endpoint string.
        """
        faults = Faults(self.rules, self.seed, number, endpoint, changeable=self.changeable)
        if not faults.names and not self.changeable:
            return None
        self._listeners.append(faults)
        return faults

    def change(self, rules: Iterable[Rule], seed: int | None = None) -> None:
        """Use these rules from now on, for new connections and open ones.

        A rule that is here already (the same object) goes on as it is; any other one begins.

        Raises:
            RuntimeError: the faults may not change.
        """
        for _ in self.begin_change(rules, seed):
            pass

    def begin_change(self, rules: Iterable[Rule], seed: int | None = None) -> Iterator[None]:
        """Use these rules for new connections; as `change`.

        Returns:
            Uses them in one more open connection at each step.
        """
        if not self.changeable:
            raise RuntimeError("the faults of this service were not set up to change")
        if seed is not None:
            self.seed = seed
            for faults in self._listeners:
                faults.seed = seed
        wanted = list(rules)
        here = {id(rule): number for number, rule in self._numbered}
        numbers = [here.pop(id(rule), None) for rule in wanted]  # once each
        kept = [number for number in numbers if number is not None]
        fresh = itertools.count(max(kept, default=-1) + 1)
        self._numbered = [
            (next(fresh) if number is None else number, rule)
            for number, rule in zip(numbers, wanted, strict=True)
        ]
        return itertools.chain.from_iterable(
            [faults.change(self._numbered) for faults in self._listeners]
        )


def _is_within(host: str, network: Network) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a UNIX socket's client has none
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped in network or address in network
    return address in network
