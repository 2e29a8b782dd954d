"""The status of a daemon with workers: the supervisor asks each, and adds their figures."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from echod.status.look import RateMeter
from echod.status.several import Ended, Figures, OwnOfWorkers, merge
from echod.status.snapshot import Build, LogFigures, Snapshot
from echod.workers.child import Child
from echod.workers.question import Question

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from echod.interfaces import Reactor
    from echod.log.observer import LogObserver

# How long workers may take to tell their figures, in seconds.
ANSWER_IN = 1.0


class WorkersLook:
    """Looks at all workers."""

    def __init__(
        self,
        reactor: Reactor,
        children: Callable[[], Collection[Child]],
        state: Callable[[], str],
        log: LogObserver,
        reactor_name: str,
    ) -> None:
        """Set up.

        Args:
            reactor: for the clock.
            children: returns the processes that have not ended.
            state: returns the state of the service.
            log: the log of all.
            reactor_name: the reactor's name for `--reactor`.
        """
        self._reactor = reactor
        self._children = children
        self._state = state
        self._log = log
        self._build = Build.of(reactor_name)
        self._began = reactor.seconds()
        self._started = time.time()
        self._rates = RateMeter()
        self._ended = Ended()
        self._told: dict[Child, Figures] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, Question] = {}

    @property
    def state(self) -> str:
        """The state of the service."""
        return self._state()

    def own(self) -> Collector | None:
        """Return the metrics of the handlers' own, as of the last look."""
        return OwnOfWorkers(self._live())

    def start(self) -> None:
        """Do nothing: the workers measure."""

    def stop(self) -> None:
        """Wait for no worker any more."""
        for question in list(self._asked.values()):
            question.end()

    async def look(self) -> Snapshot:
        """Ask the workers, and return the figures of the service."""
        ready = [each for each in self._children() if each.state in ("ready", "draining")]
        number = next(self._numbers)
        question = self._asked[number] = Question(self._reactor, ready, ANSWER_IN)
        try:
            for child in ready:
                child.order(do="figures", number=number)
            await question.answered
        finally:
            self._asked.pop(number).forget()
        log = self._log
        now = merge(
            self._build,
            self._started,
            self._reactor.seconds() - self._began,
            self.state,
            LogFigures(log.written, log.lost, log.suppressed),
            self._live(),
            self._ended,
            time.time(),
        )
        return replace(now, rates=self._rates.measure(self._reactor.seconds(), now.listeners))

    def _live(self) -> list[Figures]:
        live = sorted(self._children(), key=lambda each: (each.number, each.pid))
        return [self._told.get(each, Figures(each.number, each.pid)) for each in live]

    def told(self, child: Child, figures: dict[str, Any], number: int) -> None:
        """Take a worker's figures."""
        self._told[child] = Figures(child.number, child.pid, figures)
        if question := self._asked.get(number):
            question.told(child)

    def ended(self, child: Child) -> None:
        """Keep the counters of a worker that has ended."""
        if figures := self._told.pop(child, None):
            self._ended.add(figures.told)
        # The last answer ends a look at once, and its sums need those counters.
        for question in list(self._asked.values()):
            question.told(child)
