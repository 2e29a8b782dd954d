"""The faults that end a connection, or keep its end away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from echod.faults.items import Act, Direction, Draws, Item
from echod.faults.keys import key, parse_seconds
from echod.faults.stage import Cutter, Fault, Rule, Stage


class _Acting(Stage):
    """Acts where it begins, and lets nothing pass from there on."""

    begins_alone = True

    def begin(self, now: float) -> Iterator[Item]:
        yield self.on_time(now, act=self.act)

    def work(self, item: Item) -> Iterator[Item]:
        return iter(())

    def end(self, item: Item) -> Iterator[Item]:
        return iter(())


class _Resetting(_Acting):
    """Resets behind all that comes before; by time, at once, whether the client reads or not."""

    act = Act.RESET

    def __init__(self, rule: Rule, draws: Draws, now: float, cutter: Cutter) -> None:
        super().__init__(rule, draws, now, cutter)
        if self._after.seconds is not None and not self.begins_with_message:
            self.act = Act.RESET_NOW


@dataclass(frozen=True)
class Reset(Fault):
    """The connection ends with RST."""

    name = "reset"
    stage = _Resetting


class _Closing(_Acting):
    act = Act.CLOSE


@dataclass(frozen=True)
class Close(Fault):
    """The connection ends early, with FIN."""

    name = "close"
    stage = _Closing


class HalfClosing(_Acting):
    """Acts where it begins; later acts still pass."""

    act = Act.HALF_CLOSE

    def end(self, item: Item) -> Iterator[Item]:
        if item.act is not None:
            yield self.on_time(item.due, act=item.act)


@dataclass(frozen=True)
class HalfClose(Fault):
    """The server sends FIN early, and reads on."""

    name = "half-close"
    stage = HalfClosing
    directions = (Direction.OUT,)


class _StayingOpen(Stage):
    fault: NeverClose

    def end(self, item: Item) -> Iterator[Item]:
        if item.act is not None:
            yield self.on_time(item.due, act=item.act)
            return
        self.happened = True
        if self.fault.time < math.inf:
            yield self.on_time(item.due + self.fault.time)


@dataclass(frozen=True)
class NeverClose(Fault):
    """The end of the server's stream never comes, or comes late."""

    name = "never-close"
    stage = _StayingOpen
    directions = (Direction.OUT,)
    time: float = key(math.inf, parse_seconds, "how late, in seconds; without it, never")
