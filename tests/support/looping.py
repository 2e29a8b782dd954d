"""An event loop in memory, whose clock goes on only while handlers are at work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from twisted.internet.task import Clock

# The longest that one connection may keep all others waiting, in seconds.
BOUND = 0.005


class Loop(Clock):
    """Runs in turns as reactors do: what a call asks for comes in the next turn, not in this one.

    Attributes:
        turns: how many there have been.
    """

    turns = 0

    def turn(self) -> None:
        """Run the calls that are due."""
        self.turns += 1
        now = self.seconds()
        for call in [call for call in self.calls if call.getTime() <= now]:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is due now."""
        return not any(call.getTime() <= self.seconds() for call in self.calls)


class Work:
    """A handler's work: it takes time by a clock of its own, and is noted by turn.

    Attributes:
        now: the time, in seconds.
        done: how long each client's messages have taken in each turn, in seconds.
        order: whose message came when.
    """

    def __init__(self, turn: Callable[[], int]) -> None:
        self.now = 0.0
        self.done: Counter[tuple[int, object]] = Counter()
        self.order: list[object] = []
        self._turn = turn

    def seconds(self) -> float:
        return self.now

    def do(self, client: object, seconds: float) -> None:
        """Work for `seconds`."""
        self.now += seconds
        self.done[self._turn(), client] += seconds  # type: ignore[assignment]
        self.order.append(client)

    @property
    def most(self) -> float:
        """The most that one client had in one turn."""
        return max(self.done.values())
