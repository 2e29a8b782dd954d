"""The figures as Prometheus reads them, by the library prometheus-client.

Labels are bounded: a listener's name comes from the settings, a reason and a limit are each one of
a few.  Nothing that a client sent is in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

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

from echod.metrics import Histogram
from echod.status.snapshot import STATES, ListenerFigures, Snapshot
from echod.status.strain import strains
from echod.text import escape


class EchodCollector(Collector):
    """Gives a registry the figures."""

    def __init__(self, now: Snapshot) -> None:
        """Set up.

        Args:
            now: the figures.
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
            "How long handlers took for a message, connection handlers for a connection; in the "
            "event loop one message in 64 is timed.",
            now.handler_time,
        )
        yield _gauge(
            "echod_handler_oldest_seconds",
            "How long the handler's oldest call has lasted; 0 where none is under way.",
            now.oldest_call,
        )
        yield _histogram("echod_loop_lag_seconds", "How late the event loop was.", now.lag)
        yield _counter("echod_loop_stalls", "How often the event loop stood still.", now.stalls)
        yield _counter(
            "echod_loop_stalled_seconds", "How long the event loop stood still.", now.stalled
        )
        yield from _pool(now)
        yield from _log(now)


def _daemon(now: Snapshot) -> Iterator[Metric]:
    build = InfoMetricFamily("echod_build", "What runs.")
    build.add_metric((), vars(now.build))
    yield build
    yield _gauge("echod_start_time_seconds", "When it started, in Unix time.", now.started)
    yield _gauge("echod_uptime_seconds", "How long it has been running.", now.uptime)
    state = GaugeMetricFamily("echod_state", "1 for the state that it is in.", labels=["state"])
    for name in STATES:
        state.add_metric([name], float(name == now.state))
    yield state
    yield _gauge(
        "echod_saturated",
        "1 while something scarce is nearly used up, or clients are turned away or wait.",
        float(bool(strains(now))),
    )


def _limits(now: Snapshot) -> Iterator[Metric]:
    limits = GaugeMetricFamily(
        "echod_limit", "How much there may be of what is scarce.", labels=["limit"]
    )
    used = GaugeMetricFamily("echod_limit_used", "How much of that is in use.", labels=["limit"])
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


# Name, what it is, what it is of a listener, whether it only ever grows.
_BY_LISTENER: tuple[tuple[str, str, Callable[[ListenerFigures], float], bool], ...] = (
    ("echod_listening", "1 where it listens.", lambda one: float(bool(one.address)), False),
    ("echod_connections_open", "Connections that are open.", lambda one: one.open, False),
    ("echod_connections_accepted", "Connections let in.", lambda one: one.accepted, True),
    ("echod_messages", "Messages given to the handler.", lambda one: one.messages, True),
    ("echod_received_bytes", "Bytes from clients.", lambda one: one.received, True),
    ("echod_sent_bytes", "Bytes to clients.", lambda one: one.sent, True),
    (
        "echod_handler_errors",
        "What the handler has raised, each with a traceback.",
        lambda one: one.handler_errors,
        True,
    ),
)


def _connections(now: Snapshot) -> Iterator[Metric]:
    for name, what, figure, grows in _BY_LISTENER:
        family = (CounterMetricFamily if grows else GaugeMetricFamily)(
            name, what, labels=["listener"]
        )
        for listener in now.listeners:
            family.add_metric([listener.name], figure(listener))
        yield family
    ended = CounterMetricFamily(
        "echod_connections_ended", "Connections by why they ended.", labels=["listener", "reason"]
    )
    refused = CounterMetricFamily(
        "echod_connections_refused",
        "Clients turned away by a limit.",
        labels=["listener", "limit"],
    )
    for listener in now.listeners:
        for reason, count in listener.ended.items():
            ended.add_metric([listener.name, reason], count)
        for limit, count in listener.refused.items():
            refused.add_metric([listener.name, limit], count)
    yield ended
    yield refused


def _pool(now: Snapshot) -> Iterator[Metric]:
    if (pool := now.pool) is not None:
        yield _gauge("echod_pool_threads", "How many threads there may be.", pool.size)
        yield _gauge("echod_pool_busy", "Threads that are at work.", pool.busy)
        yield _gauge("echod_pool_queued", "Messages that wait for a thread.", pool.queued)
        yield _gauge("echod_pool_wait_seconds", "How long a message waits for one.", pool.wait)
        yield _gauge("echod_pool_lost_queued", "Calls for lost connections that wait.", pool.lost)
        yield _counter(
            "echod_pool_lost_dropped",
            "Messages of lost connections that found no room.",
            pool.dropped,
        )


def _log(now: Snapshot) -> Iterator[Metric]:
    if (log := now.log) is not None:
        yield _counter(
            "echod_log_lines_written", "Lines of the log that were written.", log.written
        )
        yield _counter("echod_log_lines_lost", "Lines of the log that found no room.", log.lost)
        yield _counter(
            "echod_log_events_suppressed", "Events that --log-rate only counted.", log.suppressed
        )


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=value)


def _histogram(name: str, what: str, histogram: Histogram) -> Metric:
    bounds = [floatToGoString(bound) for bound in (*histogram.bounds, math.inf)]
    buckets: Any = list(zip(bounds, histogram.cumulative, strict=True))
    return HistogramMetricFamily(name, what, buckets=buckets, sum_value=histogram.total)


def expose(now: Snapshot, accept: str) -> tuple[str, bytes]:
    """Return a media type and the figures in it.

    Args:
        now: the figures.
        accept: the header of that name, which names the formats that are understood.
    """
    registry = CollectorRegistry()
    registry.register(EchodCollector(now))
    ProcessCollector(registry=registry)  # memory, descriptors, processor time
    try:
        return _expose_as(accept, registry)
    except (TypeError, ValueError):  # versions that are none, and what else can be asked for
        return _expose_as("", registry)


def _expose_as(accept: str, registry: CollectorRegistry) -> tuple[str, bytes]:
    encode, kind = choose_encoder(accept)
    if not (kind.isascii() and kind.isprintable()):
        raise ValueError("the library puts what was asked for into the media type")
    return kind, encode(registry)
