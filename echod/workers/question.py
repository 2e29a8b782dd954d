"""A question to several workers: the supervisor waits until all have answered, or time is up."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from echod.timers import cancel_timer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from echod.interfaces import Reactor
    from echod.workers.child import Child


class Question:
    """A question to some workers.

    Attributes:
        answered: fires once all have answered, or the time is over.
        waiting: those that have not answered.
    """

    def __init__(self, reactor: Reactor, children: Collection[Child], seconds: float) -> None:
        """Set up.

        Args:
            reactor: for the deadline.
            children: the workers.
            seconds: how long they may take.
        """
        self.answered: Deferred[None] = Deferred()
        self.waiting = set(children)
        self._late: IDelayedCall | None = reactor.callLater(seconds, self.end)
        if not self.waiting:
            self.end()

    def told(self, child: Child) -> None:
        """Note that a worker has answered, or has ended."""
        self.waiting.discard(child)
        if not self.waiting:
            self.end()

    def end(self) -> None:
        """Wait no longer. Calling it again is harmless."""
        if self._late is not None:
            self.forget()
            if not self.answered.called:
                self.answered.callback(None)

    def forget(self) -> None:
        """Measure no time any more: the asking code does not wait."""
        cancel_timer(self._late)
        self._late = None
