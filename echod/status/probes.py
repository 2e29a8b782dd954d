"""Measure the figures that no counter has: the event loop's lag, the wait for a thread, and the
totals of the last minute.

There is one timer, every `INTERVAL` seconds, and only while the status is served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from echod.concurrency.pool import WorkerPool
from echod.metrics import Histogram, Totals
from echod.timers import cancel_timer

# Seconds between two measurements.
INTERVAL = 0.5

# The number of measurements over which the worst lag is remembered: a minute.
REMEMBERED = 120

LAG_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Probes:
    """Measures periodically.

    Attributes:
        lag: the delays of the event loop, in seconds.
        recent_lags: those of the last minute.
    """

    def __init__(
        self, reactor: IReactorTime, pool: WorkerPool | None, totals: Callable[[], Totals]
    ) -> None:
        """Set up, without a timer.

        Args:
            reactor: for the clock.
            pool: the pool whose queue is measured; None if there is none.
            totals: returns the totals since the start.
        """
        self._totals = totals
        self._recent: deque[Totals] = deque([totals()], maxlen=REMEMBERED + 1)
        self.lag = Histogram(LAG_BOUNDS)
        self.recent_lags: deque[float] = deque(maxlen=REMEMBERED)
        self._reactor = reactor
        self._pool = pool
        self._call: IDelayedCall | None = None
        self._due = 0.0
        self._asked_at: float | None = None
        self._last_wait = 0.0

    def start(self) -> None:
        """Start measuring."""
        self._due = self._reactor.seconds() + INTERVAL
        self._call = self._reactor.callLater(INTERVAL, self._look)

    def stop(self) -> None:
        """Stop measuring."""
        cancel_timer(self._call)

    def _look(self) -> None:
        late = max(0.0, self._reactor.seconds() - self._due)
        self.lag.observe(late)
        self.recent_lags.append(late)
        self._recent.append(self._totals())
        self._ask_pool()
        self.start()

    @property
    def last_minute(self) -> Totals:
        """The totals of the last minute."""
        return self._totals().since(self._recent[0])

    def _ask_pool(self) -> None:
        """Queue a probe task, unless one is queued; its wait is the pool's wait."""
        if self._pool is None or self._asked_at is not None:
            return
        if self._pool.waiting:
            self._asked_at = self._reactor.seconds()
            self._pool.submit(self._answered, self._reactor.seconds, ())
        else:
            self._last_wait = 0.0

    def _answered(self, reached: object) -> None:
        if self._asked_at is not None and isinstance(reached, float):
            self._last_wait = reached - self._asked_at
        self._asked_at = None

    @property
    def pool_wait(self) -> float:
        """How long a task waits for a thread, in seconds, as measured by the last probe."""
        if self._asked_at is None:
            return self._last_wait
        return max(self._last_wait, float(self._reactor.seconds() - self._asked_at))
