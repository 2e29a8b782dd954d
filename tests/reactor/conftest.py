"""A reactor for each test, run in this process and never for long."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogLevel, globalLogPublisher

from echod.reactor import UvloopReactor

TIMEOUT = 20.0


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Not watched here: Twisted has no way to close a reactor, so each leaves its epoll object.

    What the reactor itself must not leave, its tests count one by one.
    """


@pytest.fixture(autouse=True)
def no_loop_runs() -> Iterator[None]:
    """The tests' own reactor waits in a greenlet: for asyncio its loop runs all the same."""
    running = asyncio._get_running_loop()
    wake_up = signal.set_wakeup_fd(-1)
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(running)
    signal.set_wakeup_fd(wake_up)


class Harness:
    """One reactor, and what tests want of it."""

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
                thread.join(TIMEOUT)
            hang_up()
            # The reactor's side sees it, before the reactor stops and ends what is left.
            deadline = time.monotonic() + 0.3
            while getattr(self.reactor, "streams", None) and time.monotonic() < deadline:
                time.sleep(0.005)
            self.reactor.callFromThread(self.reactor.stop)

        for thread in threads:
            self.reactor.callLater(0, thread.start)
        self.reactor.callLater(0, threading.Thread(target=wait).start)
        self.run_until_stopped()

    def run_until_stopped(self) -> None:
        watchdog = self.reactor.callLater(TIMEOUT + 1, self._too_long)
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


def _uvloop() -> UvloopReactor:
    return UvloopReactor(uvloop.new_event_loop())


@pytest.fixture
def harness() -> Iterator[Harness]:
    """This reactor."""
    yield from _harness(_uvloop())


@pytest.fixture(params=[_uvloop, EPollReactor], ids=["uvloop", "epoll"])
def either(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """This reactor, and then Twisted's own: for what has to be the same."""
    yield from _harness(request.param())


def _harness(reactor: Any) -> Iterator[Harness]:
    made = Harness(reactor)
    globalLogPublisher.addObserver(made.observe)
    yield made
    globalLogPublisher.removeObserver(made.observe)
    made.close()
    hang_up()


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


_dialled: list[socket.socket] = []


def dial(port: int) -> socket.socket:
    """A blocking client, closed at the end of the test at the latest."""
    client = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
    _dialled.append(client)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def hang_up() -> None:
    """Close all that was dialled."""
    while _dialled:
        _dialled.pop().close()


def read_all(client: socket.socket) -> bytes:
    """What comes until the end of the stream."""
    chunks = []
    while chunk := client.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)
