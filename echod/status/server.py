"""Serves the status, from the daemon's start to its last moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from echod.listen import Listening
from echod.listener import Listener
from echod.status.hosts import Hosts
from echod.status.probes import Probes
from echod.status.site import StatusSite, make_site
from echod.status.snapshot import (
    Build,
    LogFigures,
    PoolFigures,
    Snapshot,
    Subject,
    figures_of,
    state_of,
)
from echod.status.timing import HandlerTimer


class StatusServer(Listener[StatusSite]):
    """The listener of the status, and what it measures itself."""

    def __init__(
        self,
        reactor: Any,
        description: str,
        wanted: Listening,
        subject: Subject,
        timer: HandlerTimer,
        *,
        hosts: Sequence[str] = (),
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: where it runs.
            description: the endpoint, as the operator wrote it.
            wanted: where to listen.
            subject: whose status it is.
            timer: times that one's handlers.
            hosts: names under which it may be asked for, beside addresses and localhost.
        """
        site = make_site(
            reactor, look=self.look, state=lambda: state_of(subject), hosts=Hosts(hosts)
        )
        super().__init__(reactor, description, wanted, site)
        self._subject = subject
        self._timer = timer
        self._probes = Probes(reactor, subject.pool)
        self._build = Build.of(reactor)
        self._began = reactor.seconds()
        self._started = time.time()

    def listen(self) -> Deferred[Any]:
        return super().listen().addCallback(self._begin)

    def _begin(self, _: object) -> None:
        if self.address is not None:
            self._probes.start()

    def stop(self) -> Deferred[Any]:
        self._probes.stop()
        return super().stop()

    async def look(self) -> Snapshot:
        """Return everything as it is now."""
        subject = self._subject
        listeners = await figures_of(subject.listeners, lambda: deferLater(self._reactor, 0))
        return Snapshot(
            build=self._build,
            started=self._started,
            uptime=self._reactor.seconds() - self._began,
            state=state_of(subject),
            listeners=listeners,
            handler_time=self._timer.histogram,
            oldest_call=subject.oldest_call,
            lag=self._probes.lag,
            worst_lag=max(self._probes.recent_lags, default=0.0),
            stalls=subject.metrics.stalls,
            stalled=subject.metrics.stalled,
            pool=self._pool(),
            log=self._log(),
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
