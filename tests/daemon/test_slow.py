from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from echod import EchoFactory
from echod.concurrency.model import Model
from echod.daemon.slow import MOST_NAMED, SlowCalls
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.kinds import connection_handler
from tests.support.clients import connect
from tests.support.daemon import Start
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import eventually, make_model, server_context, serving

THREADED = [ConcurrencyModel.DEFER_TO_THREAD, ConcurrencyModel.THREAD_PER_CONNECTION]
IN_THE_LOOP = [ConcurrencyModel.REACTOR, ConcurrencyModel.SERIAL]


class Gate:
    """A gate at which a handler waits, until it is opened."""

    def __init__(self) -> None:
        self.reached = 0
        self._open = threading.Event()

    def wait(self) -> None:
        self.reached += 1
        self._open.wait()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watching(clock: Clock, model: Model, threshold: float = 4.0) -> SlowCalls:
    slow = SlowCalls(clock, model, threshold)
    slow.start()
    return slow


@pytest.mark.parametrize("over", ["clear", "TLS"])
@pytest.mark.parametrize("model", THREADED)
@pytest_twisted.ensureDeferred
async def test_a_call_that_hangs_in_a_thread_is_in_the_log_with_its_stack_and_client(
    model: ConcurrencyModel, over: str, gate: Gate, clock: Clock, log: Log, certificate: Path
) -> None:
    """Fault 76: After `slow-handler` seconds the log shows the thread's stack, and its client."""

    def hanging(message: bytes) -> bytes:
        gate.wait()
        return message

    tls = server_context(certificate) if over == "TLS" else None
    options: Any = {"handler": connection_or_message(hanging), "banner": b""}
    async with serving(model, over=tls, **options) as server:
        slow = watching(clock, server.factory.model)
        client = await server.connect()
        client.send(b"happy")
        await eventually(lambda: gate.reached == 1)
        (connection,) = server.factory.connections
        clock.advance(1)
        clock.pump([1] * 3)
        assert "A call of the handler" not in log.text
        assert slow.oldest() == pytest.approx(3)
        clock.advance(1)
        said = log.text
        assert f"A call of the handler for {connection.client.peer} has lasted 4.0 s" in said
        assert "in hanging" in said
        assert "gate.wait()" in said
        # From the handler on, and not from the thread's beginning.
        assert 'threading.py", line' not in said.partition("in hanging")[0]
        assert "/echod/" not in said.partition("in hanging")[0]
        clock.pump([1] * 3)
        assert log.text.count("has lasted") == 1
        clock.pump([1])
        assert log.text.count("has lasted") == 2  # at each doubling
        gate.open()
        await client.receive(b"happy")
        clock.advance(1)
        assert f"The call of the handler for {connection.client.peer} is over" in log.text
        assert slow.oldest() == 0
        slow.stop()
        slow.stop()


def connection_or_message(function: Any) -> Any:
    """Return a class, which is a message handler under every model."""

    class Handling:
        def received(self, message: bytes) -> bytes:
            reply: bytes = function(message)
            return reply

    return Handling


@pytest.mark.parametrize("over", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_of_a_connection_handler_only_the_time_counts_with_input_unread(
    gate: Gate, clock: Clock, log: Log, certificate: Path, over: str
) -> None:
    """Fault 76: A connection handler that has nothing to read does not count as slow, however long
    it waits.
    """

    @connection_handler
    def pushing(conn: socket.socket) -> None:
        conn.sendall(b"hello")
        gate.wait()
        while data := conn.recv(100):
            conn.sendall(data)

    tls = server_context(certificate) if over == "TLS" else None
    async with serving("thread-per-connection", handler=pushing, over=tls) as server:
        slow = watching(clock, server.factory.model)
        client = await server.connect()
        await client.receive(b"hello")
        clock.pump([1] * 20)
        assert "has lasted" not in log.text
        assert slow.oldest() == 0
        client.send(b"happy")
        await eventually(lambda: _looked(slow) and _counts(slow))
        clock.pump([1] * 4)
        assert "has lasted 4.0 s" in log.text
        assert "in pushing" in log.text
        gate.open()
        await client.receive(b"happy")  # and now it waits for the client
        await eventually(lambda: slow.oldest() == 0)
        assert "is over" in log.text
        clock.pump([1] * 20)
        assert log.text.count("has lasted") == 1
        slow.stop()


def _counts(slow: SlowCalls) -> bool:
    """Return whether the time of a call counts."""
    return any(one.progress is not None for one in slow._seen.values())


def _looked(slow: SlowCalls) -> bool:
    slow.look()
    return True


@pytest_twisted.ensureDeferred
async def test_a_thread_that_waits_for_its_client_is_not_slow(clock: Clock, log: Log) -> None:
    async with serving("thread-per-connection") as server:
        slow = watching(clock, server.factory.model)
        client = await server.connect()
        client.send(b"happy")
        await eventually(lambda: b"happy" in client.data)
        (connection,) = server.factory.connections
        conversing: Any = connection
        await eventually(lambda: conversing._conn.receiving)
        clock.pump([1] * 20)
        assert slow.oldest() == 0
        assert "has lasted" not in log.text
        slow.stop()


class Elsewhere:
    """Handlers whose result never arrives."""

    never: Deferred[bytes]

    async def deep(self) -> bytes:
        return await self.never

    async def coroutine(self, message: bytes) -> bytes:
        return await self.deep()

    def deferred(self, message: bytes) -> Deferred[bytes]:
        return self.never


@pytest.mark.parametrize("model", IN_THE_LOOP)
@pytest.mark.parametrize(
    ("kind", "where"), [("coroutine", "in deep"), ("deferred", "a Deferred that has not fired")]
)
@pytest_twisted.ensureDeferred
async def test_what_waits_for_ever_in_the_loop_is_in_the_log_too(
    model: ConcurrencyModel, kind: str, where: str, clock: Clock, log: Log
) -> None:
    """Fault 76: The log also shows a coroutine or Deferred that takes as long."""
    here = Elsewhere()
    here.never = Deferred()
    options: Any = {"handler": getattr(here, kind), "banner": b""}
    async with serving(model, **options) as server:
        slow = watching(clock, server.factory.model)
        client = await server.connect()
        client.send(b"happy")
        await eventually(lambda: bool(server.factory.model.under_way()))
        (connection,) = server.factory.connections
        clock.pump([1] * 5)
        assert f"A call of the handler for {connection.client.peer} has lasted" in log.text
        assert where in log.text
        (line,) = slow.left_behind(server.factory.connections)
        assert where in line
        assert 3 < slow.oldest() < 60
        here.never.callback(b"days")
        await client.receive(b"days")
        assert slow.oldest() == 0
        assert "is over" in log.text
        assert not server.factory.model.under_way()
        slow.stop()


@pytest_twisted.ensureDeferred
async def test_a_new_threshold_holds_for_what_is_under_way(
    gate: Gate, clock: Clock, log: Log
) -> None:
    def hanging(message: bytes) -> None:
        gate.wait()

    options: Any = {"handler": hanging, "banner": b""}
    async with serving("defer-to-thread", **options) as server:
        slow = watching(clock, server.factory.model, threshold=0)
        client = await server.connect()
        client.send(b"happy")
        await eventually(lambda: gate.reached == 1)
        clock.pump([1] * 100)
        assert "has lasted" not in log.text
        assert slow.oldest() == pytest.approx(99)
        slow.reconfigure(50)
        clock.advance(1)
        assert "has lasted 100.0 s" in log.text
        slow.reconfigure(0)
        clock.pump([1] * 400)
        assert log.text.count("has lasted") == 1
        slow.stop()


def test_a_look_that_fails_is_logged_and_is_not_the_last(clock: Clock, log: Log) -> None:
    class Failing:
        looks = 0

        def under_way(self) -> Any:
            self.looks += 1
            raise OSError("gone")

    model: Any = Failing()
    slow = watching(clock, model)
    clock.pump([1] * 3)
    assert model.looks == 3
    assert len(log.take_errors()) == 3
    slow.stop()


class Gone:
    """An open connection about which nothing is known."""


def test_no_more_than_some_of_those_left_behind_are_named() -> None:
    slow = SlowCalls(Clock(), make_model("reactor"), 1.0)
    few = slow.left_behind([Gone() for _ in range(MOST_NAMED)])
    assert few == ["no client: it is open"] * MOST_NAMED
    many = slow.left_behind([Gone() for _ in range(MOST_NAMED + 3)])
    assert many == [*few, "and 3 more"]
    assert slow.left_behind([]) == []


@pytest_twisted.ensureDeferred
async def test_work_for_a_client_that_is_gone_is_named_too(gate: Gate) -> None:
    def hanging(message: bytes) -> None:
        gate.wait()

    options: Any = {"handler": hanging, "banner": b"", "threads": 1}
    async with serving("defer-to-thread", **options) as server:
        first, second = [await server.connect() for _ in range(2)]
        first.send(b"happy")
        await eventually(lambda: gate.reached == 1)
        second.send(b"days")
        await eventually(lambda: server.factory.metrics.accepted == 2)
        slow = SlowCalls(Clock(), server.factory.model, 1.0)
        await eventually(
            lambda: "waits for a thread" in slow.left_behind(server.factory.connections)[-1]
        )
        first.transport.abortConnection()
        await eventually(lambda: len(server.factory.connections) == 1)
        lines = slow.left_behind(server.factory.connections)
        assert len(lines) == 2
        assert ", which is gone: the handler is at test_slow.py:" in lines[0]
        assert "in hanging" in lines[0]
        gate.open()


STUCK = """
import threading

def hang_here():
    threading.Event().wait()

def received(message: bytes):
    hang_here()

def own(conn):
    conn.recv(1)
    hang_here()
"""


@pytest.mark.parametrize(
    ("model", "handler"), [("defer-to-thread", "received"), ("thread-per-connection", "own")]
)
def test_a_drain_that_runs_out_of_time_says_who_is_there_and_where_each_hangs(
    daemon: Start, tmp_path: Path, model: str, handler: str
) -> None:
    """Fault 76: The line about the drain's time-out names the remaining clients, and where each
    handler hangs.
    """
    (tmp_path / "stuck.py").write_text(STUCK)
    running = daemon(
        *("--handler", f"stuck:{handler}", "--concurrency", model, "--no-banner"),
        *("--drain-timeout", "0.5", "--slow-handler", "0.2"),
        cwd=tmp_path,
    )
    with connect(running) as client, connect(running) as idle:
        client.sendall(b"happy")
        host, port = client.getsockname()
        if handler == "received":
            running.wait_for(rf"A call of the handler for {host}:{port} has lasted")
            running.wait_for("in hang_here")
        else:
            running.wait_for("Connected with", 2)
        running.process.terminate()
        running.wait_for("Drain time-out: aborting all; open connections:")
        running.wait_for(rf"{host}:{port}.*: the handler is at .*stuck.py:5 in hang_here")
        assert idle
    running.process.wait()


def test_a_factory_by_itself_needs_nobody_to_look() -> None:
    assert EchoFactory(reactor).model.under_way() == []


@pytest_twisted.ensureDeferred
async def test_a_stream_whose_client_does_not_read_is_named_so() -> None:
    def endless(message: bytes) -> Iterator[bytes]:
        while True:
            yield bytes(65536)

    async with serving("reactor", handler=endless, banner=b"") as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"happy")
        slow = SlowCalls(Clock(), server.factory.model, 1.0)
        await eventually(
            lambda: (
                "the client has not read everything"
                in "".join(slow.left_behind(server.factory.connections))
            )
        )
        assert "thread" not in "".join(slow.left_behind(server.factory.connections))
        server.factory.abort()
