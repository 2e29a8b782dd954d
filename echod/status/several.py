"""The figures of several workers as those of one service.

Guarantees:

* No sum ever decreases: of a worker that has ended, its last counters stay in the sums.
* The figures of a worker that does not answer are the last that it gave.

A worker's figures travel as JSON: `encode` and `decode`.
"""

from __future__ import annotations

import dataclasses
import os
import resource
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from echod.limits import Level
from echod.metrics import Histogram, Totals
from echod.reasons import Refusal
from echod.status.probes import LAG_BOUNDS
from echod.status.snapshot import (
    Build,
    ListenerFigures,
    LogFigures,
    PoolFigures,
    Snapshot,
    WorkerFigures,
)
from echod.status.timing import BOUNDS
from echod.tls import ServedCertificate

if TYPE_CHECKING:
    from echod.status.look import Source

# Of the figures of listeners, those that are sums since the start.
_COUNTED = ("accepted", "messages", "received", "sent", "handler_errors")
_COUNTED_BY_NAME = ("ended", "refused", "faults", "checks")


# The limits that each worker gives for all.
_OVER_ALL = (Refusal.MAX_CONNECTIONS.value, Refusal.PER_ADDRESS.value)


def encode(now: Snapshot, own: Collector | None) -> dict[str, Any]:
    """Return a worker's figures, and the metrics of its handler's own, for JSON."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "state": now.state,
        "uptime": now.uptime,
        "listeners": [dataclasses.asdict(one) for one in now.listeners],
        "handler_time": [now.handler_time.counts, now.handler_time.total],
        "lag": [now.lag.counts, now.lag.total],
        "oldest_call": now.oldest_call,
        "worst_lag": now.worst_lag,
        "stalls": now.stalls,
        "stalled": now.stalled,
        "pool": None if now.pool is None else dataclasses.asdict(now.pool),
        "log": None if now.log is None else dataclasses.asdict(now.log),
        "levels": list(now.levels),
        "last_minute": list(now.last_minute),
        "certificates": [
            [one.path, one.serial, one.valid_until.isoformat()] for one in now.certificates
        ],
        "cpu": usage.ru_utime + usage.ru_stime,
        "resident": _resident(),
        "own": [_family(metric) for metric in own.collect()] if own is not None else [],
    }


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not on macOS
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _family(metric: Metric) -> list[Any]:
    samples = [[one.name, one.labels, one.value] for one in metric.samples]
    return [metric.name, metric.documentation, metric.type, metric.unit, samples]


@dataclass
class Figures:
    """The figures that one process of a worker has told last.

    Attributes:
        number: the worker's.
        pid: the process.
        told: the figures, as `encode` made them; empty before the first.
    """

    number: int
    pid: int
    told: Mapping[str, Any] = field(default_factory=dict)


class Ended:
    """The counters of the processes that have ended."""

    def __init__(self) -> None:
        self._kept: list[Mapping[str, Any]] = []

    def add(self, told: Mapping[str, Any]) -> None:
        """Keep the counters of one more; only their sum takes room."""
        if told:
            self._kept = [_sum_of_counters([*self._kept, told])]

    @property
    def told(self) -> Sequence[Mapping[str, Any]]:
        """Their sum, if there is any."""
        return self._kept


def _sum_of_counters(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of what only grows; the same again can be added to others."""
    by_listener = zip(*(each["listeners"] for each in told), strict=True)
    dropped = [each["pool"]["dropped"] for each in told if each["pool"]]
    return {
        "listeners": [_sum_of_listener(ones) for ones in by_listener],
        "handler_time": _sum_of_histograms([each["handler_time"] for each in told]),
        "lag": _sum_of_histograms([each["lag"] for each in told]),
        "stalls": sum(each["stalls"] for each in told),
        "stalled": sum(each["stalled"] for each in told),
        "dropped": sum(dropped),
        "pool": {"dropped": sum(dropped)} if dropped else None,
        "log": {
            name: sum(each["log"][name] for each in told if each["log"])
            for name in ("lost", "suppressed")
        },
    }


def _sum_of_listener(ones: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summed = {**ones[0], "open": 0, "address": ""}
    summed |= {name: sum(one[name] for one in ones) for name in _COUNTED}
    for kind in _COUNTED_BY_NAME:
        counts: Counter[str] = Counter()
        for one in ones:
            counts.update(one[kind])
        summed[kind] = dict(counts)
    return summed


def _sum_of_histograms(told: Sequence[Any]) -> list[Any]:
    counts = [sum(some) for some in zip(*(each[0] for each in told), strict=True)]
    return [counts, sum(each[1] for each in told)]


def merge(
    build: Build,
    started: float,
    uptime: float,
    state: str,
    log: LogFigures,
    live: Sequence[Figures],
    ended: Ended,
    now: float,
) -> Snapshot:
    """Return the figures of the service.

    Args:
        build: the versions.
        started: when the service started, in Unix time.
        uptime: how long it has been running, in seconds.
        state: of the service.
        log: the lines that the supervisor has written.
        live: the workers.
        ended: those that have ended.
        now: the Unix time.
    """
    told = [one.told for one in live if one.told]
    counted = _sum_of_counters([*told, *ended.told])
    return Snapshot(
        build=build,
        started=started,
        uptime=uptime,
        state=state,
        listeners=_listeners(counted["listeners"], told),
        handler_time=_histogram(BOUNDS, counted["handler_time"]),
        oldest_call=max((each["oldest_call"] for each in told), default=0.0),
        lag=_histogram(LAG_BOUNDS, counted["lag"]),
        worst_lag=max((each["worst_lag"] for each in told), default=0.0),
        stalls=counted["stalls"],
        stalled=counted["stalled"],
        pool=_pool([each["pool"] for each in told if each["pool"]], counted["dropped"]),
        log=replace(
            log,
            lost=log.lost + counted["log"]["lost"],
            suppressed=log.suppressed + counted["log"]["suppressed"],
        ),
        levels=_levels(told),
        last_minute=_totals([each["last_minute"] for each in told]),
        rates=None,
        certificates=_certificates(told),
        now=now,
        workers=tuple(_worker(one) for one in live),
    )


def _listeners(
    counted: Sequence[dict[str, Any]], told: Sequence[Mapping[str, Any]]
) -> list[ListenerFigures]:
    found = []
    for index, figures in enumerate(counted):
        ones = [each["listeners"][index] for each in told]
        address = next((one["address"] for one in ones if one["address"]), "")
        live = {"open": sum(one["open"] for one in ones), "address": address}
        found.append(ListenerFigures(**{**figures, **live}))
    return found


def _totals(told: Sequence[Sequence[int]]) -> Totals:
    return Totals(*(sum(some) for some in zip(*told, strict=True)))


def _histogram(bounds: Sequence[float], told: Sequence[Any]) -> Histogram:
    made = Histogram(bounds)
    if told[0]:
        made.counts, made.total = list(told[0]), told[1]
    return made


def _pool(pools: Sequence[Mapping[str, Any]], dropped: int) -> PoolFigures | None:
    if not pools:
        return None
    summed = {name: sum(one[name] for one in pools) for name in pools[0]}
    return PoolFigures(**{**summed, "wait": max(one["wait"] for one in pools), "dropped": dropped})


def _levels(told: Sequence[Mapping[str, Any]]) -> tuple[Level, ...]:
    used: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for each in told:
        for name, some, highest in each["levels"]:
            if name in _OVER_ALL:
                used[name], most[name] = max(used[name], some), max(most[name], highest)
            else:
                used[name] += some
                most[name] += highest
    return tuple(Level(name, used[name], most[name]) for name in most)


def _certificates(told: Sequence[Mapping[str, Any]]) -> tuple[ServedCertificate, ...]:
    found = {tuple(one): None for each in told for one in each["certificates"]}
    return tuple(
        ServedCertificate(path, serial, datetime.fromisoformat(until))
        for path, serial, until in found
    )


def _worker(one: Figures) -> WorkerFigures:
    told = one.told
    listeners: Iterable[Mapping[str, Any]] = told.get("listeners", ())
    return WorkerFigures(
        number=one.number,
        pid=one.pid,
        state=told.get("state", "starting"),
        uptime=told.get("uptime", 0.0),
        open=sum(each["open"] for each in listeners),
        accepted=sum(each["accepted"] for each in listeners),
        messages=sum(each["messages"] for each in listeners),
        worst_lag=told.get("worst_lag", 0.0),
        cpu=told.get("cpu", 0.0),
        resident=told.get("resident", 0),
    )


class OwnOfWorkers(Collector):
    """The metrics of the handlers' own, each sample with the number of its worker."""

    def __init__(self, live: Sequence[Figures]) -> None:
        """Set up.

        Args:
            live: the workers.
        """
        self._live = live

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: no metric is made to register this."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once, with the samples of all workers."""
        metrics: dict[str, Metric] = {}
        for one in self._live:
            for name, text, kind, unit, samples in one.told.get("own", ()):
                metric = metrics.get(name)
                if metric is None:
                    metric = metrics[name] = Metric(name, text, kind, unit)
                for sample, labels, value in samples:
                    metric.add_sample(sample, {**labels, "worker": str(one.number)}, value)
        yield from metrics.values()


async def encoded(source: Source) -> dict[str, Any]:
    """Return this worker's figures, for its supervisor."""
    return encode(await source.look(), source.own())
