"""A service is opened at the start: before the reactor runs, or while it runs already."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.task import Clock, deferLater
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from echod.concurrency.life import Life
from echod.concurrency.models import InReactor
from echod.daemon import ending
from echod.daemon.build import build_service
from echod.daemon.opening import open_before_running
from echod.daemon.resolve import StartError
from echod.daemon.service import EchoService
from echod.handlers.contract import Handler
from echod.handlers.kinds import Kind, message_handler
from echod.handlers.lookup import ResolvedHandler, adopt
from echod.handlers.service import Service, service
from echod.settings.definitions import Settings
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import LOOPBACK, Talker, eventually
from tests.support.waiting import block_until

steps: list[object] = []


@pytest.fixture(autouse=True)
def _no_steps() -> None:
    steps.clear()


def started(given: object, **values: Any) -> EchoService:
    """Start a service in the reactor that runs the test."""
    made = build_service(Settings(listen=(LOOPBACK,), **values), reactor, given)
    made.startService()
    return made


async def connect(running: EchoService) -> Talker:
    address = running.listeners[0].address
    endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{address.port}")
    return await connectProtocol(endpoint, Talker())


@pytest_twisted.ensureDeferred
async def test_where_the_reactor_runs_clients_wait_for_the_service_all_the_same() -> None:
    """Fault 132: In a program whose reactor runs already, clients wait until the service is
    open.
    """
    opening: Deferred[None] = Deferred()

    @service
    async def late(service: Service) -> AsyncIterator[Any]:
        await opening
        yield lambda message: message
        steps.append("closed")

    running = started(late)
    client = await connect(running)
    client.send(b"happy")
    await deferLater(reactor, 0.02)
    assert not running.ready
    assert not running.listeners[0].factory.connections
    opening.callback(None)
    await client.receive(b"happy")
    assert running.ready
    await running.stopService()
    assert steps == ["closed"]


@pytest_twisted.ensureDeferred
async def test_a_service_sends_to_all_its_clients() -> None:
    known: list[Service] = []

    @service
    def told(service: Service) -> Iterator[Any]:
        known.append(service)
        yield lambda message: message

    running = started(told)
    clients = [await connect(running) for _ in range(3)]
    await eventually(lambda: len(known[0].clients) == 3)
    for each in known[0].clients:
        assert each.send(b"news")
    for client in clients:
        await client.receive(b"news")
    await running.stopService()
    assert known[0].clients == ()


@pytest.mark.parametrize("fails", ["raises", "is late", "is wrong", "lacks a loop"])
@pytest_twisted.ensureDeferred
async def test_where_the_reactor_runs_a_failure_stops_it(
    fails: str, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    stopped: list[object] = []
    monkeypatch.setattr(reactor, "stop", lambda: stopped.append(True))
    monkeypatch.setattr(reactor, "addSystemEventTrigger", lambda *given: stopped.append(given))

    @service
    async def failing(service: Service) -> AsyncIterator[Any]:
        if fails == "raises":
            await deferLater(reactor, 0)
            raise OSError("no such database")
        if fails == "lacks a loop":
            raise RuntimeError("no running event loop")
        if fails == "is late":
            await Deferred()
        yield 7

    # On a busy machine each of the others would be late, too.
    running = started(failing, start_timeout=0.05 if fails == "is late" else 3600)
    await eventually(lambda: len(stopped) == 2)
    assert stopped == [("after", "shutdown", ending.end_with_code, 1), True]
    said = {
        "raises": "cannot be opened: OSError: no such database",
        "is late": "failing was not open within 0.05 s (--start-timeout)",
        "is wrong": "7 is not callable",
        "lacks a loop": "; leave out --reactor, so that the uvloop reactor runs",
    }
    (error,) = log.take_errors()
    assert said[fails] in error
    assert not running.ready
    await running.stopService()


@pytest_twisted.ensureDeferred
async def test_a_handler_of_a_service_is_checked_as_any_other(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(reactor, "stop", lambda: steps.append("stopped"))
    monkeypatch.setattr(reactor, "addSystemEventTrigger", lambda *given: None)

    class Unmade(Handler):
        def __init__(self) -> None:
            raise ValueError("no good")

        def received(self, message: bytes) -> bytes:
            return message

    @service
    def wrong(service: Service) -> Iterator[Any]:
        yield Unmade

    running = started(wrong)
    await eventually(lambda: steps == ["stopped"])
    assert "cannot be made: ValueError: no good" in "".join(log.take_errors())
    await running.stopService()


def test_an_async_service_in_threads_is_refused_before_it_is_opened() -> None:
    @service
    async def waits(service: Service) -> AsyncIterator[Any]:
        yield lambda message: message

    with pytest.raises(StartError, match="waits is an async service: it runs with --concurrency"):
        started(waits, concurrency="defer-to-thread")


@implementer(IReactorThreads)
class StandingReactor(Clock):
    """A reactor that is not started: it takes a turn when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ThreadPool(0, 1)

    def iterate(self, delay: float = 0) -> None:
        self.advance(delay)
        time.sleep(delay / 10)  # the limit of a start is in real time

    def getThreadPool(self) -> ThreadPool:
        return self.pool

    def callFromThread(self, function: Any, *arguments: object) -> None:
        self.callLater(0, function, *arguments)


@pytest.fixture
def standing() -> Iterator[Any]:
    standing = StandingReactor()
    yield standing
    if standing.pool.started and not standing.pool.joined:
        standing.pool.stop()


def opened(
    standing: Any, definition: Any, *, timeout: float = 5.0, signals: Any = None
) -> ResolvedHandler:
    """Open a service before a reactor runs."""
    model = InReactor()
    life = Life(adopt(definition, model.name), model, standing.callFromThread)
    return open_before_running(standing, life, timeout, 0.1, signals)


def test_a_service_that_waits_opens_while_the_reactor_takes_its_turns(standing: Any) -> None:
    @service
    async def waits(service: Service) -> AsyncIterator[Any]:
        await deferLater(standing, 0.02)
        yield message_handler(lambda message: message)

    assert opened(standing, waits).kind is Kind.MESSAGE
    assert standing.pool.started  # `deferToThread` works meanwhile


def test_a_failure_is_the_starts_own_and_stops_the_threads(standing: Any) -> None:
    @service
    async def fails(service: Service) -> AsyncIterator[Any]:
        await deferLater(standing, 0.02)
        raise OSError("no database")
        yield

    with pytest.raises(StartError, match=r"^--handler: fails cannot be opened: .*no database"):
        opened(standing, fails)
    block_until(lambda: standing.pool.joined)


def test_a_start_that_takes_too_long_ends_and_cleans_up(standing: Any) -> None:
    @service
    async def hangs(service: Service) -> AsyncIterator[Any]:
        try:
            await Deferred()
            yield
        finally:
            steps.append("cleaned up")

    with pytest.raises(StartError, match=r"hangs was not open within 0\.03 s \(--start-timeout\)"):
        opened(standing, hangs, timeout=0.03)
    assert steps == ["cleaned up"]


def test_a_service_that_blocks_the_main_thread_is_interrupted(standing: Any) -> None:
    @service
    def blocks(service: Service) -> Iterator[Any]:
        time.sleep(30)
        yield

    with pytest.raises(StartError, match=r"blocks was not open within 0\.03 s"):
        opened(standing, blocks, timeout=0.03)


def test_a_signal_ends_the_start(standing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "end_by_signal", steps.append)
    signals = SimpleNamespace(starting=None, answer=lambda: steps.append("answered"))

    @service
    async def hangs(service: Service) -> AsyncIterator[Any]:
        signals.starting(signal.SIGTERM)
        await Deferred()
        yield

    with pytest.raises(StartError, match="SIGTERM came while hangs was opened"):
        opened(standing, hangs, signals=signals)
    assert steps == ["answered", signal.SIGTERM]
    assert signals.starting is None


def test_a_signal_in_the_turn_that_opens_a_service_is_left_to_the_reactor(standing: Any) -> None:
    """So the end closes what has been opened."""
    signals = SimpleNamespace(starting=None, pass_on=steps.append)

    @service
    async def opens(service: Service) -> AsyncIterator[Any]:
        signals.starting(signal.SIGTERM)
        yield message_handler(lambda message: message)

    assert opened(standing, opens, signals=signals).kind is Kind.MESSAGE
    assert steps == [signal.SIGTERM]
    assert signals.starting is None
