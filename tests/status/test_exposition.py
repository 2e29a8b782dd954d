"""The metrics of a handler's own, beside echod's."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily

from echod.status.exposition import MOST_SAMPLES, OwnCollector
from tests.support.log import Log


def names(registry: CollectorRegistry) -> list[str]:
    return [metric.name for metric in OwnCollector(registry).collect()]


def test_a_handlers_own_metrics_are_shown() -> None:
    registry = CollectorRegistry()
    Counter("words", "Words.", registry=registry).inc()
    assert names(registry) == ["words"]
    assert not list(OwnCollector(registry).describe())


def test_names_of_echods_own_are_left_out_and_the_log_says_so(log: Log) -> None:
    registry = CollectorRegistry()
    Counter("echod_uptime_seconds", "Mine.", registry=registry)
    Gauge("mine", "Mine.", registry=registry)
    assert names(registry) == ["mine"]
    assert "Left out of the metrics: echod_uptime_seconds" in log.text


def test_labels_without_end_are_left_out() -> None:
    registry = CollectorRegistry()
    Gauge("few", "Few.", registry=registry)
    many = Gauge("many", "Many.", ["client"], registry=registry)
    for number in range(MOST_SAMPLES + 1):
        many.labels(str(number)).set(1)
    assert names(registry) == ["few"]


def test_a_collector_that_fails_spoils_no_other_metric(log: Log) -> None:
    class Failing:
        def describe(self) -> list[Any]:
            return []

        def collect(self) -> Any:
            yield GaugeMetricFamily("first", "First.", value=1)
            raise RuntimeError("no good")

    registry = CollectorRegistry()
    registry.register(Failing())
    assert names(registry) == ["first"]
    (error,) = log.take_errors()
    assert "no good" in error
