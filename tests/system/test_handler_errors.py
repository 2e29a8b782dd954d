"""A handler's error ends its own connection, is logged once, and affects no other."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import connect, is_over, receive, warm_up
from tests.support.daemon import MODELS, REACTOR, Daemon, Start, nothing_kept, starting
from tests.support.needs import not_here
from tests.support.paths import ROOT
from tests.support.waiting import block_until

HANDLERS = '''
from pathlib import Path

from echod import Handler


class Faulty(Handler):
    """Fails where a file of the current directory, or the message, says."""

    def __init__(self):
        if Path("fail in the constructor").exists():
            raise RuntimeError("in the constructor")

    def opened(self, client):
        if Path("fail in opened").exists():
            raise RuntimeError("in opened")
        return b"hello\\n"

    def received(self, message):
        if message.startswith(b"raise "):
            raise RuntimeError(message.removeprefix(b"raise ").decode("utf-8", "surrogateescape"))
        if message.startswith(b"return "):
            return message.decode()
        return b"OK..." + message

    def closed(self, reason):
        if Path("fail in closed").exists():
            raise RuntimeError("in closed")
'''


class Faulty:
    """The daemon, and the switches of its handler."""

    def __init__(self, running: Daemon, directory: Path, model: str) -> None:
        self.running = running
        self._directory = directory
        self._greeting = b"" if model == "serial" else b"hello\n"
        # It serves one client at a time, so no other is served while a connection is open.
        self.serial = model == "serial"

    @contextlib.contextmanager
    def failing(self, place: str) -> Iterator[None]:
        switch = self._directory / f"fail in {place}"
        switch.touch()
        yield
        switch.unlink()

    def greeted(self) -> socket.socket:
        connection = connect(self.running)
        assert receive(connection, len(self._greeting)) == self._greeting
        return connection

    def serves(self, connection: socket.socket | None = None) -> bool:
        """Whether a connection, or else a new one, is served."""
        if connection is None:
            with self.greeted() as connection:
                port = connection.getsockname()[1]
                served = self.serves(connection)
            # Its handler is told of the end, which must not be what fails next.
            self.running.wait_for(rf"Disconnected from 127\.0\.0\.1:{port}:")
            return served
        connection.sendall(b"happy\n")
        return receive(connection, 11) == b"OK...happy\n"

    @property
    def tracebacks(self) -> int:
        return self.running.log.count("Traceback (most recent call last)")

    @contextlib.contextmanager
    def one_traceback(self) -> Iterator[None]:
        """Other clients are served before, during and after; the error in the block is logged
        once.
        """
        before = self.tracebacks
        with contextlib.ExitStack() as stack:
            bystander = None if self.serial else stack.enter_context(self.greeted())
            assert self.serves(bystander)
            yield
            block_until(lambda: self.tracebacks > before)
            assert self.serves(bystander)
        assert self.serves()
        assert self.tracebacks == before + 1
        assert "Unhandled" not in self.running.log


@pytest.fixture(scope="module")
def _faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Faulty]]:
    with contextlib.ExitStack() as stack:
        made = {}
        for model in MODELS:
            directory = tmp_path_factory.mktemp(model)
            (directory / "served.py").write_text(HANDLERS)
            start = stack.enter_context(starting(directory))
            running = start("--concurrency", model, "--handler", "served:Faulty")
            made[model] = Faulty(running, directory, model)
        warm_up(*[each.running for each in made.values()])
        yield made


@pytest.fixture(params=MODELS)
def faulty(request: pytest.FixtureRequest, _faulty: dict[str, Faulty]) -> Iterator[Faulty]:
    """A daemon in each model whose handler fails on request."""
    with nothing_kept(_faulty[request.param].running):
        yield _faulty[request.param]


def test_a_handler_that_raises_ends_its_own_connection(faulty: Faulty) -> None:
    """Fault 10: The connection ends within a second, one traceback is logged, and other
    connections go on.
    """
    before = len(faulty.running.lines)
    with faulty.one_traceback(), faulty.greeted() as connection:
        if not faulty.serial:
            assert faulty.serves(connection)
        connection.sendall(b"raise an objection")
        assert is_over(connection)
    said = faulty.running.lines[before:]
    assert any("RuntimeError: an objection" in line for line in said)
    # The handler has raised: the way to it is no concern of its author.
    assert not any(f'File "{ROOT}/echod/' in line for line in said)


def test_a_handler_that_returns_no_bytes_ends_its_own_connection(faulty: Faulty) -> None:
    with faulty.one_traceback(), faulty.greeted() as connection:
        connection.sendall(b"return text")
        assert is_over(connection)
    assert any("a handler returns bytes" in line for line in faulty.running.lines)
    # The handler has returned, so the traceback has no line of it.
    defined = 1 + HANDLERS.splitlines().index("    def received(self, message):")
    said = rf"The handler served:Faulty \(.*/served\.py, line {defined}\) returned a str: "
    faulty.running.wait_for(said)


@pytest.mark.parametrize("place", ["constructor", "opened", "closed"])
def test_a_handler_that_raises_elsewhere_ends_its_own_connection(
    faulty: Faulty, place: str
) -> None:
    """Faults 11 and 12: The connection ends within a second, and no descriptor is left open."""
    with faulty.one_traceback():
        where = "the constructor" if place == "constructor" else place
        with faulty.failing(where), connect(faulty.running) as connection:
            if place == "closed":
                connection.shutdown(socket.SHUT_WR)
            assert is_over(connection)
            block_until(lambda: f"RuntimeError: in {where}" in faulty.running.log)


def test_messages_pipelined_behind_one_that_raises_are_not_answered(faulty: Faulty) -> None:
    with faulty.one_traceback(), faulty.greeted() as connection:
        connection.sendall(b"raise first")
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                connection.sendall(b"raise again")
        assert is_over(connection)


def test_an_endless_pipeline_ends_where_the_handler_raises(faulty: Faulty) -> None:
    over = threading.Event()

    def go_on() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                connection.sendall(b"x" * 65536)

    with faulty.one_traceback(), faulty.greeted() as connection:
        sender = threading.Thread(target=go_on)
        connection.sendall(b"raise ")
        sender.start()
        try:
            assert is_over(connection)
        finally:
            over.set()
            sender.join()


HOSTILE = {
    "\x1b]0;owned\x07": r"\x1b]0;owned\x07",
    "a\rb": r"a\rb",
    "a\0b": r"a\x00b",
    "\x9b31m": r"\x9b31m",
    "\u2028\u202e": r"\u2028\u202e",
    "%s %d {0} {peer} {log_source} {": "%s %d {0} {peer} {log_source} {",
    "\udcff": r"\udcff",
}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_a_client_gets_into_an_error_is_escaped_and_no_format(
    faulty: Faulty, text: str
) -> None:
    with faulty.one_traceback(), faulty.greeted() as connection:
        connection.sendall(b"raise " + text.encode("utf-8", "surrogateescape"))
        assert is_over(connection)
        faulty.running.wait_for("RuntimeError: ")
        block_until(lambda: f"RuntimeError: {HOSTILE[text]}" in faulty.running.log)
    assert set(faulty.running.log) & set("\x1b\r\0\x9b\u2028\u202e\udcff") == set()


def test_a_client_cannot_forge_a_line_of_the_log(faulty: Faulty) -> None:
    forged = "2026-01-01T00:00:00+0000 [echod#info] Stopped"
    with faulty.one_traceback(), faulty.greeted() as connection:
        connection.sendall(f"raise a\n{forged}".encode())
        assert is_over(connection)
        faulty.running.wait_for(forged.replace("+", r"\+").replace("[", r"\["))
    assert not any(line.startswith(forged) for line in faulty.running.lines)


MISTAKEN = """
import asyncio


async def waits(message):
    await asyncio.sleep(0.001)
    return b"slept"


def converses(conn):
    conn.recv(10)


def text(message):
    return "text"
"""


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("waits", "The handler served:waits awaits an asyncio object, and this reactor runs no"),
        ("converses", "The handler served:converses uses its message as a socket: run it with"),
        ("text", "The handler served:text \\(.*\\) returned a str"),
    ],
)
def test_an_error_by_a_usual_mistake_names_handler_and_remedy(
    tmp_path: Path, name: str, note: str
) -> None:
    (tmp_path / "served.py").write_text(MISTAKEN)
    with starting(tmp_path) as start:
        running = start("--handler", f"served:{name}")
        with connect(running) as connection:
            connection.sendall(b"happy")
            if name == "waits" and running.on_uvloop:  # it is no mistake here
                assert connection.recv(100) == b"slept"
            else:
                running.wait_for(note)


# Memory.

BULKY = """
import asyncio
import gc

from twisted.internet.protocol import Protocol

gc.disable()  # a reference cycle would wait for it


class Bulk:
    def __del__(self):
        print("freed")


def fail(data):
    bulk = Bulk()
    raise RuntimeError("bulky")


def message(message: bytes) -> bytes:
    fail(message)


async def waiting(message: bytes) -> bytes:
    await asyncio.sleep(0)
    fail(message)


async def streams(reader, writer):
    fail(await reader.read(5))


def conversation(connection):
    fail(connection.recv(5))


class Asyncio(asyncio.Protocol):
    def data_received(self, data):
        fail(data)


class Twisted(Protocol):
    def dataReceived(self, data):
        fail(data)
"""


@pytest.mark.parametrize(
    ("handler", "model"),
    [
        *(("message", model) for model in MODELS),
        ("conversation", "thread-per-connection"),
        *((handler, "reactor") for handler in ("waiting", "streams", "Asyncio", "Twisted")),
        ("waiting", "serial"),
    ],
)
def test_what_a_handler_that_raises_had_is_freed_at_the_end_of_its_connection(
    daemon: Start, tmp_path: Path, handler: str, model: str
) -> None:
    if handler in ("waiting", "streams", "Asyncio") and REACTOR == ["--reactor=epoll"]:
        not_here("such a handler is refused on this reactor")
    (tmp_path / "bulky.py").write_text(BULKY)
    running = daemon("--handler", f"bulky:{handler}", "--concurrency", model, "--no-banner")
    with connect(running) as connection:
        connection.sendall(b"happy")
        assert is_over(connection)
    running.wait_for("freed")
    running.wait_for("RuntimeError: bulky")


def test_a_handler_that_reads_the_end_of_the_stream_for_ever_gives_its_thread_back(
    daemon: Start, tmp_path: Path
) -> None:
    (tmp_path / "endless.py").write_text(
        "def talk(conn):\n    while True:\n        conn.recv(9)\n"
    )
    model = ("--concurrency", "thread-per-connection")
    running = daemon("--handler", "endless:talk", *model, "--no-banner")
    with connect(running) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert is_over(connection)
    running.wait_for("RuntimeError: the client has ended its stream, and the handler has read")
    running.wait_for("Disconnected from .*: handler error")
