from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from echod.log import writer as logwriter
from echod.log.sinks import DescriptorSink, Line, Sink
from echod.log.writer import LogWriter
from echod.threads import NoThreadError
from tests.support.serving import no_more_threads
from tests.support.waiting import PATIENCE, block_until


class ListSink:
    """Keeps lines; refuses them while it is `full`, and waits while it is not `open`."""

    stamps = False

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.writes = 0
        self.full = False
        self.error: Exception | None = None
        self.open = threading.Event()
        self.open.set()

    def write(self, lines: Sequence[Line]) -> int:
        self.open.wait(PATIENCE)
        self.writes += 1
        error, self.error = self.error, None
        if error is not None:
            raise error
        if self.full:
            return 0
        self.lines += [line.text for line in lines]
        return len(lines)

    def begin_anew(self) -> None:
        raise OSError("odd")

    def in_child(self) -> Sink:
        return self


@pytest.fixture
def sink() -> ListSink:
    return ListSink()


def made_for(sink: Sink) -> LogWriter:
    return LogWriter(
        sink,
        notice=lambda count: Line(f"lost: {count}", "warn"),
        trouble=lambda error: Line(f"no new file: {error}", "error"),
    )


@pytest.fixture
def writer(sink: ListSink) -> Iterator[LogWriter]:
    made = made_for(sink)
    yield made
    sink.open.set()
    made.close()


def test_an_error_of_the_sink_loses_its_lines_but_not_the_thread(
    writer: LogWriter, sink: ListSink
) -> None:
    sink.error = MemoryError()
    writer.start()
    writer.add(Line("lost", "info"))
    assert writer.flush(PATIENCE)
    assert writer.dropped == 1
    writer.add(Line("x" * logwriter.MOST_PENDING, "info"))  # no room is lost
    block_until(lambda: len(sink.lines) == 2)
    assert sink.lines[0] == "lost: 1"


def test_a_function_that_fails_does_not_end_the_thread(writer: LogWriter, sink: ListSink) -> None:
    writer.start()
    writer.when_written(lambda: [][0])
    writer.add(Line("after it", "info"))
    assert writer.flush(PATIENCE)
    assert sink.lines == ["after it"]


def test_a_function_is_called_once_the_lines_before_it_are_written(
    writer: LogWriter, sink: ListSink
) -> None:
    called: list[list[str]] = []

    def call() -> None:
        called.append(list(sink.lines))

    writer.add(Line("before the start", "info"))
    writer.when_written(call)
    assert called == [["before the start"]]
    writer.start()
    sink.open.clear()
    writer.add(Line("one", "info"))
    writer.when_written(call)
    block_until(lambda: not writer._pending)  # it is being written
    assert len(called) == 1
    sink.open.set()
    block_until(lambda: len(called) == 2)
    assert called[1] == ["before the start", "one"]


def test_lines_are_written_in_order_whoever_adds_them(writer: LogWriter, sink: ListSink) -> None:
    writer.add(Line("before the start", "info"))
    writer.start()
    writer.start()

    def add(name: str) -> None:
        for number in range(100):
            writer.add(Line(f"{name} {number}", "info"))

    threads = [threading.Thread(target=add, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(PATIENCE)
    assert sink.lines[0] == "before the start"
    for name in "xyz":
        assert [line for line in sink.lines if line[0] == name] == [
            f"{name} {number}" for number in range(100)
        ]
    assert (writer.written, writer.dropped) == (301, 0)
    assert sink.writes < 100  # many at a time


def test_nobody_waits_for_a_sink_that_is_stuck(
    writer: LogWriter, sink: ListSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logwriter, "MOST_PENDING", 100)
    sink.open.clear()
    writer.start()
    writer.add(Line("first", "info"))
    block_until(lambda: not writer._pending)
    for number in range(30):
        writer.add(Line(f"line {number:05}", "info"))
    assert writer.dropped == 21  # lines that the sink is writing take room, too
    assert not writer.flush(0.01)
    sink.open.set()
    assert writer.flush(PATIENCE)
    assert sink.lines[:3] == ["first", "lost: 21", "line 00000"]
    assert (writer.written, writer.dropped) == (10, 21)
    writer.add(Line("on it goes", "info"))
    assert writer.flush(PATIENCE)
    assert sink.lines[-2:] == ["line 00008", "on it goes"]


def test_what_the_sink_refuses_is_counted_and_told_once_it_takes_lines(
    writer: LogWriter, sink: ListSink
) -> None:
    sink.full = True
    for text in ("a", "b"):
        writer.add(Line(text, "info"))
        writer.flush(PATIENCE)
    sink.full = False
    writer.add(Line("c", "info"))
    writer.flush(PATIENCE)
    assert sink.lines == ["lost: 2", "c"]
    assert (writer.written, writer.dropped) == (1, 2)


def test_the_last_lines_are_waited_for_but_not_for_ever(
    writer: LogWriter, sink: ListSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logwriter, "LAST_WAIT", 0.5)
    writer.start()
    writer.finish()
    writer.add(Line("the last but one", "info"))
    assert sink.lines == ["the last but one"]
    sink.open.clear()
    began = time.monotonic()
    for _ in range(100):
        writer.add(Line("who would wait for this?", "info"))
    writer.close()
    assert time.monotonic() - began < 25  # not half a second for each line


def test_a_forked_child_writes_what_is_its_own_at_once() -> None:
    reading, writing = os.pipe()
    writer = made_for(DescriptorSink(writing))
    writer.start()
    assert writer.flush(PATIENCE)
    with writer._lock:  # the parent's thread, which the child does not have, cannot write it
        writer._pending.append(Line("the parent's", "info"))
        child = os.fork()
        if not child:
            writer.restart()
            writer.add(Line("the child's", "info"))
            os._exit(0 if writer._thread is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reading, 100) == b"the child's\n"
    writer.close()
    assert os.read(reading, 100) == b"the parent's\n"
    os.close(reading)
    os.close(writing)


def test_what_was_added_before_the_start_goes_with_the_child(
    writer: LogWriter, sink: ListSink
) -> None:
    writer.add(Line("twistd goes into the background", "info"))
    writer.restart()
    writer.start()
    assert writer.flush(PATIENCE)
    assert sink.lines == ["twistd goes into the background"]


def test_that_no_new_file_can_be_had_is_told_in_the_old_one(
    writer: LogWriter, sink: ListSink
) -> None:
    writer.start()
    writer.rotate()
    assert writer.flush(PATIENCE)
    assert writer.flush(PATIENCE)
    assert sink.lines == ["no new file: odd"]


def test_without_a_thread_it_does_not_start_and_says_what_to_do(
    writer: LogWriter, sink: ListSink
) -> None:
    writer.add(Line("starting", "info"))
    with no_more_threads(), pytest.raises(NoThreadError, match=r"new thread.*ulimit -u"):
        writer.start()
    writer.close()
    assert sink.lines == ["starting"]


def test_a_thread_that_could_not_be_started_is_started_for_a_later_line(
    writer: LogWriter, sink: ListSink
) -> None:
    with no_more_threads():
        with pytest.raises(NoThreadError):
            writer.start()
        writer.add(Line("one", "info"))
    writer.add(Line("two", "info"))
    block_until(lambda: sink.lines == ["one", "two"])
