"""Serves the status, from the daemon's start to its last moment."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater

from echod.listen import Listening
from echod.status.probes import Probes
from echod.status.site import make_site
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


class StatusServer:
    """The listener of the status, and what it measures itself.

    Attributes:
        tls: the certificate and the rules; None in clear.
    """

    def __init__(
        self, reactor: Any, listening: Listening, subject: Subject, timer: HandlerTimer
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: where it runs.
            listening: where to listen.
            subject: whose status it is.
            timer: times that one's handlers.
        """
        self.tls = listening.tls
        self._reactor = reactor
        self._listening = listening
        self._subject = subject
        self._timer = timer
        self._probes = Probes(reactor, subject.pool)
        self._build = Build.of(reactor)
        self._began = reactor.seconds()
        self._started = time.time()
        self._port: IListeningPort | None = None

    def listen(self) -> Deferred[Any]:
        """Listen; fires once that is so."""
        site = make_site(
            self._reactor,
            look=self.look,
            state=lambda: state_of(self._subject),
        )
        factory = self._listening.wrap(site, self._reactor)
        return self._listening.endpoint.listen(factory).addCallback(self._listens)

    def _listens(self, port: IListeningPort) -> None:
        self._port = port
        self._probes.start()

    @property
    def address(self) -> Any:
        """Where it listens, as a Twisted address; None where it does not."""
        return self._port and self._port.getHost()

    def stop(self) -> Deferred[Any]:
        """Listen no more; fires once that is so."""
        self._probes.stop()
        port, self._port = self._port, None
        return (
            succeed(None)
            if port is None
            else succeed(None).addCallback(lambda _: port.stopListening())
        )

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
        return PoolFigures(pool.size, pool.busy, pool.waiting, self._probes.pool_wait)

    def _log(self) -> LogFigures | None:
        log = self._subject.log_observer
        return None if log is None else LogFigures(log.written, log.lost, log.suppressed)
