"""The figures as Prometheus reads them, by the library prometheus-client.

Labels have few values: a listener's name comes from the settings, and there are only a few reasons
and limits. No text from a client is in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from twisted.logger import Logger

from echod.log.event import LogLine
from echod.metrics import Histogram
from echod.status.snapshot import STATES, ListenerFigures, Snapshot, WorkerFigures
from echod.status.strain import strains
from echod.text import escape, excerpt

One = TypeVar("One", ListenerFigures, WorkerFigures)

log = Logger("echod.status")
_left_out = LogLine(
    log,
    "warn",
    "Left out of the metrics: {names}: names of echod's own begin like them, or there are more "
    "than {most} samples",
)


class EchodCollector(Collector):
    """Turns a snapshot into metrics for a registry."""

    def __init__(self, now: Snapshot) -> None:
        """Set up.

        Args:
            now: the snapshot.
        """
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        now = self._now
        yield from _daemon(now)
        yield from _connections(now)
        yield from _limits(now)
        yield _histogram(
            "echod_handler_seconds",
            "Time a handler took for a message, or a connection handler for a connection; in the "
            "event loop one message in 64 is timed.",
            now.handler_time,
        )
        yield _gauge(
            "echod_handler_oldest_seconds",
            "Age of the handler's oldest running call; 0 if none is running.",
            now.oldest_call,
        )
        yield _histogram("echod_loop_lag_seconds", "Delay of the event loop.", now.lag)
        yield _counter("echod_loop_stalls", "How often the event loop was blocked.", now.stalls)
        yield _counter(
            "echod_loop_stalled_seconds",
            "How long the event loop was blocked, in total.",
            now.stalled,
        )
        yield from _pool(now)
        yield from _log(now)
        if now.workers:
            yield from _each(_BY_WORKER, "worker", {str(one.number): one for one in now.workers})


def _daemon(now: Snapshot) -> Iterator[Metric]:
    build = InfoMetricFamily("echod_build", "Versions of echod, Python, Twisted and the reactor.")
    build.add_metric((), vars(now.build))
    yield build
    yield _gauge("echod_start_time_seconds", "When the daemon started, in Unix time.", now.started)
    yield _gauge("echod_uptime_seconds", "How long the daemon has been running.", now.uptime)
    state = GaugeMetricFamily(
        "echod_state", "1 for the current state, 0 for the others.", labels=["state"]
    )
    for name in STATES:
        state.add_metric([name], float(name == now.state))
    yield state
    yield _gauge(
        "echod_saturated",
        "1 while a limit is nearly reached, or clients are refused or have to wait.",
        float(bool(strains(now))),
    )


def _limits(now: Snapshot) -> Iterator[Metric]:
    limits = GaugeMetricFamily(
        "echod_limit", "The highest value that a limit allows.", labels=["limit"]
    )
    used = GaugeMetricFamily(
        "echod_limit_used", "How much of the limit is in use.", labels=["limit"]
    )
    for level in now.levels:
        limits.add_metric([level.limit], level.most)
        used.add_metric([level.limit], level.used)
    yield limits
    yield used
    expiry = GaugeMetricFamily(
        "echod_certificate_expiry_time_seconds",
        "When a certificate in use expires, in Unix time.",
        labels=["certificate", "serial"],
    )
    for certificate in now.certificates:
        labels = [escape(certificate.path), certificate.serial]
        expiry.add_metric(labels, certificate.valid_until.timestamp())
    yield expiry


# Name, help, how to read it from the figures of one, and whether it is a counter.
_Figure = tuple[str, str, Callable[[One], float], bool]

_BY_LISTENER: tuple[_Figure[ListenerFigures], ...] = (
    (
        "echod_listening",
        "1 while the daemon listens there.",
        lambda one: float(bool(one.address)),
        False,
    ),
    ("echod_connections_open", "Open connections.", lambda one: one.open, False),
    ("echod_connections_accepted", "Accepted connections.", lambda one: one.accepted, True),
    ("echod_messages", "Messages passed to the handler.", lambda one: one.messages, True),
    ("echod_received_bytes", "Bytes received from clients.", lambda one: one.received, True),
    ("echod_sent_bytes", "Bytes sent to clients.", lambda one: one.sent, True),
    (
        "echod_handler_errors",
        "Exceptions of the handler, each logged with a traceback.",
        lambda one: one.handler_errors,
        True,
    ),
)


# Since the start of the process: a worker's counters begin anew when it is replaced.
_BY_WORKER: tuple[_Figure[WorkerFigures], ...] = (
    (
        "echod_worker_ready",
        "1 while the worker takes new clients.",
        lambda one: float(one.state == "ready"),
        False,
    ),
    (
        "echod_worker_connections_open",
        "Open connections of the worker.",
        lambda one: one.open,
        False,
    ),
    (
        "echod_worker_connections_accepted",
        "Connections that the worker has accepted.",
        lambda one: one.accepted,
        True,
    ),
    (
        "echod_worker_messages",
        "Messages that the worker has passed to the handler.",
        lambda one: one.messages,
        True,
    ),
    (
        "echod_worker_cpu_seconds",
        "Processor time that the worker has used.",
        lambda one: one.cpu,
        True,
    ),
    (
        "echod_worker_resident_memory_bytes",
        "Memory of the worker.",
        lambda one: one.resident,
        False,
    ),
)


def _each(
    figures: Sequence[_Figure[One]], label: str, named: Mapping[str, One]
) -> Iterator[Metric]:
    """Yield each figure, of all listeners or workers."""
    for name, what, figure, grows in figures:
        family = (CounterMetricFamily if grows else GaugeMetricFamily)(name, what, labels=[label])
        for key, one in named.items():
            family.add_metric([key], figure(one))
        yield family


def _connections(now: Snapshot) -> Iterator[Metric]:
    yield from _each(_BY_LISTENER, "listener", {one.name: one for one in now.listeners})
    ended = CounterMetricFamily(
        "echod_connections_ended", "Ended connections, by reason.", labels=["listener", "reason"]
    )
    refused = CounterMetricFamily(
        "echod_connections_refused",
        "Refused clients, by limit.",
        labels=["listener", "limit"],
    )
    faults = CounterMetricFamily(
        "echod_faults",
        "Connections in which a fault of --fault has happened, by fault.",
        labels=["listener", "fault"],
    )
    checks = CounterMetricFamily(
        "echod_checks",
        "Health checks of load balancers, which count as no client's connections, by kind.",
        labels=["listener", "check"],
    )
    for name, counts in [
        *((one.name, one.checks) for one in now.listeners),
        (now.status, now.checks),
    ]:
        for check, count in counts.items():
            checks.add_metric([name, check], count)
    for listener in now.listeners:
        for fault, count in listener.faults.items():
            faults.add_metric([listener.name, fault], count)
        for reason, count in listener.ended.items():
            ended.add_metric([listener.name, reason], count)
        for limit, count in listener.refused.items():
            refused.add_metric([listener.name, limit], count)
    yield ended
    yield refused
    yield checks
    if faults.samples:
        yield faults


def _pool(now: Snapshot) -> Iterator[Metric]:
    if (pool := now.pool) is not None:
        yield _gauge("echod_pool_threads", "Highest number of threads.", pool.size)
        yield _gauge("echod_pool_busy", "Threads at work.", pool.busy)
        yield _gauge("echod_pool_queued", "Messages waiting for a thread.", pool.queued)
        yield _gauge(
            "echod_pool_wait_seconds", "How long a message waits for a thread.", pool.wait
        )
        yield _gauge(
            "echod_pool_lost_queued",
            "Calls for lost connections, waiting for a thread.",
            pool.lost,
        )
        yield _counter(
            "echod_pool_lost_dropped",
            "Messages of lost connections that were dropped.",
            pool.dropped,
        )


def _log(now: Snapshot) -> Iterator[Metric]:
    if (log := now.log) is not None:
        yield _counter("echod_log_lines_written", "Log lines written.", log.written)
        yield _counter(
            "echod_log_lines_lost", "Log lines dropped because no room was left.", log.lost
        )
        yield _counter(
            "echod_log_events_suppressed", "Events that --log-rate suppressed.", log.suppressed
        )


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=value)


def _histogram(name: str, what: str, histogram: Histogram) -> Metric:
    bounds = [floatToGoString(bound) for bound in (*histogram.bounds, math.inf)]
    buckets: Any = list(zip(bounds, histogram.cumulative, strict=True))
    return HistogramMetricFamily(name, what, buckets=buckets, sum_value=histogram.total)


# Names of metrics that a handler's own must not begin with.
TAKEN = ("echod_", "process_")

# The most samples of a handler's own metrics that are shown. Each costs about 100 bytes and 10 µs;
# a label with text of clients would have no end of them.
MOST_SAMPLES = 5000


class OwnCollector(Collector):
    """Passes on the metrics of a handler, except those that would spoil the others."""

    def __init__(self, own: CollectorRegistry) -> None:
        """Set up.

        Args:
            own: the handler's registry.
        """
        self._own = own

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: no metric is made to register this."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield its metrics; log why one is left out."""
        samples, left_out = 0, []
        try:
            for metric in self._own.collect():
                samples += len(metric.samples)
                if metric.name.startswith(TAKEN) or samples > MOST_SAMPLES:
                    left_out.append(metric.name)
                else:
                    yield metric
        except Exception:
            log.failure("Collecting the metrics of the handler failed")
        if left_out and _left_out.wanted(""):
            _left_out.write(names=excerpt(", ".join(left_out), 200), most=MOST_SAMPLES)


def expose(now: Snapshot, accept: str, own: Collector | None = None) -> tuple[str, bytes]:
    """Return a media type and the metrics in that format.

    Args:
        now: the snapshot.
        accept: the request's Accept header, which lists the formats that the client understands.
        own: the metrics of the handler's own; None if it has none.
    """
    registry = CollectorRegistry()
    registry.register(EchodCollector(now))
    if own is not None:
        registry.register(own)
    ProcessCollector(registry=registry)  # memory, descriptors, processor time
    try:
        return _expose_as(accept, registry)
    except (TypeError, ValueError):  # Accept may name versions that are not numbers
        return _expose_as("", registry)


def _expose_as(accept: str, registry: CollectorRegistry) -> tuple[str, bytes]:
    encode, kind = choose_encoder(accept)
    if not (kind.isascii() and kind.isprintable()):
        raise ValueError("the library copies the Accept header into the media type")
    return kind, encode(registry)
