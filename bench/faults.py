"""`python -m bench.faults`: the instructions of one message, with and without faults on purpose.

It counts the user-mode instructions of the daemon's process with valgrind, which no other program
disturbs: those of 5,000 messages of 100 bytes, without the start. The least of three counts is
shown: timers vary it.

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

from echod.handlers.builtin import BANNER, PREFIX

TWISTD = Path(sys.executable).parent / "twistd"
WARM, COUNTED, ROUNDS = 500, 5000, 3
# Python's own allocator has it: the C library's, for longer ones, takes some hundred instructions
# more or less by where its holes are, and so by every module that is imported.
MESSAGE = b"x" * 100
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
    counts: dict[str, list[int]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, arguments in CASES.items():
            counts[name].append(count(arguments))
    for name in CASES:
        each = min(counts[name]) / COUNTED
        first = first or each
        worst = max(worst, each / first)
        print(f"{name}: {each:,.0f} instructions a message, {each / first:.3f} times", flush=True)
    return int(worst > BAR)


def count(arguments: tuple[str, ...]) -> int:
    """Return the instructions of a daemon that serves so many messages."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                [
                    *("valgrind", "--tool=callgrind", "--instr-atstart=no"),
                    *("--callgrind-out-file=/dev/null", sys.executable, TWISTD),
                    *("-n", "--pidfile=", "echod", "--handler", "echo"),
                    *("--listen", "tcp:0:interface=127.0.0.1"),
                    *("--listen", f"unix:{directory}/other", *arguments),
                ],
                stdout=output,
                stderr=output,
                env={"PYTHONHASHSEED": "0", "PYTHONPATH": str(Path.cwd())},
            )
            try:
                clients = connect(port_of(daemon, log))
                send(clients, WARM)
                instrument(daemon, "on")
                send(clients, COUNTED)
                instrument(daemon, "off")
                for client in clients:
                    client.close()
            finally:
                daemon.terminate()
                daemon.wait(PATIENCE)
        (collected,) = re.findall(r"Collected : (\d+)", log.read_text())
        return int(collected)


def instrument(daemon: subprocess.Popen[bytes], state: str) -> None:
    """Begin, or end, to count."""
    command = ["callgrind_control", f"--instr={state}", str(daemon.pid)]
    subprocess.run(command, check=True, capture_output=True)


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


def connect(port: int) -> list[socket.socket]:
    """Open ten connections, and read the greeting of each."""
    clients = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(10)]
    for client in clients:
        receive(client, len(BANNER))
    return clients


def send(clients: list[socket.socket], messages: int) -> None:
    """Send messages by the first nine in turn, and read the reply to each."""
    for number in range(messages):
        client = clients[number % 9]
        client.sendall(MESSAGE)
        receive(client, len(PREFIX) + len(MESSAGE))


def receive(client: socket.socket, size: int) -> None:
    """Read so many bytes."""
    while size > 0:
        size -= len(client.recv(size)) or sys.exit("The daemon has closed a connection")


if __name__ == "__main__":
    sys.exit(main())
