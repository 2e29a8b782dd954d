"""Faults on purpose on the wire, in every model, in clear, over TLS, UNIX and behind a proxy."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from echod.connections import faulty
from echod.connections.factory import EchoFactory
from echod.connections.faulty import FaultyConnection
from echod.connections.kernel import queued, unread
from echod.connections.transport_layers import Layer
from echod.faults import Faults, parse_fault
from echod.handlers.contract import Close
from echod.handlers.contract import Handler as EchodHandler
from echod.handlers.forward import Forward
from echod.limits import Limits
from echod.messages.framing import Fixed, Line
from echod.messages.prefixed import Length
from tests.support.clients import receive
from tests.support.daemon import CONCURRENT, MODELS
from tests.support.log import Log
from tests.support.memory import Transport, lose
from tests.support.memory import connect as connect_in_memory
from tests.support.needs import not_here
from tests.support.proxy_headers import line
from tests.support.reactor import reactor
from tests.support.serving import (
    Server,
    Talker,
    eventually,
    in_thread,
    make_model,
    server_by,
    server_context,
    turns,
)
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE

WAYS = ["clear", "TLS", "PROXY", "UNIX"]
BANNER = b"0123456789" * 10


class UNIXServer(Server):
    """A factory that listens on a UNIX socket."""

    def __init__(self, factory: EchoFactory, path: Path) -> None:
        self.factory: Any = factory
        self.port = reactor.listenUNIX(str(path), factory)
        self.path = path
        self.clients: list[Talker] = []

    async def connect_with(self, client: Talker) -> Talker:
        self.clients.append(client)
        await connectProtocol(UNIXClientEndpoint(reactor, str(self.path)), client)
        return client


class Handler:
    """Greets, and answers each message by itself."""

    def opened(self, client: object) -> bytes:
        return BANNER

    def received(self, message: bytes) -> bytes | Close:
        return Close(b"bye") if message == b"quit" else message


class Echoing(EchodHandler):
    """Answers each message by itself, and does not greet."""

    def received(self, message: bytes) -> bytes:
        return message


def echo_socket(conn: socket.socket) -> None:
    while data := conn.recv(1000):
        conn.sendall(data)


async def echo_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


def serving(
    *faults: str,
    certificate: Path,
    tmp_path: Path,
    way: str = "clear",
    model: str = "reactor",
    handler: Any = Handler,
    **options: Any,
) -> Server:
    factory = EchoFactory(
        reactor,
        handler=handler,
        model=make_model(model),
        faults=Faults([parse_fault(text) for text in faults], 1, 1, "") if faults else None,
        banner=BANNER if model == "thread-per-connection" and handler is Handler else None,
        **options,
    )
    if way == "UNIX":
        return UNIXServer(factory, tmp_path / "s")
    return server_by(way, factory, certificate)


@pytest.fixture
def serve(certificate: Path, tmp_path: Path) -> Any:
    def start(*faults: str, **options: Any) -> Any:
        return serving(*faults, certificate=certificate, tmp_path=tmp_path, **options)

    return start


async def ended(server: Server) -> dict[str, int]:
    """Wait until no connection is open; return how they ended."""
    await eventually(lambda: not server.factory.connections)
    return dict(server.factory.metrics.ended)


# Every fault that ends a connection, in every cell.


@pytest.mark.parametrize("way", [*WAYS, "Twisted's TLS"])
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_a_client_gets_exactly_so_many_bytes_and_then_a_reset(
    serve: Any, model: str, way: str, log: Log
) -> None:
    """Fault 160: The client gets exactly so many bytes, then ECONNRESET."""
    async with serve("reset:after=10", model=model, way=way) as server:
        client = await server.connect()
        client.send(b"x" * 50)
        data = await client.receive_all()
        assert data == (b"x" * 10 if model == "serial" else BANNER[:10])
        if way != "UNIX":  # which has no reset
            assert not client.clean
        assert await ended(server) == {"fault": 1}
        assert server.factory.metrics.faults == {"reset": 1}
    assert ": fault (" in log.text
    assert "faults: reset)" in log.text


@pytest.mark.parametrize("way", [*WAYS, "Twisted's TLS"])
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_a_client_gets_exactly_so_many_bytes_and_then_an_end(
    serve: Any, model: str, way: str
) -> None:
    async with serve("close:after=10", model=model, way=way) as server:
        client = await server.connect()
        client.send(b"x" * 50)
        assert await client.receive_all() == (b"x" * 10 if model == "serial" else BANNER[:10])
        assert client.clean
        assert await ended(server) == {"fault": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_delays_slices_and_a_reset_combine(serve: Any, model: str, way: str) -> None:
    """Fault 161: Each fault does its part: a late start, short pieces, a reset."""
    faults = ("delay:time=0.05", "slice:size=7,pause=0.01", "reset:after=20")
    async with serve(*faults, model=model, way=way) as server:
        begun = reactor.seconds()
        client = await server.connect()
        client.send(b"x" * 50)
        data = await client.receive_all()
        assert data == (b"x" * 20 if model == "serial" else BANNER[:20])
        assert reactor.seconds() - begun >= 0.07
        if way != "UNIX":
            assert not client.clean
        assert await ended(server) == {"fault": 1}
        assert server.factory.metrics.faults == {"delay": 1, "slice": 1, "reset": 1}


# The others.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_nothing_is_lost_of_what_is_only_late_in_both_directions(
    serve: Any, model: str, way: str
) -> None:
    """Fault 162: Late bytes come all, in order, before the end, at a half-close too."""
    faults = ("delay:direction=in,time=0.02", "slice:size=3000", "bandwidth:rate=2000000")
    sent = bytes(range(256)) * 100
    async with serve(*faults, model=model, way=way) as server:
        client = await server.connect()
        client.send(sent if model != "serial" else sent[:1000])
        client.finish()
        expected = sent[:1000] if model == "serial" else BANNER + sent
        assert await client.receive_all() == expected
        assert client.clean
        assert await ended(server) in ({"client closed": 1}, {"served": 1})


@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_bytes_of_the_same_seed_are_the_same_in_clear_and_over_tls(
    serve: Any, model: str
) -> None:
    """Fault 163: The same seed gives the same bytes, in clear and over TLS."""
    faults = ("corrupt:rate=0.2", "drop:rate=0.1", "duplicate:rate=0.1", "garbage:after=9,size=5")
    received = []
    for way in ("clear", "TLS", "UNIX", "PROXY", "clear"):
        async with serve(*faults, model=model, way=way) as server:
            client = await server.connect()
            client.send(bytes(200))
            client.finish()
            received.append(await client.receive_all())
            assert client.clean
    assert len(set(received)) == 1
    assert received[0] != BANNER + bytes(200)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_a_drain_during_a_stall_ends_by_an_abort(serve: Any, model: str, way: str) -> None:
    """Fault 164: A connection in the middle of a fault ends with the drain's deadline."""
    async with serve("stall:after=5", model=model, way=way) as server:
        client = await server.connect()
        client.send(b"x" * 50)
        await client.receive(b"x" * 5 if model == "serial" else BANNER[:5])
        drained = server.factory.drain()
        assert server.factory.connections
        server.factory.abort()
        await drained
        assert not server.factory.connections
        assert await client.receive_all() == b""


@pytest.mark.parametrize(
    "fault",
    [
        "stall:after=5",
        "never-read",
        "never-close",
        "never-answer",
        "delay:time=1000",
        "bandwidth:rate=1",
        "half-close:after=5",
        "drip:pause=100",
        "stall:direction=in",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_aborted_in_a_fault_leaves_nothing(
    serve: Any, fault: str
) -> None:
    # That nothing is left is looked at after each test.
    async with serve(fault) as server:
        client = await server.connect()
        client.send(b"x" * 50)
        await eventually(lambda: server.factory.metrics.accepted)
        await turns(5)
        drained = server.factory.drain()
        server.factory.abort()
        await drained
        await client.receive_all()


@pytest_twisted.ensureDeferred
async def test_a_stall_is_not_ended_by_deadlines(serve: Any) -> None:
    """Fault 165: Deadlines stand still while a fault holds what the client waits for."""
    limits = Limits(write_timeout=0.5, idle_timeout=0.5, first_byte_timeout=0.5)
    async with serve("stall:after=5,time=2.5", limits=limits) as server:
        begun = reactor.seconds()
        client = await server.connect()
        await client.receive(BANNER[:5])
        client.send(b"quit")
        assert await client.receive_all() == BANNER[5:] + b"bye"
        assert client.clean
        assert reactor.seconds() - begun >= 2.5
        assert await ended(server) == {"handler closed": 1}


@pytest_twisted.ensureDeferred
async def test_a_client_that_has_gone_is_not_held_for_ever(serve: Any) -> None:
    limits = Limits(write_timeout=0.5)
    for fault in ("stall:after=5", "never-close"):
        async with serve(fault, limits=limits) as server:
            client = await server.connect()
            await client.receive(BANNER[:5])
            client.transport.loseConnection()
            await eventually(lambda server=server: not server.factory.connections)


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_an_early_end_of_the_server_s_stream_leaves_the_client_s_open(
    serve: Any, way: str
) -> None:
    heard: list[bytes] = []

    class Listening(Handler):
        def received(self, message: bytes) -> bytes | Close:
            heard.append(message)
            return super().received(message)

    class Staying(Talker):
        def readConnectionLost(self) -> None:
            self.ended = True
            self._look()

    async with serve("half-close:after=10", way=way, handler=Listening) as server:
        if way == "TLS":
            client = await server.connect()
            client.readConnectionLost = lambda: Staying.readConnectionLost(client)  # type: ignore[method-assign]
        else:
            client = await server.connect_with(Staying())
            if way == "PROXY":
                client.send(line())
        await client.until(lambda: client.ended)
        assert client.data == BANNER[:10]
        client.send(b"still here")
        await eventually(lambda: heard)
        client.finish()
        assert await ended(server) == {"client closed": 1}
        assert b"".join(heard) == b"still here"


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_silences_leave_the_rest_alone(serve: Any, way: str) -> None:
    async with serve("never-answer", way=way) as server:
        client = await server.connect()
        await client.receive(BANNER)
        client.send(b"hello")
        client.finish()
        assert await client.receive_all() == b""
        assert client.clean
    async with serve("no-banner", way=way) as server:
        client = await server.connect()
        client.send(b"hello")
        client.finish()
        assert await client.receive_all() == b"hello"


@pytest_twisted.ensureDeferred
async def test_a_server_that_never_reads_lets_its_client_fill_the_window(serve: Any) -> None:
    heard: list[bytes] = []

    class Listening(Handler):
        def received(self, message: bytes) -> None:
            heard.append(message)

    async with serve("never-read:after=3", handler=Listening) as server:
        client = await server.connect()
        await client.receive(BANNER)
        client.send(b"x" * 20_000_000)
        await eventually(lambda: heard)
        connection = await server.accepted()
        # The kernels hold what they can, and the rest does not leave the client.
        await eventually(lambda: unread(connection.transport) and queued(client.transport))
        await turns(20)
        assert queued(client.transport)
        assert b"".join(heard) == b"xxx"
        client.transport.abortConnection()
        await client.receive_all()


# A line, or a length, without end.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_an_endless_line_goes_on_as_long_as_the_client_reads(
    serve: Any, model: str, way: str
) -> None:
    """Fault 138: It goes on as long as the client reads, and memory stays bounded."""
    options = {"model": model, "way": way, "handler": Echoing, "framing": Line()}
    async with serve("endless:after=5", **options) as server:
        client = await server.connect()
        client.send(b"hello\n")
        await client.until(lambda: len(client.data) > 1_000_000)
        assert client.data[:5] == b"hello"
        assert b"\n" not in client.data
        client.transport.pauseProducing()
        layer = (await server.accepted()).transport
        await eventually(lambda: layer._blocked)
        await turns(20)
        assert layer.held_out < 10_000
        assert queued(layer.transport) < 400_000
        client.data.clear()
        client.transport.resumeProducing()
        await client.until(lambda: len(client.data) > 5_000_000)
        assert server.factory.metrics.faults == {"endless": 1}
        client.transport.abortConnection()
        await ended(server)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", ["endless", "endless:kind=length", "endless:after=60"])
@pytest_twisted.ensureDeferred
async def test_a_drain_ends_an_endless_line_after_whole_pieces(
    serve: Any, fault: str, way: str
) -> None:
    async with serve(fault, way=way) as server:
        client = await server.connect()
        client.send(b"quit")  # the handler closes: no end of the line
        await client.until(lambda: len(client.data) > 1_000_000)
        drained = server.factory.drain()
        data = await client.receive_all()
        await drained
        assert client.clean
        start = {"endless": 0, "endless:kind=length": 4, "endless:after=60": 60}[fault]
        assert data[start : start + 8] == b"endless "
        assert (len(data) - start) % 8 == 0
        if start == 4:
            assert data[:4] == b"\x7f\xff\xff\xff"


@pytest_twisted.ensureDeferred
async def test_an_endless_line_leaves_the_loop_to_others_and_may_be_slow(serve: Any) -> None:
    async with serve("bandwidth:rate=8000,first=1", "endless:first=2") as server:
        slow, fast = await server.connect(), await server.connect()
        other = await server.connect()
        await other.receive(BANNER)
        for count in range(50):
            other.send(b"%d" % count)
            await other.receive(b"%d" % count)
        await fast.until(lambda: len(fast.data) > 1_000_000)
        assert len(slow.data) < 500_000
        for client in (slow, fast, other):
            client.transport.abortConnection()
        await ended(server)


@pytest_twisted.ensureDeferred
async def test_an_endless_line_that_is_cut_off_costs_no_turns(serve: Any) -> None:
    async with serve("truncate:after=10", "endless") as server:
        client = await server.connect()
        await client.until(lambda: len(client.data) == 10)
        layer = (await server.accepted()).transport
        await turns(3)
        assert not layer._generates
        await server.factory.drain()
        assert await client.receive_all() == b"endless en"
        assert client.clean


# Faults that begin with a message of the client.

FRAMINGS: list[tuple[Any, list[bytes]]] = [
    (Line(), [b"one\n", b"two\n", b"quiz\n", b"four\n"]),
    (Length(), [Length().encode(word) for word in (b"one", b"two", b"quiz", b"four")]),
    (Fixed(4), [b"one.", b"two.", b"quiz", b"four"]),
]


@pytest.mark.parametrize(
    "fault", ["reset:after=2msg", "reset:message=qu.z", "truncate:after=2msg"]
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", CONCURRENT)
@pytest_twisted.ensureDeferred
async def test_the_answers_before_a_message_come_whole_and_then_the_fault(
    serve: Any, model: str, way: str, fault: str
) -> None:
    """Fault 137: The answers to the messages before it come whole, and nothing of its own."""
    for (framing, messages), size in itertools.product(FRAMINGS, (3, 1000)):
        options = {"framing": framing, "way": way, "model": model, "handler": Echoing}
        async with serve(fault, **options) as server:
            client = await server.connect()
            stream = b"".join(messages)
            for start in range(0, len(stream), size):
                client.send(stream[start : start + size])
                await turns(1)
            client.finish()
            assert await client.receive_all() == b"".join(messages[:2])
            assert server.factory.metrics.faults == {fault.partition(":")[0]: 1}
            if way != "UNIX":  # there a close is a reset if the daemon has not read all
                assert client.clean is fault.startswith("truncate")


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_the_only_message_of_the_serial_model_may_be_hit(serve: Any, way: str) -> None:
    options = {"framing": Line(), "way": way, "model": "serial", "handler": Echoing}
    async with serve("close:message=^one", **options) as server:
        client = await server.connect()
        client.send(b"one\ntwo\n")
        assert await client.receive_all() == b""
        assert server.factory.metrics.faults == {"close": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", CONCURRENT)
@pytest_twisted.ensureDeferred
async def test_a_message_for_a_slow_handler_waits_for_the_answers_before_it(
    serve: Any, model: str, way: str
) -> None:
    class Slow(Echoing):
        def received(self, message: bytes) -> Any:
            if model in ("defer-to-thread", "thread-per-connection"):
                time.sleep(0.02)
                return message
            return deferLater(reactor, 0.02, lambda: message)

    options = {"framing": Line(), "way": way, "model": model, "handler": Slow}
    async with serve("reset:message=stop", **options) as server:
        client = await server.connect()
        client.send(b"one\ntwo\nstop\n")
        assert await client.receive_all() == b"one\ntwo\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "kind", ["chunk", "chunk in a thread", "socket", "streams", "Twisted protocol"]
)
@pytest_twisted.ensureDeferred
async def test_a_read_is_the_message_where_there_are_no_others(
    serve: Any, kind: str, way: str
) -> None:
    if kind == "streams" and not isinstance(reactor, AsyncioSelectorReactor):
        not_here("asyncio's streams need an asyncio event loop")
    handlers = {
        "chunk": Echoing,
        "chunk in a thread": Echoing,
        "socket": echo_socket,
        "streams": echo_streams,
        "Twisted protocol": Factory.forProtocol(Echo),
    }
    model = "thread-per-connection" if kind in ("socket", "chunk in a thread") else "reactor"
    async with serve(
        "close:message=^stop", way=way, model=model, handler=handlers[kind]
    ) as server:
        client = await server.connect()
        for word in (b"one", b"two"):
            client.send(word)
            await client.receive(word)
        client.send(b"stop")
        assert await client.receive_all() == b""
        assert server.factory.metrics.faults == {"close": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_fault_after_the_handshake_needs_tls(serve: Any, way: str) -> None:
    async with serve("close:after=handshake", way=way) as server:
        client = await server.connect()
        client.send(b"quit")
        received = await client.receive_all()
        assert received == (b"" if way == "TLS" else BANNER + b"bye")


@pytest_twisted.ensureDeferred
async def test_a_drain_does_not_wait_for_the_rest_of_a_message(serve: Any) -> None:
    async with serve("reset:message=never", framing=Line(), handler=Echoing) as server:
        client = await server.connect()
        client.send(b"one\ntw")
        await client.receive(b"one\n")
        await server.factory.drain()
        assert await client.receive_all() == b""
        assert client.clean


@pytest_twisted.ensureDeferred
async def test_a_client_that_is_not_selected_has_no_layer(serve: Any) -> None:
    async with serve("reset:first=1") as server:
        first = await server.connect()
        assert await first.receive_all() == b""
        second = await server.connect()
        await second.receive(BANNER)
        (connection,) = server.factory.connections
        assert not isinstance(connection.transport, Layer)
        assert server.factory.metrics.faults == {"reset": 1}


def path_of(server: Any) -> list[object]:
    """Return all that the bytes of the only connection pass: types, and functions."""
    (connection,) = server.factory.connections
    passed: list[object] = []
    one = connection.transport
    while one is not None and one is not connection:
        kept = getattr(one, "__dict__", {}).get("data_received")
        passed += [type(one), getattr(kept, "__qualname__", None)]
        passed.append(type(getattr(one, "protocol", None)))
        one = getattr(one, "transport", None)
    return [*passed, type(connection)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_the_bytes_of_a_client_that_is_not_selected_take_the_way_without_faults(
    serve: Any, model: str, way: str
) -> None:
    """Fault 136: Its bytes pass the same objects as in a daemon without faults."""
    paths = []
    for faults in ((), ("reset:every=10",)):
        async with serve(*faults, model=model, way=way) as server:
            client = await server.connect()
            client.send(b"x")
            await client.receive(b"x" if model == "serial" else BANNER + b"x")
            paths.append(path_of(server))
            client.finish()
            await client.receive_all()
    assert paths[0] == paths[1]


def test_a_second_producer_is_refused_as_by_a_transport_without_faults() -> None:
    faults = Faults([parse_fault("reset:after=1000")], 1, 1, "")
    faulty_connection: Any = EchoFactory(reactor, faults=faults).buildProtocol(None)
    assert isinstance(faulty_connection, FaultyConnection)
    faulty_connection.makeConnection(Transport())
    producer: Any = object()
    with pytest.raises(RuntimeError, match="was never unregistered"):
        faulty_connection.registerProducer(producer, True)
    lose(faulty_connection)


def test_an_idle_connection_that_is_not_selected_costs_no_byte_more() -> None:
    """Fault 136: Without a fault of its own, an idle connection takes as much memory as ever."""

    def bytes_of_a_hundred(faults: Faults | None) -> int:
        factory = EchoFactory(reactor, faults=faults)
        kept = [connect_in_memory(factory) for _ in range(100)]  # a first connection makes more
        gc.collect()  # which frees also what Python keeps for new objects: that is not counted
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            kept += [connect_in_memory(factory) for _ in range(100)]
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
            for protocol, _ in kept:
                lose(protocol)

    gc.collect()
    gc.freeze()  # a collection need not look again at all that the tests before have left
    faults = Faults([parse_fault("reset:every=1000000")], 1, 1, "")
    # Tables that all share grow now and then, and an odd round has had some bytes less.
    rounds = [(bytes_of_a_hundred(None), bytes_of_a_hundred(faults)) for _ in range(5)]
    more = statistics.median(with_faults - without for without, with_faults in rounds)
    # An object for each, with one slot, would take 40: numbers that are counted grow, and tables.
    assert more < 100 * 40


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_what_waits_is_bounded_and_arrives_when_the_client_reads(
    serve: Any, way: str
) -> None:
    class Big(Handler):
        def received(self, message: bytes) -> bytes:
            return message * 4000

    limits = Limits(max_pending=1000)
    async with serve("delay:time=0.01", way=way, handler=Big, limits=limits) as server:
        client = await server.connect()
        await client.receive(BANNER)
        client.transport.pauseProducing()
        for _ in range(8):
            client.send(bytes(1000))
        client.finish()
        connection = await server.accepted()
        layer = connection.transport
        # The fault passes it on in 10 ms, and the transport holds it then.
        await eventually(lambda: connection.is_blocked)
        assert layer.held_out < 20_000_000
        client.transport.resumeProducing()
        assert len(await client.receive_all()) == 8 * 4_000_000
        assert client.clean


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_reset_by_time_comes_although_the_client_does_not_read(
    serve: Any, way: str
) -> None:
    """Fault 160: A reset by time does not wait for a client that reads nothing."""

    class Big(Handler):
        def received(self, message: bytes) -> bytes:
            return bytes(8_000_000)

    async with serve("reset:after=0.3s", way=way, handler=Big) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"x")
        await eventually(lambda: server.factory.metrics.ended)
        assert await ended(server) == {"fault": 1}
        assert server.factory.metrics.faults == {"reset": 1}
        client.transport.resumeProducing()
        await client.receive_all()
        if way != "UNIX":
            assert not client.clean


@pytest_twisted.ensureDeferred
async def test_a_client_of_the_serial_model_keeps_its_turn_while_a_fault_holds_its_message(
    serve: Any,
) -> None:
    """Fault 165: The turn of a client in the serial model stands still, too."""
    limits = Limits(serial_timeout=0.5)
    fault = "stall:direction=in,time=2,first=1"
    async with serve(fault, model="serial", handler=Echoing, limits=limits) as server:
        server.factory.model.patience = 0.5
        first = await server.connect()
        first.send(b"first")
        await server.accepted()
        second = await server.connect()
        second.send(b"second")
        assert await second.receive_all() == b"second"
        assert await first.receive_all() == b"first"
        assert await ended(server) == {"served": 2}


# TLS that begins within the conversation, and a handler that passes everything on.


class Upgrading(EchodHandler):
    framing = "line"

    def opened(self, client: Any) -> None:
        self.client = client

    def received(self, message: bytes) -> bytes:
        if message == b"STARTTLS":
            self.client.start_tls()
            return b"go ahead"
        return message


def upgraded(port: int, *words: bytes) -> tuple[bytes, str]:
    """Return what a client gets that begins TLS and then sends each word, and its error."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"STARTTLS\n")
        assert receive(client, 9) == b"go ahead\n"
        try:
            with client_context().wrap_socket(client) as encrypted:
                for word in words:
                    encrypted.sendall(word + b"\n")
                    received += receive(encrypted, len(word) + 1)
        except OSError as error:
            return received, type(error).__name__
    return received, ""


@pytest.mark.parametrize("model", ["reactor", "defer-to-thread"])
@pytest.mark.parametrize(
    ("faults", "received", "errors"),
    [
        (["delay:time=0.02", "slice:size=50,pause=0.002"], b"one\ntwo\n", {""}),
        (["close:after=handshake"], b"", {"", "SSLEOFError", "ConnectionResetError"}),
        (["reset:after=handshake"], b"", {"ConnectionResetError", "SSLEOFError"}),
        (["corrupt:rate=1,after=9"], b"", {"SSLError"}),
        (["reset:message=never", "close:after=900msg"], b"one\ntwo\n", {""}),
        (["truncate:message=^two"], b"one\ntwo\n", {""}),  # encrypted, it is no message
    ],
)
@pytest_twisted.ensureDeferred
async def test_faults_work_around_tls_that_begins_within_the_conversation(
    serve: Any,
    certificate: Path,
    model: str,
    faults: list[str],
    received: bytes,
    errors: set[str],
    log: Log,
) -> None:
    options = {"framing": Line(), "handler": Upgrading, "model": model}
    async with serve(*faults, starttls=server_context(certificate), **options) as server:
        results: list[tuple[bytes, str]] = []
        await in_thread(lambda: results.append(upgraded(server.number, b"one", b"two")))
        ((data, error),) = results
        assert data == received
        assert error in errors
        await ended(server)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("fault", "clean"),
    [("delay:time=0.02", True), ("reset:after=20000", False), ("slice:size=3000", True)],
)
@pytest_twisted.ensureDeferred
async def test_forward_with_faults_is_a_bad_way_to_another_server(
    serve: Any, way: str, fault: str, clean: bool
) -> None:
    data = bytes(range(256)) * 200
    async with serve(handler=Echoing) as upstream:
        forward = Forward(to=f"127.0.0.1:{upstream.number}")
        async with serve(fault, way=way, handler=forward) as server:
            client = await server.connect()
            client.send(data)
            client.finish()
            received = await client.receive_all()
            assert received == (data if clean else data[:20000])
            assert client.clean is (clean or way == "UNIX")
            assert server.factory.metrics.faults == {fault.partition(":")[0]: 1}
            await ended(server)
        await eventually(lambda: not upstream.factory.connections)


async def pauses(serve: Any, fault: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds between the start of a connection and each piece of its greeting."""
    written: list[tuple[float, bytes]] = []

    class Watching(FaultyConnection):
        def makeConnection(self, transport: Any) -> None:
            written.append((reactor.seconds(), b""))
            write = transport.write

            def watch(data: bytes) -> None:
                written.append((reactor.seconds(), data))
                write(data)

            transport.write = watch
            super().makeConnection(transport)

    monkeypatch.setattr(faulty, "FaultyConnection", Watching)
    async with serve(fault) as server:
        client = await server.connect()
        await client.receive(BANNER)
    assert b"".join(data for _, data in written) == BANNER
    times = [time for time, _ in written]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


@pytest.mark.parametrize(
    ("fault", "asked"),
    [
        ("delay:time=0.05", [0.05]),
        ("stall:time=0.05", [0.05]),
        ("slice:size=20,pause=0.01", [0.0, 0.01, 0.01, 0.01, 0.01]),
        ("drip:size=50,pause=0.02", [0.0, 0.02]),
        ("bandwidth:rate=2000", [0.05]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_pause_is_shorter_than_asked_by_the_clock_of_the_loop(
    serve: Any, fault: str, asked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 162: Each piece leaves in its order, and not before its time."""
    found = await pauses(serve, fault, monkeypatch)
    assert len(found) == len(asked)
    # A clock counts in steps: a sum of differences may lack some billionths of a second.
    assert all(pause >= least - 1e-6 for pause, least in zip(found, asked, strict=True))
