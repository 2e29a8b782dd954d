"""Serve the status, from the daemon's start to its end."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from echod.listening.endpoints import Listening
from echod.listening.listener import Listener
from echod.reasons import Check
from echod.status.probes import Probes
from echod.status.site import StatusSite, make_site
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
from echod.text import escape
from echod.web.hosts import Hosts

if TYPE_CHECKING:
    from echod.interfaces import Reactor

# The period over which rates are computed, in seconds.
MINUTE = 60.0


class Seen(NamedTuple):
    """The sums over all listeners in one snapshot."""

    at: float
    messages: int
    received: int
    sent: int


class StatusServer(Listener[StatusSite]):
    """The listener of the status, and its own measurements."""

    flag = "--status "

    def __init__(
        self,
        reactor: Reactor,
        description: str,
        wanted: Listening,
        subject: Subject,
        timer: HandlerTimer,
        *,
        reactor_name: str,
        hosts: Sequence[str] = (),
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: the reactor.
            description: the endpoint, as the operator wrote it.
            wanted: where to listen.
            subject: the service whose status it is.
            timer: times the handlers of that service.
            reactor_name: the reactor's name for `--reactor`.
            hosts: host names by which it may be requested, besides addresses and localhost.
        """
        # Each is there from the beginning, so that `increase` sees the first one.
        self._checks = Counter({kind.value: 0 for kind in Check if not kind.by_listener})
        site = make_site(
            reactor,
            look=self.look,
            state=lambda: state_of(subject),
            hosts=Hosts(hosts),
            own=lambda: subject.own_metrics,
            checks=self._checks,
        )
        super().__init__(reactor, description, wanted, site)
        self._subject = subject
        self._timer = timer
        self._probes = Probes(reactor, subject.pool, lambda: totals_of(subject))
        self._seen: deque[Seen] = deque()
        self._build = Build.of(reactor_name)
        self._began = reactor.seconds()
        self._started = time.time()

    def listen(self) -> Deferred[None]:
        return super().listen().addCallback(self._begin)

    def _begin(self, _: object) -> None:
        if self.address is not None:
            self._probes.start()

    def stop(self) -> Deferred[None]:
        self._probes.stop()
        return super().stop()

    async def look(self) -> Snapshot:
        """Return a snapshot of all figures."""
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
            levels=tuple(subject.levels),
            last_minute=self._probes.last_minute,
            rates=self._rates(listeners),
            certificates=tuple(subject.certificates),
            now=time.time(),
            checks=dict(self._checks),
            status=escape(self.description),
        )

    def _rates(self, listeners: Sequence[ListenerFigures]) -> Rates | None:
        """Return the rates since the earliest snapshot of the last minute."""
        now = Seen(
            self._reactor.seconds(),
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
