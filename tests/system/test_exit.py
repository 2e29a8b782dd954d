"""The process ends like any Python program, in time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.clients import connect, receive_all
from tests.support.daemon import MODELS, REACTOR, Daemon, Start
from tests.support.programs import SCRIPTS, run
from tests.support.waiting import block_until

HANDLERS = """
import atexit
import logging.handlers
import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from twisted.internet import reactor

from echod import message_handler

held, binary = open("held", "w"), open("binary", "wb")
buffered = logging.handlers.MemoryHandler(1000, target=logging.FileHandler("logged"))
kept = []


@atexit.register
def at_exit():
    held.write("written at exit ")
    Path("ran").touch()
    print("said at exit")


@message_handler
def used(message):
    held.write("received ")
    binary.write(message)
    buffered.emit(logging.makeLogRecord({"msg": "logged", "levelno": 20}))
    return b"ok"


@message_handler
def threads(message):
    kept.append(ThreadPoolExecutor(1))
    kept[0].submit(work)
    return b"ok"


def work():
    while not Path("go on").exists():
        time.sleep(0.01)
    Path("worked").touch()


@message_handler
def executor(message):
    kept.append(ProcessPoolExecutor(1))
    return b"%d" % kept[0].submit(os.getpid).result()


@message_handler
def pool(message):
    kept.append(multiprocessing.Pool(1))
    return b"%d" % kept[0].apply(os.getpid)


@message_handler
def endless(message):
    threading.Thread(target=threading.Event().wait, daemon=False).start()
    return b"ok"


@message_handler
def stopping(message):
    threading.Thread(target=threading.Event().wait, daemon=False).start()
    reactor.callFromThread(reactor.stop)


@atexit.register
def hang():
    if Path("hang").exists():
        print("hangs at exit")
        while True:
            time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def served(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(HANDLERS)


def ask(running: Daemon, message: bytes = b"hi") -> bytes:
    """Send one message; return its reply, when the connection has ended."""
    with connect(running) as connection:
        connection.sendall(message)
        connection.shutdown(1)
        return receive_all(connection).rpartition(b"\n")[2]


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("model", MODELS)
def test_files_are_flushed_and_functions_of_atexit_called(
    daemon: Start, tmp_path: Path, model: str, number: int
) -> None:
    """Fault 83: The daemon flushes the files that a handler's module holds, and runs the functions
    of `atexit`.
    """
    # One model to the interpreter's very end.
    executed = model == "reactor"
    running = daemon("--handler", "served:used", "--concurrency", model, executed=executed)
    assert ask(running) == b"ok"
    running.signal(number)
    running.wait()
    assert (tmp_path / "held").read_text() == "received written at exit "
    assert (tmp_path / "binary").read_bytes() == b"hi"
    assert (tmp_path / "logged").read_text() == "logged\n"
    assert "said at exit" in running.log
    assert running.process.returncode == -number


@pytest.mark.parametrize("kind", ["executor", "pool"])
@pytest.mark.parametrize("model", ["reactor", "defer-to-thread"])
def test_processes_of_an_executor_end_with_the_daemon(
    daemon: Start, kind: str, model: str
) -> None:
    """Fault 83: The processes of an executor or a pool end with the daemon."""
    flags = ("--concurrency", model, "--drain-timeout", "600")
    running = daemon("--handler", f"served:{kind}", *flags)
    worker = int(ask(running))
    assert not is_gone(worker)
    running.signal()
    running.wait()
    assert is_gone(worker)
    assert running.process.returncode == -signal.SIGTERM


def test_work_of_an_executors_threads_is_finished(daemon: Start, tmp_path: Path) -> None:
    """Fault 83: Work that a handler has given to its own thread pool is finished."""
    running = daemon("--handler", "served:threads", "--concurrency", "reactor")
    assert ask(running) == b"ok"
    running.signal()
    running.wait_for("Received SIGTERM")
    (tmp_path / "go on").touch()
    running.wait()
    assert (tmp_path / "worked").exists()


@pytest.mark.parametrize("model", ["reactor", "thread-per-connection"])
def test_a_thread_that_never_ends_is_waited_for_no_longer_than_the_deadline(
    daemon: Start, model: str
) -> None:
    """Fault 83: The daemon waits for threads that never end, and for functions of `atexit` that
    hang, only until the drain's deadline or a second signal.
    """
    running = daemon("--handler", "served:endless", "--concurrency", model, "--drain-timeout", "1")
    ask(running)
    running.signal()
    running.wait()
    assert running.process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("hurry", [False, True])
def test_a_function_of_atexit_that_hangs_does_not_keep_the_process(
    daemon: Start, tmp_path: Path, hurry: bool
) -> None:
    """Fault 83: The daemon waits for threads that never end, and for functions of `atexit` that
    hang, only until the drain's deadline or a second signal.
    """
    (tmp_path / "hang").touch()
    timeout = "60" if hurry else "1"
    running = daemon("--handler", "served:used", "--drain-timeout", timeout)
    running.port  # noqa: B018 - it listens
    running.signal()
    running.wait_for("hangs at exit")
    if hurry:
        running.signal()
    running.wait()
    assert running.process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_a_handler_that_stops_the_reactor_ends_the_process_in_time(daemon: Start) -> None:
    running = daemon("--handler", "served:stopping", "--drain-timeout", "1")
    ask(running)
    running.wait()
    assert running.process.returncode == 0


def test_in_the_background_it_ends_likewise(tmp_path: Path) -> None:
    """Fault 83: All this holds for a daemon in the background, too."""
    arguments = ["--pidfile", "pid", "--logfile", "log", *REACTOR]
    command = (SCRIPTS / "twistd", *arguments, "echod", "--handler", "served:used", "--port", "0")
    assert run(tmp_path, *command).returncode == 0
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    block_until(lambda: is_gone(pid))
    assert (tmp_path / "held").read_text() == "written at exit "
    assert "said at exit" in (tmp_path / "log").read_text()
    assert not (tmp_path / "pid").exists()
