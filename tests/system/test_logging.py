"""The log of the real daemon, from twistd's first line to its last."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.faults.test_logs import connect_to, daemon_of, is_listening
from tests.support.clients import BANNER, connect, receive
from tests.support.daemon import REACTOR, TWISTD, Start
from tests.support.needs import tool
from tests.support.programs import SCRIPTS, Program, close, run
from tests.support.waiting import PATIENCE, block_until


def test_every_line_is_an_object_from_the_first_to_the_last(daemon: Start) -> None:
    running = daemon("--log-format", "json")
    with connect(running) as client:
        receive(client, len(BANNER))
    (line,) = running.wait_for(".*Disconnected from.*")
    running.stop()
    records = [json.loads(line) for line in running.lines]
    assert any("starting up" in record["message"] for record in records)
    assert records[-1]["message"] == "Server Shut Down."
    record = json.loads(line)
    assert record["reason"] == "client closed"
    assert (record["messages"], record["received"], record["sent"]) == (0, 0, len(BANNER))
    assert record["listener"] == "tcp:0"
    assert record["duration"] >= 0


def test_the_text_ends_with_twistds_last_line(daemon: Start) -> None:
    running = daemon()
    running.wait_for("Socket now listening")
    running.stop()
    assert running.lines[-1].endswith("Server Shut Down."), running.log


def test_a_number_of_files_without_a_file_is_said_to_have_no_effect(
    daemon: Start, tmp_path: Path
) -> None:
    without = "--log-files has no effect"
    daemon("--log-files", "3").wait_for(without)
    to_file = ("-n", "--logfile=log", "--pidfile=", "echod", "--log-files=3", "--port=0")
    process: Program[bytes] = Program([SCRIPTS / "twistd", *to_file], cwd=tmp_path)
    try:
        log = tmp_path / "log"
        block_until(lambda: log.exists() and "Socket now listening" in log.read_text())
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert without not in log.read_text()


def test_what_is_below_the_level_is_left_out(daemon: Start) -> None:
    running = daemon("--log-level", "error", "--port", "18", "--listen", "tcp:nosuch")
    running.wait()
    assert [line for line in running.lines if "#info" in line] == []


def test_a_reload_changes_the_level(daemon: Start, tmp_path: Path) -> None:
    file = tmp_path / "echod.toml"
    file.write_text('log-level = "warn"\n')
    running = daemon("--config", str(file), "--listen", f"unix:{tmp_path}/socket")
    block_until((tmp_path / "socket").exists)
    file.write_text('log-level = "debug"\nlog-rate = 50\n')

    def reloaded() -> bool:
        running.signal(signal.SIGHUP)
        return "Reloaded; changed: log-level, log-rate" in running.log

    block_until(reloaded)
    assert "Socket now listening" not in running.log


def test_a_background_daemon_logs_to_a_file_that_sigusr1_rotates(tmp_path: Path) -> None:
    path, log = tmp_path / "socket", tmp_path / "twistd.log"
    started = run(tmp_path, SCRIPTS / "twistd", *REACTOR, "echod", "--listen", f"unix:{path}")
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    process = int((tmp_path / "twistd.pid").read_text())
    try:
        block_until(lambda: "Socket now listening" in log.read_text())
        first = log.read_text()
        os.kill(process, signal.SIGUSR1)
        block_until((tmp_path / "twistd.log.1").exists)
        block_until(log.exists)
    finally:
        os.kill(process, signal.SIGTERM)
    block_until(lambda: log.read_text().endswith("Server Shut Down.\n"))
    assert (tmp_path / "twistd.log.1").read_text().startswith(first)
    assert first.count("starting up") == 1
    block_until(lambda: not Path(f"/proc/{process}").exists())


def test_a_log_file_that_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    failed = run(tmp_path, *TWISTD, "--logfile", "nosuch/log", "echod")
    assert failed.returncode == 1
    assert failed.stderr == f"echod: --logfile {tmp_path}/nosuch/log: No such file or directory\n"


def test_an_observer_that_twistd_was_given_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def observer():\n    return lambda event: print('mine', file=open('mine.txt', 'a'))\n"
    )
    path = tmp_path / "socket"
    process = subprocess.Popen(
        [SCRIPTS / "twistd", "-n", "--pidfile=", "--logger", "mine.observer", "echod",
         "--listen", f"unix:{path}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    try:
        block_until(path.exists)
        assert "mine" in (tmp_path / "mine.txt").read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_child_of_a_handler_logs_too(daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "forking.py").write_text("""
import os

def fork(message: bytes) -> bytes:
    child = os.fork()
    if not child:
        print("the child says so", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("the parent says so")
    return message
""")
    running = daemon("--handler", "forking:fork")
    with connect(running) as client:
        client.sendall(b"happy\n")
        assert receive(client, 6) == b"happy\n"
    running.wait_for("the parent says so")
    assert len(running.wait_for("the child says so")) == 1


CHATTY = """
import logging, multiprocessing, sys
print("while it is imported")
logging.basicConfig(level=logging.INFO)
log = logging.getLogger("chatty")
log.info("configured")

def speak() -> None:
    print("the child prints")
    log.warning("the child logs")

def chat(message: bytes) -> bytes:
    log.info("got %d bytes", len(message))
    print("to standard error", file=sys.stderr)
    for _ in range(5):
        child = multiprocessing.get_context("fork").Process(target=speak)
        child.start()
        child.join()
    return message
"""


@pytest.mark.parametrize("background", [False, True])
def test_what_a_handler_prints_and_logs_is_in_the_log_whoever_does_it(
    tmp_path: Path, background: bool
) -> None:
    (tmp_path / "chatty.py").write_text(CHATTY)
    path, log = tmp_path / "socket", tmp_path / "log"
    ends = [] if background else ["-n"]
    daemon: Program[bytes] = Program(
        [SCRIPTS / "twistd", *ends, "--logfile", log, *REACTOR, "echod", "--log-format", "json",
         "--handler", "chatty:chat", "--listen", f"unix:{path}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    with daemon:
        block_until(lambda: is_listening(path))
        with connect_to(path) as client:
            client.sendall(b"happy\n")
            assert receive(client, 6) == b"happy\n"
            os.kill(daemon_of(client), signal.SIGTERM)
        printed, _ = daemon.communicate(timeout=PATIENCE)
    assert printed == b""
    block_until(lambda: "Server Shut Down." in log.read_text())
    records = [json.loads(line) for line in log.read_text().splitlines()]
    told = [(record["logger"], record["level"], record["message"]) for record in records]
    for line, times in {
        ("stdout", "info", "while it is imported"): 1,
        ("stderr", "info", "INFO:chatty:configured"): 1,
        ("chatty", "info", "got 6 bytes"): 1,
        ("stderr", "info", "to standard error"): 1,
        ("stdout", "info", "the child prints"): 5,
        ("chatty", "warn", "the child logs"): 5,
    }.items():
        assert told.count(line) == times


def test_the_access_lines_of_a_web_server_are_no_errors(daemon: Start) -> None:
    running = daemon(
        "--concurrency", "thread-per-connection", "--log-format", "json",
        "--handler", "http.server:SimpleHTTPRequestHandler",
    )  # fmt: skip
    with connect(running) as client:
        client.sendall(b"GET /nosuch HTTP/1.0\r\n\r\n")
        assert receive(client, 22) == b"HTTP/1.0 404 File not "
    (line,) = running.wait_for('.*"GET /nosuch HTTP/1.0.*')
    assert json.loads(line)["level"] == "info"


def test_a_start_that_fails_shows_what_was_printed_and_then_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("print('so far')\nraise ValueError('odd')\n")
    failed = run(tmp_path, *TWISTD, "echod", "--handler", "broken:handler")
    assert failed.returncode == 1
    assert failed.stdout.endswith("[stdout#info] so far\n")
    (line,) = failed.stderr.splitlines()
    assert line.startswith("echod: --handler: ")
    assert "ValueError: odd" in line


def test_the_error_of_a_start_is_written_at_once(tmp_path: Path) -> None:
    """A line of the log, written to the same terminal by a thread, must not split it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        trace = tmp_path / "trace"
        failed = run(
            tmp_path,
            *(tool("strace"), "-f", "-o", trace, "-e", "trace=write", "-s", "200"),
            *(*TWISTD, *REACTOR, "echod", "--listen", f"tcp:{port}:interface=127.0.0.1"),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    assert failed.returncode == 1
    writes = [line for line in trace.read_text().splitlines() if 'write(2, "' in line]
    assert len(writes) == 1
    assert "echod: tcp:" in writes[0]
    assert "take another port\\n" in writes[0]


WRITES = """
import os

def write(message: bytes) -> bytes:
    os.write(1, b"as a library in C does")
    os.write(2, b"or a child process")
    return message
"""


@pytest.mark.parametrize("closed", [(0, 1), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("reactor", [(), ("--reactor=epoll",), ("--reactor=asyncio",)])
def test_what_code_writes_to_a_closed_stream_reaches_no_file(
    tmp_path: Path, closed: tuple[int, ...], reactor: tuple[str, ...]
) -> None:
    """Fault 82: No file or socket of the daemon takes the number of a closed stream, whichever
    reactor `echod serve` is given, and a handler may write there.
    """
    (tmp_path / "writes.py").write_text(WRITES)
    path = tmp_path / "socket"
    command = [SCRIPTS / "echod", "serve", "writes:write", *reactor, "--logfile", "log"]
    steps = [close(number) for number in closed]
    with Program([*command, "--listen", f"unix:{path}"], cwd=tmp_path, steps=steps) as ran:
        try:
            block_until(lambda: is_listening(path))
            with connect_to(path) as client:
                client.sendall(b"happy\n")
                assert receive(client, 6) == b"happy\n"
            streams = Path(f"/proc/{ran.pid}/fd")
            assert [str((streams / str(number)).readlink()) for number in closed] == [
                os.devnull for _ in closed
            ]
        finally:
            ran.terminate()
            assert ran.wait(PATIENCE) == -signal.SIGTERM


CLOSINGS = [(0,), (1,), (2,), (1, 2), (0, 1, 2)]
WITH_A_REACTOR = [("-n", "--reactor=epoll"), ("-n", "--reactor=uvloop"), ("--reactor=uvloop",)]


@pytest.mark.parametrize(
    ("flags", "closed"),
    [
        *itertools.product([()], CLOSINGS),
        *itertools.product([("-n",)], CLOSINGS[-2:]),
        *itertools.product(WITH_A_REACTOR, CLOSINGS[-1:]),
    ],
)
def test_it_runs_with_standard_streams_closed(
    tmp_path: Path, flags: tuple[str, ...], closed: tuple[int, ...]
) -> None:
    """Fault 82: The daemon starts, serves and ends as usual with any standard stream closed."""
    path, log = tmp_path / "socket", tmp_path / "log"
    command: list[str | Path] = [
        SCRIPTS / "twistd",
        *flags,
        "--logfile",
        log,
        "echod",
        "--listen",
        f"unix:{path}",
    ]
    with Program(command, cwd=tmp_path, steps=[close(number) for number in closed]) as ran:
        try:
            block_until(lambda: is_listening(path))
            with connect_to(path) as client:
                client.sendall(b"happy\n")
                assert receive(client, len(BANNER) + 11) == BANNER + b"OK...happy\n"
                os.kill(daemon_of(client), signal.SIGTERM)
            block_until(lambda: "Server Shut Down." in log.read_text())
            assert ran.wait(PATIENCE) == (-signal.SIGTERM if "-n" in flags else 0)
        finally:
            ran.kill()
    assert "Traceback" not in log.read_text()


def test_a_reactor_that_sits_where_a_stream_is_closed_cannot_go_into_the_background(
    tmp_path: Path,
) -> None:
    ran = run(tmp_path, SCRIPTS / "twistd", "--reactor=epoll", "echod", steps=[close(1)])
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("echod: stdout is closed, and --reactor has opened a file in its place")


@pytest.mark.parametrize("flag", ["--log-format=xml", "--log-level=loud", "--log-rate=-1"])
def test_wrong_settings_are_refused(tmp_path: Path, flag: str) -> None:
    failed = run(tmp_path, *TWISTD, "echod", flag)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"echod: {flag.split('=')[0]}: ")
