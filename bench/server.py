"""One server process: started, pinned to its core, waited for, and stopped."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from bench.catalogue import Peer, Place
from bench.machine import child_of_ours
from bench.tools import HERE, Tools
from bench.workloads import Workload

# How long a server may take until it listens, and until it is gone, in seconds.
START_TIME = 20.0
STOP_TIME = 5.0
# How often to see whether it listens, in seconds: what the start's time is exact to.
POLL_INTERVAL = 0.001
# Below the ports that clients are given.
PORTS = range(20_000, 32_768)


class ServerError(Exception):
    """A server did not start; the text says which and why, in one line."""


class Server:
    """A running server; use it as a context manager.

    Attributes:
        start_seconds: the time from its command to the first connection it took.
    """

    def __init__(
        self, peer: Peer, tools: Tools, workload: Workload, core: int | None, upstream: int = 0
    ) -> None:
        """Describe a server that is not started yet.

        Args:
            peer: which one.
            tools: what was prepared for it.
            workload: what it is to be fit for.
            core: the core to pin it to; None for none.
            upstream: the port of the server that it passes everything on to, if it is a relay.
        """
        self.port = free_port()
        self.start_seconds = 0.0
        self._peer = peer
        self._core = core
        self._log = tools.directory / f"{peer.name}.log"
        self._output = tools.directory / f"{peer.name}.output"
        place = Place(self.port, workload.read_size, self._log, workload.work, upstream)
        self._command = peer.command(tools, place)
        self._directory = tools.directory
        self._process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def __enter__(self) -> Server:
        self._log.unlink(missing_ok=True)
        environment = {**os.environ, **self._peer.environment}
        # With it, each start would compile all modules that no cache has yet.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if not self._peer.is_echod:  # which is installed, as it would be anywhere
            environment["PYTHONPATH"] = str(HERE.parent)
        started = time.monotonic()
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=child_of_ours(self._core),
            )
        try:
            self._wait_until_it_listens(started + START_TIME)
        except BaseException:
            self._stop()
            raise
        self.start_seconds = time.monotonic() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _wait_until_it_listens(self, deadline: float) -> None:
        while not _takes_connections(self.port):
            if self._process.poll() is not None:
                raise ServerError(f"it ended with {self._process.returncode}: {self.last_words()}")
            if time.monotonic() > deadline:
                raise ServerError(f"it did not listen within {START_TIME:g} seconds")
            time.sleep(POLL_INTERVAL)

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """Return the last line that the server printed or logged."""
        for path in (self._output, self._log):
            words = _last_line(path)
            if words:
                return words
        return "it said nothing"


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def free_port() -> int:
    """Return a port on which no process listens at the moment."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no free port was found")


def _takes_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
