"""The worth of workers, and the time until one that has died is replaced.

`python -m bench.workers` runs `--workers 1` and `--workers 2` in turns, with a handler that
computes for 10 ms, and prints the messages a second of both, and the ratio within the rounds.
Then it kills a worker again and again, first while nothing else happens, then while both workers
compute all the time, and prints how long it takes until its successor serves. It exits with 1 if a
bar is missed. All needs two cores that no other program uses.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.server import free_port
from bench.tools import HERE

CLIENTS = 16
WARM_UP = 1.0
PATIENCE = 60.0
# The bars: how many times the messages of one worker two of them answer, and how soon the
# successor of a worker that was killed serves, in seconds.
RATIO, SECONDS = 1.8, 1.0
# A worker that has not served for a second waits longer for its next start.
PROVEN = 1.1

TWISTD = Path(sys.executable).parent / "twistd"


class Service:
    """A daemon with workers, whose handler computes.

    Attributes:
        port: where it listens.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        """Start it, and wait until all workers serve."""
        self.port = free_port()
        self._lines: list[tuple[float, str]] = []
        self._news = threading.Condition()
        command = [str(TWISTD), "-n", "--pidfile=", "echod", "--handler", "computing:compute"]
        command += ["--listen", f"tcp:{self.port}:interface=127.0.0.1", "--workers", str(workers)]
        self._process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        for number in range(1, workers + 1):
            self.served(number, 1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._lines.append((time.monotonic(), line))
                self._news.notify_all()

    def served(self, number: int, count: int) -> tuple[float, int]:
        """Wait until a worker has served for so many times; return since when, and its process."""
        serves = re.compile(rf"worker {number} \(process (\d+)\) serves")

        def found() -> list[tuple[float, int]]:
            matches = ((when, serves.search(line)) for when, line in self._lines)
            return [(when, int(match[1])) for when, match in matches if match]

        with self._news:
            if not self._news.wait_for(lambda: len(found()) >= count, PATIENCE):
                raise SystemExit("".join(line for _, line in self._lines))
            return found()[count - 1]

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._reader.join()


@contextlib.contextmanager
def serving(folder: Path, workers: int) -> Iterator[Service]:
    """Run a daemon."""
    service = Service(folder, workers)
    try:
        yield service
    finally:
        service.stop()


class Load(threading.Thread):
    """Clients that send a message whenever they have the answer to the one before.

    Attributes:
        answers: how many have come.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self.answers = 0
        self._port = port
        self._over = threading.Event()

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        with selectors.DefaultSelector() as clients:
            for _ in range(CLIENTS):
                self._begin(clients)
            while not self._over.is_set():
                for key, _ in clients.select(0.1):
                    assert isinstance(key.fileobj, socket.socket)
                    self._go_on(clients, key.fileobj)
            for key in list(clients.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()

    def _begin(self, clients: selectors.BaseSelector) -> None:
        client = socket.create_connection(("127.0.0.1", self._port), PATIENCE)
        clients.register(client, selectors.EVENT_READ)
        client.sendall(b"x\n")

    def _go_on(self, clients: selectors.BaseSelector, client: socket.socket) -> None:
        try:
            answered = client.recv(100).count(b"\n")
            self.answers += answered
            if answered:
                client.sendall(b"x\n")
                return
        except OSError:  # its worker was killed
            pass
        clients.unregister(client)
        client.close()
        self._begin(clients)


def rate(folder: Path, workers: int, seconds: float) -> float:
    """Return the messages a second that so many workers answer."""
    with serving(folder, workers) as service, Load(service.port) as load:
        time.sleep(WARM_UP)
        before, began = load.answers, time.monotonic()
        time.sleep(seconds)
        return (load.answers - before) / (time.monotonic() - began)


def replacements(folder: Path, times: int, *, busy: bool) -> list[float]:
    """Return how long each killed worker's successor took until it served, in seconds."""
    with serving(folder, 2) as service, contextlib.ExitStack() as stack:
        if busy:
            stack.enter_context(Load(service.port))
        found = []
        for count in range(1, times + 1):
            for number in (1, 2):
                since, pid = service.served(number, count)
                time.sleep(max(0.0, since + PROVEN - time.monotonic()))
                killed = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                found.append(service.served(number, count + 1)[0] - killed)
        return found


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="0: only kill")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--kills", type=int, default=25, help="of each of two workers")
    given = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        shutil.copy(HERE / "peers" / "computing.py", folder)
        ratios = []
        for _ in range(given.rounds):
            one, two = (rate(folder, count, given.seconds) for count in (1, 2))
            ratios.append(two / one)
            print(f"messages a second: one worker {one:.1f}, two {two:.1f}", flush=True)
        if ratios:
            found = statistics.median(ratios)
            met &= show("two workers, against one", found, " times", least=RATIO)
        for busy in (False, True):
            times = sorted(replacements(folder, given.kills, busy=busy))
            median, last = statistics.median(times), times[-1]
            at = "while both compute" if busy else "without load"
            print(f"a killed worker's successor serves, {at}: median {median:.2f} s", flush=True)
            met &= show(f"the last of {len(times)}", last, " s", most=SECONDS)
    return int(not met)


def show(what: str, value: float, unit: str, *, least: float = 0.0, most: float = 1e9) -> bool:
    """Print a figure beside its bar; return whether it is met."""
    met = least <= value <= most
    bar = f"at least {least:g}" if least else f"at most {most:g}"
    print(f"{what}: {value:.2f}{unit}; the bar is {bar}{'' if met else ': MISSED'}", flush=True)
    return met


if __name__ == "__main__":
    sys.exit(main())
