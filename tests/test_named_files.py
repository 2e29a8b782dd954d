"""Files that are none: FIFOs, devices, folders."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from echod import named_files
from echod.named_files import read, read_text


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3_000_000)
    assert read(file) == b"x" * 3_000_000
    file.write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    assert read_text(file, "utf-8-sig") == "one\ntwo\nthree\n"
    file.write_bytes(b"\xff")
    assert read_text(file, "ascii", "replace") == "\ufffd"
    with pytest.raises(UnicodeDecodeError):
        read_text(file, "utf-8")
    assert read("/dev/null") == b""


def test_what_cannot_be_opened_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nosuch")
    with pytest.raises(ValueError, match="null byte"):
        read("a\0b")


def test_a_device_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(OSError, match="it is longer than 16 MiB"):
        read("/dev/zero")


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_a_fifo_is_read_if_a_writer_comes(fifo: Path) -> None:
    def write() -> None:
        with fifo.open("wb") as file:  # which waits for the reader
            file.write(b"one, ")
            file.flush()
            file.write(b"two")

    writer = threading.Thread(target=write)
    writer.start()
    assert read(fifo) == b"one, two"
    writer.join()


@pytest.mark.parametrize("written", [False, True])
def test_a_fifo_is_not_waited_for_without_an_end(
    fifo: Path, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_files, "PATIENCE", 0.05)
    writing = os.open(fifo, os.O_RDWR)
    if written:
        os.write(writing, b"a beginning")
    with pytest.raises(TimeoutError, match=r"its end has not come within 0\.05 s"):
        read(fifo)
    os.close(writing)


def test_a_pipe_that_was_read_already_is_no_empty_file() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"once")
    os.close(writing)
    path = f"/proc/self/fd/{reading}"
    assert read(path) == b"once"
    with pytest.raises(OSError, match="nothing was written to this pipe") as caught:
        read(path)
    assert caught.value.errno == errno.ENODATA
    os.close(reading)
