"""Clients that keep others from being served: those that have gone, those of one address."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from pathlib import Path

import pytest

from echod.concurrency import MOST_LOST
from tests.daemon import Daemon, Start, connect, receive
from tests.faults.scale import Scale

BLOCKING = """
import time
from pathlib import Path

class Handler:
    name = ""

    def received(self, message):
        self.name = message.decode().strip()
        while not Path("released").exists():
            time.sleep(0.01)
        print(f"handled: {self.name}.", flush=True)
        return message

    def closed(self, reason):
        print(f"closed: {self.name}.", flush=True)
"""


def send_and_reset(running: Daemon, message: bytes) -> None:
    with connect(running) as connection:
        connection.sendall(message)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("framing", ["chunk", "line", "length"])
def test_the_work_of_clients_that_have_gone_waits_behind_that_of_others(
    daemon: Start, tmp_path: Path, scale: Scale, framing: str
) -> None:
    """Fault 71: What they sent is handled, but behind what the others sent. Where thousands of
    such messages wait, more are dropped and counted; each handler is told of its end, once.
    """

    def framed(text: str) -> bytes:
        data = text.encode()
        return struct.pack("!I", len(data)) + data if framing == "length" else data + b"\n"

    (tmp_path / "blocking.py").write_text(BLOCKING)
    running = daemon(
        *("--handler=blocking:Handler", "--concurrency=defer-to-thread", "--threads=1"),
        *("--no-banner", "--framing", framing, "--log-rate=0"),
    )
    gone = 0
    with connect(running) as first, connect(running) as second, connect(running) as third:
        first.sendall(framed("first"))
        for number in scale(ci=300, soak=5000):
            send_and_reset(running, framed(f"gone {number}"))
            gone += 1
        running.wait_for("Disconnected from .* connection lost", gone)
        second.sendall(framed("second"))
        third.sendall(framed("third"))
        for count in (1, 2):
            # When the second one has come and gone, what was sent before the first has been read.
            connect(running).close()
            running.wait_for("Disconnected from .* client closed", count)
        (tmp_path / "released").touch()
        for client, text in ((first, "first"), (second, "second"), (third, "third")):
            assert receive(client, len(framed(text))) == framed(text)
    closed = running.wait_for("closed: (.*)\\.", gone + 5, patience=60)
    handled = running.wait_for("handled: (.*)\\.")
    kept = [f"gone {number}" for number in range(min(gone, MOST_LOST))]
    assert handled[:3] == ["first", "second", "third"]
    assert handled[3:] == kept
    nameless = gone - len(kept) + 2  # those dropped, and the two that sent nothing
    assert Counter(closed) == Counter([*handled, *[""] * nameless])
    assert len(running.wait_for("Dropped the work of", gone - len(kept))) == gone - len(kept)
    assert "Refused" not in running.log
    assert "Traceback" not in running.log
