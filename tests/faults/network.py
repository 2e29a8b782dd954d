"""A network of a test's own: a namespace with a loopback interface that can be made bad."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.needs import missing, tool
from tests.support.programs import Step, enter
from tests.support.waiting import PATIENCE

_CLONE_NEWNET = 0x40000000


class Network:
    """A network namespace, kept by a process that sleeps in it."""

    def __init__(self, keeper: int) -> None:
        self._namespace = Path(f"/proc/{keeper}/ns/net")

    @property
    def step(self) -> Step:
        """The step of a program into this network."""
        return enter(self._namespace)

    @property
    def within(self) -> list[str]:
        """The command that runs a command in this network."""
        return [tool("nsenter"), f"--net={self._namespace}"]

    def run(self, *command: str) -> str:
        """Run a command in this network; where the kernel lacks what it needs, it is missing."""
        done = subprocess.run(
            [*self.within, *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            missing(f"this kernel has not what a test needs: {' '.join(command)}: {done.stderr}")
        return done.stdout

    def set(self, name: str, value: str) -> None:
        """Set a kernel parameter, below net/ipv4."""
        self.run("sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{name}")

    def socket(self) -> socket.socket:
        """Return a TCP socket in this network, for clients."""
        made: list[socket.socket | OSError] = []

        def make() -> None:
            # A thread enters the namespace alone, and its sockets stay there.
            with self._namespace.open() as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                    made.append(OSError(ctypes.get_errno(), "setns"))
                else:
                    made.append(socket.socket())

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        made[0].settimeout(PATIENCE)
        return made[0]

    def connect(self, running: Daemon) -> socket.socket:  # type: ignore[name-defined]
        """Connect to a daemon in this network."""
        connection = self.socket()
        connection.connect(("127.0.0.1", running.port))
        return connection


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Make a network, with its loopback interface up, and take it down."""
    up = f"{tool('ip')} link set lo up && echo up && exec sleep infinity"
    keeper = subprocess.Popen(
        [tool("unshare"), "--net", "sh", "-c", up],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert keeper.stdout is not None
    with keeper:
        try:
            said = keeper.stdout.readline()
            if said != "up\n":
                missing(
                    f"no network namespace can be made here: {said.strip()}: run the tests as "
                    "root, where unshare --net is permitted (in a container, CAP_SYS_ADMIN)"
                )
            yield Network(keeper.pid)
        finally:
            keeper.kill()
