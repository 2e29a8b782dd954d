"""The figures of all workers, with workers and time that the test plays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from twisted.internet.defer import Deferred

from echod.status.exposition import OwnCollector
from echod.status.snapshot import Snapshot
from echod.workers.child import Child
from echod.workers.look import ANSWER_IN, WorkersLook
from tests.status.test_page import busy_subject
from tests.status.test_several import told_by
from tests.support.spawning import Spawned, SpawningReactor
from tests.workers.test_child import Notes


class Looking:
    """A look at two workers that are ready, and at a third that starts."""

    def __init__(self) -> None:
        self.reactor = SpawningReactor()
        for number in (1, 2, 3):
            Child(Notes(), self.reactor, number, "").start({}, [], 50)
        self.one, self.other, self.starting = self.reactor.spawned
        self.one.tell("ready")
        self.other.tell("ready")
        log: Any = SimpleNamespace(written=5, lost=1, suppressed=2)
        reactor: Any = self.reactor
        self.look = WorkersLook(reactor, self.live, lambda: "ready", log, "spawning")

    def live(self) -> list[Child]:
        """Return the workers that have not ended, in no order."""
        return [each.child for each in reversed(self.reactor.spawned) if not each.has_ended]

    def begin(self) -> list[Snapshot]:
        """Begin to look; the list gets the figures."""
        found: list[Snapshot] = []
        Deferred.fromCoroutine(self.look.look()).addCallback(found.append)
        return found

    def answer(self, process: Spawned, own: OwnCollector | None = None) -> None:
        number = process.orders[-1]["number"]
        self.look.told(process.child, told_by(busy_subject(), own), number)


@pytest.fixture
def looking() -> Looking:
    return Looking()


def accepted(now: Snapshot) -> int:
    return sum(one.accepted for one in now.listeners)


def test_each_worker_that_serves_is_asked_and_the_figures_are_their_sums(
    looking: Looking,
) -> None:
    found = looking.begin()
    assert looking.one.done == looking.other.done == ["figures"]
    assert not looking.starting.done
    looking.answer(looking.one)
    assert not found
    looking.reactor.advance(0.5)
    looking.answer(looking.other)
    (now,) = found
    assert [(one.number, one.pid, one.state) for one in now.workers][2] == (3, 102, "starting")
    assert [one.number for one in now.workers] == [1, 2, 3]
    alone = sum(one["accepted"] for one in told_by(busy_subject())["listeners"])
    assert accepted(now) == 2 * alone > 0
    assert (now.state, now.uptime) == ("ready", 0.5)
    assert now.log is not None
    assert now.log.written == 5
    assert not looking.reactor.getDelayedCalls()


def test_a_worker_that_drains_is_asked_too(looking: Looking) -> None:
    looking.one.tell("draining")
    looking.begin()
    assert looking.one.done == ["figures"]
    looking.look.stop()


def test_a_worker_that_does_not_answer_in_time_has_its_last_figures(looking: Looking) -> None:
    first = looking.begin()
    looking.answer(looking.one)
    looking.answer(looking.other)
    second = looking.begin()
    looking.answer(looking.one)
    looking.reactor.advance(ANSWER_IN - 0.01)
    assert not second
    looking.reactor.advance(0.02)
    assert accepted(second[0]) == accepted(first[0])
    looking.answer(looking.other)  # too late for that question
    assert len(second) == 1


def test_an_answer_to_an_earlier_question_is_none_to_the_latest(looking: Looking) -> None:
    earlier = looking.begin()
    looking.answer(looking.one)
    late = looking.other.orders[-1]["number"]
    looking.reactor.advance(ANSWER_IN)
    assert earlier
    latest = looking.begin()
    looking.answer(looking.one)
    looking.look.told(looking.other.child, told_by(busy_subject()), late)
    assert not latest
    looking.answer(looking.other)
    assert latest


def test_the_counters_of_a_worker_that_has_ended_stay(looking: Looking) -> None:
    before = looking.begin()
    looking.answer(looking.one)
    looking.answer(looking.other)
    looking.one.end(1)
    looking.look.ended(looking.one.child)
    after = looking.begin()
    looking.answer(looking.other)
    assert accepted(after[0]) == accepted(before[0])
    assert [one.number for one in after[0].workers] == [2, 3]


def test_a_look_does_not_wait_for_a_worker_that_has_ended(looking: Looking) -> None:
    before = looking.begin()
    looking.answer(looking.one)
    looking.answer(looking.other)
    found = looking.begin()
    looking.answer(looking.one)
    looking.other.end(1)
    looking.look.ended(looking.other.child)
    assert accepted(found[0]) == accepted(before[0])


def test_a_stop_ends_each_question(looking: Looking) -> None:
    looking.look.start()
    found = looking.begin()
    looking.look.stop()
    assert found[0].listeners == []
    assert not looking.reactor.getDelayedCalls()
    assert looking.look.state == "ready"


def test_metrics_of_handlers_have_the_number_of_their_worker(looking: Looking) -> None:
    registry = CollectorRegistry()
    Counter("jokes", "Jokes told.", registry=registry).inc(3)
    looking.begin()
    looking.answer(looking.one)
    told = told_by(busy_subject(), registry)  # type: ignore[arg-type]
    looking.look.told(looking.other.child, told, looking.other.orders[-1]["number"])
    own = looking.look.own()
    assert own is not None
    (metric,) = own.collect()
    samples = {one.name: (one.labels, one.value) for one in metric.samples}
    assert samples["jokes_total"] == ({"worker": "2"}, 3)
