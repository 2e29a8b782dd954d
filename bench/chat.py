"""A chat of 1,000 clients, with and without one that never reads: what do the others notice?

`python -m bench.chat` serves examples/services/chat.py. One client says a line of 100 bytes every
twentieth of a second; the result is how long after that the others have it, 99 times of 100. In
every second turn one more client has joined, before all others, whose replies fill all that waits
for it. It prints the medians of five rounds, and their ratio.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.server import free_port

CLIENTS = 1000
ROUNDS = 5
LINES = 60
PACE = 0.05
# More than the kernel and `--max-unsent` hold.
FILL = 6_000_000
BAR = 1.5
SERVICES = Path(__file__).parent.parent / "examples" / "services"


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """Serve the chat in a process of its own, and give its port."""
    port = free_port()
    program = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
    options = [
        "-n",
        "--pidfile=",
        "echod",
        "--port",
        str(port),
        "--handler",
        "chat:Chat",
        "--framing",
        "line",
        "--no-banner",
    ]
    limits = ["--write-timeout", "600", "--max-connections-per-address", "0"]
    daemon = subprocess.Popen(
        [*program, *options, *limits], cwd=SERVICES, stdout=subprocess.DEVNULL
    )
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port
    finally:
        daemon.kill()
        daemon.wait()


def connect(port: int, buffer: int = 0) -> socket.socket:
    """Connect, with a receive buffer of so many bytes; 0: as the kernel likes."""
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.connect(("127.0.0.1", port))
    return client


def p99(*, with_silent: bool) -> float:
    """Return in how many seconds the others have a line, 99 times of 100."""
    with serving() as port, contextlib.ExitStack() as stack:
        speaker = stack.enter_context(connect(port))
        if with_silent:
            stack.enter_context(connect(port, buffer=4096))
            fill(speaker, stack.enter_context(connect(port)))
        others = selectors.DefaultSelector()
        for _ in range(CLIENTS):
            other = stack.enter_context(connect(port))
            other.setblocking(False)
            others.register(other, selectors.EVENT_READ)
        time.sleep(1)  # all have been accepted
        delays: list[float] = []
        for _ in range(LINES):
            delays += delays_of_a_line(speaker, others)
        others.close()
    return statistics.quantiles(delays, n=100)[98]


def fill(speaker: socket.socket, listener: socket.socket) -> None:
    """Say more than can wait for a client, and return once a listener has all of it."""
    line = b"x" * 9_999 + b"\n"
    for _ in range(FILL // len(line)):
        speaker.sendall(line)
        missing = len(line)
        while missing:
            missing -= len(listener.recv(missing))
    listener.close()


def delays_of_a_line(speaker: socket.socket, others: selectors.BaseSelector) -> list[float]:
    """Say a line, and return when each of the others has it, in seconds from then on."""
    delays: list[float] = []
    began = time.perf_counter()
    speaker.sendall(b"x" * 99 + b"\n")
    while len(delays) < CLIENTS:
        for key, _ in others.select():
            assert isinstance(key.fileobj, socket.socket)
            lines = key.fileobj.recv(1 << 16).count(b"\n")
            delays += [time.perf_counter() - began] * lines
    time.sleep(max(0.0, began + PACE - time.perf_counter()))
    return delays


def main() -> None:
    """Measure in turns, and print the medians."""
    alone, beside = [], []
    for number in range(ROUNDS):
        for with_silent in (False, True) if number % 2 == 0 else (True, False):
            (beside if with_silent else alone).append(p99(with_silent=with_silent))
    ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    print(f"p99 without it: {statistics.median(alone) * 1000:.1f} ms")
    print(f"p99 beside a client that never reads: {statistics.median(beside) * 1000:.1f} ms")
    print(f"ratio: {ratio:.2f}; the bar is {BAR}")


if __name__ == "__main__":
    main()
