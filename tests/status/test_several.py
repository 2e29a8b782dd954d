"""The figures of several workers, added."""

from __future__ import annotations

import json
from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from echod.metrics import Totals
from echod.status.exposition import OwnCollector, expose
from echod.status.page import page
from echod.status.several import Ended, Figures, OwnOfWorkers, encode, merge
from echod.status.snapshot import Build, LogFigures, Snapshot
from tests.status.fakes import FakeSubject
from tests.status.test_page import busy_subject, immediate, server_of


def told_by(subject: FakeSubject, own: OwnCollector | None = None) -> dict[str, Any]:
    """Return a worker's figures as they arrive."""
    now = immediate(Deferred.fromCoroutine(server_of(subject, Clock()).look()))
    told: dict[str, Any] = json.loads(json.dumps(encode(now, own)))
    return told


def merged(*live: Figures, ended: Ended | None = None) -> Snapshot:
    return merge(
        Build.of("none"), 1.0, 2.0, "ready", LogFigures(7, 1, 0), live, ended or Ended(), 3.0
    )


def test_sums_are_those_of_all_workers() -> None:
    one = told_by(busy_subject())
    alone, both = merged(Figures(1, 11, one)), merged(Figures(1, 11, one), Figures(2, 12, one))
    for before, after in zip(alone.listeners, both.listeners, strict=True):
        assert after.name == before.name
        assert after.address == before.address
        assert after.open == 2 * before.open
        assert after.accepted == 2 * before.accepted
        assert after.messages == 2 * before.messages
        assert after.ended == {name: 2 * count for name, count in before.ended.items()}
        assert after.refused == {name: 2 * count for name, count in before.refused.items()}
    assert both.handler_time.counts == [2 * count for count in alone.handler_time.counts]
    assert both.pool is not None and alone.pool is not None
    assert both.pool.busy == 2 * alone.pool.busy
    assert sum(after.accepted for after in both.listeners) > 0
    assert both.levels == alone.levels  # of all connections, which each worker gives for all
    assert both.certificates == alone.certificates
    assert both.log is not None and both.log.written == 7


def test_no_sum_decreases_when_a_worker_ends() -> None:
    one = told_by(busy_subject())
    before = merged(Figures(1, 11, one), Figures(2, 12, one))
    ended = Ended()
    ended.add(one)
    ended.add({})  # it has told nothing
    ended.add(one)
    after = merged(ended=ended)
    assert [each.accepted for each in after.listeners] == [
        each.accepted for each in before.listeners
    ]
    assert [each.messages for each in after.listeners] == [
        each.messages for each in before.listeners
    ]
    assert after.handler_time.counts == before.handler_time.counts
    assert after.stalls == before.stalls
    assert after.log == before.log
    assert all(each.open == 0 for each in after.listeners)
    again = merged(Figures(2, 13, one), ended=ended)
    assert again.pool is not None and before.pool is not None
    assert again.pool.dropped == 3 * before.pool.dropped // 2


def test_without_an_answer_yet_there_is_a_row_for_each_worker() -> None:
    now = merged(Figures(1, 11), Figures(2, 12))
    assert [(one.number, one.state) for one in now.workers] == [(1, "starting"), (2, "starting")]
    assert now.listeners == []
    assert now.last_minute == Totals()
    assert "<h2>Workers</h2>" in page(now)


def test_the_metrics_have_figures_of_each_worker() -> None:
    one = told_by(busy_subject())
    text = expose(merged(Figures(1, 11, one), Figures(2, 12, one)), "")[1].decode()
    assert 'echod_worker_ready{worker="2"} 1.0' in text
    assert 'echod_worker_resident_memory_bytes{worker="1"}' in text


def test_a_handlers_own_metrics_have_the_number_of_the_worker() -> None:
    registry = CollectorRegistry()
    jokes = Counter("jokes", "Jokes told.", ["kind"], registry=registry)
    jokes.labels("dry").inc(3)
    told = told_by(busy_subject(), OwnCollector(registry))
    shown = CollectorRegistry()
    shown.register(OwnOfWorkers([Figures(1, 11, told), Figures(2, 12, told), Figures(3, 13)]))
    text = generate_latest(shown).decode()
    assert text.count("# TYPE jokes_total counter") == 1
    assert 'jokes_total{kind="dry",worker="1"} 3.0' in text
    assert 'jokes_total{kind="dry",worker="2"} 3.0' in text
