"""Over hours nothing grows, and nothing is left behind."""

from __future__ import annotations

import random
import socket
import statistics
import struct
import threading
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from tests.faults.scale import Scale
from tests.support.certificates import self_signed_pem
from tests.support.clients import connect, receive_all
from tests.support.daemon import CONCURRENT, Start
from tests.support.tls_peer import Peer
from tests.support.waiting import block_until

HANDLERS = """
from echod import message_handler


@message_handler
def fickle(message):
    if message.startswith(b"raise"):
        raise RuntimeError("as it was told")
    return message
"""

CLIENTS = 4
THREADS = 256

# Beside the pool: the main thread, and a few that wait for the log, stalls or signals.
OTHER_THREADS = 6

# How much memory may grow in an hour, in bytes; and over how short a time that can be told from
# the memory that is used the first time that something happens, in seconds.
SLOPE = 1 << 20
TELLING = 1800.0


class Ports(NamedTuple):
    """Where a daemon listens."""

    clear: int
    tls: int


def answered(ports: Ports, chance: random.Random) -> None:
    message = b"x" * chance.randrange(1, 10_000)
    with connect(ports.clear) as connection:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == message


def answered_over_tls(ports: Ports, chance: random.Random) -> None:
    message = b"x" * chance.randrange(1, 10_000)
    with Peer(ports.tls) as peer:
        assert peer.exchange(message, chance.choice(["close_notify", "fin", "both"])) == message


def reset(ports: Ports, chance: random.Random) -> None:
    with connect(ports.clear) as connection:
        connection.sendall(b"x" * chance.randrange(1, 100_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(ports: Ports, chance: random.Random) -> None:
    with connect(ports.clear):
        pass


def failing(ports: Ports, chance: random.Random) -> None:
    with connect(ports.clear) as connection:
        connection.sendall(b"raise")
        assert receive_all(connection) == b""


SESSIONS = (answered, answered, answered_over_tls, reset, silent, failing)


def slope(samples: list[tuple[float, int]]) -> float:
    """Return how many bytes memory grows in an hour, by the last half of the time.

    It settles in over the first 400,000 sessions, which a busy machine takes long for.
    """
    late = samples[len(samples) // 2 :]
    seconds, sizes = zip(*late, strict=True)
    return statistics.linear_regression(seconds, sizes).slope * 3600


class Crowd:
    """Clients that come and go, until they are stopped or one of them finds an error."""

    def __init__(self, ports: Ports) -> None:
        self.sessions = 0
        self.wrong: list[object] = []
        self._ports = ports
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._come_and_go, args=(number,)) for number in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _come_and_go(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._over.is_set():
            session = chance.choice(SESSIONS)
            try:
                session(self._ports, chance)
            except Exception as error:
                self.wrong.append((session, error))
                self._over.set()
            self.sessions += 1

    def wait(self, seconds: float) -> None:
        """Wait, unless there was an error."""
        self._over.wait(seconds)
        assert not self.wrong


@pytest.mark.parametrize("model", CONCURRENT)
def test_nothing_grows(daemon: Start, tmp_path: Path, model: str, scale: Scale) -> None:
    """With clients that come, talk, break off, say nothing and have handlers fail, memory grows by
    less than a MiB an hour, and no descriptor and no thread is left.
    """
    (tmp_path / "served.py").write_text(HANDLERS)
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    running = daemon(
        *("--listen", "tcp:0", "--listen", "tls:0:certificate=server.pem"),
        *("--concurrency", model, "--handler", "served:fickle"),
        *("--threads", str(THREADS), "--max-threads", str(THREADS)),
    )
    ports = Ports(*map(int, running.wait_for(r"starting on (\d+)", 2)))
    running.wait_for("Socket now listening", 2)
    for session in SESSIONS * 3:  # caches are made the first time
        session(ports, random.Random(0))
    before = running.descriptors
    samples: list[tuple[float, int]] = []
    with Crowd(ports) as crowd:
        for passed in scale.for_seconds(ci=2, soak=3600):
            samples.append((passed, running.resident))
            crowd.wait(0.2)
            if len(running.lines) > 100_000:
                running.lines.clear()  # the log is in this process's memory
    block_until(lambda: running.descriptors <= before)
    threads = len(list(Path(f"/proc/{running.process.pid}/task").iterdir()))
    assert threads <= THREADS + OTHER_THREADS
    grown = slope(samples)
    scale.note(
        f"{crowd.sessions:,} sessions in {samples[-1][0]:.0f} s, {threads} threads, memory "
        f"{grown / 2**20:+.2f} MiB an hour, from {samples[0][1] / 2**20:.1f} MiB"
    )
    if samples[-1][0] >= TELLING:
        assert grown < SLOPE
    else:
        assert samples[-1][1] - samples[len(samples) // 4][1] < 4 << 20
