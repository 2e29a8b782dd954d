from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from ssl import DER_cert_to_PEM_cert
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import ssl, tcp
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from echod import Client, EchoFactory, EchoProtocol, EndReason, Handler, Limits, Line, Serial
from echod.concurrency.forking import forks
from echod.concurrency.model import Model
from echod.concurrency.models import InReactor
from echod.connections import lifecycle
from echod.connections.direct_protocol import DirectProtocol
from echod.connections.kernel import NOTHING_TAKEN, counted, taken, traffic, unsent
from echod.connections.sweeper import URGENT_INTERVAL
from echod.handlers.builtin import Echo
from echod.handlers.contract import ConcurrencyModel
from echod.messages.closing import TRANSITIONS, Event, State
from echod.reactor.reactor import UvloopReactor
from echod.tls.pem import certificates_in
from tests.support.certificates import Authority
from tests.support.clients import BANNER
from tests.support.log import Log
from tests.support.memory import Transport, connect, lose
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.serving import (
    ClientContext,
    ExhaustedContext,
    SecureServer,
    Server,
    Talker,
    TwistedSecureServer,
    eventually,
    make_model,
    server_context,
    serving,
)
from tests.support.tls_peer import hello_of
from tests.tls.test_connection import Wire


@asynccontextmanager
async def secure(
    certificate: Path, model: str = "reactor", **options: Any
) -> AsyncIterator[SecureServer]:
    factory = EchoFactory(reactor, model=make_model(model), **options)
    server = SecureServer(factory, server_context(certificate))
    try:
        yield server
    finally:
        await server.stop()


async def connect_in_clear(server: Server) -> Talker:
    """A client that does not speak TLS."""
    return await Server.connect(server)


class _Asyncio(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(BANNER)

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"OK..." + data)


class _Twisted(TwistedProtocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(BANNER)

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"OK..." + data)


async def _streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(BANNER)
    while line := await reader.readline():
        writer.write(b"OK..." + line)


@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize(
    ("handler", "model", "framing"),
    [
        (Echo, "reactor", None),
        (Echo, "reactor", Line()),
        (Echo, "defer-to-thread", None),
        (_Asyncio, "reactor", None),
        (_Twisted, "reactor", None),
        (_streams, "reactor", None),
    ],
    ids=["chunk", "line", "pool", "asyncio", "twisted", "streams"],
)
@pytest_twisted.ensureDeferred
async def test_a_client_that_has_ended_sees_the_end_though_a_forked_child_has_its_socket(
    handler: Any,
    model: str,
    framing: Line | None,
    forked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a child, one close(2) is all that it takes, and no FIN goes before."""
    if handler in (_Asyncio, _streams) and not isinstance(reactor, UvloopReactor):
        not_here("the reactor has no asyncio event loop")
    monkeypatch.setattr(forks, "seen", forked)
    async with serving(model, handler=handler, framing=framing) as server:
        half_closed = []
        kind = server.factory.protocol

        class Noting(kind):  # type: ignore[misc, valid-type]
            __slots__ = ()

            def _end_writing(self) -> None:
                half_closed.append(self)
                super()._end_writing()

        server.factory.protocol = Noting
        client = await server.connect()
        connection = await server.accepted()
        held = connection.transport.getHandle().dup() if forked else None  # as a child would
        try:
            await client.receive(BANNER)
            client.send(b"happy\n")
            client.finish()
            await client.until(lambda: client.ended)
            assert bytes(client.data) == b"OK...happy\n"
        finally:
            if held is not None:
                held.close()
        await eventually(lambda: not server.factory.connections)
    assert server.factory.metrics.ended == {EndReason.CLIENT.value: 1}
    if isinstance(reactor, UvloopReactor):
        assert bool(half_closed) is forked


@pytest.mark.parametrize("framing", [None, Line()], ids=["chunk", "line"])
@pytest.mark.parametrize("pushes", ["never", "as it opens", "later"])
@pytest_twisted.ensureDeferred
async def test_the_bytes_of_a_silent_client_are_counted_and_the_kernel_is_asked_after_pushes(
    pushes: str, framing: Line | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noting(*arguments: Any, **options: Any) -> tuple[int, int]:
        asked.append(arguments)
        return counted(*arguments, **options)

    monkeypatch.setattr(forks, "seen", False)  # another test may have forked
    monkeypatch.setattr("echod.connections.direct_protocol.counted", noting)
    monkeypatch.setattr(lifecycle.ConnectionProtocol, "sweep", lambda connection, now: None)

    class Greeting(Handler):
        def opened(self, client: Client) -> bytes:
            if pushes == "as it opens":
                client.send(b"news\n")
            return b"hello\n"

    async with serving(handler=Greeting, framing=framing) as server:
        client = await server.connect()
        connection = await server.accepted()
        await client.until(lambda: b"hello\n" in client.data)
        if pushes == "later":
            connection.client.send(b"news\n")
            await client.until(lambda: b"news\n" in client.data)
        client.finish()
        await client.until(lambda: client.ended)
        await eventually(lambda: not server.factory.connections)
    metrics = server.factory.metrics
    assert (metrics.messages, metrics.bytes_received) == (0, 0)
    assert metrics.bytes_sent == len(client.data) == (6 if pushes == "never" else 11)
    if isinstance(reactor, UvloopReactor):
        assert bool(asked) is (pushes != "never")


@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_over_tls_clients_are_greeted_and_answered(certificate: Path, model: str) -> None:
    async with secure(certificate, model) as server:
        client = await server.connect()
        if model != ConcurrencyModel.SERIAL:
            await client.receive(BANNER)
        client.send(b"happy\n")
        await client.receive(b"OK...happy\n")
        assert all(connection.client.tls for connection in server.factory.connections)


@pytest.mark.parametrize("forked", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_client_that_has_ended_tls_and_its_stream_is_answered_and_closed_in_that_turn(
    certificate: Path, forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(reactor, UvloopReactor):
        not_here("Twisted's own reactors close in two turns")
    monkeypatch.setattr(forks, "seen", forked)
    half_closed = []

    class Noting(DirectProtocol):
        __slots__ = ()

        def _end_writing(self) -> None:
            half_closed.append(self)
            super()._end_writing()

    async with secure(certificate) as server:
        server.factory.protocol = Noting
        client = await server.connect()
        await client.receive(BANNER)
        client.send(b"happy\n")
        client.finish()  # close_notify leaves now
        client.transport.getHandle().shutdown(socket.SHUT_WR)
        await client.until(lambda: client.ended)
        assert bytes(client.data) == b"OK...happy\n"
        await eventually(lambda: not server.factory.connections)
    assert bool(half_closed) is forked
    assert server.factory.metrics.ended == {EndReason.CLIENT.value: 1}


@pytest.mark.parametrize("model", [*ConcurrencyModel][:3])
@pytest_twisted.ensureDeferred
async def test_a_handler_knows_what_tls_knows_of_its_client(tmp_path: Path, model: str) -> None:
    seen: list[Client] = []

    class Asking(Handler):
        def opened(self, client: Client) -> bytes:
            seen.append(client)
            return b"hello\n"

        def received(self, message: bytes) -> None: ...

    authority = Authority("an authority")
    for name, content in {
        "ca.pem": authority.certificate,
        "server.pem": authority.issue("server"),
        "client.pem": authority.issue("somebody"),
    }.items():
        (tmp_path / name).write_bytes(content)
    asking = server_context(
        tmp_path / "server.pem", client_ca=str(tmp_path / "ca.pem"), alpn=("echo",)
    )
    client = ClientContext()
    client.context.load_cert_chain(tmp_path / "client.pem")
    client.context.set_alpn_protocols(["echo"])
    client.server_name = "example.com"
    async with serving(model, over=asking, handler=Asking) as server:
        assert isinstance(server, SecureServer)
        await (await server.connect(client)).receive(b"hello\n")
        stranger = await server.connect(ClientContext())
        assert await stranger.receive_all() == b""
        await eventually(lambda: server.factory.metrics.ended["handshake error"] == 1)
    (facts,) = (client.tls for client in seen)
    assert facts is not None
    assert (facts.version, facts.alpn, facts.server_name) == ("TLSv1.3", "echo", "example.com")
    assert facts.certificate is not None
    assert facts.certificate.common_name == "somebody"
    pem = (tmp_path / "client.pem").read_text()
    assert DER_cert_to_PEM_cert(facts.certificate.der).split() == certificates_in(pem)[0].split()


@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_over_twisteds_own_tls_clients_are_greeted_answered_and_drained(
    certificate: Path, model: str
) -> None:
    options = ssl.PrivateCertificate.loadPEM(certificate.read_bytes())
    server = TwistedSecureServer(EchoFactory(reactor, model=make_model(model)), options)
    client = await server.connect()
    if model != ConcurrencyModel.SERIAL:
        await client.receive(BANNER)
    client.send(b"happy\n")
    await client.receive(b"OK...happy\n")
    if model != ConcurrencyModel.SERIAL:
        (connection,) = server.factory.connections
        assert connection.client.tls
        assert connection.client.tls.version == "TLSv1.3"
    await server.factory.drain()
    assert await client.receive_all() == b""
    await server.stop()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("sent", [0, 50, 1000], ids=["silent", "hello begun", "half-way"])
async def test_a_client_that_does_not_shake_hands_sees_the_end_in_time(
    certificate: Path, sent: int
) -> None:
    """Fault 25: It sees the end of the stream, and no reset."""
    async with secure(certificate, limits=Limits(handshake_timeout=0.6)) as server:
        client = await connect_in_clear(server)
        client.send(hello_of(None)[:sent])
        await client.receive_all()
        assert client.clean
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"handshake-timeout": 1}


@pytest_twisted.ensureDeferred
async def test_a_client_for_whom_tls_has_no_memory_is_closed_logged_and_counted_out(
    log: Log,
) -> None:
    factory = EchoFactory(reactor)
    server = SecureServer(factory, ExhaustedContext())
    client = await connect_in_clear(server)
    client.send(hello_of(None))
    assert await client.receive_all() == b""
    await eventually(lambda: factory.metrics.ended["handshake error"] == 1)
    assert factory.admission.open == 0
    assert not factory.admission.by_address
    assert log.text.count("handshake error: no memory") == 1
    await server.stop()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("sent", [0, 50, 1000], ids=["silent", "hello begun", "half-way"])
async def test_a_drain_ends_a_handshake_without_a_reset(certificate: Path, sent: int) -> None:
    """Fault 210: A client that has yet to end its handshake sees the end, and no reset."""
    hello = hello_of(None)
    async with secure(certificate) as server:
        client = await connect_in_clear(server)
        client.send(hello[:sent])
        await client.arrive()
        await client.until(lambda: bool(client.data) == (sent >= len(hello)))
        drained = server.factory.drain()
        client.send(b"a byte that is on its way")
        await client.receive_all()
        assert client.clean
        await drained
        assert server.factory.metrics.ended == {"drained": 1}


def test_a_drain_does_not_reset_a_client_that_is_being_refused() -> None:
    """Fault 210: Nor is a client reset that the model has refused, and that has yet to close."""
    clock = Clock()
    factory = EchoFactory(clock, model=Serial(clock.seconds, patience=0.0, queue_size=0))
    (first, _), (refused, transport) = connect(factory), connect(factory)
    assert b"waiting already" in transport.value()
    factory.drain()
    assert not transport.aborting
    lose(first)
    lose(refused)


@pytest_twisted.ensureDeferred
async def test_a_client_that_ignores_the_end_of_tls_is_disconnected_in_time(
    certificate: Path,
) -> None:
    async with secure(certificate, limits=Limits(linger=0.2)) as server:
        client = await server.connect()
        await client.receive(BANNER)
        client.transport.pauseProducing()
        (connection,) = server.factory.connections
        drained = server.factory.drain()
        await drained
        assert connection.figures[2] == len(BANNER)
        client.transport.resumeProducing()


@pytest_twisted.ensureDeferred
async def test_the_kernels_share_of_a_reply_is_waited_for() -> None:
    factory = EchoFactory(reactor, limits=Limits(linger=0.3), banner=b"x" * 200_000)
    server = Server(factory)
    client = await server.connect()
    client.transport.pauseProducing()
    await eventually(lambda: bool(factory.connections))
    drained = factory.drain()
    await deferLater(reactor, 1.2)
    client.transport.resumeProducing()
    assert await client.receive_all() == b"x" * 200_000
    assert client.clean
    await drained
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_over_a_unix_socket_too_a_client_has_to_read(tmp_path: Path) -> None:
    factory = EchoFactory(reactor, banner=b"", limits=Limits(write_timeout=0.6))
    path = str(tmp_path / "socket")
    port = reactor.listenUNIX(path, factory)
    client = await connectProtocol(UNIXClientEndpoint(reactor, path), Talker())
    client.transport.pauseProducing()
    client.send(b"x" * 3_000_000)
    await eventually(lambda: bool(factory.metrics.ended))
    assert factory.metrics.ended == {"write-timeout": 1}
    client.transport.abortConnection()
    await eventually(lambda: client.reason is not None)
    await port.stopListening()


def test_what_waits_in_the_kernel_for_a_client_to_read_is_counted_as_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            ours.setblocking(False)
            taken = ours.send(b"x" * 1_000_000)
            assert taken > 100_000
            transport = StringTransport()
            transport.getHandle = lambda: ours  # type: ignore[attr-defined]
            assert traffic(transport, input_ended=False) == (0, taken)
            ours.shutdown(socket.SHUT_WR)
            assert traffic(transport, input_ended=False) == (0, taken)
            with client.makefile("rb") as stream:
                assert len(stream.read()) == taken
            assert traffic(transport, input_ended=False) == (0, taken)


# Deadlines, on a clock that the test moves.


def seconds_until(clock: Clock, condition: Callable[[], bool], at_most: float = 1000) -> float:
    """Let time pass until `condition` holds; return how long it took, to within a sweep's
    interval.
    """
    begin = clock.seconds()
    while not condition():
        clock.advance(URGENT_INTERVAL)
        assert clock.seconds() - begin <= at_most, "this has not come true in time"
    return clock.seconds() - begin


def calm(clock: Clock, factory: EchoFactory) -> None:
    """Let time pass until nothing is urgent any more."""
    seconds_until(clock, lambda: not factory.urgent)
    clock.advance(0.1)  # so that no sweep of all falls together with a deadline


# No time-out but those that a test sets.
PATIENT = Limits(
    first_byte_timeout=0, idle_timeout=0, message_timeout=0, write_timeout=0, min_rate=0, linger=0
)


@pytest.mark.parametrize("model", [InReactor, lambda: Serial(float, patience=0, queue_size=1)])
def test_the_time_for_a_handshake_ends_with_it(
    certificate: Path, model: Callable[[], Model]
) -> None:
    clock = Clock()
    limits = replace(PATIENT, handshake_timeout=10)
    factory = EchoFactory(clock, model=model(), limits=limits, banner=b"")
    protocol = factory.buildProtocol(None)
    wire = Wire(certificate, protocol).shake_hands()
    clock.pump([URGENT_INTERVAL] * 100)
    assert wire.lower.asked == []
    assert not factory.urgent
    wire.send(b"happy")
    assert wire.got().startswith(b"OK...happy")
    assert protocol is not None
    protocol.connectionLost(connectionDone)


def test_a_handshake_has_the_time_that_the_limit_gives_it_and_no_more(certificate: Path) -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=replace(PATIENT, handshake_timeout=10))
    wire = Wire(certificate, factory.buildProtocol(None))
    wire.connect()
    wire.begin()
    wire.pass_on()
    passed = seconds_until(clock, lambda: "fin" in wire.lower.asked)
    assert 10 <= passed <= 10 + URGENT_INTERVAL
    wire.connection.connectionLost(connectionDone)
    assert factory.metrics.ended == {"handshake-timeout": 1}


def test_what_has_no_deadline_is_not_urgent_and_what_has_one_is() -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=replace(PATIENT, write_timeout=31))
    protocol, transport = connect(factory)
    calm(clock, factory)
    protocol.pauseProducing()
    passed = seconds_until(clock, lambda: transport.aborting)
    assert 31 <= passed <= 31 + URGENT_INTERVAL
    lose(protocol)


def test_what_is_drained_is_urgent_until_it_is_closed() -> None:
    clock = Clock()
    waiting: Deferred[bytes] = Deferred()
    factory = EchoFactory(clock, handler=lambda message: waiting, banner=b"", limits=PATIENT)
    protocol, transport = connect(factory)
    protocol.dataReceived(b"x")
    calm(clock, factory)
    protocol.drain()
    clock.pump([URGENT_INTERVAL] * 100)
    assert factory.urgent == {protocol}
    waiting.callback(b"y")
    assert (transport.value(), transport.half_closed) == (b"y", True)
    lose(protocol)


def test_a_drain_is_remembered_until_the_turn_of_a_client_that_waits() -> None:
    clock = Clock()
    model = Serial(clock.seconds, patience=0, queue_size=1)
    factory = EchoFactory(clock, model=model, limits=PATIENT)
    (first, _), (second, transport) = connect(factory), connect(factory)
    second.drain()
    second.drain()
    assert not transport.half_closed
    lose(first)
    assert transport.half_closed
    lose(second)
    assert factory.metrics.ended == {"connection lost": 1, "drained": 1}


def test_a_second_drain_takes_nothing_in_that_came_since_the_first() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        factory = EchoFactory(Clock(), banner=b"", framing=Line(), limits=PATIENT)
        transport = Transport()
        transport.getHandle = lambda: ours  # type: ignore[method-assign]
        protocol, _ = connect(factory, transport)
        theirs.sendall(b"one\n")
        protocol.drain()
        theirs.sendall(b"two\n")
        protocol.drain()
        protocol.dataReceived(ours.recv(4))
        assert transport.half_closed
        protocol.dataReceived(ours.recv(4))
        assert transport.value() == b"OK...one\n"
        lose(protocol)


class Acknowledged(socket.socket):
    """A TCP socket whose kernel reports this many acknowledged bytes."""

    count = 0

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO):
            return struct.pack("=120xQ", self.count)
        return super().getsockopt(level, option, size)


@pytest.mark.parametrize(
    ("rate", "read", "enough"),
    [(10, 200, True), (10, 199, False), (0, 1, True), (0, 0, False), (0.01, 1, True)],
)
def test_a_client_that_reads_as_fast_as_it_has_to_is_given_more_time(
    rate: int, read: int, enough: bool
) -> None:
    clock = Clock()
    limits = replace(PATIENT, write_timeout=20, min_rate=rate)
    factory = EchoFactory(clock, limits=limits)
    with Acknowledged() as handle:
        handle.count = 1000
        transport = Transport()
        transport.getHandle = lambda: handle  # type: ignore[method-assign]
        protocol, _ = connect(factory, transport)
        calm(clock, factory)
        protocol.pauseProducing()
        clock.pump([URGENT_INTERVAL] * 39)
        assert not transport.aborting
        handle.count += read
        clock.pump([URGENT_INTERVAL] * 2)
        assert transport.aborting is not enough
        if enough:
            assert 19 <= seconds_until(clock, lambda: transport.aborting) <= 20
        lose(protocol)


@pytest.mark.parametrize("read", [1000, 2000])
def test_where_the_kernel_does_not_count_anything_that_moves_is_enough(read: int) -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=replace(PATIENT, write_timeout=20, min_rate=1000))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = Transport()
        transport.getHandle = lambda: ours  # type: ignore[method-assign]
        protocol, _ = connect(factory, transport)
        ours.sendall(b"x" * 1000)
        ours.sendall(b"x" * 1000)
        protocol.pauseProducing()
        clock.pump([URGENT_INTERVAL] * 39)
        assert len(theirs.recv(read)) == read
        clock.pump([URGENT_INTERVAL] * 40)
        assert not transport.aborting
        clock.pump([URGENT_INTERVAL] * 2)
        assert transport.aborting
        lose(protocol)


def test_one_that_waits_for_its_turn_is_not_silent_and_has_its_whole_time_then() -> None:
    clock = Clock()
    model = Serial(clock.seconds, patience=0, queue_size=1)
    limits = replace(PATIENT, idle_timeout=10, first_byte_timeout=10, message_timeout=10)
    factory = EchoFactory(
        clock, handler=lambda message: Deferred(), model=model, limits=limits, framing=Line()
    )
    (first, _), (second, transport) = connect(factory), connect(factory)
    first.dataReceived(b"one that takes long\n")
    clock.pump([URGENT_INTERVAL] * 100)
    assert not transport.half_closed
    lose(first)
    passed = seconds_until(clock, lambda: transport.half_closed)
    assert 10 <= passed <= 10 + 2 * URGENT_INTERVAL
    lose(second)


def test_one_that_is_refused_is_read_from_and_has_time_to_read_why() -> None:
    """Otherwise its end would go unnoticed, and its unread data would destroy the reply."""
    clock = Clock()
    limits = replace(PATIENT, write_timeout=20, min_rate=10)
    model = Serial(clock.seconds, patience=0, queue_size=0)
    factory = EchoFactory(clock, model=model, limits=limits)
    first, _ = connect(factory)
    with Acknowledged() as handle:
        transport = Transport()
        transport.getHandle = lambda: handle  # type: ignore[method-assign]
        second, _ = connect(factory, transport)
        assert transport.value() == b"Server busy: 0 clients are waiting already\n"
        assert transport.half_closed
        assert transport.producerState == "producing"
        clock.pump([URGENT_INTERVAL] * 39)
        handle.count += 200
        clock.pump([URGENT_INTERVAL] * 39)
        assert not transport.aborting
        clock.pump([URGENT_INTERVAL] * 3)
        assert transport.aborting
        lose(second)
    lose(first)
    assert factory.metrics.ended == {"refused": 1, "connection lost": 1}


def test_a_handshake_that_is_over_too_late_lets_nobody_in() -> None:
    @implementer(ISSLTransport)
    class Secure(Transport):
        pass

    model = Serial(float, patience=0, queue_size=0)
    factory = EchoFactory(Clock(), model=model)
    protocol, _ = connect(factory, Secure())
    protocol.abort(EndReason.ABORTED)
    protocol.handshakeCompleted()
    other, transport = connect(factory)
    assert not transport.half_closed  # the place is free
    lose(protocol)
    lose(other)


class Kernel:
    """Holds the sent data that is not acknowledged."""

    held = 0

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(lifecycle, "unsent", lambda transport: self.held)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def ended(factory: EchoFactory) -> tuple[EchoProtocol, Transport]:
    """Return a connection that has sent its FIN."""
    protocol, transport = connect(factory)
    protocol.close(EndReason.HANDLER)
    assert transport.half_closed
    protocol.writeConnectionLost()
    return protocol, transport


def test_after_our_fin_a_client_has_the_linger_for_its_own(kernel: Kernel) -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=replace(PATIENT, linger=7))
    protocol, transport = ended(factory)
    assert 7 <= seconds_until(clock, lambda: transport.aborting) <= 7 + URGENT_INTERVAL
    lose(protocol)


def test_what_is_closed_is_urgent_until_it_is_gone_however_long_the_last_reply_takes(
    kernel: Kernel,
) -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=replace(PATIENT, linger=7))
    protocol, transport = connect(factory)
    calm(clock, factory)
    protocol.close(EndReason.HANDLER)
    clock.pump([URGENT_INTERVAL] * 100)  # the written data is not sent yet
    assert not transport.aborting
    protocol.writeConnectionLost()
    assert 7 <= seconds_until(clock, lambda: transport.aborting) <= 7 + URGENT_INTERVAL
    lose(protocol)


@pytest.mark.parametrize("first", ["client", "daemon", "both"])
def test_once_both_streams_have_ended_the_connection_is_closed_and_never_aborted(
    kernel: Kernel, first: str
) -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=replace(PATIENT, linger=1))
    protocol, transport = connect(factory)
    if first == "client":
        protocol.readConnectionLost()
        assert transport.half_closed
        assert not transport.disconnecting
        protocol.writeConnectionLost()
    else:
        protocol.close(EndReason.HANDLER)
        if first == "daemon":
            protocol.writeConnectionLost()
            assert not transport.disconnecting
        protocol.readConnectionLost()
    assert transport.disconnecting
    if first == "client":
        clock.pump([URGENT_INTERVAL] * 10)
        assert not transport.aborting
    lose(protocol)


@given(st.lists(st.sampled_from(Event)))
def test_a_connection_goes_by_the_table_through_any_events(events: list[Event]) -> None:
    """The table of `echod.messages.closing`, event by event, with the calls of the transport."""

    class Thinking(Handler):
        def received(self, message: bytes) -> Any:
            return Deferred()  # so that the end of input alone does not close

    factory = EchoFactory(Clock(), handler=Thinking, banner=b"")
    protocol, transport = connect(factory)
    protocol.dataReceived(b"happy")
    cause = {
        Event.INPUT_ENDS: protocol.readConnectionLost,
        Event.CLOSE: lambda: protocol.close(EndReason.SERVED),
        Event.OUTPUT_ENDS: protocol.writeConnectionLost,
        Event.ABORT: lambda: protocol.abort(EndReason.ABORTED),
        Event.LOSE: lambda: lose(protocol),
    }
    reasons = {Event.CLOSE: "served", Event.ABORT: "aborted", Event.LOSE: "connection lost"}
    state, passed, ended_by = State.OPEN, {State.OPEN}, None
    for event in events:
        cause[event]()
        if (then := TRANSITIONS.get((state, event))) is not None:
            if state in (State.OPEN, State.INPUT_ENDED):
                ended_by = reasons.get(event)
            state = then
            passed.add(then)
        assert transport.half_closed is bool(passed & {State.CLOSING, State.ENDING})
        if transport.disconnecting:  # the remaining output goes first
            assert passed & {State.ENDING, State.BOTH_ENDED}
        else:
            assert State.BOTH_ENDED not in passed
        assert transport.aborting is (State.ABORTED in passed)
        assert (protocol in factory.connections) is (state is not State.LOST)
        assert factory.metrics.ended.total() == (state is State.LOST)
    if state is not State.LOST:
        lose(protocol)
    assert factory.metrics.ended == {ended_by or "connection lost": 1}


def test_the_linger_begins_when_the_client_has_read_everything(kernel: Kernel) -> None:
    clock = Clock()
    factory = EchoFactory(clock, limits=replace(PATIENT, linger=7, write_timeout=100))
    kernel.held = 10
    protocol, transport = ended(factory)
    clock.pump([URGENT_INTERVAL] * 60)
    kernel.held = 0
    passed = seconds_until(clock, lambda: transport.aborting)
    assert 7 <= passed <= 7 + 2 * URGENT_INTERVAL
    lose(protocol)


@pytest.mark.parametrize(
    ("rate", "read", "enough"), [(10, 200, True), (10, 199, False), (0, 1, True), (0, 0, False)]
)
def test_after_our_fin_too_a_client_has_to_read(
    kernel: Kernel, rate: int, read: int, enough: bool
) -> None:
    clock = Clock()
    limits = replace(PATIENT, linger=7, write_timeout=20, min_rate=rate)
    factory = EchoFactory(clock, limits=limits)
    kernel.held = 10_000
    protocol, transport = ended(factory)
    clock.pump([URGENT_INTERVAL] * 39)
    assert not transport.aborting
    kernel.held -= read
    clock.pump([URGENT_INTERVAL] * 2)
    assert transport.aborting is not enough
    if enough:
        assert 19 <= seconds_until(clock, lambda: transport.aborting) <= 20
    lose(protocol)


@pytest.mark.parametrize("held", [0, 10])
def test_without_a_limit_a_client_may_take_its_time_after_our_fin(
    kernel: Kernel, held: int
) -> None:
    clock = Clock()
    kernel.held = held
    protocol, transport = ended(EchoFactory(clock, limits=PATIENT))
    clock.pump([1000.0] * 100)
    assert not transport.aborting
    lose(protocol)


SLOW = replace(PATIENT, message_timeout=10)


def test_where_no_message_is_under_way_none_is_too_slow() -> None:
    clock = Clock()
    factory = EchoFactory(clock, framing=Line(), limits=SLOW)
    protocol, transport = connect(factory)
    clock.pump([URGENT_INTERVAL] * 100)
    protocol.dataReceived(b"happy\n")
    clock.pump([URGENT_INTERVAL] * 100)
    assert not transport.half_closed
    lose(protocol)


def test_a_message_has_its_whole_time_again_once_its_client_reads() -> None:
    """While replies wait for the client the daemon does not read: the delay is its own."""
    clock = Clock()
    factory = EchoFactory(clock, framing=Line(), limits=SLOW)
    protocol, transport = connect(factory)
    protocol.dataReceived(b"happy\nbirth")
    clock.pump([URGENT_INTERVAL] * 10)
    protocol.pauseProducing()
    clock.pump([URGENT_INTERVAL] * 100)
    assert not transport.half_closed
    protocol.resumeProducing()
    passed = seconds_until(clock, lambda: transport.half_closed)
    assert 10 <= passed <= 10 + 2 * URGENT_INTERVAL
    lose(protocol)


def test_a_transport_of_twisteds_own_that_has_closed_holds_nothing() -> None:
    closed = tcp.Server.__new__(tcp.Server)  # which loses its socket as it closes
    with pytest.raises(AttributeError):
        closed.getHandle()
    assert unsent(closed) == 0
    assert taken(closed) == NOTHING_TAKEN


@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_a_client_of_a_unix_socket_finds_its_reply_after_the_connection_has_closed(
    model: ConcurrencyModel, tmp_path: Path
) -> None:
    """Fault 98: At SIGTERM a client of a UNIX socket that has not read its last reply does not
    hold the drain, in any concurrency model, and finds the reply when it reads.
    """
    path = str(tmp_path / "socket")
    limits = Limits(linger=0.5, write_timeout=0)
    factory = EchoFactory(reactor, model=make_model(model), limits=limits, banner=b"")
    port = reactor.listenUNIX(path, factory)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"happy\n")
        connections: Any = factory.connections
        await eventually(lambda: connections)
        await eventually(lambda: all(each.figures[2] for each in connections))
        drained = factory.drain()
        await eventually(lambda: not factory.connections)
        await drained
        assert client.makefile("rb").read() == b"OK...happy\n"
    await port.stopListening()
    factory.model.stop()
