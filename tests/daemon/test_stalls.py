from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator

import pytest
import pytest_twisted
from twisted.internet.task import Clock, deferLater

from echod.daemon import stalls
from echod.daemon.stalls import StallWatch
from echod.metrics import Metrics
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import eventually, no_more_threads
from tests.support.waiting import PATIENCE

# Stalls that a busy machine causes are mostly shorter; if not, there are more stalls than a test
# has made, but never fewer.
THRESHOLD = 0.3
LONG = 3 * THRESHOLD


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def watch(metrics: Metrics) -> Iterator[StallWatch]:
    watching = StallWatch(reactor, THRESHOLD, metrics)
    watching.start()
    yield watching
    watching.stop()
    watching.stop()


@pytest.fixture
def all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stall is logged, however soon it comes after another."""
    monkeypatch.setattr(stalls, "LOG_INTERVAL", 0.0)


def sleep_on_the_job(log: Log) -> str:
    """Block the event loop until the log says so; return what was logged meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while "in sleep_on_the_job" not in log.text and time.monotonic() < deadline:
        time.sleep(0.01)
    return log.text


def compute_without_a_pause(seconds: float) -> None:
    """Block the event loop by C code that no other thread can interrupt.

    Args:
        seconds: for how long, in processor time, which a busy machine does not change.
    """
    size, began = 1_000_000, time.thread_time()
    sum(range(size))
    sum(range(round(size * seconds / (time.thread_time() - began))))


@pytest_twisted.ensureDeferred
async def test_the_stack_of_what_holds_the_loop_is_logged_while_it_does(
    all_told: None, watch: StallWatch, metrics: Metrics, log: Log
) -> None:
    said = await deferLater(reactor, 0, sleep_on_the_job, log)
    said = said[said.rindex("The event loop has been blocked for 0.") :]
    assert "in sleep_on_the_job\n    time.sleep(0.01)" in said
    assert re.findall(r"line \d+, in (\w+)", said) == ["sleep_on_the_job"]
    await eventually(lambda: log.has("The event loop continues after"))
    took = re.findall(r"The event loop continues after (\S+) s", log.text)
    assert min(map(float, took)) >= THRESHOLD
    assert metrics.stalls >= len(took)
    assert metrics.stalled >= sum(map(float, took)) - 0.01 * len(took)


@pytest_twisted.ensureDeferred
async def test_a_stall_is_logged_again_each_time_its_length_has_doubled(
    watch: StallWatch, metrics: Metrics, log: Log
) -> None:
    def stay() -> list[float]:
        deadline = time.monotonic() + PATIENCE
        shown: list[str] = []
        while len(shown) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
            shown = re.findall(r"blocked for (\S+) s(?: \(.*\))?; it is at:", log.text)
        return [float(each) for each in shown]

    lengths = await deferLater(reactor, 0, stay)
    assert len(lengths) == 4
    later = [each for each in lengths if each >= 1.0]
    assert len(later) >= 2
    # The log shows hundredths: each figure may be half of one too short, or too long.
    assert all(after >= 2 * before - 0.02 for before, after in itertools.pairwise(later))
    await eventually(lambda: metrics.stalls >= 1)


@pytest_twisted.ensureDeferred
async def test_where_nothing_but_twisted_is_at_work_the_whole_stack_is_logged(
    all_told: None, watch: StallWatch, metrics: Metrics, log: Log
) -> None:
    await deferLater(reactor, 0, time.sleep, LONG)
    await eventually(lambda: metrics.stalls >= 1)
    await eventually(lambda: re.search(r"line \d+, in runUntilCurrent", log.text) is not None)


def test_without_a_thread_nobody_watches_and_the_log_says_so(metrics: Metrics, log: Log) -> None:
    watching = StallWatch(reactor, THRESHOLD, metrics)
    with no_more_threads():
        watching.start()
    assert "Stall detection is off: can't start new thread" in log.text
    watching.stop()


@pytest_twisted.ensureDeferred
async def test_c_code_that_holds_the_interpreter_is_noticed_too(
    all_told: None, watch: StallWatch, metrics: Metrics, log: Log
) -> None:
    def is_named() -> bool:
        return re.search(r"line \d+, in compute_without_a_pause", log.text) is not None

    # The thread that watches looks right after it, unless the machine is so busy that the loop has
    # gone on by then: so once more.
    deadline = time.monotonic() + PATIENCE
    while not is_named() and time.monotonic() < deadline:
        await deferLater(reactor, 0.05, compute_without_a_pause, LONG)
    assert is_named()
    await eventually(lambda: metrics.stalled > THRESHOLD)


@pytest_twisted.ensureDeferred
async def test_what_takes_no_longer_than_the_threshold_is_not_mentioned(
    watch: StallWatch, metrics: Metrics, log: Log
) -> None:
    turns = []
    for _ in range(10):
        began = time.monotonic()
        await deferLater(reactor, 0, time.sleep, THRESHOLD * 0.5)
        turns.append(time.monotonic() - began)
    assert_none_is_mentioned_but(turns, metrics, log)


def assert_none_is_mentioned_but(turns: list[float], metrics: Metrics, log: Log) -> None:
    """Check that at most those of these turns are stalls that a busy machine has made so long.

    Args:
        turns: how long each took, in seconds.
        metrics: where stalls are counted.
        log: where they are mentioned.
    """
    longer = sum(turn >= 0.75 * THRESHOLD for turn in turns)
    assert metrics.stalls <= longer
    assert log.text.count("event loop") <= 2 * longer


async def be_at_work(seconds: float) -> list[float]:
    """Let the event loop compute, a little in each turn.

    Args:
        seconds: for how long.

    Returns:
        How long each turn took, in seconds.
    """
    turns, began = [], time.monotonic()
    until = began + seconds
    while began < until:
        await deferLater(reactor, 0, sum, range(10_000))
        ended = time.monotonic()
        turns.append(ended - began)
        began = ended
    return turns


@pytest_twisted.ensureDeferred
async def test_a_loop_that_is_busy_is_not_blocked(
    watch: StallWatch, metrics: Metrics, log: Log
) -> None:
    # The watching thread hardly gets the interpreter meanwhile.
    turns = await be_at_work(10 * THRESHOLD)
    began = time.monotonic()
    await deferLater(reactor, 2 * THRESHOLD)
    turns.append(time.monotonic() - began - 2 * THRESHOLD)
    assert_none_is_mentioned_but(turns, metrics, log)


@pytest.mark.parametrize("busy", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_stall_is_measured_to_a_quarter_of_the_threshold(
    busy: bool, watch: StallWatch, metrics: Metrics
) -> None:
    if busy:
        await be_at_work(2 * THRESHOLD)
    for _ in range(2):
        stalls, stalled, began = metrics.stalls, metrics.stalled, time.monotonic()
        await deferLater(reactor, 0, time.sleep, LONG)
        await eventually(lambda stalls=stalls: metrics.stalls > stalls)
        took = time.monotonic() - began
        assert metrics.stalls == stalls + 1
        assert (metrics.stalled - stalled - LONG) / THRESHOLD >= -0.26
        assert metrics.stalled - stalled <= took + 0.26 * THRESHOLD


@pytest.mark.parametrize(
    ("late", "paused", "counted"),
    [(0.0, 0.0, 0), (0.74, 0.0, 0), (0.76, 0.0, 1), (9.0, 0.0, 1), (9.0, 9.0, 0), (9.0, 8.0, 1)],
)
def test_a_late_beat_is_a_stall_that_began_half_a_period_before_unless_the_process_was_paused(
    metrics: Metrics, late: float, paused: float, counted: int
) -> None:
    clock = Clock()
    watching = StallWatch(clock, 1.0, metrics, seconds=clock.seconds)
    watching._due = clock.seconds() + late
    clock.advance(2 * late)
    watching._beat()
    (planned,) = clock.getDelayedCalls()
    assert planned.getTime() == watching._due == clock.seconds() + 0.5
    watching._count_stalls(paused, shown=False)
    assert metrics.stalls == counted
    assert metrics.stalled == pytest.approx((late + 0.25 - paused) * counted)


@pytest_twisted.ensureDeferred
async def test_a_handler_that_is_slow_each_time_does_not_fill_the_log(
    watch: StallWatch, metrics: Metrics, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "LOG_INTERVAL", 1000.0)
    for count in (1, 2, 3):
        await deferLater(reactor, 0, time.sleep, LONG)
        await eventually(lambda count=count: metrics.stalls >= count)
    assert log.text.count("The event loop has been blocked") == 1
    assert log.text.count("continues after") <= 1
    monkeypatch.setattr(watch, "_silent_until", 0.0)
    said = await deferLater(reactor, 0, sleep_on_the_job, log)
    (untold,) = re.findall(r"s \((\d+) more were not shown\); it is at:", said)
    assert int(untold) >= 2


@pytest_twisted.ensureDeferred
async def test_where_a_threads_processor_time_cannot_be_had_nothing_is_taken_for_a_pause(
    metrics: Metrics, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(stalls.time, "pthread_getcpuclockid")  # type: ignore[attr-defined]
    watching = StallWatch(reactor, THRESHOLD, metrics)
    watching.start()
    try:
        await deferLater(reactor, 0, time.sleep, LONG)
        await eventually(lambda: metrics.stalls >= 1)
    finally:
        watching.stop()


@pytest.mark.parametrize(
    ("late", "worked", "said"), [(30.0, 0.0, "did not run for 30.0 s"), (30.0, 29.0, "")]
)
def test_a_process_that_stood_still_blames_nobody(
    metrics: Metrics,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    late: float,
    worked: float,
    said: str,
) -> None:
    times, uses = iter([100.0, 100.0 + 0.05 + late]), iter([5.0, 5.0 + worked])
    watching = StallWatch(reactor, THRESHOLD, metrics, seconds=lambda: next(times))
    monkeypatch.setattr(watching, "_used", lambda: next(uses))
    paused = watching._wait(0.05)
    assert bool(paused) is bool(said)
    assert said in log.text
