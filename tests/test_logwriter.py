from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from echod import logwriter
from echod.logwriter import DescriptorSink, FileSink, Line, LogWriter, SyslogSink

PATIENCE = 10.0


class ListSink:
    """Keeps lines; refuses them while it is `full`, and waits while it is not `open`."""

    stamps = False

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.writes = 0
        self.full = False
        self.open = threading.Event()
        self.open.set()

    def write(self, lines: Sequence[Line]) -> int:
        self.open.wait(PATIENCE)
        self.writes += 1
        if self.full:
            return 0
        self.lines += [line.text for line in lines]
        return len(lines)

    def rotate(self) -> None:
        pass


@pytest.fixture
def sink() -> ListSink:
    return ListSink()


@pytest.fixture
def writer(sink: ListSink) -> Iterator[LogWriter]:
    made = LogWriter(sink, notice=lambda count: Line(f"lost: {count}", "warn"))
    yield made
    sink.open.set()
    made.close()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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
    eventually(lambda: not writer._pending)
    for number in range(30):
        writer.add(Line(f"line {number:05}", "info"))
    assert writer.dropped == 21  # what the sink has in hand takes room, too
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
    monkeypatch.setattr(logwriter, "LAST_WAIT", 0.05)
    writer.start()
    writer.finish()
    writer.add(Line("the last but one", "info"))
    assert sink.lines == ["the last but one"]
    sink.open.clear()
    began = time.monotonic()
    for _ in range(100):
        writer.add(Line("who would wait for this?", "info"))
    writer.close()
    assert time.monotonic() - began < 2


def test_a_forked_child_writes_what_is_its_own() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(DescriptorSink(writing), notice=lambda count: Line("", "warn"))
    writer.start()
    assert writer.flush(PATIENCE)
    with writer._lock:  # the parent's thread, which the child does not have, cannot write it
        writer._pending.append(Line("the parent's", "info"))
        child = os.fork()
        if not child:
            writer.restart()
            launched = writer._thread is not None  # most children only run another program
            writer.add(Line("the child's", "info"))
            os._exit(0 if writer.flush(PATIENCE) and not launched else 1)
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


def test_a_file_begins_anew_when_it_is_asked_to(tmp_path: Path) -> None:
    sink = FileSink(str(tmp_path / "log"))
    writer = LogWriter(sink, notice=lambda count: Line("", "warn"))
    writer.start()
    writer.add(Line("old: \u00fc", "info"))
    writer.rotate()
    assert writer.flush(PATIENCE)
    writer.add(Line("new", "info"))
    writer.close()
    assert (tmp_path / "log.1").read_text() == "old: \u00fc\n"
    assert (tmp_path / "log").read_text() == "new\n"
    sink.close()


def test_a_file_that_is_long_enough_is_rotated_too(tmp_path: Path) -> None:
    sink = FileSink(str(tmp_path / "log"))
    lines = [Line("x" * 9_999, "info")] * 10
    for _ in range(11):
        assert sink.write(lines) == 10
    assert (tmp_path / "log.1").stat().st_size == 1_000_000
    assert (tmp_path / "log").stat().st_size == 100_000
    sink.close()


def test_a_file_that_cannot_be_rotated_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError("odd")

    sink = FileSink(str(tmp_path / "log"))
    (tmp_path / "log.1").touch()
    monkeypatch.setattr("os.rename", refuse)
    sink.rotate()
    assert sink.write([Line("on it goes", "info")]) == 1
    assert (tmp_path / "log").read_text() == "on it goes\n"
    sink.close()


def test_a_file_goes_on_when_there_is_no_descriptor_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    sink = FileSink(str(tmp_path / "log"))
    with monkeypatch.context() as context:
        context.setattr("twisted.python.logfile.open", refuse, raising=False)
        sink.rotate()
        assert sink.write([Line("still here", "info")]) == 1
        sink.rotate()
    assert sink.write([Line("in the old one", "info")]) == 1
    sink.rotate()
    assert sink.write([Line("in a new one", "info")]) == 1
    assert (tmp_path / "log.1").read_text() == "still here\nin the old one\n"
    assert (tmp_path / "log").read_text() == "in a new one\n"
    sink.close()


def test_a_file_on_a_full_disk_loses_lines() -> None:
    sink = FileSink("/dev/full")
    assert sink.write([Line("a", "info")]) == 0
    sink.close()


def test_a_descriptor_takes_lines_and_says_how_many_when_it_breaks() -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - not a path's file
        sink = DescriptorSink(full.fileno())
        assert sink.write([Line("a", "info"), Line("b", "info")]) == 0
    reading, writing = os.pipe()
    sink._descriptor = writing
    assert sink.write([Line("c\n\tc", "info"), Line("\udce4", "info")]) == 2
    assert os.read(reading, 100) == b"\nc\n\tc\n\\udce4\n"
    os.close(reading)
    assert sink.write([Line("d", "info")]) == 0
    os.close(writing)


def test_half_a_line_is_not_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    takes = [4, 3]

    def write(descriptor: int, data: memoryview) -> int:
        if not takes:
            raise OSError("no more")
        return takes.pop(0)

    monkeypatch.setattr(logwriter.os, "write", write)
    assert DescriptorSink(1).write([Line("one", "info"), Line("two", "info")]) == 1


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sink = DescriptorSink(writing)
    lines = [Line("x" * 999, "info")] * 300
    written: list[int] = []
    thread = threading.Thread(target=lambda: written.append(sink.write(lines)))
    thread.start()
    received = 0
    while received < 300_000:
        received += len(os.read(reading, 1 << 16))
    thread.join()
    assert written == [300]
    os.close(reading)
    os.close(writing)


def test_syslog_gets_each_line_with_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(logwriter.syslog, "openlog", lambda *a: calls.append(a))
    monkeypatch.setattr(logwriter.syslog, "syslog", lambda *a: calls.append(a))
    sink = SyslogSink("echod")
    assert sink.write([Line("one\n\ttwo", "error"), Line("three", "debug")]) == 2
    sink.rotate()
    priority = logwriter.syslog
    assert calls == [
        ("echod", priority.LOG_PID),
        (priority.LOG_ERR, "one"),
        (priority.LOG_ERR, "\ttwo"),
        (priority.LOG_DEBUG, "three"),
    ]
