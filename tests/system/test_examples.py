"""The examples run as their first lines say."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import urllib.request
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import BANNER, connect, receive, receive_all
from tests.support.daemon import Daemon, Start
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE

EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "plugins.md"

REACTOR = ("--concurrency", "reactor")
POOL = ("--concurrency", "defer-to-thread")
THREAD = ("--concurrency", "thread-per-connection")
LINES = ("--framing", "line")


# The lessons.


# Unbuffered, each write goes out by itself: lines that are written in two pieces run together.
@pytest.mark.parametrize("options", [[], ["-u"]])
@pytest.mark.parametrize(
    ("example", "lines"),
    [
        ("workers.py", ["Worker\n"] * 5),
        ("numbered_workers.py", [f"Worker: {number}\n" for number in range(5)]),
    ],
)
def test_each_of_five_workers_prints_its_line(
    example: str, lines: list[str], options: list[str]
) -> None:
    ran = subprocess.run(
        [sys.executable, *options, example],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert sorted(ran.stdout.splitlines(keepends=True)) == lines
    assert (ran.returncode, ran.stderr) == (0, "")


# A Twisted program of one's own.


def standalone(port: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return started([sys.executable, "standalone.py", port], EXAMPLES)


@contextlib.contextmanager
def started(command: list[str], directory: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_to(process: subprocess.Popen[str], text: str) -> str:
    """Return the rest of the first line that holds `text`."""
    assert process.stdout is not None
    return next(line.partition(text)[2].strip() for line in process.stdout if text in line)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_factory_serves_without_twistd_and_answers_to_the_end(stop: signal.Signals) -> None:
    with standalone("0") as process:
        port = int(read_to(process, "Listening on port"))
        with connect(port) as one, connect(port) as other:
            for client in (one, other):
                assert receive(client, len(BANNER)) == BANNER
            one.sendall(b"happy\n")
            assert receive(one, 11) == b"OK...happy\n"
            process.send_signal(stop)
            assert receive_all(one) == receive_all(other) == b""
        assert process.wait(PATIENCE) == 0


def test_the_standalone_program_says_why_it_cannot_listen() -> None:
    with standalone("no port") as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert "ValueError: invalid literal for int() with base 10: 'no port'" in output
    assert process.returncode == 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_pages_program_serves_and_shows_what_its_handler_raises(
    fails: bool, tmp_path: Path
) -> None:
    text = PAGE.read_text().partition("## In a program of your own")[2]
    program = text.partition("```python\n")[2].partition("```")[0]
    assert program.count("tcp:8888") == program.count("message.upper()") == 1
    program = program.replace("tcp:8888", "tcp:0:interface=127.0.0.1")
    if fails:
        program = program.replace("message.upper()", "message.nothing()")
    (tmp_path / "program.py").write_text(program)
    with started([sys.executable, "-u", "program.py"], tmp_path) as process:
        port = int(read_to(process, "starting on"))
        with connect(port) as client:
            client.sendall(b"happy")
            if not fails:
                assert receive(client, 5) == b"HAPPY"
            else:
                assert receive_all(client) == b""
                assert read_to(process, "Error while serving 127.0.0.1:")
                assert read_to(process, "Traceback") == "(most recent call last):"
                assert "object has no attribute 'nothing'" in read_to(process, "AttributeError")


# Servers of the standard library.


def served(daemon: Start, handler: str, *options: str) -> Daemon:
    return daemon("--handler", handler, *THREAD, *options, cwd=EXAMPLES)


def test_a_wsgi_server_that_does_not_listen_serves_real_clients(daemon: Start) -> None:
    running = served(daemon, "servers:web")
    for _ in range(2):
        url = f"http://127.0.0.1:{running.port}/happy?days=1"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            text = answer.read().decode()
        assert text.startswith("Hello world!")
        assert "PATH_INFO = '/happy'" in text
        assert "QUERY_STRING = 'days=1'" in text
        assert "SERVER_NAME = 'localhost'" in text
    assert "Error while serving" not in running.log


def test_an_xml_rpc_server_that_does_not_listen_serves_real_clients(daemon: Start) -> None:
    running = served(daemon, "servers:rpc")
    with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{running.port}") as proxy:
        assert [proxy.pow(2, power) for power in (1, 10)] == [2, 1024]
        with pytest.raises(xmlrpc.client.Fault, match="unsupported operand"):
            proxy.pow("2", 10)


def test_a_class_of_the_standard_library_gets_its_argument(daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "happy.txt").write_text("days\n")
    handler = f"http.server:SimpleHTTPRequestHandler:directory={tmp_path}"
    running = served(daemon, handler)
    url = f"http://127.0.0.1:{running.port}/happy.txt"
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        assert answer.read() == b"days\n"


# Handlers.


@pytest.mark.parametrize(
    ("handler", "options", "sent", "answer"),
    [
        ("shout", REACTOR, b"happy\n", b"HAPPY\n"),
        ("repeat:times=3", REACTOR, b"happy\n", b"happy\n" * 3),
        ("later:seconds=0.01", REACTOR, b"happy\n", b"Later: happy\n"),
        ("slow:seconds=0.01", POOL, b"happy\n", b"Slow: happy\n"),
        ("clientthread", THREAD, b"happy\n", BANNER + b"OK...happy\n"),
        ("Lines", THREAD, b"happy\ndays\n", b"OK...happy\nOK...days\n"),
        (
            "Total:start=100",
            LINES,
            b"1\ntwo\n20\n\n300\n",
            (
                b"Numbers, please; an empty line ends it\n"
                b"101 so far\nThat is not a number\n121 so far\nThe total is 121\n"
            ),
        ),
    ],
)
def test_a_handler_answers(
    daemon: Start, handler: str, options: tuple[str, ...], sent: bytes, answer: bytes
) -> None:
    started = daemon("--handler", f"handlers:{handler}", *options, cwd=EXAMPLES)
    with connect(started) as client:
        client.sendall(sent)
        # Return its output before the client's end of stream, and check that none follows.
        assert receive(client, len(answer)) == answer
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
    started.wait_for("Disconnected from")


def test_a_handler_is_found_from_the_folder_above_as_well(daemon: Start) -> None:
    started = daemon("--handler", "examples.handlers:shout", cwd=ROOT)
    with connect(started) as client:
        client.sendall(b"happy\n")
        assert receive(client, 6) == b"HAPPY\n"


def test_the_class_with_state_says_what_came_of_each_client(daemon: Start) -> None:
    started = daemon("--handler", "handlers:Total", *LINES, cwd=EXAMPLES)
    with connect(started) as one, connect(started) as other:
        for client, number in ((one, b"1\n"), (other, b"2\n"), (one, b"10\n")):
            client.sendall(number)
        one.shutdown(socket.SHUT_WR)
        assert receive_all(one).endswith(b"1 so far\n11 so far\n")
        other.sendall(b"\n")
        assert receive_all(other).endswith(b"2 so far\nThe total is 2\n")
    assert sorted(started.wait_for(r"127\.0\.0\.1:\d+ had (.*)", count=2)) == [
        "11: client closed",
        "2: handler closed",
    ]


def test_a_connection_handler_in_the_wrong_model_is_refused(daemon: Start) -> None:
    started = daemon("--handler", "handlers:Lines", cwd=EXAMPLES)
    started.wait_for(
        "^echod: --handler: handlers:Lines is a connection handler: "
        "it runs with --concurrency thread-per-connection, not reactor$"
    )
    started.wait()
    assert started.process.returncode == 1


@pytest.fixture(autouse=True)
def nothing_added() -> Iterator[None]:
    """The examples' folder is unchanged, except for Python's caches of imported modules."""

    def files() -> set[str]:
        return {path.name for path in EXAMPLES.iterdir()} - {"__pycache__"}

    before = files()
    yield
    assert files() == before
