"""One reactor at a time, in this process, and blocking clients of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogLevel

from echod.reactor import UvloopReactor
from tests.support.paths import ROOT
from tests.support.programs import run
from tests.support.waiting import PATIENCE, block_until


class Harness:
    """One reactor, with helpers for tests."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.failures: list[dict[str, Any]] = []
        self._raised: list[BaseException] = []

    def observe(self, event: dict[str, Any]) -> None:
        if event.get("log_level") in (LogLevel.error, LogLevel.critical):
            self.failures.append(event)

    def listen(self, protocol: Callable[[], Any]) -> int:
        """Serve ``protocol`` on a free TCP port of 127.0.0.1."""
        factory = Factory.forProtocol(protocol)
        factory.noisy = False
        self.port = self.reactor.listenTCP(0, factory, 500, "127.0.0.1")
        return int(self.port.getHost().port)

    def run(self, *clients: Callable[[], object]) -> None:
        """Run the reactor until the blocking ``clients``, each in a thread, are done."""
        threads = [threading.Thread(target=self._run_client, args=[c]) for c in clients]

        def wait() -> None:
            for thread in threads:
                thread.join(PATIENCE)
            hang_up()
            # The reactor's side sees it, before the reactor stops and ends what is left.
            block_until(lambda: not getattr(self.reactor, "streams", None))
            self.reactor.callFromThread(self.reactor.stop)

        for thread in threads:
            self.reactor.callLater(0, thread.start)
        self.reactor.callLater(0, threading.Thread(target=wait).start)
        self.run_until_stopped()

    def run_until_stopped(self) -> None:
        watchdog = self.reactor.callLater(PATIENCE + 1, self._too_long)
        self.reactor.run(installSignalHandlers=False)
        if watchdog.active():
            watchdog.cancel()
        for raised in self._raised:
            raise raised

    def _run_client(self, client: Callable[[], object]) -> None:
        try:
            client()
        except BaseException as exception:
            self._raised.append(exception)

    def _too_long(self) -> None:
        self._raised.append(TimeoutError())
        self.reactor.stop()

    def close(self) -> None:
        self.reactor.disconnectAll()
        if isinstance(self.reactor, UvloopReactor):
            self.reactor.loop.close()
        else:
            self.reactor._poller.close()


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


_dialled: list[socket.socket] = []


def dial(port: int) -> socket.socket:
    """A blocking client, closed at the end of the test at the latest."""
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    _dialled.append(client)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def hang_up() -> None:
    """Close all that was dialled."""
    while _dialled:
        _dialled.pop().close()


def read_all(client: socket.socket) -> bytes:
    """Return all bytes until the end of the stream."""
    chunks = []
    while chunk := client.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def program(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program of this code in an interpreter of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return run(cwd, sys.executable, "-c", code, *arguments, env=environment)
