"""The examples that speak first, and that send streams: chat, ticker, export."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.support.clients import connect, receive
from tests.support.daemon import Daemon, Start
from tests.support.waiting import PATIENCE, block_until

SERVICES = Path(__file__).parents[2] / "examples" / "services"
MODELS = ["reactor", "defer-to-thread", "thread-per-connection"]
every_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def serve(daemon: Start, tmp_path: Path) -> object:
    """Start an example."""

    def start(name: str, handler: str, model: str, *options: str, edit: str = "") -> Daemon:
        (tmp_path / f"{name}.py").write_text((SERVICES / f"{name}.py").read_text() + edit)
        chosen = ("--handler", f"{name}:{handler}", "--concurrency", model, "--framing", "line")
        return daemon(*chosen, "--port", "0", *options)

    return start


def is_heard(speaker: socket.socket, others: list[socket.socket]) -> bool:
    """Return whether all others are in the room: they hear the speaker ask."""
    speaker.sendall(b"?\n")
    time.sleep(0.01)
    return len(select.select(others, [], [], 0)[0]) == len(others)


def hear(listener: BinaryIO) -> bytes:
    """Return the next line that is no question."""
    return next(line for line in listener if line != b"?\n")


@every_model
def test_each_line_of_the_chat_goes_to_the_others(serve: object, model: str) -> None:
    """Fault 121: A push arrives, whichever thread sends it, in every concurrency model."""
    assert callable(serve)
    running = serve("chat", "Chat", model)
    with contextlib.ExitStack() as stack:
        people = [stack.enter_context(connect(running)) for _ in range(3)]
        ears = [stack.enter_context(one.makefile("rb")) for one in people]
        for number, one in enumerate(people):
            others = [other for other in people if other is not one]
            block_until(partial(is_heard, one, others))
            one.sendall(b"I am %d\n" % number)
            for other in others:
                assert hear(ears[people.index(other)]) == b"I am %d\n" % number


@every_model
def test_a_member_that_never_reads_costs_little_and_the_others_chat_on(
    serve: object, model: str
) -> None:
    """Fault 122: At most `--max-unsent` waits for it; the others are served, and it is
    disconnected after `--write-timeout`.
    """
    assert callable(serve)
    running = serve("chat", "Chat", model, "--max-unsent", "1048576", "--write-timeout", "2")
    with connect(running), connect(running) as ann, connect(running) as bob:
        running.wait_for("Connected with", 3)
        block_until(partial(is_heard, ann, [bob]))
        line = b"x" * 9_999 + b"\n"
        before, count = running.resident, 0
        deadline = time.monotonic() + PATIENCE
        with bob.makefile("rb") as ear:
            while "write-timeout" not in running.log and time.monotonic() < deadline:
                ann.sendall(line)
                assert hear(ear) == line
                count += 1
                if count > 800:  # more than the daemon and the kernel hold for the silent one
                    time.sleep(0.05)
        running.wait_for("write-timeout")
        assert count > 100
        # The kernel's buffers are not in this figure; echod's and the allocator's are.
        assert running.resident - before < 4 * 1024 * 1024


def test_the_ticker_speaks_each_second(serve: object) -> None:
    assert callable(serve)
    running = serve("ticker", "Ticker", "reactor")
    with connect(running) as client:
        first, second = (receive(client, 9) for _ in range(2))
    assert first[2:3] == second[2:3] == b":"
    assert first != second
    running.wait_for("Disconnected from")


@every_model
def test_an_export_costs_no_memory_and_arrives_whole(serve: object, model: str) -> None:
    """Fault 124: Sending it takes at most 1 MiB more, however slow the client is."""
    assert callable(serve)
    running = serve("export", "export", model, edit="\nROWS = 20_000\n")  # 20 MB
    with connect(running) as client:  # the first one warms up what each export needs
        client.sendall(b"?\n")
        for _ in range(20_000):
            assert len(receive(client, 1001)) == 1001
    running.wait_for("Disconnected from")
    with connect(running) as client:
        before = running.resident
        client.sendall(b"?\n")
        received, most = 0, 0
        while received < 20_000 * 1001:
            piece = client.recv(100_000)
            assert piece
            received += len(piece)
            time.sleep(0.005)  # 20 MB/s
            most = max(most, running.resident - before)
        assert received == 20_000 * 1001
        assert most <= 1024 * 1024
