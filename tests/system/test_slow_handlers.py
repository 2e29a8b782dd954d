"""The daemon with handlers that work for longer than `--handler-timeout`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clients import connect, receive, receive_all
from tests.support.daemon import TERMINATED, Start

HANDLERS = """
import time
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from echod import Handler, connection_handler
from pathlib import Path

async def waits(message):
    if message == b"quick":
        return message
    try:
        await Deferred()
    except BaseException as error:
        print(f"[cancelled by {type(error).__name__}]", flush=True)
        raise

def deferred(message):
    return message if message == b"quick" else Deferred()

def blocks(message):
    while message != b"quick" and not Path("go").exists():
        time.sleep(0.01)
    print("[returned]", flush=True)
    return message

class Blocks(Handler):
    def received(self, message):
        return blocks(message)

@connection_handler
def owns(conn):
    while data := conn.recv(100):
        print("[read]", flush=True)
        conn.sendall(blocks(data))
"""


@pytest.fixture(autouse=True)
def handlers(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(HANDLERS)


@pytest.mark.parametrize("framing", ["chunk", "line"])
@pytest.mark.parametrize(
    ("handler", "model"),
    [
        ("waits", "reactor"),
        ("waits", "serial"),
        ("deferred", "reactor"),
        ("blocks", "defer-to-thread"),
        ("Blocks", "thread-per-connection"),
    ],
)
def test_a_handler_that_takes_too_long_ends_its_connection(
    daemon: Start, tmp_path: Path, handler: str, model: str, framing: str
) -> None:
    """Fault 133: Its connection closes with the reason `handler-timeout`, a coroutine is
    cancelled, and no other connection is touched.
    """
    running = daemon(
        *("--handler", f"served:{handler}", "--concurrency", model, "--framing", framing),
        *("--handler-timeout", "0.3", "--no-banner"),
    )
    end = b"\n" if framing == "line" else b""
    with connect(running) as client:
        client.sendall(b"slow" + end)
        rest = receive_all(client)
        if model != "thread-per-connection":
            assert rest == b"Handler too slow: the limit is 0.3 s\n"
    running.wait_for("Disconnected from .*: handler-timeout")
    with connect(running) as other:
        other.sendall(b"quick" + end)
        assert receive(other, 5) == b"quick"
    if handler == "waits":
        running.wait_for(r"\[cancelled by (asyncio\.)?CancelledError\]")
    (tmp_path / "go").touch()
    running.signal()
    running.wait()
    assert running.process.returncode in TERMINATED
    assert "Traceback" not in running.log


def test_a_connection_handler_that_does_not_read_ends_its_connection(
    daemon: Start, tmp_path: Path
) -> None:
    """Fault 133: The thread counts until the handler returns."""
    running = daemon(
        *("--handler", "served:owns", "--concurrency", "thread-per-connection"),
        *("--handler-timeout", "0.3", "--max-threads", "1"),
    )
    with connect(running) as client:
        client.sendall(b"slow")
        running.wait_for(r"\[read\]")
        client.sendall(b"more")
        assert receive_all(client) == b""
    running.wait_for("Disconnected from .*: handler-timeout")
    with connect(running) as other:
        assert b"the only thread is in use" in receive_all(other)
    (tmp_path / "go").touch()
    running.wait_for(r"\[returned\]")
