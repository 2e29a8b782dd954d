"""Not one byte is lost, at half-close or if the daemon closes first."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.scale import Scale
from tests.support.clients import BANNER, PREFIX, connect, numbered, receive, receive_all, warm_up
from tests.support.daemon import MODELS, Daemon, nothing_kept, starting
from tests.support.needs import tool
from tests.support.waiting import PATIENCE

PIECE = 1024
LARGE = 1_000_000

# Eight bytes a number: no two windows of it are alike, and none holds a prefix.
CLIENTS = 4

HANDLERS = """
from echod import Close


def say(message: bytes):
    return Close(b"x" * int(message.split(b"\\n")[0]))
"""


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    directory = tmp_path_factory.mktemp("half-close")
    (directory / "served.py").write_text(HANDLERS)
    with starting(directory) as start:
        started = {
            f"{model} {handler}": start("--concurrency", model, "--handler", handler)
            for model in MODELS
            for handler in ("echo", "served:say")
        }
        warm_up(*started.values())
        yield started


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def echo(daemons: dict[str, Daemon], model: str) -> Iterator[Daemon]:
    """An echo daemon in each model."""
    with nothing_kept(daemons[f"{model} echo"]):
        yield daemons[f"{model} echo"]


@pytest.fixture
def talker(daemons: dict[str, Daemon], model: str) -> Iterator[Daemon]:
    """A daemon in each model that answers `N` with N bytes, and closes."""
    with nothing_kept(daemons[f"{model} served:say"]):
        yield daemons[f"{model} served:say"]


def stream(size: int, start: int) -> bytes:
    """Return `size` bytes that each show their place."""
    return numbered(1_280_000)[start : start + size]


def exchange(port: int, sent: bytes) -> bytes:
    """Send all, shut down writing at once, and return all bytes until the end."""
    with connect(port) as connection:
        if len(sent) <= 16 * PIECE:  # the kernel takes that much at once
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            return receive_all(connection)
        return exchange_much(connection, sent)


def exchange_much(connection: socket.socket, sent: bytes) -> bytes:
    """Read while sending, because unread replies would keep the daemon from reading."""
    came = bytearray()
    left = memoryview(sent)
    connection.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while events := selector.select(PATIENCE):
            if events[0][1] & selectors.EVENT_WRITE:
                left = left[connection.send(left) :]
                if not left:
                    connection.shutdown(socket.SHUT_WR)
                    selector.modify(connection, selectors.EVENT_READ)
            if events[0][1] & selectors.EVENT_READ:
                if not (piece := connection.recv(1 << 18)):
                    return bytes(came)
                came += piece
    raise TimeoutError(f"{len(came)} bytes came, then nothing")


def fault(model: str, sent: bytes, came: bytes) -> str:
    """Return the error in the answer, or an empty string."""
    if model == "serial":
        banner, pieces = b"", came.split(PREFIX)
        expected = sent[: max(1, len(came) - len(PREFIX))]
    else:
        banner, pieces = came[: len(BANNER)], came[len(BANNER) :].split(PREFIX)
        expected = sent
    if banner != (b"" if model == "serial" else BANNER):
        return f"the banner is {banner!r}"
    if pieces[0]:
        return f"there is {pieces[0]!r:.80} before the first reply"
    if not all(0 < len(piece) <= PIECE for piece in pieces[1:]):
        return "a piece is empty or too long"
    if model == "serial" and len(pieces) != 2:
        return f"serial gave {len(pieces) - 1} replies"
    got = b"".join(pieces[1:])
    if got != expected:
        return f"{len(expected)} bytes sent, {len(got)} came back, others or in another order"
    return ""


@pytest.mark.parametrize("size", [10, 1024, 1025, 65_536, 300_000, LARGE])
def test_all_that_was_sent_before_the_half_close_is_answered(
    echo: Daemon, model: str, size: int
) -> None:
    """Faults 1 and 2: Every message sent before the FIN is answered, in order, and then the daemon
    sends its FIN: in every model, from 10 bytes to a megabyte.
    """
    sent = stream(size, 0)
    assert fault(model, sent, exchange(echo.port, sent)) == ""


def test_session_after_session_that_half_closes_at_once_loses_nothing(
    echo: Daemon, model: str, scale: Scale
) -> None:
    """Faults 1 and 2: Not one byte is lost or out of order in 100,000 sessions in each model."""
    sessions = scale(ci=300, soak=100_000)
    chance = random.Random(CLIENTS)
    faults: list[str] = []

    def talk(port: int) -> None:
        for number in sessions:
            size = LARGE if number % 500 == 250 else round(10 ** chance.uniform(1, 4.2))
            sent = stream(size, chance.randrange(0, 100_000))
            try:
                found = fault(model, sent, exchange(port, sent))
            except OSError as error:
                found = repr(error)
            if found:
                faults.append(f"session {number}: {found}")

    port = echo.port
    clients = [threading.Thread(target=talk, args=(port,)) for _ in range(CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert faults == []


@pytest.mark.parametrize("size", [6, LARGE])
def test_netcat_that_half_closes_gets_everything(echo: Daemon, model: str, size: int) -> None:
    """Faults 1 and 2: `nc -N` gets every reply."""
    sent = stream(size, 800)
    shown = subprocess.run(
        [tool("nc"), "-N", "127.0.0.1", f"{echo.port}"],
        input=sent,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
    )
    assert fault(model, sent, shown.stdout) == ""


# Where the daemon closes first.


def test_a_last_reply_is_whole_although_input_is_left_unread(talker: Daemon) -> None:
    """Fault 5: The last reply arrives complete, and no reset follows it."""
    expected = b"x" * 200_000
    for repetition in range(60):
        with connect(talker) as connection:
            connection.sendall(b"200000\n")
            connection.sendall(numbered(20_000 + 1000 * repetition))
            assert receive_all(connection) == expected
            # Nor is the connection reset as soon as the reply is through.
            connection.sendall(numbered(20_000))
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_last_reply_is_whole_while_input_goes_on_and_on(talker: Daemon) -> None:
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            try:
                connection.sendall(numbered(20_000))
            except OSError:  # the daemon's patience with it has ended
                return

    with connect(talker) as connection:
        connection.sendall(b"200000\n")
        sender = threading.Thread(target=go_on)
        sender.start()
        try:
            assert receive_all(connection) == b"x" * 200_000
        finally:
            over.set()
            sender.join()


def test_a_last_reply_is_whole_although_the_client_takes_its_time(
    daemons: dict[str, Daemon],
) -> None:
    size, seconds, step = 3_000_000, 3.5, 32_768
    with contextlib.ExitStack() as stack:
        connections = []
        for model in MODELS:
            connection = stack.enter_context(connect(daemons[f"{model} served:say"]))
            connection.sendall(b"%d\n" % size)
            connections.append(connection)
        came = [0] * len(connections)
        while any(pieces := [len(receive(each, step)) for each in connections]):
            came = [sum(both) for both in zip(came, pieces, strict=True)]
            time.sleep(seconds * step / size)  # the pace of a slow client, not a wait
        assert came == [size] * len(connections)
