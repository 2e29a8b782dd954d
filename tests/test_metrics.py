from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from echod.metrics import Histogram, Metrics


def test_open_connections_are_those_accepted_and_not_ended() -> None:
    metrics = Metrics()
    metrics.accepted += 2
    metrics.end("client closed", messages=3, received=30, sent=60)
    assert metrics.open == 1
    assert metrics.ended == {"client closed": 1}
    assert (metrics.messages, metrics.bytes_received, metrics.bytes_sent) == (3, 30, 60)


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_what_is_at_most_each_bound(values: list[float]) -> None:
    histogram = Histogram((0.5, 1.0, 10.0))
    for value in values:
        histogram.observe(value)
    bounds = (*histogram.bounds, float("inf"))
    assert histogram.cumulative == [sum(value <= bound for value in values) for bound in bounds]
    assert abs(histogram.total - sum(values)) < 1e-6
