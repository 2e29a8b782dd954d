from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.logger import LogEvent, Logger, globalLogPublisher

from echod.connections.clients import log_failure
from echod.handlers.client import Client
from echod.log.event import LogLine
from echod.log.observer import LogObserver
from echod.log.rate import WINDOW
from tests.log.test_observer import Kept

Observe = Callable[..., None]


@pytest.fixture
def observed_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[Observe]:
    """Let these be the only observers of the process's log, the test's own among them."""

    def observe(*observers: Callable[[LogEvent], object]) -> None:
        monkeypatch.setattr(globalLogPublisher, "_observers", list(observers))

    yield observe
    monkeypatch.undo()


@pytest.fixture
def observer() -> Iterator[LogObserver]:
    """A log that takes ten lines of a kind in ten seconds, from level info on."""
    observer = LogObserver(Kept(), rate=10 / WINDOW)
    yield observer
    observer.close()


line = LogLine(Logger(namespace="here"), "info", "Number {number}")


def written(observer: LogObserver, line: LogLine, times: int) -> list[int]:
    """Write a line if it is wanted, this many times; return when it was."""
    numbers = []
    for number in range(times):
        if line.wanted("127.0.0.1:1"):
            line.write(number=number)
            numbers.append(number)
    observer.writer.flush(10)
    return numbers


def test_a_line_above_the_rate_is_counted_and_never_made(
    observed_by: Observe, observer: LogObserver
) -> None:
    observed_by(observer)
    assert written(observer, line, 25) == list(range(10))
    assert (observer.suppressed, observer.written) == (15, 10)


def test_a_line_below_the_level_is_never_made(observed_by: Observe, observer: LogObserver) -> None:
    observed_by(observer)
    observer.reconfigure(level="warn", rate=0, files=0)
    assert written(observer, line, 5) == []
    assert (observer.suppressed, observer.written) == (0, 0)


def test_the_end_tells_how_many_were_never_made(observed_by: Observe) -> None:
    sink = Kept()
    observer = LogObserver(sink, rate=10 / WINDOW)
    observed_by(observer)
    written(observer, line, 12)
    observer.close()
    assert "2 more like this in 1 s (most from 127.0.0.1: 2): Number {number}" in sink.lines[-1]


def test_a_higher_rate_holds_for_the_next_line(
    observed_by: Observe, observer: LogObserver
) -> None:
    observed_by(observer)
    assert len(written(observer, line, 25)) == 10
    observer.reconfigure(level="info", rate=20 / WINDOW, files=0)
    assert len(written(observer, line, 25)) == 10
    observer.reconfigure(level="error", rate=20 / WINDOW, files=0)
    assert written(observer, line, 25) == []
    assert (observer.suppressed, observer.written) == (30, 20)


def test_no_line_of_several_threads_is_left_out_or_counted_twice(observed_by: Observe) -> None:
    sink, now, each = Kept(), [0.0], 20_000
    observer = LogObserver(sink, format="json", rate=10 / WINDOW, clock=lambda: now[0])
    observed_by(observer)
    threads = [threading.Thread(target=written, args=(observer, line, each)) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        now[0] += WINDOW
        observer._report()
        assert observer.suppressed <= each * len(threads)
    for thread in threads:
        thread.join()
    observer.close()
    records = [json.loads(text) for text in sink.lines]
    told = sum(record.get("count", 0) for record in records)
    made = sum("number" in record for record in records)
    assert (told, made) == (observer.suppressed, each * len(threads) - observer.suppressed)


def test_an_observer_of_somebody_elses_sees_every_line(
    observed_by: Observe, observer: LogObserver
) -> None:
    seen: list[Any] = []
    observed_by(observer, seen.append)
    assert written(observer, line, 25) == list(range(25))
    assert [event["number"] for event in seen] == list(range(25))
    assert (observer.suppressed, observer.written) == (15, 10)


def test_a_traceback_that_will_not_be_written_is_not_put_together(
    observed_by: Observe, observer: LogObserver
) -> None:
    """Fault 38: The daemon never formats a line above its rate or below the level, not even a
    traceback: such a line costs a look at a counter.
    """

    class Failed:
        shown = 0
        tb = value = None

        def getTraceback(self) -> str:
            self.shown += 1
            return "Traceback"

    failure: Any = Failed()
    observed_by(observer)
    for _ in range(1000):
        log_failure(failure, Client("here"))
    assert failure.shown == 10
    assert observer.suppressed == 990
