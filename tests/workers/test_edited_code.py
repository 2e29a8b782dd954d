"""`echod serve --reload`: the real command, whose code is edited."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clients import connect, receive_all
from tests.support.daemon import Daemon, Start
from tests.support.served_workers import START, Load
from tests.support.waiting import block_until

APP = "import helper\n\n\ndef shout(message):\n    return helper.mark + message\n"


@pytest.fixture
def serve(tmp_path: Path, daemon: Start) -> Callable[..., Daemon]:
    """Serve a handler of two files with `--reload`."""
    write(tmp_path, "helper.py", "mark = b'1 '\n")
    write(tmp_path, "app.py", APP)
    return lambda *flags: daemon("app:shout", "--reload", "--no-banner", *flags, served=True)


def write(folder: Path, name: str, text: str) -> None:
    """Save a file as many editors do: write another one, and give it the name."""
    (folder / f".{name}.new").write_text(text)
    (folder / f".{name}.new").replace(folder / name)


def serves(running: Daemon, count: int) -> None:
    running.wait_for(r"worker 1 \(process \d+\) serves", count, START)


def wait_for_mark(running: Daemon, mark: bytes) -> None:
    """Wait until the code with this mark answers."""

    def answers() -> bool:
        with contextlib.suppress(OSError), connect(running) as client:
            client.sendall(b"x\n")
            client.shutdown(socket.SHUT_WR)
            return receive_all(client) == mark + b"x\n"
        return False

    block_until(answers, START)


def test_the_code_of_a_running_service_can_be_edited(
    serve: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Fault 190: While files are edited, every message is answered, and no client is refused."""
    running = serve()
    serves(running, 1)
    with Load(running, threads=2) as load:
        write(tmp_path, "helper.py", "mark = b'2 '\n")
        running.wait_for("helper.py changed: reloading", patience=START)
        wait_for_mark(running, b"2 ")
        write(tmp_path, "helper.py", "mark = (\n")
        running.wait_for("the old code serves until then", patience=START)
        running.wait_for(r'^\t  File ".*helper.py", line 1$')
        running.wait_for(r"^\tSyntaxError: ")
        write(tmp_path, "more.py", "mark = b'3 '\n")
        write(tmp_path, "helper.py", "from more import mark\n")
        wait_for_mark(running, b"3 ")
        write(tmp_path, "more.py", "mark = b'4 '\n")  # the first code had no such file
        wait_for_mark(running, b"4 ")
        before = load.served
        block_until(lambda: load.served > before + 10)
    assert not load.refused
    assert load.broken == 0
    running.signal(signal.SIGINT)
    running.wait()
    assert running.process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert running.log.count("Traceback") == 1


def test_code_that_is_broken_from_the_beginning_can_be_mended(
    serve: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Fault 191: The first start waits for the file to be mended, and keeps its clients."""
    write(tmp_path, "helper.py", "raise RuntimeError('not yet')\n")
    path = str(tmp_path / "socket")
    flags = ("--concurrency=serial", "--fault=delay:time=0.01")
    running = serve("--listen", f"unix:{path}", *flags)
    running.wait_for("RuntimeError: not yet.*nothing serves until then", patience=START)
    with socket.socket(socket.AF_UNIX) as early:
        early.settimeout(START)
        early.connect(path)
        early.sendall(b"x\n")
        early.shutdown(socket.SHUT_WR)
        write(tmp_path, "helper.py", "mark = b'1 '\n")
        assert receive_all(early) == b"1 x\n"


def test_a_module_that_is_missing_can_be_written(
    serve: Callable[..., Daemon], tmp_path: Path
) -> None:
    running = serve()
    serves(running, 1)
    write(tmp_path, "app.py", APP.replace("helper", "other"))
    running.wait_for("No module named 'other'", patience=START)
    write(tmp_path, "other.py", "mark = b'2 '\n")
    wait_for_mark(running, b"2 ")


def test_bytecode_of_the_same_second_and_size_is_not_used(
    serve: Callable[..., Daemon], tmp_path: Path
) -> None:
    running = serve()
    os.utime(tmp_path / "helper.py", ns=(10**12, 10**12))
    serves(running, 1)
    wait_for_mark(running, b"1 ")
    write(tmp_path, ".hidden", "mark = b'2 '\n")
    os.utime(tmp_path / ".hidden", ns=(10**12 + 1, 10**12 + 1))
    (tmp_path / ".hidden").replace(tmp_path / "helper.py")
    wait_for_mark(running, b"2 ")
