"""As many idle connections as descriptors allow, with 1,000 active ones among them.

`python -m bench.idle` runs two daemons. One has 1,000 clients that send a message a second each;
the other has the same, and so many idle clients that its descriptors are nearly used up. In turns,
it measures in each how long the active ones wait for an answer, 99 times of 100, and the processor
time of a message. It prints the medians of the rounds, their ratios, and the memory of an idle
connection. With `--workers 2` two processes serve.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.server import free_port

ACTIVE = 1000
ROUNDS = 11
SECONDS = 3
MESSAGE = b"x" * 100
ANSWER = len(b"OK..." + MESSAGE)
# The descriptors that a daemon keeps for itself, and some more: a fair draw is not even.
SPARE = 400
UNEVEN = 0.93
# One source address has 28,000 ports; one process of clients has its descriptors.
HELD = 15_000

TWISTD = Path(sys.executable).parent / "twistd"


@dataclass(frozen=True)
class Figures:
    """One measurement.

    Attributes:
        p99: how long the active clients wait for an answer, 99 times of 100, in seconds.
        cpu: the processor time of a message, in microseconds.
    """

    p99: float
    cpu: float


class Daemon:
    """A daemon, with its active clients.

    Attributes:
        port: where it listens.
        active: its active clients.
    """

    def __init__(self, workers: int) -> None:
        """Start it, and connect the active clients."""
        self.port, self._status = free_port(), free_port()
        options = ["--port", str(self.port), "--status", f"tcp:{self._status}:interface=127.0.0.1"]
        options += ["--max-connections", "0", "--max-connections-per-address", "0"]
        options += ["--first-byte-timeout", "0", "--idle-timeout", "0", "--no-banner"]
        options += ["--workers", str(workers)] if workers else []
        self.process = subprocess.Popen(
            [TWISTD, "-n", "--pidfile=", "echod", *options], stdout=subprocess.DEVNULL
        )
        wait_for(self._status)
        self.active = selectors.DefaultSelector()
        for _ in range(ACTIVE):
            client = socket.create_connection(("127.0.0.1", self.port))
            client.setblocking(False)
            self.active.register(client, selectors.EVENT_READ)
        self.wait_until_open(ACTIVE)

    @property
    def open(self) -> int:
        """The number of its connections."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._status}/metrics") as answer:
            text = answer.read().decode()
        found = re.findall(r"^echod_connections_open\{.*\} (\S+)$", text, re.MULTILINE)
        return int(sum(map(float, found)))

    def wait_until_open(self, number: int) -> None:
        """Wait until it has so many connections."""
        deadline = time.monotonic() + 120
        while (now := self.open) < number:
            if time.monotonic() > deadline:
                raise SystemExit(f"only {now} of {number} connections are open")
            time.sleep(1.1)

    @property
    def _processes(self) -> list[Path]:
        """The folders of its processes."""
        own = Path(f"/proc/{self.process.pid}")
        children = (own / f"task/{self.process.pid}/children").read_text().split()
        return [own, *(Path("/proc", child) for child in children)]

    @property
    def resident(self) -> int:
        """The resident memory of its processes, in bytes."""
        pages = sum(int((each / "statm").read_text().split()[1]) for each in self._processes)
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu(self) -> float:
        """The processor time that its processes have used, in seconds."""
        threads = [file for each in self._processes for file in each.glob("task/*/schedstat")]
        return sum(int(file.read_text().split()[0]) for file in threads) / 1e9

    def measure(self) -> Figures:
        """Let the active clients send for some seconds."""
        used = self.cpu
        clients = [key.fileobj for key in self.active.get_map().values()]
        sent: dict[object, float] = {}
        waits: list[float] = []
        began = time.perf_counter()
        number = 0
        while len(waits) < ACTIVE * SECONDS:
            now = time.perf_counter()
            while number < ACTIVE * SECONDS and began + number / ACTIVE <= now:
                client = clients[number % ACTIVE]
                assert isinstance(client, socket.socket)
                sent[client] = time.perf_counter()
                client.sendall(MESSAGE)
                number += 1
            for key, _ in self.active.select(max(0.0, began + number / ACTIVE - now)):
                assert isinstance(key.fileobj, socket.socket)
                assert len(key.fileobj.recv(ANSWER + 1)) == ANSWER
                waits.append(time.perf_counter() - sent[key.fileobj])
        used = self.cpu - used
        return Figures(statistics.quantiles(waits, n=100)[98], used / len(waits) * 1e6)

    def stop(self) -> None:
        """End it, and close its clients."""
        for key in list(self.active.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self.active.close()
        self.process.terminate()
        self.process.wait()


def wait_for(port: int) -> None:
    """Wait until the status of a daemon says that it is ready."""
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
            return
        time.sleep(0.1)


HOLDER = """
import socket, sys
address, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = [socket.create_connection(("127.0.0.1", port), source_address=(address, 0))
        for _ in range(number)]
print(len(held), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def idle(port: int, number: int) -> Iterator[None]:
    """Hold so many connections open, in processes of their own."""
    with contextlib.ExitStack() as stack:
        holders = []
        for source, first in enumerate(range(0, number, HELD), 2):
            several = str(min(HELD, number - first))
            holder = subprocess.Popen(
                [sys.executable, "-c", HOLDER, f"127.0.0.{source}", str(port), several],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.callback(holder.communicate)
            holders.append(holder)
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline()
        yield


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=0)
    workers = parser.parse_args().workers
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = (hard - SPARE) * max(1, workers) * (UNEVEN if workers > 1 else 1)
    number = int(room) - ACTIVE
    with contextlib.ExitStack() as stack:
        alone, full = Daemon(workers), Daemon(workers)
        stack.callback(alone.stop)
        stack.callback(full.stop)
        before = full.resident
        stack.enter_context(idle(full.port, number))
        full.wait_until_open(ACTIVE + number)
        size = (full.resident - before) / number
        rounds = [(alone.measure(), full.measure()) for _ in range(ROUNDS)]
        print(f"descriptors of a process: {hard:,}; idle connections: {number:,}")
        print(f"memory of an idle one: {size / 1024:.2f} KiB; in all {full.resident >> 20} MiB")
        show("p99, ms", [(one.p99 * 1e3, two.p99 * 1e3) for one, two in rounds])
        show("processor time of a message, µs", [(one.cpu, two.cpu) for one, two in rounds])


def show(what: str, rounds: list[tuple[float, float]]) -> None:
    """Print the medians of a figure, and that of the ratios within the rounds."""
    alone, full = (statistics.median(each) for each in zip(*rounds, strict=True))
    ratio = statistics.median(two / one for one, two in rounds)
    print(f"{what}: alone {alone:.2f}, among the idle {full:.2f}; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
