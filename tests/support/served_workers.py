"""Shared by tests of a daemon with workers: a handler that says where it runs, and its clients."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.waiting import PACE, PATIENCE

# Of workers that are executed, not forked: on a busy machine that takes a while.
START = 3 * PATIENCE

HANDLER = """
import os
import sys
import time
from pathlib import Path

from echod import message_handler

if Path("broken").exists():
    raise RuntimeError("this module is broken")
if Path("dies").exists():
    os._exit(7)


@message_handler(banner=b"")
def who(message):
    if message == b"block\\n":
        while True:
            time.sleep(0.01)
    if message == b"print\\n":
        print("a line of print")
        os.write(1, b"a raw line\\n")
    if message == b"wait\\n":
        Path("waits").touch()
        while not Path("gate").exists():
            time.sleep(0.01)
    return b"%d %s" % (os.getpid(), message)
"""


def write_handler(folder: Path, text: str = HANDLER) -> None:
    (folder / "answers.py").write_text(text)


def served_by(running: Daemon) -> dict[int, int]:
    """Return the process of each worker that serves, by its number."""
    found = {}
    for line in running.lines:
        if match := re.search(r"worker (\d+) \(process (\d+)\) serves", line):
            found[int(match[1])] = int(match[2])
    return found


def wait_until_served(running: Daemon, count: int) -> dict[int, int]:
    running.wait_for(r"worker \d+ \(process \d+\) serves", count, START)
    return served_by(running)


def ask(connection: socket.socket, message: bytes = b"hello\n") -> int:
    """Send a message; return the process that answered it."""
    connection.sendall(message)
    with connection.makefile("rb") as replies:
        pid, _, rest = replies.readline().partition(b" ")
    assert rest == message
    return int(pid)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Load:
    """Clients that connect, send, and check every reply; a connection after another.

    Attributes:
        served: connections in which every message was answered.
        closed: connections that were closed, in good order, before their next message.
        broken: connections that ended otherwise.
        refused: the errors of those that could not connect.
    """

    def __init__(self, running: Daemon, threads: int = 4) -> None:
        self.port = running.port
        self.served = self.closed = self.broken = 0
        self.refused: list[OSError] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                client = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
            except OSError as error:
                self.refused.append(error)
                continue
            with client:
                end = self._talk(client)
            with self._lock:
                setattr(self, end, getattr(self, end) + 1)
            self._stop.wait(PACE)

    def _talk(self, client: socket.socket) -> str:
        try:
            for number in range(3):
                message = b"%d\n" % number
                client.sendall(message)
                reply = b""
                while not reply.endswith(b"\n"):
                    if not (data := client.recv(100)):
                        return "broken" if reply else "closed"
                    reply += data
                if not reply.endswith(b" " + message):
                    return "broken"
        except OSError:
            return "broken"
        return "served"
