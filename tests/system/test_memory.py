"""A client that never reads costs little, with any input, and harms no other client."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clients import BANNER, connect, connect_narrow, receive, receive_all, warm_up
from tests.support.daemon import MODELS, Daemon, Start, nothing_kept
from tests.support.waiting import PATIENCE

CLIENTS = 16
MOST = 256 * 1024

# The most that each of them sends, in bytes, and the time for all of them, in seconds.
VOLUME = 8_000_000
TIME = 8.0
# If no client's kernel has taken a byte for this long, in seconds, the daemon reads no more.
QUIET = 0.4


def flood(connections: list[socket.socket], data: bytes) -> None:
    """Send as much as the kernel accepts, and read nothing."""
    left = dict.fromkeys(connections, VOLUME)
    for connection in connections:
        connection.setblocking(False)
    deadline = time.monotonic() + TIME
    while left and time.monotonic() < deadline:
        writable = select.select([], left, [], QUIET)[1]
        if not writable:
            break
        for connection in writable:
            try:
                left[connection] -= connection.send(data)
            except ConnectionError:  # it was served, or sent off
                del left[connection]
                continue
            if left[connection] <= 0:
                del left[connection]


def serves(running: Daemon, model: str) -> bool:
    """Return whether another client is served."""
    expected = (b"" if model == "serial" else BANNER) + b"OK...happy\n"
    with connect(running) as connection:
        connection.sendall(b"happy\n")
        return receive(connection, len(expected)) == expected


@contextlib.contextmanager
def flooding(how_many: int, connected: Callable[[], socket.socket], data: bytes) -> Iterator[None]:
    """Clients that have sent as much as possible, read nothing, and stay."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected()) for _ in range(how_many)]
        flood(connections, data)
        yield


@pytest.mark.parametrize("model", MODELS)
def test_clients_that_never_read_cost_little_and_others_are_served(
    daemon: Start, model: str
) -> None:
    running = daemon("--concurrency", model)
    data = b"x" * 65536
    warm_up(running)
    with nothing_kept(running):
        with flooding(2, lambda: connect_narrow(running), data):
            assert serves(running, model)
        before = running.resident
        with flooding(CLIENTS, lambda: connect_narrow(running), data):
            assert serves(running, model)
            assert (running.resident - before) / CLIENTS <= MOST
        assert serves(running, model)
    assert "Traceback" not in running.log


@pytest.mark.parametrize(
    "model",
    ["reactor", "thread-per-connection"],
)
def test_the_tiniest_messages_cost_no_more(daemon: Start, tmp_path: Path, model: str) -> None:
    running = daemon(
        *("--concurrency", model, "--framing", "line", "--handler", "upper"),
        *("--port", "0", "--listen", "unix:socket"),
    )

    def connect_locally() -> socket.socket:
        # Its buffers are small: not much has to be echoed before they are full.
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(f"{tmp_path / 'socket'}")
        return connection

    clients = 12  # so many that the memory of the daemon itself counts little
    running.wait_for("Socket now listening", 2)
    warm_up(running)
    with connect_locally() as connection:  # each listener takes its reserve when it first accepts
        connection.shutdown(socket.SHUT_WR)
        receive_all(connection)
    running.wait_for("Disconnected from", 2)
    with nothing_kept(running):
        with flooding(1, connect_locally, b"\n"):
            pass
        before = running.resident
        with flooding(clients, connect_locally, b"\n" * 65536):
            assert (running.resident - before) / clients <= MOST
