"""Sinks of the log, with real files."""

from __future__ import annotations

import errno
import os
import socket
import stat
import syslog
import threading
from pathlib import Path
from typing import Any

import pytest

from echod.log import sinks as logsinks
from echod.log.sinks import DescriptorSink, FileSink, Line, SyslogSink
from tests.support.needs import needs_root


def say(sink: DescriptorSink, text: str) -> None:
    assert sink.write([Line(text, "info")]) == 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_a_file_begins_anew_when_it_is_asked_to(path: Path) -> None:
    sink = FileSink(str(path))
    say(sink, "old: \u00fc")
    sink.begin_anew()
    say(sink, "new")
    assert (path.with_name("log.1")).read_text() == "old: \u00fc\n"
    assert path.read_text() == "new\n"
    sink.close()


def test_a_file_that_is_long_enough_begins_anew(path: Path) -> None:
    sink = FileSink(str(path))
    lines = [Line("x" * 9_999, "info")] * 10
    for _ in range(11):
        assert sink.write(lines) == 10
    assert path.with_name("log.1").stat().st_size == 1_000_000
    assert path.stat().st_size == 100_000
    sink.close()


def test_only_so_many_old_files_are_kept(path: Path) -> None:
    sink = FileSink(str(path), keep=3)
    for number in range(6):
        say(sink, str(number))
        sink.begin_anew()
    assert sorted(p.name for p in path.parent.iterdir()) == ["log", "log.1", "log.2", "log.3"]
    assert [path.with_name(f"log.{n}").read_text() for n in (1, 2, 3)] == ["5\n", "4\n", "3\n"]
    sink.keep = 1
    sink.begin_anew()
    assert sorted(p.name for p in path.parent.iterdir()) == ["log", "log.1"]
    sink.keep = 0
    for _ in range(12):
        sink.begin_anew()
    assert path.with_name("log.13").exists()
    sink.close()


def test_a_file_that_was_moved_away_is_opened_anew_and_not_renamed(path: Path) -> None:
    """Rotate as logrotate does with `create`."""
    sink = FileSink(str(path))
    say(sink, "old")
    path.rename(path.with_name("log-2026"))
    path.touch(mode=0o640)
    say(sink, "old still")
    sink.begin_anew()
    say(sink, "new")
    assert path.with_name("log-2026").read_text() == "old\nold still\n"
    assert path.read_text() == "new\n"
    assert not path.with_name("log.1").exists()
    sink.close()


def test_a_file_that_was_removed_is_made_anew(path: Path) -> None:
    sink = FileSink(str(path))
    path.unlink()
    sink.begin_anew()
    say(sink, "new")
    assert path.read_text() == "new\n"
    sink.close()


def test_a_file_that_is_truncated_has_no_hole(path: Path) -> None:
    """Rotate as logrotate does with `copytruncate`."""
    sink = FileSink(str(path))
    say(sink, "x" * 1000)
    os.truncate(path, 0)
    say(sink, "new")
    assert path.read_bytes() == b"new\n"
    sink.close()


def kinds(folder: Path) -> dict[str, int]:
    return {entry.name: stat.S_IFMT(entry.lstat().st_mode) for entry in folder.iterdir()}


def make(kind: str, path: Path) -> None:
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "link":
            path.symlink_to("elsewhere")
            path.with_name("elsewhere").touch()
        case "link to a device":
            path.symlink_to("/dev/null")
        case "link to nothing yet":
            path.symlink_to("elsewhere")


@pytest.mark.parametrize("kind", ["FIFO", "link to a device"])
def test_what_is_no_file_is_never_renamed(
    kind: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logsinks, "LONGEST_FILE", 10)
    make(kind, path)
    before = kinds(path.parent)
    sink = FileSink(str(path))
    for _ in range(3):
        say(sink, "longer than ten bytes")
        sink.begin_anew()
    assert kinds(path.parent) == before
    sink.close()


@pytest.mark.parametrize("kind", ["link", "link to nothing yet"])
def test_of_a_link_the_file_behind_it_is_renamed(kind: str, path: Path) -> None:
    make(kind, path)
    sink = FileSink(str(path))
    say(sink, "old")
    sink.begin_anew()
    say(sink, "new")
    assert path.is_symlink()
    assert path.with_name("elsewhere.1").read_text() == "old\n"
    assert path.with_name("elsewhere").read_text() == "new\n"
    assert not path.with_name("log.1").exists()
    sink.close()


def test_root_follows_a_link_only_where_nobody_else_could_have_made_it(path: Path) -> None:
    needs_root("follow links as root does")
    path.symlink_to("elsewhere")
    FileSink(str(path)).close()
    for mode, owner in ((0o777, 0), (0o1777, 0), (0o770, 0), (0o755, 65534)):
        path.parent.chmod(mode)
        os.chown(path.parent, owner, 0)
        with pytest.raises(OSError, match="root does not follow a link in a folder"):
            FileSink(str(path))


def test_links_that_lead_to_each_other_are_not_followed_for_ever(path: Path) -> None:
    path.symlink_to("other")
    path.with_name("other").symlink_to("log")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        FileSink(str(path))


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_a_descriptor_that_is_open_already_may_be_named_be_it_a_socket(name: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = FileSink(name.format(theirs.fileno()))
        say(sink, "this")
        sink.begin_anew()
        say(sink, "that")
        assert ours.recv(100) == b"this\nthat\n"
        sink.close()


def test_a_file_that_cannot_be_renamed_goes_on_and_that_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[object] = []

    def refuse(*paths: object) -> None:
        attempts.append(paths)
        raise OSError(errno.EACCES, "odd")

    monkeypatch.setattr(logsinks, "LONGEST_FILE", 100)
    monkeypatch.setattr(Path, "rename", refuse)
    sink = FileSink(str(path))
    with pytest.raises(OSError, match="odd"):
        sink.begin_anew()
    say(sink, "on it goes")
    assert path.read_text() == "on it goes\n"
    attempts.clear()
    for _ in range(100):
        say(sink, "123456789")
    assert len(attempts) <= 11  # not with every line
    sink.close()


def test_what_has_an_old_files_name_and_is_none_stays(path: Path) -> None:
    path.with_name("log.1").mkdir()
    sink = FileSink(str(path))
    say(sink, "old")
    with pytest.raises(FileExistsError):
        sink.begin_anew()
    say(sink, "on it goes")
    assert path.read_text() == "old\non it goes\n"
    sink.close()


def test_a_file_goes_on_when_there_is_no_descriptor_for_a_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(*arguments: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    sink = FileSink(str(path))
    with monkeypatch.context() as context:
        context.setattr(os, "open", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            sink.begin_anew()
        say(sink, "in the old one")
    assert os.open is real
    sink.begin_anew()
    say(sink, "in a new one")
    assert path.with_name("log.1").read_text() == "in the old one\n"
    assert path.read_text() == "in a new one\n"
    sink.close()


def test_a_file_on_a_full_disk_loses_lines() -> None:
    sink = FileSink("/dev/full")
    assert sink.write([Line("a", "info")]) == 0
    sink.close()


def test_a_child_writes_and_renames_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logsinks, "LONGEST_FILE", 10)
    sink = FileSink(str(path))
    child = sink.in_child()
    for _ in range(3):
        say(child, "longer than ten bytes")
        child.begin_anew()
    assert [entry.name for entry in path.parent.iterdir()] == ["log"]
    assert child.in_child() is child
    sink.close()


def test_a_child_does_not_wait_for_a_reader_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logsinks, "CHILD_WAIT_SECONDS", 0.01)
    reading, writing = os.pipe()
    child = DescriptorSink(writing).in_child()
    lines = [Line("x" * 999, "info")] * 100
    taken = sum(child.write(lines) for _ in range(3))
    assert 0 < taken < 100
    os.read(reading, 1 << 16)
    say(child, "read again")
    os.close(reading)
    assert child.write(lines) == 0
    os.close(writing)


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

    monkeypatch.setattr(logsinks.os, "write", write)  # type: ignore[attr-defined]
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
    monkeypatch.setattr(syslog, "openlog", lambda *a: calls.append(a))
    monkeypatch.setattr(syslog, "syslog", lambda *a: calls.append(a))
    sink = SyslogSink("echod")
    assert sink.write([Line("one\n\ttwo", "error"), Line("three", "debug")]) == 2
    sink.begin_anew()
    assert calls == [
        ("echod", syslog.LOG_PID),
        (syslog.LOG_ERR, "one"),
        (syslog.LOG_ERR, "\ttwo"),
        (syslog.LOG_DEBUG, "three"),
    ]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_child_writes_to_the_systems_log_without_libc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: socket.SocketKind
) -> None:
    monkeypatch.setattr(logsinks, "SYSLOG", str(tmp_path / "log"))
    sink = SyslogSink("echod").in_child()
    lines = [Line("one\n\ttwo", "error"), Line("three", "debug")]
    assert sink.write(lines) == 0  # there is no such socket
    with socket.socket(socket.AF_UNIX, kind) as log:
        log.bind(str(tmp_path / "log"))
        if kind == socket.SOCK_STREAM:
            log.listen()
        assert sink.in_child().write(lines) == 2
        if kind == socket.SOCK_STREAM:
            connection, _ = log.accept()
            with connection:
                got = connection.recv(1000).split(b"\0")
                assert got.pop() == b""
        else:
            got = [log.recv(1000) for _ in range(3)]
    sink.begin_anew()
    own = f"echod[{os.getpid()}]: ".encode()
    assert got == [b"<11>" + own + b"one", b"<11>" + own + b"\ttwo", b"<15>" + own + b"three"]


def test_a_child_does_not_wait_for_long_for_the_systems_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logsinks, "SYSLOG", str(tmp_path / "log"))
    monkeypatch.setattr(logsinks, "CHILD_WAIT_SECONDS", 0.05)
    sink = SyslogSink("echod").in_child()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        lines = [Line("x" * 1000, "info")] * 10_000
        assert 0 < sink.write(lines) < 10_000
        assert sink.write(lines) == 0
