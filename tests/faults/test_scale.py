"""A test's scale: its count, and its share of a soak."""

from __future__ import annotations

import threading
import time

from tests.faults.scale import Budget, Part, Rounds, Scale


def test_without_a_soak_the_short_count_is_done() -> None:
    scale = Scale("a test", None)
    assert list(scale(ci=3, soak=100)) == [0, 1, 2]


def test_in_a_soak_the_long_count_is_done_until_time_is_up() -> None:
    scale = Scale("a test", time.monotonic() + 60)
    assert len(list(scale(ci=3, soak=100))) == 100


def test_in_a_soak_that_is_too_short_the_short_count_is_done() -> None:
    late = Scale("a test", time.monotonic() - 1)
    assert list(late(ci=3, soak=100)) == [0, 1, 2]
    assert late.report.parts == [Part(wanted=100, least=3, done=3)]
    assert max(late.for_seconds(ci=0.01, soak=100)) > 0


def test_threads_share_the_count() -> None:
    rounds = Rounds(Part(1000, 1), float("inf"), print)
    seen: list[int] = []
    threads = [threading.Thread(target=seen.extend, args=(rounds,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1000))


def test_tests_share_the_time_and_what_one_leaves_goes_to_the_others() -> None:
    now = [0.0]
    budget = Budget(100.0, lambda: now[0])
    budget.tests_left = 4
    assert budget.share() == 25.0
    now[0] = 10.0
    assert budget.share() == 10.0 + 90.0 / 3
