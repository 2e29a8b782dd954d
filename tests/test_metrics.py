from __future__ import annotations

from echod.metrics import Metrics


def test_open_connections_are_those_accepted_and_not_ended() -> None:
    metrics = Metrics()
    metrics.accepted += 2
    metrics.end("client closed", messages=3, received=30, sent=60)
    assert metrics.open == 1
    assert metrics.ended == {"client closed": 1}
    assert (metrics.messages, metrics.bytes_received, metrics.bytes_sent) == (3, 30, 60)
