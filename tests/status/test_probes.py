from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from echod.metrics import Totals
from echod.status.probes import INTERVAL, Probes


class FakePool:
    """A pool whose tasks are run by hand."""

    def __init__(self) -> None:
        self.waiting = 0
        self.tasks: list[tuple[Any, Any, tuple[Any, ...]]] = []

    def submit(self, done: Any, function: Any, arguments: tuple[Any, ...]) -> None:
        self.tasks.append((done, function, arguments))

    def run(self) -> None:
        for done, function, arguments in self.tasks:
            done(function(*arguments))
        self.tasks.clear()


def test_the_lag_is_how_late_the_loop_is() -> None:
    clock = Clock()
    probes = Probes(clock, None, Totals)
    probes.start()
    clock.advance(INTERVAL)
    clock.advance(INTERVAL + 0.2)
    assert [round(lag, 3) for lag in probes.recent_lags] == [0.0, 0.2]
    assert probes.lag.cumulative[-1] == 2
    assert round(probes.lag.total, 3) == 0.2
    probes.stop()
    probes.stop()
    assert not clock.getDelayedCalls()
    assert probes.pool_wait == 0.0


def test_the_wait_for_a_thread_is_that_of_a_task_that_waits_with_the_others() -> None:
    clock, pool = Clock(), FakePool()
    probes: Any = Probes(clock, pool, Totals)  # type: ignore[arg-type]
    probes.start()
    clock.advance(INTERVAL)
    assert not pool.tasks  # no task waits, so none has to be asked
    pool.waiting = 3
    clock.advance(INTERVAL)
    clock.advance(INTERVAL)
    assert len(pool.tasks) == 1
    clock.advance(INTERVAL)
    assert probes.pool_wait == 2 * INTERVAL  # so far
    pool.run()
    assert probes.pool_wait == 2 * INTERVAL
    clock.advance(INTERVAL)
    assert len(pool.tasks) == 1
    assert probes.pool_wait == 2 * INTERVAL
    pool.run()
    pool.waiting = 0
    clock.advance(INTERVAL)
    assert probes.pool_wait == 0.0
    probes.stop()
