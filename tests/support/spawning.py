"""A reactor whose time and processes are the test's own, for a supervisor and its workers."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from echod.workers.child import Child
from echod.workers.link import NEWS, ORDERS, encode

# A start that makes more turns than this waits for ever.
MOST_TURNS = 1000


class Spawned:
    """A process that was asked for: the test says when it tells something, and when it ends.

    Attributes:
        child: its protocol.
        pid: its number.
        command: its words.
        environment: its environment.
        descriptors: those it was given.
        open_to: the path of its standard input at its start.
        orders: the messages it got.
        signals: the signals it got.
        pipes: the ends of its pipes that can be read at once.
    """

    def __init__(
        self,
        child: Child,
        pid: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Mapping[int, int | str],
    ) -> None:
        self.child = child
        self.pid = pid
        self.command = command
        self.environment = environment
        self.descriptors = descriptors
        self.open_to = os.readlink(f"/proc/self/fd/{descriptors[0]}")  # noqa: PTH115
        self.orders: list[dict[str, Any]] = []
        self.signals: list[int] = []
        self.has_ended = False
        self.pipes: dict[int, Any] = {}

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        assert descriptor == ORDERS
        self.orders += map(json.loads, data.splitlines())

    def signalProcess(self, number: int) -> None:
        if self.has_ended:
            raise ProcessExitedAlready
        self.signals.append(number)

    @property
    def done(self) -> list[str]:
        """The kind of each order after the first, without that to accept, which each gets."""
        return [order["do"] for order in self.orders[1:] if order["do"] != "accept"]

    @property
    def accepts(self) -> bool:
        """Whether it has been told to accept clients."""
        return any(order.get("do") == "accept" for order in self.orders)

    def tell(self, news: str, **more: object) -> None:
        self.child.childDataReceived(NEWS, encode({"news": news, **more}))

    def answer(self, why: str = "") -> None:
        """Answer the latest order to make settings ready."""
        asked = [order for order in self.orders if order.get("do") == "prepare"]
        self.tell("prepared", why=why, number=asked[-1]["number"])

    def exit(self, code: int | None = 0, number: int | None = None) -> None:
        """End; the last lines are still on their way."""
        self.begin_end(code, number)
        self.child.childConnectionLost(NEWS)

    def begin_end(self, code: int | None = 0, number: int | None = None) -> None:
        """End; the last news is still on its way, too."""
        self.has_ended = True
        ended = ProcessTerminated(code, number) if code or number else ProcessDone(0)
        self.child.childConnectionLost(ORDERS)
        self.child.processExited(Failure(ended))

    def end(self, code: int | None = 0, number: int | None = None) -> None:
        """End, with all that was said."""
        self.exit(code, number)
        self.child.processEnded(Failure(ProcessDone(0)))


class SpawningReactor(Clock):
    """Keeps the processes that it is asked for.

    Attributes:
        spawned: all of them.
        steps: what happens in the next turns of a start, one a turn.
        refusal: why no process can start now; None if each can.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = 1000.0
        self.running = False
        self.spawned: list[Spawned] = []
        self.steps: deque[Callable[[], object]] = deque()
        self.refusal: OSError | None = None
        self._turns = 0
        self._when_running: list[Callable[[], object]] = []

    def spawnProcess(
        self,
        child: Child,
        executable: str,
        args: Sequence[str],
        env: Mapping[str, str],
        childFDs: Mapping[int, int | str],  # noqa: N803
    ) -> None:
        if self.refusal is not None:
            raise self.refusal
        assert args[0] == executable
        process = Spawned(child, 100 + len(self.spawned), args, env, childFDs)
        self.spawned.append(process)
        child.makeConnection(process)

    def iterate(self, delay: float) -> None:
        self._turns += 1
        assert self._turns < MOST_TURNS
        if self.steps:
            self.steps.popleft()()
        self.advance(delay)

    def callWhenRunning(self, function: Callable[[], object]) -> None:
        self._when_running.append(function)

    def run(self) -> None:
        """Begin to run."""
        self.running = True
        for function in self._when_running:
            function()
