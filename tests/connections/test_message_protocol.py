from __future__ import annotations

import asyncio
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionLost
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from zope.interface import implementer

from echod import (
    Chunk,
    EchoFactory,
    EchoProtocol,
    EndReason,
    Handler,
    Length,
    Limits,
    Line,
    Serial,
    message_handler,
)
from echod.concurrency import pool as pool_module
from echod.concurrency.model import Busy
from echod.concurrency.models import InPool, InReactor
from echod.concurrency.pool import WorkerPool
from echod.connections.admission import Admission
from echod.connections.direct_protocol import LONGEST_TOGETHER, MOST_TOGETHER, DirectProtocol
from echod.connections.kernel import Taken, unread
from echod.connections.sweeper import URGENT_INTERVAL
from echod.handlers.client import Client
from echod.handlers.contract import ConcurrencyModel
from echod.messages.framing import Framing
from echod.proxy_header import ProxyHeader
from echod.reactor import UvloopReactor
from echod.reasons import Refusal
from echod.tls import TLSError, TLSFacts
from echod.turns import PACE, Turns
from tests.support.clients import BANNER
from tests.support.log import Log
from tests.support.memory import Transport, connect, lose
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.serving import (
    WAYS,
    Server,
    eventually,
    in_thread,
    make_model,
    no_more_threads,
    server_by,
    server_context,
    serving,
    turns,
)
from tests.support.tls_peer import Peer
from tests.support.waiting import PATIENCE


def test_a_protocol_belongs_to_a_factory_which_holds_its_limits() -> None:
    factory: Any = Factory.forProtocol(EchoProtocol)
    with pytest.raises(TypeError, match="owner"):
        factory.buildProtocol(None)


def test_importing_echod_installs_no_reactor() -> None:
    code = (
        "import sys, echod, echod.daemon.process, twisted.plugins.echod_plugin; "
        "sys.exit('twisted.internet.reactor' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_factory_sweeps_only_while_it_has_connections() -> None:
    clock = Clock()
    factory = EchoFactory(clock)
    assert not clock.getDelayedCalls()
    one, other = connect(factory)[0], connect(factory)[0]
    assert len(clock.getDelayedCalls()) == 1
    lose(one)
    lose(other)
    assert not clock.getDelayedCalls()


def test_reading_pauses_while_replies_pile_up_and_messages_wait() -> None:
    factory = EchoFactory(Clock(), banner=b"")
    protocol, transport = connect(factory)
    protocol.dataReceived(b"one")
    protocol.pauseProducing()
    assert transport.producerState == "paused"
    protocol.dataReceived(b"two")
    assert transport.value() == b"OK...one"
    protocol.resumeProducing()
    assert transport.value() == b"OK...oneOK...two"
    assert transport.producerState == "producing"
    lose(protocol)


def test_a_client_that_does_not_read_is_aborted_in_time() -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=Limits(write_timeout=30))
    protocol, transport = connect(factory)
    protocol.pauseProducing()
    clock.pump([URGENT_INTERVAL] * 59)
    assert not transport.aborting
    clock.pump([URGENT_INTERVAL] * 2)
    assert transport.aborting
    lose(protocol)
    assert factory.metrics.ended == {"write-timeout": 1}


def test_a_client_that_reads_again_is_not_aborted() -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=Limits(write_timeout=30))
    protocol, transport = connect(factory)
    protocol.pauseProducing()
    protocol.resumeProducing()
    clock.pump([URGENT_INTERVAL] * 100)
    assert not transport.aborting
    lose(protocol)


def test_a_silent_client_is_disconnected_and_one_that_talks_is_not() -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=Limits(idle_timeout=10))
    silent, silent_transport = connect(factory)
    talking, talking_transport = connect(factory)
    for _ in range(24):
        clock.advance(URGENT_INTERVAL)
        talking.dataReceived(b"x")
    assert silent_transport.half_closed
    assert not talking_transport.half_closed
    silent.writeConnectionLost()
    clock.pump([URGENT_INTERVAL] * 6)
    assert silent_transport.aborting
    lose(silent)
    lose(talking)
    assert factory.metrics.ended == {"idle-timeout": 1, "connection lost": 1}


def test_a_handler_at_work_is_not_silence() -> None:
    clock = Clock()
    waiting: list[Deferred[bytes]] = []

    def handler(message: bytes) -> Any:
        waiting.append(Deferred())
        return waiting[-1]

    factory = EchoFactory(clock, handler=handler, limits=Limits(idle_timeout=10))
    protocol, transport = connect(factory)
    protocol.dataReceived(b"x")
    clock.pump([1.0] * 100)
    assert not transport.half_closed
    waiting[0].callback(b"at last")
    assert transport.value() == b"at last"
    lose(protocol)


def test_time_outs_of_zero_are_never() -> None:
    clock = Clock()
    limits = Limits(first_byte_timeout=0, idle_timeout=0, write_timeout=0)
    protocol, transport = connect(EchoFactory(clock, limits=limits))
    protocol.pauseProducing()
    clock.pump([1000.0] * 100)
    protocol.resumeProducing()
    clock.pump([1000.0] * 100)
    assert not transport.aborting
    assert not transport.half_closed
    lose(protocol)


def test_a_client_that_never_says_anything_has_less_time() -> None:
    clock = Clock()
    limits = Limits(first_byte_timeout=10, idle_timeout=20)
    factory = EchoFactory(clock, limits=limits)
    silent, silent_transport = connect(factory)
    heard, heard_transport = connect(factory)
    heard.dataReceived(b"x")
    clock.pump([URGENT_INTERVAL] * 23)
    assert silent_transport.half_closed
    assert not heard_transport.half_closed
    clock.pump([URGENT_INTERVAL] * 23)
    assert heard_transport.half_closed
    lose(silent)
    lose(heard)
    assert factory.metrics.ended == {"first-byte-timeout": 1, "idle-timeout": 1}


SLOW = Limits(message_timeout=10, min_rate=10)


@pytest.mark.parametrize("framing", [Line(), Length()])
def test_a_message_that_takes_too_long_is_refused_however_steadily_it_comes(
    framing: Framing,
) -> None:
    clock = Clock()
    factory = EchoFactory(clock, banner=b"", framing=framing, limits=SLOW)
    protocol, transport = connect(factory)
    protocol.dataReceived(Length().header.pack(1000))
    while not transport.half_closed:
        protocol.dataReceived(b"x")
        clock.advance(URGENT_INTERVAL)
    assert 10 <= clock.seconds() <= 15
    assert transport.value() == framing.encode_line(b"Message too slow: the limit is 10 s")
    lose(protocol)
    assert factory.metrics.ended == {"message-timeout": 1}
    assert factory.metrics.bytes_sent == len(transport.value())


def test_a_long_message_may_take_longer_and_each_has_its_own_time() -> None:
    clock = Clock()
    factory = EchoFactory(clock, banner=b"", framing=Line(), limits=SLOW)
    protocol, transport = connect(factory)
    protocol.dataReceived(b"x" * 100)  # ten more seconds
    clock.pump([URGENT_INTERVAL] * 36)
    for _ in range(20):
        protocol.dataReceived(b"\nx")
        clock.pump([URGENT_INTERVAL] * 5)
    assert not transport.half_closed
    lose(protocol)


def test_in_chunk_framing_no_message_is_ever_under_way() -> None:
    clock = Clock()
    factory = EchoFactory(clock, banner=b"", limits=SLOW)
    protocol, transport = connect(factory)
    for _ in range(20):
        protocol.dataReceived(b"x")
        clock.advance(5)
    assert not transport.half_closed
    assert transport.value() == b"OK...x" * 20
    lose(protocol)


def test_a_message_that_waits_for_the_handler_is_not_the_clients_delay() -> None:
    clock = Clock()
    waiting: list[Deferred[bytes]] = []

    def handler(message: bytes) -> Any:
        waiting.append(Deferred())
        return waiting[-1]

    factory = EchoFactory(clock, handler=handler, framing=Line(), limits=SLOW)
    protocol, transport = connect(factory)
    protocol.dataReceived(b"one\ntw")
    clock.pump([URGENT_INTERVAL] * 100)
    waiting[0].callback(b"1")
    clock.pump([URGENT_INTERVAL] * 10)
    assert not transport.half_closed
    clock.pump([URGENT_INTERVAL] * 20)
    assert transport.half_closed
    lose(protocol)


# Decides which connections are accepted.


def address(number: int) -> IPv4Address:
    return IPv4Address("TCP", f"127.0.0.{number}", 50_000)


def told(protocol: Any) -> bytes:
    """Tells a refused client why; the connection is closed."""
    transport = Transport()
    protocol.makeConnection(transport)
    assert transport.disconnecting
    return transport.value()


def test_a_client_above_a_limit_is_told_so_and_costs_nothing(log: Log) -> None:
    made: list[Handler] = []

    class Counted(Handler):
        def __init__(self) -> None:
            made.append(self)

    clock = Clock()
    limits = Limits(max_connections=2, max_connections_per_address=1)
    factory = EchoFactory(
        clock, handler=Counted, framing=Line(b"\r\n"), limits=limits, listener="unix:/x"
    )
    first = factory.buildProtocol(address(1))
    first.makeConnection(Transport())
    assert told(factory.buildProtocol(address(1))) == (
        b"Server busy: too many connections from your address, try again later\r\n"
    )
    factory.buildProtocol(address(2)).makeConnection(Transport())
    assert told(factory.buildProtocol(address(3))) == (
        b"Server busy: too many connections, try again later\r\n"
    )
    assert len(made) == 2
    assert factory.metrics.accepted == 2
    assert told(factory.buildProtocol(UNIXAddress(None))).startswith(b"Server busy")
    assert "Refused a client without an address: max-connections (Server busy" in log.text
    assert factory.metrics.refused == {"max-connections": 2, "max-connections-per-address": 1}
    assert "Refused 127.0.0.3:50000: max-connections (Server busy: too many" in log.text
    assert (log.events[-1]["limit"], log.events[-1]["listener"]) == ("max-connections", "unix:/x")
    lose(first)
    factory.buildProtocol(address(1)).makeConnection(Transport())
    for connection in list(factory.connections):
        lose(connection)
    assert factory.admission.open == 0
    assert not factory.admission.by_address


def test_over_tls_a_client_that_is_refused_is_only_disconnected() -> None:
    factory = EchoFactory(Clock(), limits=Limits(max_connections=1))
    connect(factory)

    @implementer(ISSLTransport)
    class Secure(Transport):
        pass

    transport = Secure()
    factory.buildProtocol(address(1)).makeConnection(transport)
    assert transport.aborting
    assert transport.value() == b""
    for connection in list(factory.connections):
        lose(connection)


class Unmade(Handler):
    """Has a constructor that fails."""

    error: BaseException = RuntimeError("no good")

    def __init__(self) -> None:
        raise self.error

    def received(self, message: bytes) -> bytes:
        return message


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no good"), SystemExit("no more"), ConnectionResetError("the database is down")],
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("framing", [Chunk(), Line()])
@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_a_handler_that_cannot_be_made_is_counted_as_one_that_fails(
    model: ConcurrencyModel,
    framing: Framing,
    way: str,
    error: BaseException,
    certificate: Path,
    log: Log,
) -> None:
    """Fault 89: The client sees an orderly end; the daemon counts it, logs one traceback, and
    loses no place.
    """
    handler = type("Unmade", (Unmade,), {"error": error})
    factory = EchoFactory(reactor, handler=handler, framing=framing, model=make_model(model))
    server = server_by(way, factory, certificate)
    try:
        for number in range(1, 4):
            client = await server.connect()
            client.send(b"happy\nbirthday\n")
            assert await client.receive_all() == b""
            assert client.clean
            await eventually(lambda: not factory.connections)
            assert factory.metrics.accepted == number
            assert factory.metrics.ended == {"handler error": number}
            assert factory.metrics.handler_errors == number
            assert factory.metrics.messages == 0
            (shown,) = log.take_errors()
            assert shown.count("Traceback") == 1
            assert f"{type(error).__name__}: {error}" in shown
            assert "raise self.error" in shown
        assert factory.admission.open == 0
        assert not factory.admission.by_address
        assert factory.model.enter(object(), lambda: None) is None  # there is a place
    finally:
        await server.stop()
    assert log.text.count("Connected with") == log.text.count("handler error") == 3


def test_factories_may_share_their_limits() -> None:
    clock = Clock()
    admission = Admission(Limits(max_connections=1), clock.seconds)
    one = EchoFactory(clock, admission=admission)
    other = EchoFactory(clock, admission=admission)
    protocol, _ = connect(one)
    assert b"too many connections" in told(other.buildProtocol(None))
    lose(protocol)
    lose(connect(other)[0])


def test_new_limits_hold_for_open_connections_too() -> None:
    clock = Clock()
    factory = EchoFactory(clock)
    protocol, transport = connect(factory)
    clock.advance(1)
    factory.limits = Limits(idle_timeout=5)
    clock.pump([URGENT_INTERVAL] * 40)
    assert transport.half_closed
    lose(protocol)


class Overworked(InReactor):
    """Has no thread for the handler methods of these names; acts as model `name`."""

    def __init__(self, *busy: str, name: ConcurrencyModel = ConcurrencyModel.REACTOR) -> None:
        super().__init__()
        self.busy = busy
        self.name = name

    def call(self, done: Any, function: Any, *arguments: Any) -> Any:
        if function.__name__ in self.busy:
            raise Busy("no thread", Refusal.MAX_QUEUE)
        return super().call(done, function, *arguments)

    def submit(self, done: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Submit to the pool: `function` runs the second of `arguments` in a context."""
        if arguments[1].__name__ in self.busy:
            raise Busy("no thread", Refusal.MAX_QUEUE)
        return super().call(done, function, *arguments)


class Witness(Handler):
    """Records its calls."""

    calls: ClassVar[list[str]] = []

    def opened(self, client: Client) -> bytes:
        self.calls.append("opened")
        return b"hello\n"

    def received(self, message: bytes) -> bytes:
        self.calls.append("received")
        return message

    def closed(self, reason: str) -> None:
        self.calls.append(reason)


def test_a_connection_whose_transport_fails_at_once_is_counted_in_and_out(log: Log) -> None:
    class Failing(Transport):
        def getPeer(self) -> Any:
            raise OSError("gone")

    factory = EchoFactory(Clock())
    protocol = factory.buildProtocol(None)
    assert protocol is not None
    transport = Failing()
    protocol.makeConnection(transport)
    assert transport.aborting
    assert log.take_errors()
    protocol.connectionLost(Failure(ConnectionLost()))
    assert factory.metrics.open == factory.admission.open == 0
    assert not factory.connections


def test_a_client_that_reads_is_given_time_for_ever_once_a_reload_says_so() -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=Limits(write_timeout=30))
    protocol, transport = connect(factory)
    protocol.pauseProducing()
    factory.limits = Limits(write_timeout=0)
    protocol._taken = Taken(held=1)  # as if the client had read since
    clock.pump([1] * 60)
    assert not transport.aborting
    lose(protocol)


@pytest.mark.parametrize("framing", [Chunk(), Line()])
def test_a_drain_does_not_wait_for_what_is_no_message(framing: Framing) -> None:
    """Like half a TLS record: it is read from the kernel, but gives no message."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        clock = Clock()
        factory = EchoFactory(clock, banner=b"", framing=framing)
        transport = Transport()
        transport.getHandle = lambda: ours  # type: ignore[method-assign]
        protocol, _ = connect(factory, transport)
        clock.pump([URGENT_INTERVAL] * 20)  # it is calm
        theirs.sendall(b"half a record")
        drained = factory.drain()
        clock.advance(URGENT_INTERVAL)
        assert not transport.half_closed
        ours.recv(100)
        clock.advance(URGENT_INTERVAL)
        assert transport.half_closed
        lose(protocol)
        assert drained.called
        assert factory.metrics.ended == {"drained": 1}


@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_a_drain_does_not_wait_for_the_other_half_of_a_tls_record(
    model: ConcurrencyModel, certificate: Path
) -> None:
    over = server_context(certificate)
    async with serving(model, over=over, limits=Limits(linger=0.1)) as server:
        peer = Peer(server.number)
        try:
            await in_thread(peer.shake_hands)
            await eventually(lambda: any(one.client.tls for one in server.factory.connections))
            record = peer.encrypted(b"happy\n")
            # Without a turn of the loop in between: it is in the kernel when the drain begins.
            peer.socket.sendall(record[: len(record) // 2])
            drained = server.factory.drain()
            await drained.addTimeout(10, reactor)
            assert server.factory.metrics.ended == {"drained": 1}
        finally:
            peer.socket.close()


def test_a_drain_leaves_alone_what_is_lost() -> None:
    factory = EchoFactory(Clock())
    protocol, _ = connect(factory)
    lose(protocol)
    protocol.drain()
    assert not factory.urgent


@pytest_twisted.ensureDeferred
async def test_a_subclass_may_look_at_what_comes() -> None:
    seen: list[bytes] = []

    class Looking(DirectProtocol):
        def dataReceived(self, data: bytes) -> None:
            seen.append(data)
            super().dataReceived(data)

    async with serving(banner=b"") as server:
        server.factory.protocol = Looking
        client = await server.connect()
        client.send(b"happy")
        await client.receive(b"OK...happy")
    assert seen == [b"happy"]


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_connection_keeps_no_message_that_is_answered(way: str, certificate: Path) -> None:
    kept: list[bytes] = []

    def keep(message: bytes) -> bytes:
        kept.extend((message, reply := b"OK..." + message))
        return reply

    factory = EchoFactory(reactor, handler=keep, banner=b"")
    async with server_by(way, factory, certificate) as server:
        client = await server.connect()
        for _ in range(3):
            client.send(b"happy")
            await client.receive(b"OK...happy")
        assert len(kept) == 6
        only_here = [bytes(bytearray(b"happy"))]
        expected = {sys.getrefcount(each) for each in only_here}
        await eventually(lambda: {sys.getrefcount(each) for each in kept} == expected)


@pytest_twisted.ensureDeferred
async def test_without_a_thread_in_the_pool_a_client_is_told_so(log: Log) -> None:
    async with serving("defer-to-thread", banner=b"") as server:
        with no_more_threads():
            client = await server.connect()
            client.send(b"happy\n")
            told = b"Server busy: no thread can be started, try again later\n"
            assert await client.receive_all() == told
        assert server.factory.metrics.refused == {"threads": 1}
        await eventually(lambda: bool(server.factory.metrics.ended))
        assert server.factory.metrics.messages == 0  # the handler was not called
        assert "Traceback" not in log.text


class Blocking(Handler):
    """Records calls, and blocks the threads until the test releases them."""

    calls: ClassVar[list[str]] = []
    released = threading.Event()

    def __init__(self) -> None:
        self.name = ""

    def received(self, message: bytes) -> bytes:
        self.name = message.decode().strip()
        assert self.released.wait(10)
        self.calls.append(f"received {self.name}")
        return message

    def closed(self, reason: str) -> None:
        self.calls.append(f"closed {self.name}")


class Slow(Blocking):
    """Blocks in `opened`."""

    def opened(self, client: Client) -> None:
        assert self.released.wait(10)
        self.calls.append("opened")


@pytest.fixture
def blocking() -> Iterator[type[Blocking]]:
    Blocking.calls.clear()
    Blocking.released.clear()
    yield Blocking
    Blocking.released.set()


def pool_of(server: Server) -> WorkerPool:
    model = server.factory.model
    assert isinstance(model, InPool)
    return model.pool


@pytest.mark.parametrize("framing", [Chunk(), Line()])
@pytest_twisted.ensureDeferred
async def test_messages_of_lost_connections_are_handled_behind_those_of_others(
    framing: Framing, blocking: type[Blocking]
) -> None:
    options = {"threads": 1, "handler": blocking, "framing": framing, "banner": b""}
    async with serving("defer-to-thread", **options) as server:
        metrics, pool = server.factory.metrics, pool_of(server)
        clients = [await server.connect() for _ in range(4)]
        for number, client in enumerate(clients):
            client.send(b"%d\n" % number)
            await eventually(lambda n=number: pool.waiting == n)
        clients[1].reset()
        clients[2].reset()
        await eventually(lambda: len(metrics.ended) == 1 and metrics.ended.total() == 2)
        assert (pool.waiting, pool.lost_waiting) == (1, 2)
        blocking.released.set()
        await clients[3].receive(b"3\n")
        await eventually(lambda: len(blocking.calls) == 6)
        assert [call.split()[1] for call in blocking.calls if "received" in call] == list("0312")
        assert sorted(call.split()[1] for call in blocking.calls if "closed" in call) == ["1", "2"]
        assert metrics.messages == 2
        assert pool.dropped == 0


@pytest.mark.parametrize("framing", [Chunk(), Line()])
@pytest_twisted.ensureDeferred
async def test_a_message_that_is_dropped_is_counted_and_its_handler_closed(
    framing: Framing, blocking: type[Blocking], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MOST_LOST", 1)
    options = {"threads": 1, "handler": blocking, "framing": framing, "banner": b""}
    async with serving("defer-to-thread", **options) as server:
        metrics, pool = server.factory.metrics, pool_of(server)
        clients = [await server.connect() for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(b"%d\n" % number)
            await eventually(lambda n=number: pool.waiting == n)
        clients[1].reset()
        await eventually(lambda: metrics.ended.total() == 1)
        clients[2].reset()
        await eventually(lambda: metrics.ended.total() == 2)
        assert pool.dropped == 1
        assert metrics.messages == 1  # the other has not reached the handler, and never will
        assert "Dropped a message of 127.0.0.1" in log.text
        blocking.released.set()
        await clients[0].receive(b"0\n")
        await eventually(lambda: len(blocking.calls) == 4)
        assert blocking.calls[:1] == ["received 0"]
        assert sorted(blocking.calls[1:]) == ["closed ", "closed 1", "received 1"]
        assert "Traceback" not in log.text


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("model", ["defer-to-thread", "reactor", "serial"])
@pytest.mark.parametrize("state", ["paused", "half-closed"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_resets_is_lost_although_it_is_not_read_from(
    state: str, model: str, secure: bool, certificate: Path
) -> None:
    called: list[bytes] = []
    released: Deferred[None] = Deferred()
    blocked = threading.Event()

    def answer(message: bytes) -> Any:
        called.append(message)
        return released if model != "defer-to-thread" else blocked.wait(10) and None

    limits = Limits(max_pending=1000)
    over = server_context(certificate) if secure else None
    options = {"handler": answer, "framing": Line(), "limits": limits, "banner": b""}
    async with serving(model, threads=1, over=over, **options) as server:
        metrics = server.factory.metrics
        client = await server.connect()
        client.send(b"happy\n" * (5000 if state == "paused" else 1))
        if state == "half-closed":
            client.finish()
        await eventually(lambda: bool(called))
        (served,) = server.factory.connections
        assert isinstance(served, EchoProtocol)
        await eventually(lambda: served._input_ended or not served._reading)
        client.reset()
        await eventually(lambda: bool(metrics.ended))
        assert metrics.ended == {"connection lost": 1}
        blocked.set()
    assert called == [b"happy"]


@pytest_twisted.ensureDeferred
async def test_whoever_resets_in_the_queue_of_serial_gives_up_its_place() -> None:
    async with serving("serial", framing=Line()) as server:
        holder, gone, sent, waiting = [await server.connect() for _ in range(4)]
        await eventually(lambda: len(server.factory.connections) == 4)
        refused = await server.connect()
        assert b"3 clients are waiting already" in await refused.receive_all()
        sent.send(b"happy\n")
        await eventually(lambda: any(unread(c.transport) for c in server.factory.connections))
        for client in (sent, gone):
            client.reset()
        await eventually(lambda: server.factory.metrics.ended["connection lost"] == 1)
        late = await server.connect()
        for client in (holder, waiting, late):
            client.send(b"happy\n")
            assert await client.receive_all() == b"OK...happy\n"
        await eventually(lambda: not server.factory.connections)
        # The sent message was handled, although its answer was dropped.
        assert server.factory.metrics.messages == 4


@pytest_twisted.ensureDeferred
async def test_a_handler_is_not_closed_whose_opening_is_dropped(
    blocking: type[Blocking], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MOST_LOST", 0)
    async with serving("defer-to-thread", threads=1, handler=Slow, banner=b"") as server:
        pool = pool_of(server)
        (await server.connect()).send(b"0\n")
        late = await server.connect()
        await eventually(lambda: pool.waiting == 1)
        late.reset()
        await eventually(lambda: pool.dropped == 1)
        Slow.released.set()
        await server.clients[0].receive(b"0\n")
        assert blocking.calls == ["opened", "received 0"]


@pytest.mark.parametrize(
    ("busy", "sent", "calls"),
    [
        ("opened", b"Server busy: no thread\n", []),
        ("received", b"hello\nServer busy: no thread\n", ["opened", "refused"]),
    ],
)
@pytest.mark.parametrize(
    ("framing", "name"),
    [
        (Line(), ConcurrencyModel.DEFER_TO_THREAD),
        (Chunk(), ConcurrencyModel.DEFER_TO_THREAD),
        (Chunk(max_message=6), ConcurrencyModel.DEFER_TO_THREAD),
    ],
)
def test_a_client_without_a_thread_is_told_so_and_counted(
    framing: Framing, name: ConcurrencyModel, busy: str, sent: bytes, calls: list[str], log: Log
) -> None:
    Witness.calls.clear()
    factory = EchoFactory(
        Clock(),
        handler=Witness,
        framing=framing,
        model=Overworked(busy, "closed", name=name),
        listener="tcp:8888",
    )
    protocol, transport = connect(factory)
    protocol.dataReceived(b"happy\nbirthday\n")
    assert transport.value() == sent
    assert transport.half_closed
    lose(protocol)
    assert factory.metrics.refused == {"max-queue": 1}
    assert factory.metrics.ended == {"refused": 1}
    assert factory.metrics.messages == 0
    assert factory.metrics.bytes_sent == len(sent)
    assert Witness.calls == calls
    assert "Refused 192.168.1.1:54321: max-queue (Server busy: no thread" in log.text
    (refused,) = (event for event in log.events if "limit" in event)
    assert (refused["limit"], refused["listener"]) == ("max-queue", "tcp:8888")


@pytest_twisted.ensureDeferred
async def test_a_read_that_comes_while_the_pool_has_the_one_before_waits_for_it() -> None:
    """Each is a message of its own in chunk framing, and the pool has threads for both."""
    began, go_on = threading.Event(), threading.Event()
    calls: list[bytes] = []

    def handler(message: bytes) -> bytes:
        calls.append(message)
        if message == b"slow":
            began.set()
            assert go_on.wait(20)
        return message.upper()

    async with serving("defer-to-thread", handler=handler, banner=b"") as server:
        client = await server.connect()
        try:
            client.send(b"slow")
            await eventually(began.is_set)
            (connection,) = server.factory.connections
            client.send(b"fast")
            await eventually(lambda: connection.figures[1] == 8)
            other = await server.connect()
            other.send(b"another's")
            await other.receive(b"ANOTHER'S")
            assert calls == [b"slow", b"another's"]
        finally:
            go_on.set()
        await client.receive(b"SLOWFAST")
        assert connection.figures == (2, 8, 8)
        client.send(b"more")
        await client.receive(b"MORE")
        assert connection.figures == (3, 12, 12)


def test_messages_wait_for_the_deferred_of_the_one_before() -> None:
    waiting: dict[bytes, Deferred[bytes]] = {}

    def handler(message: bytes) -> Any:
        waiting[message] = Deferred()
        return waiting[message]

    factory = EchoFactory(Clock(), handler=handler, framing=Line())
    protocol, transport = connect(factory)
    protocol.dataReceived(b"a\nb\n")
    assert list(waiting) == [b"a"]
    waiting[b"a"].callback(b"A")
    assert list(waiting) == [b"a", b"b"]
    protocol.readConnectionLost()
    assert not transport.half_closed
    waiting[b"b"].callback(b"B")
    assert transport.value() == b"A\nB\n"
    assert transport.half_closed
    protocol.writeConnectionLost()
    assert transport.disconnecting
    lose(protocol)


def test_many_deferreds_that_have_fired_need_no_deep_stack() -> None:
    async def handler(message: bytes) -> bytes:
        return message

    factory = EchoFactory(Clock(), handler=handler, framing=Line())
    protocol, transport = connect(factory)
    protocol.dataReceived(b"x\n" * 20_000)
    assert transport.value() == b"x\n" * 20_000
    lose(protocol)


def test_input_beyond_the_read_ahead_pauses_reading_while_a_handler_is_at_work() -> None:
    waiting: list[Deferred[bytes]] = []

    def handler(message: bytes) -> Any:
        waiting.append(Deferred())
        return waiting[-1]

    protocol, transport = connect(EchoFactory(Clock(), handler=handler, framing=Line()))
    protocol.dataReceived(b"x" * 100 + b"\n")
    protocol.dataReceived(b"y" * 10_000 + b"\n")
    assert transport.producerState == "producing"
    protocol.dataReceived((b"z" * 10_000 + b"\n") * 6)
    assert transport.producerState == "paused"
    for _ in range(8):
        waiting[-1].callback(b"")
    assert transport.producerState == "producing"
    lose(protocol)


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_the_rest_of_a_long_read_pauses_reading_while_a_handler_is_at_work(ahead: int) -> None:
    waiting: list[Deferred[bytes]] = []

    def handler(message: bytes) -> Any:
        if message.startswith(b"y"):
            return b"at once"
        waiting.append(Deferred())
        return waiting[-1]

    protocol, transport = connect(EchoFactory(Clock(), handler=handler, banner=b""))
    protocol.dataReceived(b"y" * 1024 * ahead + b"x" * 1024 * 70)
    assert transport.producerState == "paused"
    assert transport.value() == b"at once" * ahead
    for number in range(70):
        waiting[number].callback(b"")
    assert transport.producerState == "producing"
    lose(protocol)


@pytest.mark.parametrize("result", [RuntimeError("no good"), "text"])
def test_a_deferred_that_brings_no_reply_ends_the_connection(result: Any, log: Log) -> None:
    waiting: Deferred[Any] = Deferred()
    protocol, transport = connect(EchoFactory(Clock(), handler=lambda message: waiting))
    protocol.dataReceived(b"x")
    (waiting.errback if isinstance(result, Exception) else waiting.callback)(result)
    assert transport.half_closed
    assert len(log.take_errors()) == 1
    lose(protocol)


def test_a_deferred_is_cancelled_when_the_client_is_gone() -> None:
    cancelled: list[Deferred[bytes]] = []
    calls: list[str] = []

    class Waiting(Handler):
        def received(self, message: bytes) -> Any:
            return Deferred(cancelled.append)

        def closed(self, reason: str) -> None:
            calls.append(reason)

    factory = EchoFactory(Clock(), handler=Waiting)
    protocol, _ = connect(factory)
    protocol.dataReceived(b"x")
    lose(protocol)
    assert len(cancelled) == 1
    assert calls == ["connection lost"]


def asyncios() -> Any:
    """Return an awaitable of asyncio's that waits for ever, made as documented."""
    return Deferred.fromFuture(asyncio.get_running_loop().create_future())


def connects() -> Any:
    """Return a Deferred that ends like an endpoint that is cancelled while it connects."""
    address = IPv4Address("TCP", "192.0.2.1", 80)
    return Deferred(lambda deferred: deferred.errback(ConnectingCancelledError(address)))


def requests() -> Any:
    """Return a Deferred that ends like a cancelled request of `Agent`."""
    error = ResponseNeverReceived([Failure(CancelledError())])
    return Deferred(lambda deferred: deferred.errback(error))


@pytest.mark.parametrize("ends", ["reset", "aborted"])
@pytest.mark.parametrize("where", ["opened", "received"])
@pytest.mark.parametrize("framing", [Chunk(), Line()])
@pytest.mark.parametrize("made", ["coroutine", "Deferred"])
@pytest.mark.parametrize("wait", [Deferred, asyncios, connects, requests])
@pytest_twisted.ensureDeferred
async def test_what_is_cancelled_as_its_client_goes_away_is_no_error(
    wait: Any, made: str, framing: Framing, where: str, ends: str
) -> None:
    """Fault 90: The log says nothing, whether the handler awaits Twisted's or asyncio's
    awaitables.
    """
    if wait is asyncios and not isinstance(reactor, UvloopReactor):
        not_here("asyncio's loop is not running")
    begun: list[object] = []
    closed: list[str] = []

    async def awaiting() -> Any:
        begun.append(None)
        return await wait()

    def waiting() -> Any:
        begun.append(None)
        return wait()

    class Waiting(Handler):
        def opened(self, client: Client) -> Any:
            return self.wait() if where == "opened" else None

        def received(self, message: bytes) -> Any:
            return self.wait()

        def wait(self) -> Any:
            return awaiting() if made == "coroutine" else waiting()

        def closed(self, reason: str) -> None:
            closed.append(reason)

    async with serving(handler=Waiting, framing=framing, banner=b"") as server:
        client = await server.connect()
        client.send(b"happy\n")
        await eventually(lambda: bool(begun))
        client.reset() if ends == "reset" else server.factory.abort()
        await eventually(lambda: bool(server.factory.metrics.ended))
        await server.factory.drain()
        assert not server.factory.metrics.handler_errors
        assert len(begun) == 1
        assert closed == ([*server.factory.metrics.ended] if where == "received" else [])


@pytest.mark.parametrize("error", [CancelledError, asyncio.CancelledError])
@pytest.mark.parametrize("framing", [Chunk(), Line()])
@pytest.mark.parametrize("later", [False, True])
@pytest_twisted.ensureDeferred
async def test_what_a_handler_has_cancelled_itself_is_its_error(
    error: type[BaseException], framing: Framing, later: bool, log: Log
) -> None:
    async def cancels(message: bytes) -> bytes:
        if later:
            await deferLater(reactor, 0)
        raise error

    async with serving(handler=cancels, framing=framing, banner=b"") as server:
        client = await server.connect()
        client.send(b"happy\n")
        assert await client.receive_all() == b""
        await eventually(lambda: server.factory.metrics.ended == {"handler error": 1})
        (shown,) = log.take_errors()
        assert "CancelledError" in shown


class Leaving(Handler):
    """Has slow work to do after its client has gone."""

    left: ClassVar[list[Deferred[None]]] = []
    ended: ClassVar[list[str]] = []

    def received(self, message: bytes) -> bytes:
        return message

    async def closed(self, reason: str) -> None:
        self.left.append(Deferred())
        try:
            await self.left[-1]
            self.ended.append(reason)
        except (CancelledError, asyncio.CancelledError):
            self.ended.append("cancelled")
            raise


class LeavingByDeferred(Leaving):
    """The same without a coroutine."""

    def closed(self, reason: str) -> Any:
        return Deferred.fromCoroutine(super().closed(reason))


@pytest.mark.parametrize("handler", [Leaving, LeavingByDeferred])
@pytest.mark.parametrize("model", [ConcurrencyModel.REACTOR, ConcurrencyModel.SERIAL])
@pytest.mark.parametrize("framing", [Chunk(), Line()])
@pytest_twisted.ensureDeferred
async def test_a_drain_waits_for_each_closed_that_waits(
    handler: type[Leaving], model: ConcurrencyModel, framing: Framing
) -> None:
    """Fault 90: The drain waits for each `async def closed`, also of connections that ended
    before.
    """
    Leaving.left.clear()
    Leaving.ended.clear()
    async with serving(model, handler=handler, framing=framing, banner=b"") as server:
        first = await server.connect()
        first.finish()
        await first.receive_all()
        await server.connect()
        await eventually(lambda: len(server.factory.connections) == 1)
        drained = server.factory.drain()
        await eventually(lambda: len(Leaving.left) == 2)
        assert not server.factory.connections
        Leaving.left[1].callback(None)
        await turns(2)
        assert not drained.called
        Leaving.left[0].callback(None)
        await drained
        assert Leaving.ended == ["drained", "client closed"]


@pytest.mark.parametrize("handler", [Leaving, LeavingByDeferred])
@pytest_twisted.ensureDeferred
async def test_a_closed_that_waits_too_long_is_cancelled_when_its_model_stops(
    handler: type[Leaving],
) -> None:
    Leaving.left.clear()
    Leaving.ended.clear()
    async with serving(handler=handler) as server:
        for _ in range(2):
            client = await server.connect()
            client.finish()
            await client.receive_all()
        await eventually(lambda: len(Leaving.left) == 2)
        drained = server.factory.drain()
        assert not drained.called
        server.factory.model.stop()
        await drained
        assert Leaving.ended == ["cancelled"] * 2
        late = await server.connect()
        late.finish()
        await late.receive_all()
        await eventually(lambda: Leaving.ended == ["cancelled"] * 3)
        assert server.factory.drain().called


@pytest.mark.parametrize("handler", [Leaving, LeavingByDeferred])
@pytest_twisted.ensureDeferred
async def test_a_closed_that_fails_later_is_logged(handler: type[Leaving], log: Log) -> None:
    Leaving.left.clear()
    async with serving(handler=handler) as server:
        client = await server.connect()
        client.finish()
        await client.receive_all()
        await eventually(lambda: bool(Leaving.left))
        Leaving.left[0].errback(RuntimeError("no good"))
        await eventually(lambda: server.factory.metrics.handler_errors == 1)
        (shown,) = log.take_errors()
        assert "no good" in shown
        assert server.factory.metrics.handler_errors == 1


@pytest_twisted.ensureDeferred
async def test_while_too_many_wait_in_closed_no_other_client_is_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "MOST_CLOSING", 2)
    Leaving.left.clear()
    models = [InReactor(), Serial(lambda: 0.0, patience=0, queue_size=9)]
    for model in models:
        Leaving.left.clear()
        Leaving.ended.clear()
        factory = EchoFactory(Clock(), handler=Leaving, model=model, banner=b"")
        for _ in range(2):
            lose(connect(factory)[0])
        protocol, transport = connect(factory)
        assert b"Server busy" in transport.value()
        assert factory.metrics.refused == {"max-queue": 1}
        lose(protocol)
        Leaving.left[0].callback(None)
        await eventually(lambda: bool(Leaving.ended))
        protocol, transport = connect(factory)
        assert transport.value() == b""
        lose(protocol)
        factory.model.stop()
        await eventually(lambda: Leaving.ended == ["connection lost", "cancelled", "cancelled"])


def test_a_canceller_that_fails_keeps_no_connection_from_its_end(log: Log) -> None:
    def fail(deferred: object) -> None:
        raise RuntimeError("no good")

    class Waiting(Handler):
        def received(self, message: bytes) -> Any:
            return Deferred(fail)

    factory = EchoFactory(Clock(), handler=Waiting)
    protocol, _ = connect(factory)
    protocol.dataReceived(b"x")
    lose(protocol)
    assert not factory.connections
    (error,) = log.take_errors()
    assert "no good" in error


@pytest.mark.parametrize("model", ["defer-to-thread", "thread-per-connection"])
@pytest.mark.parametrize("made", ["coroutine", "Deferred"])
@pytest_twisted.ensureDeferred
async def test_in_a_thread_a_closed_that_wants_to_wait_is_an_error(
    model: str, made: str, log: Log
) -> None:
    async def wait() -> None: ...

    class Waiting(Handler):
        def received(self, message: bytes) -> bytes:
            return message

        def closed(self, reason: str) -> Any:
            return wait() if made == "coroutine" else Deferred()

    async with serving(model, handler=Waiting) as server:
        client = await server.connect()
        client.finish()
        await client.receive_all()
        await eventually(lambda: bool(log.errors))
        (shown,) = log.take_errors()
        assert f"in a thread, `closed` cannot wait: it has returned a {made}" in shown


@pytest_twisted.ensureDeferred
async def test_a_handler_that_fails_after_the_client_is_gone_is_logged(log: Log) -> None:
    class Waiting(Handler):
        async def received(self, message: bytes) -> bytes:
            try:
                await Deferred()
            finally:
                raise RuntimeError("while cleaning up")

    protocol, _ = connect(EchoFactory(Clock(), handler=Waiting))
    protocol.dataReceived(b"x")
    lose(protocol)
    await eventually(lambda: bool(log.errors))
    (error,) = log.take_errors()
    assert "while cleaning up" in error


def test_opened_may_return_a_deferred_and_messages_wait_for_it() -> None:
    greeting: Deferred[bytes] = Deferred()

    class Greeter(Handler):
        def opened(self, client: Any) -> Any:
            return greeting

        def received(self, message: bytes) -> bytes:
            return message

    protocol, transport = connect(EchoFactory(Clock(), handler=Greeter))
    protocol.dataReceived(b"x")
    assert transport.value() == b""
    greeting.callback(b"Hello ")
    assert transport.value() == b"Hello x"
    lose(protocol)


def test_a_buffer_that_a_thread_returns_may_be_used_again_at_once() -> None:
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pool = WorkerPool(1, asked.put)
    buffer = bytearray()

    @message_handler
    def reuses(message: bytes) -> bytearray:
        buffer[:] = message
        return buffer

    for framing in (Chunk(), Line()):
        protocol, transport = connect(
            EchoFactory(Clock(), handler=reuses, framing=framing, model=InPool(pool))
        )
        protocol.dataReceived(b"one\n")
        while not transport.value():
            turn = asked.get(timeout=PATIENCE)
            buffer[:] = b"two\n"  # the last time, the thread has been there before
            turn()
        assert transport.value() == b"one\n"
        lose(protocol)
    pool.stop()


def test_closed_is_not_called_where_opened_failed(log: Log) -> None:
    class Failing(Handler):
        def opened(self, client: Any) -> bytes:
            raise RuntimeError("no good")

        def closed(self, reason: str) -> None:
            pytest.fail("it was never open")

    protocol, _ = connect(EchoFactory(Clock(), handler=Failing))
    lose(protocol)
    assert len(log.take_errors()) == 1


@pytest.mark.parametrize("framing", [Chunk(), Line()])
@pytest.mark.parametrize("hook", ["opened", "received", "closed"])
def test_a_handler_that_calls_exit_ends_its_own_connection(
    framing: Framing, hook: str, log: Log
) -> None:
    def leave(*_: object) -> None:
        sys.exit("no more")

    quitter = type("Quitter", (Handler,), {"received": lambda _, message: message, hook: leave})
    factory = EchoFactory(Clock(), handler=quitter, framing=framing)
    protocol, transport = connect(factory)
    protocol.dataReceived(b"happy\n" + b"x" * 2000 + b"\n")
    assert transport.half_closed is (hook != "closed")
    lose(protocol)
    (error,) = log.take_errors()
    assert "SystemExit: no more" in error
    assert factory.metrics.ended.total() == 1
    assert factory.metrics.ended["handler error"] == (hook != "closed")


def test_an_exception_in_connection_made_closes_the_connection(log: Log) -> None:
    class Broken(EchoProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            raise RuntimeError("no good")

    factory = EchoFactory(Clock())
    factory.protocol = Broken
    protocol, transport = connect(factory)
    assert transport.aborting
    assert len(log.take_errors()) == 1
    lose(protocol)
    assert not factory.connections


def test_the_first_reason_to_close_is_the_one_that_counts() -> None:
    factory = EchoFactory(Clock())
    protocol, transport = connect(factory)
    protocol.close(EndReason.IDLE_TIMEOUT)
    protocol.close(EndReason.HANDLER)
    protocol.refuse(EndReason.REFUSED, "too late")
    protocol.abort(EndReason.ABORTED)
    assert b"too late" not in transport.value()
    lose(protocol)
    protocol.abort(EndReason.ABORTED)
    assert factory.metrics.ended == {"idle-timeout": 1}


@pytest_twisted.ensureDeferred
async def test_a_handler_whose_closed_fails_later_is_logged(log: Log) -> None:
    class Failing(Handler):
        async def closed(self, reason: str) -> None:
            await deferLater(clock, 1)
            raise RuntimeError("no good")

        def received(self, message: bytes) -> bytes:
            return message

    clock = Clock()
    protocol, _ = connect(EchoFactory(clock, handler=Failing))
    lose(protocol)
    clock.advance(1)
    await eventually(lambda: bool(log.errors))
    assert len(log.take_errors()) == 1


def serial(clock: Clock, **limits: float) -> EchoFactory:
    model = Serial(clock.seconds, patience=5, queue_size=2)
    return EchoFactory(clock, model=model, limits=Limits(**limits))


def test_serial_greets_nobody_and_answers_one_message_each_in_turn() -> None:
    factory = serial(Clock())
    (first, one), (second, other) = connect(factory), connect(factory)
    assert other.producerState == "paused"
    first.dataReceived(b"a\n")
    assert one.value() == b"OK...a\n"
    assert one.half_closed
    assert other.producerState == "producing"
    second.dataReceived(b"x" * 2000)
    assert other.value() == b"OK..." + b"x" * 1024
    lose(first)
    lose(second)
    assert factory.metrics.ended == {"served": 2}


def test_serial_refuses_beyond_its_queue() -> None:
    factory = serial(Clock())
    connections = [connect(factory) for _ in range(4)]
    assert connections[-1][1].value() == b"Server busy: 2 clients are waiting already\n"
    assert connections[-1][1].half_closed
    for protocol, _ in reversed(connections):
        lose(protocol)
    assert factory.metrics.refused == {"serial-queue": 1}


def test_serial_is_not_held_by_a_silent_client_nor_by_one_that_trickles() -> None:
    clock = Clock()
    factory = EchoFactory(
        clock, model=Serial(clock.seconds, patience=5, queue_size=2), framing=Line()
    )
    (silent, one), (trickling, two), (last, three) = (connect(factory) for _ in range(3))
    clock.pump([URGENT_INTERVAL] * 11)
    assert one.half_closed
    for _ in range(11):
        trickling.dataReceived(b"x")
        clock.advance(URGENT_INTERVAL)
    assert two.half_closed
    last.dataReceived(b"hello\n")
    assert three.value() == b"OK...hello\n"
    for protocol in (silent, trickling, last):
        lose(protocol)
    assert factory.metrics.ended == {"serial-timeout": 2, "served": 1}


def test_serial_at_drain_closes_those_who_have_sent_nothing() -> None:
    factory = serial(Clock())
    connections = [connect(factory) for _ in range(3)]
    drained = factory.drain()
    assert all(transport.half_closed for _, transport in connections)
    for protocol, _ in connections:
        lose(protocol)
    assert drained.called
    assert factory.metrics.ended == {"drained": 3}


@pytest_twisted.ensureDeferred
async def test_serial_at_drain_answers_those_who_have_sent_something() -> None:
    async with serving("serial") as server:
        clients = [await server.connect() for _ in range(3)]
        clients[1].send(b"first\n")
        clients[2].send(b"second\n")
        await eventually(lambda: len(server.factory.connections) == 3)
        for client in clients:
            await client.arrive()
        drained = server.factory.drain()
        assert [await client.receive_all() for client in clients] == [
            b"",
            b"OK...first\n",
            b"OK...second\n",
        ]
        await drained


def test_a_second_drain_waits_for_the_same_end() -> None:
    factory = EchoFactory(Clock())
    assert factory.drain().called
    protocol, _ = connect(factory)
    drained = factory.drain()
    assert factory.drain() is drained
    lose(protocol)
    assert drained.called


@pytest_twisted.ensureDeferred
async def test_build_protocol_that_raises_closes_the_socket(log: Log) -> None:
    class Broken(EchoProtocol):
        def __init__(self, owner: EchoFactory) -> None:
            raise RuntimeError("no good")

    async with serving() as server:
        server.factory.protocol = Broken
        client = await server.connect()
        assert await client.receive_all() == b""
        assert not server.factory.connections
        assert server.factory.admission.open == 0
        assert server.factory.metrics.accepted == 1
        assert server.factory.metrics.ended == {"handler error": 1}
        assert server.factory.metrics.handler_errors == 1
        assert len(log.take_errors()) == 1


@pytest_twisted.ensureDeferred
async def test_ipv6_and_hostile_addresses_are_shown_escaped(log: Log) -> None:
    from twisted.internet.address import IPv6Address

    from echod.addresses import shown_address

    assert shown_address(IPv6Address("TCP", "::1", 60225)) == "[::1]:60225"
    assert shown_address(UNIXAddress(b"/tmp/a\x1bb")) == r"/tmp/a\x1bb"
    assert shown_address(UNIXAddress(None)) == ""
    assert shown_address("x\r") == r"x\r"


def test_connections_are_logged_in_these_words(log: Log) -> None:
    clock = Clock()
    protocol, _ = connect(EchoFactory(clock, listener="tcp:8888"))
    protocol.dataReceived(b"happy\n")
    clock.pump([0.1] * 15)
    lose(protocol)
    connected, disconnected = log.events
    figures = "(1.500 s, messages: 1, bytes in: 6, out: 63)"
    assert log.text.splitlines() == [
        "Connected with 192.168.1.1:54321",
        f"Disconnected from 192.168.1.1:54321: connection lost {figures}",
    ]
    assert connected["listener"] == disconnected["listener"] == "tcp:8888"


def test_the_end_of_a_connection_tells_how_it_came(log: Log) -> None:
    protocol, _ = connect(EchoFactory(Clock()))
    facts = TLSFacts("TLSv1.3", "odd")
    protocol.client = Client(protocol.client.peer, tls=facts, proxy=ProxyHeader(2))
    lose(protocol)
    assert log.text.endswith(", out: 52, TLSv1.3, through 192.168.1.1:54321)")
    assert log.events[-1]["tls"] == "TLSv1.3"
    assert log.events[-1]["proxy"] == "192.168.1.1:54321"
    assert log.events[-1]["error"] is None


def test_the_end_of_a_connection_tells_what_is_wrong_with_its_tls(log: Log) -> None:
    protocol, _ = connect(EchoFactory(Clock()))
    protocol.connectionLost(Failure(TLSError("wrong\nversion")))
    assert r": connection lost: wrong\nversion (" in log.text
    assert log.events[-1]["error"] == r"wrong\nversion"


@pytest.mark.parametrize("size", [1, 1024, 70_000])
@pytest_twisted.ensureDeferred
async def test_the_bytes_of_a_connection_are_counted_exactly(size: int) -> None:
    async with serving() as server:
        client = await server.connect()
        await client.receive(BANNER)
        client.send(b"x" * size)
        await client.until(lambda: bytes(client.data).count(b"x") == size)
        client.finish()
        answered = BANNER + await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        metrics = server.factory.metrics
        assert (metrics.bytes_received, metrics.bytes_sent) == (size, len(answered))
        assert metrics.messages >= -(-size // 1024)


@pytest_twisted.ensureDeferred
async def test_what_is_asyncios_can_be_awaited_as_a_deferred() -> None:
    if not isinstance(reactor, UvloopReactor):
        not_here("asyncio's loop is not running")

    async def wait(message: bytes) -> bytes:
        return await Deferred.fromFuture(asyncio.ensure_future(asyncio.sleep(0.01, message)))

    async with serving(handler=wait) as server:
        client = await server.connect()
        client.send(b"happy")
        await client.receive(b"happy")


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"--"])
def test_a_reply_is_framed_alike_whatever_it_contains_and_however_many_a_read_asks_for(
    delimiter: bytes,
) -> None:
    parts = [b"x", delimiter, delimiter[:1], delimiter[-1:], b"y" * 200]
    texts = st.lists(st.sampled_from(parts), max_size=4).map(b"".join)

    @given(replies=st.lists(st.none() | texts, min_size=1, max_size=20))
    def answer(replies: list[bytes | None]) -> None:
        left = iter(replies)
        factory = EchoFactory(
            Clock(), handler=lambda message: next(left), framing=framing, banner=b""
        )
        protocol, transport = connect(factory)
        protocol.dataReceived(delimiter * len(replies))
        expected = [framing.encode(reply) for reply in replies if reply is not None]
        assert transport.value() == b"".join(expected)
        lose(protocol)

    framing = Line(delimiter)
    answer()


@pytest.mark.parametrize("size", [0, 100, 1000, LONGEST_TOGETHER, LONGEST_TOGETHER + 1])
def test_the_replies_of_a_read_are_written_before_they_take_much_memory(size: int) -> None:
    class Counting(Transport):
        def write(self, data: bytes) -> None:
            written.append(data.count(b"\n"))

    written: list[int] = []
    turns = Turns(Clock())  # its time stands still
    factory = EchoFactory(
        Clock(), handler=lambda message: b"x" * size, framing=Line(), banner=b"", turns=turns
    )
    protocol, _ = connect(factory, Counting())
    protocol.dataReceived(b"\n" * 1000)
    assert sum(written) == 1000
    assert max(written) <= (MOST_TOGETHER + PACE if size <= LONGEST_TOGETHER else 1)
    lose(protocol)


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n"])
def test_replies_of_one_read_are_each_framed_once_whether_they_end_as_a_line_or_not(
    delimiter: bytes,
) -> None:
    def answer(message: bytes) -> bytes:
        return {b"whole": b"1" + delimiter, b"half": b"2\n", b"empty": b""}.get(message, message)

    framing = Line(delimiter)
    factory = EchoFactory(Clock(), handler=answer, framing=framing, banner=b"")
    protocol, transport = connect(factory)
    words = [b"other", b"whole", b"half", b"empty"] * 2
    protocol.dataReceived(b"".join(word + delimiter for word in words))
    assert transport.value() == b"".join(framing.encode(answer(word)) for word in words)
    assert protocol.figures[0] == len(words)
    lose(protocol)
