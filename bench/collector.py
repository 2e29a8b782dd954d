"""Measure the pauses by Python's collector, and what ended connections leave behind.

    python -m bench.collector [CONNECTIONS [SOAK]]

CONNECTIONS, 19,000 by default, come one after the other and stay. Then they leave. At last, SOAK
come and go, 100,000 by default, 1,000 at a time. The handler of each leaves a cycle behind. The
figures: the longest pause by the collector, and how many of those handlers are still there.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.server import free_port
from bench.tools import HERE

# Each address has ports for 28,000 connections a minute.
ADDRESSES = 100
AT_ONCE = 1000
_PORT_AT_CONNECT = 24  # IP_BIND_ADDRESS_NO_PORT


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """Run echod with the handler of `bench.peers.cyclic`; return its port."""
    port = free_port()
    twistd = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile="]
    limits = ["--max-connections", "0", "--max-connections-per-address", "0"]
    handler = ["--handler", "bench.peers.cyclic:Cyclic", "--log-level", "warn"]
    listen = ["--listen", f"tcp:{port}:interface=127.0.0.1:backlog=1000"]
    command = [*twistd, "echod", *listen, *limits, *handler]
    process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.DEVNULL)
    try:
        while not _answers(port):
            if process.poll() is not None:
                sys.exit("echod has not started")
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def connect(port: int, number: int) -> socket.socket:
    """Connect from one of the addresses."""
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_IP, _PORT_AT_CONNECT, 1)  # otherwise the port is searched for
    made.bind((f"127.0.1.{1 + number % ADDRESSES}", 0))
    made.connect(("127.0.0.1", port))
    made.sendall(b"hi")
    made.recv(100)
    return made


def figures(asking: socket.socket) -> tuple[float, int]:
    """Return the longest pause since the last call, in milliseconds, and the living handlers."""
    asking.sendall(b"?")
    answer = json.loads(asking.recv(1000))
    return answer["longest"] * 1000, answer["alive"] - 1


def main() -> None:
    """Measure, and print the figures."""
    given = [int(each) for each in sys.argv[1:]]
    count, soak = (*given, *(19_000, 100_000)[len(given) :])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with serving() as port, connect(port, 0) as asking:
        figures(asking)
        longest, open_ones = 0.0, []
        while len(open_ones) < count:
            here = len(open_ones)
            open_ones += [connect(port, here + number) for number in range(min(500, count))]
            longest = max(longest, figures(asking)[0])
        print(f"0 to {count} connections: the longest pause by the collector: {longest:.1f} ms")
        for each in open_ones:
            each.close()
        time.sleep(12)
        longest, alive = figures(asking)
        print(f"they have left: the longest pause {longest:.1f} ms, handlers left {alive}")
        longest = worst = 0
        for start in range(0, soak, AT_ONCE):
            some = [connect(port, start + number) for number in range(AT_ONCE)]
            for each in some:
                each.close()
            pause, alive = figures(asking)
            longest, worst = max(longest, pause), max(worst, alive)
        time.sleep(12)
        pause, alive = figures(asking)
        print(
            f"{soak} have come and gone: the longest pause {max(longest, pause):.1f} ms, "
            f"handlers left {worst} at most, {alive} at the end"
        )


if __name__ == "__main__":
    main()
