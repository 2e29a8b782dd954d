"""The faults that keep silent, or do not listen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from echod.faults.ends import HalfClosing
from echod.faults.items import Act, Direction, Item
from echod.faults.stage import Fault, Stage


class _NotReading(HalfClosing):
    act = Act.STOP_READING

    def begin(self, now: float) -> Iterator[Item]:
        self.holds_until = math.inf
        return super().begin(now)

    def work(self, item: Item) -> Iterator[Item]:
        yield self.on_time(math.inf, item.data)  # in case that the fault is taken away

    def end(self, item: Item) -> Iterator[Item]:
        yield self.on_time(math.inf, act=item.act)


@dataclass(frozen=True)
class NeverRead(Fault):
    """The server reads no more."""

    name = "never-read"
    stage = _NotReading
    directions = (Direction.IN,)


class _Muting(Stage):
    """Drops what is sent before, or what is sent after, the client's first byte."""

    _spoken = False
    drops_after: ClassVar[bool]

    def client_spoke(self) -> None:
        self._spoken = True

    def work(self, item: Item) -> Iterator[Item]:
        if self._spoken is self.drops_after:
            self.happened = True
        else:
            yield self.on_time(item.due, item.data)


class _NotAnswering(_Muting):
    drops_after = True


@dataclass(frozen=True)
class NeverAnswer(Fault):
    """Nothing is sent once the client has spoken; a greeting is."""

    name = "never-answer"
    stage = _NotAnswering
    directions = (Direction.OUT,)


class _NotGreeting(_Muting):
    drops_after = False


@dataclass(frozen=True)
class NoBanner(Fault):
    """Nothing is sent before the client has spoken."""

    name = "no-banner"
    stage = _NotGreeting
    directions = (Direction.OUT,)
