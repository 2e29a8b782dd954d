"""Clients that keep others from being served: those that have gone, those of one address."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import socket
import struct
from collections import Counter
from pathlib import Path

import pytest

from echod.concurrency.pool import MOST_LOST
from echod.limits import Limits
from tests.faults.scale import Scale
from tests.support.clients import BANNER, connect, is_served, receive, receive_all
from tests.support.daemon import TERMINATED, Daemon, Start
from tests.support.proxy_headers import DESTINATION, line
from tests.support.waiting import PATIENCE, block_until

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


def send_and_reset(port: int, message: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(message)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("framing", ["chunk", "line", "length"])
def test_the_work_of_clients_that_have_gone_waits_behind_that_of_others(
    daemon: Start, tmp_path: Path, scale: Scale, framing: str
) -> None:
    """Fault 70: Their messages are handled, but after those of the other clients. If thousands of
    such messages wait, further ones are dropped and counted; each handler's `closed` is called
    once.
    """

    def framed(text: str) -> bytes:
        data = text.encode()
        return struct.pack("!I", len(data)) + data if framing == "length" else data + b"\n"

    (tmp_path / "blocking.py").write_text(BLOCKING)
    running = daemon(
        *("--handler=blocking:Handler", "--concurrency=defer-to-thread", "--threads=1"),
        *("--no-banner", "--first-byte-timeout=0", "--framing", framing, "--log-rate=0"),
    )
    port, gone = running.port, 0
    with connect(running) as first, connect(running) as second, connect(running) as third:
        first.sendall(framed("first"))
        for number in scale(ci=300, soak=5000):
            send_and_reset(port, framed(f"gone {number}"))
            gone += 1
        block_until(lambda: running.log.count("connection lost") == gone)
        second.sendall(framed("second"))
        third.sendall(framed("third"))
        for count in (1, 2):
            # When the second one has come and gone, what was sent before the first has been read.
            connect(running).close()
            running.wait_for("Disconnected from .* client closed", count)
        (tmp_path / "released").touch()
        for client, text in ((first, "first"), (second, "second"), (third, "third")):
            assert receive(client, len(framed(text))) == framed(text)
    block_until(lambda: running.log.count("closed: ") == gone + 5, 60)
    closed = running.wait_for("closed: (.*)\\.")
    handled = running.wait_for("handled: (.*)\\.")
    kept = [f"gone {number}" for number in range(min(gone, MOST_LOST))]
    assert [each for each in handled if each in kept] == kept
    assert [each for each in handled if each not in kept] == ["first", "second", "third"]
    # Where that many wait, with the `closed` of those dropped, they have every second turn.
    assert handled.index("third") == (2 if gone < MOST_LOST else 3)
    nameless = gone - len(kept) + 2  # those dropped, and the two that sent nothing
    assert Counter(closed) == Counter([*handled, *[""] * nameless])
    assert len(running.wait_for("Dropped a message of", gone - len(kept))) == gone - len(kept)
    assert "Refused" not in running.log
    assert "Traceback" not in running.log


@pytest.mark.parametrize("in_time", [True, False])
def test_a_drain_lets_the_work_of_clients_that_have_gone_be_done_in_its_time(
    daemon: Start, tmp_path: Path, in_time: bool
) -> None:
    """Fault 70: At SIGTERM such messages are handled until the drain's deadline, as a message may
    be all that its client came for. The log says how many calls wait, and how many were dropped.
    """
    (tmp_path / "blocking.py").write_text(BLOCKING)
    running = daemon(
        *("--handler=blocking:Handler", "--concurrency=defer-to-thread", "--threads=1"),
        *("--no-banner", "--framing=line", "--log-rate=0"),
        f"--drain-timeout={PATIENCE if in_time else 0.5}",
    )
    with connect(running) as first:
        first.sendall(b"first\n")
        for number in range(20):
            send_and_reset(running.port, b"gone %d\n" % number)
        block_until(lambda: running.log.count("connection lost") == 20)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    block_until(lambda: running.log.count("connection lost") == 21)
    running.signal(signal.SIGTERM)
    running.wait_for("Draining, for .*; open connections: 0; calls for lost clients: 20; a second")
    if in_time:
        (tmp_path / "released").touch()
    running.wait()
    gone = [f"gone {number}" for number in range(20)]
    assert running.process.returncode in TERMINATED
    if in_time:
        assert sorted(running.wait_for("handled: (.*)\\.")) == sorted(["first", *gone])
        assert sorted(running.wait_for("closed: (.*)\\.")) == sorted(["first", *gone])
        assert "Drain time-out" not in running.log
    else:
        running.wait_for("aborting all; open connections: 0; calls for lost clients: 20")
        assert "handled" not in running.log


CROWD = "127.0.0.1"
REFUSED = b"Server busy: too many connections from your address, try again later\n"


def connect_from(running: Daemon, host: str, listen: str) -> socket.socket:
    """Connect from an address, or through a proxy that says so."""
    if not listen.startswith("proxy:"):
        return connect(running, source_address=(host, 0))
    connection = connect(running)
    connection.sendall(line((host, 1), DESTINATION))
    return connection


@pytest.mark.parametrize("listen", ["tcp:0", "proxy:tcp:0"])
def test_no_address_takes_every_thread(daemon: Start, listen: str) -> None:
    """Fault 71: In `thread-per-connection`, threads remain for others, however many silent
    connections one address, and then a second one, opens. Refused clients are told so and counted.
    """
    running = daemon("--concurrency=thread-per-connection", "--listen", listen, "--log-rate=0")
    size = Limits.max_threads
    with contextlib.ExitStack() as stack:
        for host in (CROWD, "127.0.0.2"):
            crowd = [stack.enter_context(connect_from(running, host, listen)) for _ in range(size)]
            first = [each.makefile("rb").readline() for each in crowd]
            assert set(first) == {BANNER, REFUSED}
            # Three quarters of all; of that, three quarters.
            least = {CROWD: size * 3 // 4, "127.0.0.2": size // 8}[host]
            assert first.count(BANNER) >= least
            assert first[:least] == [BANNER] * least
        for host in ("127.0.0.3", "127.0.0.4"):
            other = stack.enter_context(connect_from(running, host, listen))
            assert receive(other, len(BANNER)) == BANNER
            assert is_served(other)
    running.wait_for(r"Refused .*: threads-per-address \(Server busy: too many connections from")


@pytest.mark.parametrize("listen", ["tcp:0", "proxy:tcp:0"])
def test_no_address_takes_every_turn(daemon: Start, listen: str) -> None:
    """Fault 71: In `serial`, the queue keeps room for others, however many silent connections an
    address opens, and they wait for one turn of that address, not for all.
    """
    running = daemon("--concurrency=serial", "--listen", listen, "--serial-timeout=0.5")
    size = Limits.serial_queue + 1
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connect_from(running, CROWD, listen)) for _ in range(size)]
        running.wait_for(r"Refused .*: \S+-per-address \(Server busy: too many connections from")
        for host in ("127.0.0.2", "127.0.0.3"):
            before = len(re.findall("serial-timeout", running.log))
            other = stack.enter_context(connect_from(running, host, listen))
            other.sendall(b"happy\n")
            assert receive_all(other) == b"OK...happy\n"
            assert len(re.findall("serial-timeout", running.log)) - before <= 2
        served = [each for each in crowd if not select.select([each], [], [], 0)[0]]
        assert len(served) > size // 2  # and no other client was refused for that


@pytest.mark.parametrize("model", ["thread-per-connection", "serial"])
def test_where_addresses_tell_nothing_one_may_have_all(daemon: Start, model: str) -> None:
    """Fault 71: Without a limit by address, as behind a load balancer that sends no client
    addresses, one address may have every thread and every place in the queue.
    """
    running = daemon(
        *("--concurrency", model, "--max-connections-per-address=0", "--max-threads=8"),
        "--log-rate=0",
    )
    size = 8 if model == "thread-per-connection" else Limits.serial_queue + 1
    with contextlib.ExitStack() as stack:
        for _ in range(size + 1):
            stack.enter_context(connect_from(running, CROWD, "tcp:0"))
        limit = (
            r"(max-threads \(Server busy: all 8 threads|serial-queue \(Server busy: 171 clients)"
        )
        running.wait_for(f"Refused .*: {limit}")
        assert len(running.wait_for("Refused")) == 1
