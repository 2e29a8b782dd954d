"""`python -m bench.faults`: the instructions of one message, with and without faults on purpose.

It counts the user-mode instructions of the daemon's process with valgrind, which no other program
disturbs: a daemon serves a thousand messages, another one three thousand, and the difference is
that of two thousand. A count takes about a minute.

The cases: no fault; a fault of another listener; a fault on one connection in ten, where the other
nine send.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

TWISTD = Path(sys.executable).parent / "twistd"
FEW, MANY = 1000, 3000
MESSAGE = b"x" * 1000
PATIENCE = 300
FAULT = "reset:after=1000000000000"
CASES = {
    "no fault": (),
    "a fault of another listener": ("--fault", f"{FAULT},listener=2"),
    "a fault on one connection in ten": ("--fault", f"{FAULT},every=10"),
}
BAR = 1.05


def main() -> int:
    """Count each case, and return 1 if one costs too much."""
    first = 0.0
    worst = 1.0
    for name, arguments in CASES.items():
        each = (count(arguments, MANY) - count(arguments, FEW)) / (MANY - FEW)
        first = first or each
        worst = max(worst, each / first)
        print(f"{name}: {each:,.0f} instructions a message, {each / first:.3f} times", flush=True)
    return int(worst > BAR)


def count(arguments: tuple[str, ...], messages: int) -> int:
    """Return the instructions of a daemon that serves so many messages, from start to end."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                [
                    *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
                    *(sys.executable, TWISTD, "-n", "--pidfile=", "echod"),
                    *("--listen", "tcp:0:interface=127.0.0.1", "--handler", "plain-echo"),
                    *("--listen", f"unix:{directory}/other", *arguments),
                ],
                stdout=output,
                stderr=output,
                env={"PYTHONHASHSEED": "0", "PYTHONPATH": str(Path.cwd())},
            )
            try:
                converse(port_of(daemon, log), messages)
            finally:
                daemon.terminate()
                daemon.wait(PATIENCE)
        (collected,) = re.findall(r"Collected : (\d+)", log.read_text())
        return int(collected)


def port_of(daemon: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until the daemon listens, and return its port."""
    while daemon.poll() is None:
        found = re.search(r"starting on (\d+)", log.read_text(errors="replace"))
        if found:
            return int(found[1])
        try:
            daemon.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    raise SystemExit(f"The daemon has ended: {log.read_text(errors='replace')}")


def converse(port: int, messages: int) -> None:
    """Open ten connections, and send messages by nine of them in turn."""
    clients = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(10)]
    for number in range(messages):
        client = clients[number % 9]
        client.sendall(MESSAGE)
        received = 0
        while received < len(MESSAGE):
            received += len(client.recv(65536)) or sys.exit("The daemon has closed")
    for client in clients:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
