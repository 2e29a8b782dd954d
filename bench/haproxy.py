"""The cost of the real haproxy in front of echod, and the sessions that pass to one host or three.

`python -m bench.haproxy` opens sessions as fast as it can (connect, read the greeting, close): to
one echod directly, then through haproxy to one and to three, in turns, all on this machine.
haproxy runs with etc/haproxy.cfg, with the addresses of this machine in it. For each it prints
the medians of the rounds: sessions a second, and the processor time of a session in haproxy and in
all echods together. The processes share the processors with the clients, so the processor time
says more than the rate: a core carries a million divided by it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from bench.server import free_port
from bench.tools import HERE, prepare

# How many clients come at once, and how long a program may take to start, in seconds.
CLIENTS = 32
PATIENCE = 60.0
HOSTS = ("one", "two", "three")

T = TypeVar("T")


class Closable(Protocol):
    """A connection."""

    def close(self) -> object: ...


TWISTD = Path(sys.executable).parent / "twistd"
CONFIGURATION = HERE.parent / "etc" / "haproxy.cfg"


@dataclass(frozen=True)
class Figures:
    """One measurement.

    Attributes:
        rate: sessions a second.
        haproxy: its processor time of a session, in microseconds.
        echod: that of all echods together.
    """

    rate: float
    haproxy: float
    echod: float


class Setup:
    """The programs of one measurement.

    Attributes:
        port: where clients connect.
        hosts: the processes of echod.
        haproxy: its process; None without one.
    """

    def __init__(self, folder: Path, hosts: int) -> None:
        """Start them, and wait until all hosts are ready.

        Args:
            folder: for the configuration.
            hosts: how many are behind haproxy; 0: one, without it.
        """
        self.hosts: list[subprocess.Popen[bytes]] = []
        self.haproxy: subprocess.Popen[bytes] | None = None
        self._serving, self._status = free_port(), free_port()
        self.port = free_port() if hosts else self._serving
        try:
            for number in range(1, max(1, hosts) + 1):
                self._start_host(f"127.0.0.1{number}" if hosts else "127.0.0.1", behind=hosts > 0)
            if hosts:
                self._start_haproxy(folder, hosts)
        except BaseException:
            self.stop()
            raise

    def _start_host(self, address: str, *, behind: bool) -> None:
        command = [str(TWISTD), "-n", "--pidfile=", "echod"]
        command += ["--listen", f"{'proxy:' * behind}tcp:{self._serving}:interface={address}"]
        command += ["--proxy-trust", "127.0.0.1"] if behind else []
        command += ["--status", f"tcp:{self._status}:interface={address}"]
        self.hosts.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        eventually(urllib.request.urlopen, f"http://{address}:{self._status}/readyz").close()

    def _start_haproxy(self, folder: Path, hosts: int) -> None:
        file = folder / "haproxy.cfg"
        text = CONFIGURATION.read_text()
        for theirs, ours in (
            ("192.0.2.1", "127.0.0.1"),
            (":8888", f":{self._serving}"),
            ("9464", str(self._status)),
            (":9999", f"127.0.0.1:{self.port}"),
        ):
            text = text.replace(theirs, ours)
        for name in HOSTS[hosts:]:
            text = re.sub(rf"^ *server {name} .*$", "", text, flags=re.MULTILINE)
        file.write_text(text)
        command = [shutil.which("haproxy") or "haproxy", "-db", "-f", str(file)]
        self.haproxy = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        eventually(socket.create_connection, ("127.0.0.1", self.port)).close()

    def measure(self, load: tuple[str, ...], seconds: float) -> Figures:
        """Let clients come for some seconds."""
        before = self._cpu()
        # The last arguments: size and depth, which have no meaning here, no warm-up, no TLS.
        words = [self.port, self.hosts[0].pid, CLIENTS, 1, 1, 0, seconds, 0]
        done = subprocess.run(
            [*load, "connect", *map(str, words)],
            cwd=HERE.parent,
            stdout=subprocess.PIPE,
            check=True,
        )
        after = self._cpu()
        found = json.loads(done.stdout)
        count = found["connections"]
        haproxy, echod = (
            1e6 * (now - then) / count for now, then in zip(after, before, strict=True)
        )
        return Figures(count / found["seconds"], haproxy, echod)

    def _cpu(self) -> tuple[float, float]:
        """Return the processor time of haproxy, and of all echods, in seconds."""
        haproxy = [] if self.haproxy is None else [self.haproxy]
        return sum(map(cpu_of, haproxy)), sum(map(cpu_of, self.hosts))

    def stop(self) -> None:
        """End them."""
        for process in (self.haproxy, *self.hosts):
            if process is not None:
                process.terminate()
                process.wait()


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """Return the processor time that the threads of a process have used, in seconds."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in threads) / 1e9


def eventually(connect: Callable[[T], Closable], where: T) -> Closable:
    """Return a connection, once there can be one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return connect(where)
        except OSError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"{where}: {error}") from error
            time.sleep(0.1)


@contextlib.contextmanager
def running(folder: Path, hosts: int) -> Iterator[Setup]:
    """Run the programs."""
    setup = Setup(folder, hosts)
    try:
        yield setup
    finally:
        setup.stop()


def main() -> None:
    """Measure in turns, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    given = parser.parse_args()
    if shutil.which("haproxy") is None:
        raise SystemExit("haproxy is not installed")
    ways = {0: "one echod, without haproxy", 1: "haproxy, one echod", 3: "haproxy, three echods"}
    found: dict[int, list[Figures]] = {hosts: [] for hosts in ways}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        load = prepare(folder).load
        for _ in range(given.rounds):
            for hosts, figures in found.items():
                with running(folder, hosts) as setup:
                    setup.measure(load, 1.0)  # warms up
                    figures.append(setup.measure(load, given.seconds))
    print("| | sessions a second | haproxy, µs a session | echod, µs a session |")
    print("| --- | ---: | ---: | ---: |")
    for hosts, what in ways.items():
        rate, haproxy, echod = (
            statistics.median(getattr(one, name) for one in found[hosts])
            for name in ("rate", "haproxy", "echod")
        )
        print(f"| {what} | {rate:,.0f} | {haproxy:.0f} | {echod:.0f} |")


if __name__ == "__main__":
    main()
