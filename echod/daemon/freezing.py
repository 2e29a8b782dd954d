"""Keep the pauses by Python's garbage collector short, however many connections are open.

A full collection looks at every object, and the event loop stands still meanwhile: with 19,000
connections for a tenth of a second. But an open connection is no garbage, and counting references
frees most objects without the collector. So it is enough to look at the new ones.

* Once the service is up, and whenever `STEP` more connections are open, all objects are frozen:
  the collector does not look at them again. The next collection of young objects does that, so
  there is little garbage among them.
* A frozen object that becomes part of a cycle of garbage, such as the state of a handler whose
  connection has ended, waits. Once as many connections have ended as were open at the last freeze,
  all objects are thawed and looked at once. So such garbage takes no more memory than the open
  connections did.
* Where the number of open connections does not grow, only what was there at the start is frozen.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from echod.metrics import Metrics
from echod.timers import cancel_timer

# By how many the open connections have to grow before all objects are frozen again.
STEP = 500
# How often to see whether enough connections have ended, in seconds.
INTERVAL = 5.0


class Freezer:
    """Freezes and thaws the objects of this process."""

    def __init__(self, clock: IReactorTime, metrics: Callable[[], Sequence[Metrics]]) -> None:
        """Set up, without freezing anything.

        Args:
            clock: for the timer.
            metrics: returns what counts the connections.
        """
        self._clock = clock
        self._metrics = metrics
        self._timer: IDelayedCall | None = None
        # How many connections were open at the last freeze, or fewer that were since; and at the
        # freeze itself, 0 if there was none since the last thaw.
        self._lowest = 0
        self._frozen = 0
        # How many had ended at the last thaw.
        self._ended = 0

    def start(self) -> None:
        """Freeze what there is, and go on with that. Calling it again is harmless."""
        if self._timer is None:
            gc.freeze()
            self._lowest = self._open
            self._ended = self._ended_so_far
            gc.callbacks.append(self._collected)
            self._timer = self._clock.callLater(INTERVAL, self._look)

    def stop(self) -> None:
        """Thaw all objects. Calling it again is harmless."""
        if self._timer is not None:
            cancel_timer(self._timer)
            self._timer = None
            gc.callbacks.remove(self._collected)
            gc.unfreeze()

    @property
    def _open(self) -> int:
        return sum(each.open for each in self._metrics())

    @property
    def _ended_so_far(self) -> int:
        return sum(each.ended.total() for each in self._metrics())

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        """In any thread, before and after a collection: freeze what is left, if it is time."""
        if phase == "stop" and info["generation"]:
            count = self._open
            if count - self._lowest >= STEP:
                gc.freeze()
                self._lowest = self._frozen = count
            else:
                self._lowest = min(self._lowest, count)

    def _look(self) -> None:
        self._timer = self._clock.callLater(INTERVAL, self._look)
        self._lowest = min(self._lowest, self._open)
        ended = self._ended_so_far
        if self._frozen and ended - self._ended >= self._frozen:
            self._thaw()
            self._ended = ended

    def _thaw(self) -> None:
        """Look at all objects once, and freeze those that are left."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._lowest, self._frozen = self._open, 0
