"""`python -m bench.pauses`: how much longer the pauses of faults on purpose are than asked for.

It takes, of twenty pauses of each fault, the median, as a client sees them. The bar: the median is
at most 10 % or 5 ms longer, whichever is more, and no byte comes earlier than asked for. (A single
pause may look shorter to the client, if the client was late at the piece before.)
"""

from __future__ import annotations

import itertools
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TWISTD = Path(sys.executable).parent / "twistd"
COUNT = 20
# Each fault, and its pause in seconds.
FAULTS = {
    "delay:time=0.01": 0.01,
    "delay:time=0.1": 0.1,
    "stall:time=0.1": 0.1,
    "slice:size=10,pause=0.01": 0.01,
    "slice:size=10,pause=0.1": 0.1,
    "drip:pause=0.05": 0.05,
}
PATIENCE = 60


def main() -> int:
    """Measure each fault, and return 1 if one misses the bar."""
    missed = 0
    for fault, asked in FAULTS.items():
        with daemon(fault) as port:
            if fault.startswith(("delay", "stall")):
                pauses = [answer_time(port) for _ in range(COUNT)]
                early = min(pauses) - asked
            else:
                times = arrivals(port)
                pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
                early = min(time - number * asked for number, time in enumerate(times))
        median = statistics.median(pauses)
        fails = median > asked + max(0.1 * asked, 0.005) or early < 0
        missed |= fails
        figures = f"median {median * 1e3:.2f} ms, the earliest {early * 1e3:+.2f} ms"
        print(f"{fault}: {figures}{'  MISSED' if fails else ''}", flush=True)
    return missed


@contextmanager
def daemon(fault: str) -> Iterator[int]:
    """Run a daemon with this fault, and yield its port."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, TWISTD, "-n", "--pidfile=", "echod", "--no-banner"),
                    *("--handler", "plain-echo", "--fault", fault),
                    *("--listen", "tcp:0:interface=127.0.0.1"),
                ],
                stdout=output,
                stderr=output,
            )
        try:
            while not (found := re.search(r"starting on (\d+)", log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.05)
            yield int(found[1])
        finally:
            process.terminate()
            process.wait(PATIENCE)


def answer_time(port: int) -> float:
    """Return how long a new client waits for the answer to a byte, in seconds."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"x")
        client.recv(1)
        return time.monotonic() - began


def arrivals(port: int) -> list[float]:
    """Return when a client gets each piece of an answer, in seconds after its request."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        began = time.monotonic()
        client.sendall(b"x" * 10 * (COUNT + 1))
        times = []
        for _ in range(COUNT + 1):
            client.recv(10)
            times.append(time.monotonic() - began)
    return times


if __name__ == "__main__":
    sys.exit(main())
