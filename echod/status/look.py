"""The figures of this process: collected on request, and measured while the status is served."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from twisted.internet.task import deferLater

from echod.status.probes import Probes
from echod.status.snapshot import (
    Build,
    ListenerFigures,
    LogFigures,
    PoolFigures,
    Rates,
    Snapshot,
    Subject,
    figures_of,
    state_of,
    totals_of,
)
from echod.status.timing import HandlerTimer

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from echod.interfaces import Reactor

# The period over which rates are computed, in seconds.
MINUTE = 60.0


class Source(Protocol):
    """The source of the figures that a status shows."""

    @property
    def state(self) -> str:
        """One of `snapshot.STATES`."""

    def own(self) -> Collector | None:
        """Return the metrics of the handler's own; None if it has none."""

    async def look(self) -> Snapshot:
        """Return a snapshot of all figures."""

    def start(self) -> None:
        """Start measuring."""

    def stop(self) -> None:
        """Stop measuring."""


class Seen(NamedTuple):
    """The sums over all listeners in one snapshot."""

    at: float
    messages: int
    received: int
    sent: int


class RateMeter:
    """Computes rates from the snapshots of the last minute."""

    def __init__(self) -> None:
        self._seen: deque[Seen] = deque()

    def measure(self, at: float, listeners: Sequence[ListenerFigures]) -> Rates | None:
        """Return the rates since the earliest snapshot of the last minute; None without one.

        Args:
            at: the time, in seconds.
            listeners: the sums until then.
        """
        now = Seen(
            at,
            messages=sum(one.messages for one in listeners),
            received=sum(one.received for one in listeners),
            sent=sum(one.sent for one in listeners),
        )
        while self._seen and now.at - self._seen[0].at > MINUTE:
            self._seen.popleft()
        before = self._seen[0] if self._seen else None
        self._seen.append(now)
        if before is None or now.at <= before.at:
            return None
        seconds = now.at - before.at
        return Rates(
            (now.messages - before.messages) / seconds,
            (now.received - before.received) / seconds,
            (now.sent - before.sent) / seconds,
        )


class Look:
    """Looks at one process."""

    def __init__(
        self, reactor: Reactor, subject: Subject, timer: HandlerTimer, *, reactor_name: str
    ) -> None:
        """Set up, without measuring.

        Args:
            reactor: the reactor.
            subject: the service whose status it is.
            timer: times the handlers of that service.
            reactor_name: the reactor's name for `--reactor`.
        """
        self._reactor = reactor
        self._subject = subject
        self._timer = timer
        self._probes = Probes(reactor, subject.pool, lambda: totals_of(subject))
        self._rates = RateMeter()
        self._build = Build.of(reactor_name)
        self._began = reactor.seconds()
        self._started = time.time()

    @property
    def state(self) -> str:
        """The daemon's state."""
        return state_of(self._subject)

    def own(self) -> Collector | None:
        """Return the metrics of the handler's own."""
        from echod.status.exposition import OwnCollector

        registry = self._subject.own_metrics
        return None if registry is None else OwnCollector(registry)

    def start(self) -> None:
        """Start measuring."""
        self._probes.start()

    def stop(self) -> None:
        """Stop measuring."""
        self._probes.stop()

    async def look(self) -> Snapshot:
        """Return a snapshot of all figures."""
        subject = self._subject
        listeners = await figures_of(subject.listeners, lambda: deferLater(self._reactor, 0))
        return Snapshot(
            build=self._build,
            started=self._started,
            uptime=self._reactor.seconds() - self._began,
            state=self.state,
            listeners=listeners,
            handler_time=self._timer.histogram,
            oldest_call=subject.oldest_call,
            lag=self._probes.lag,
            worst_lag=max(self._probes.recent_lags, default=0.0),
            stalls=subject.metrics.stalls,
            stalled=subject.metrics.stalled,
            pool=self._pool(),
            log=self._log(),
            levels=tuple(subject.levels),
            last_minute=self._probes.last_minute,
            rates=self._rates.measure(self._reactor.seconds(), listeners),
            certificates=tuple(subject.certificates),
            now=time.time(),
        )

    def _pool(self) -> PoolFigures | None:
        pool = self._subject.pool
        if pool is None:
            return None
        return PoolFigures(
            pool.size,
            pool.busy,
            pool.waiting,
            self._probes.pool_wait,
            pool.lost_waiting,
            pool.dropped,
        )

    def _log(self) -> LogFigures | None:
        log = self._subject.log_observer
        return None if log is None else LogFigures(log.written, log.lost, log.suppressed)
