from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import socketserver
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from echod import Chunk, Close, EchoFactory, Handler, Limits, Line
from echod.concurrency import thread_socket
from echod.concurrency.model import Busy
from echod.concurrency.models import ThreadPerConnection
from echod.connections import socket_protocol as handover
from echod.connections.kernel import unread
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.kinds import Kind
from echod.handlers.lookup import ResolvedHandler
from echod.listening.proxy import ProxyFactory
from echod.messages.closing import State
from echod.reasons import Refusal
from echod.settings.definitions import LOOPBACK
from echod.tls import TLSFactory
from tests.support.clients import BANNER
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import (
    SecureServer,
    Server,
    Talker,
    eventually,
    make_model,
    no_more_threads,
    server_context,
    serving,
)

MODEL = ConcurrencyModel.THREAD_PER_CONNECTION


@pytest.fixture(autouse=True)
def waiting_threads_can_be_interrupted() -> Iterator[None]:
    """As `echod.daemon.signals` does in the daemon."""
    previous = signal.signal(thread_socket.INTERRUPT, lambda number, frame: None)
    yield
    signal.signal(thread_socket.INTERRUPT, previous)


def clientthread(conn):  # type: ignore[no-untyped-def]
    """The server of most tutorials, unchanged."""
    conn.send(b"Welcome to the server. Type something and hit enter\n")
    while True:
        data = conn.recv(1024)
        if not data:
            break
        conn.sendall(b"OK..." + data)
    conn.close()


class Shouter(socketserver.StreamRequestHandler):
    """A socketserver handler, unchanged."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"%s:%s" % (self.client_address[0].encode(), line.upper()))


@asynccontextmanager
async def both(
    kind: str, certificate: Path, threads: int = 4, **options: Any
) -> AsyncIterator[Server]:
    """Serve directly or relayed."""
    factory = EchoFactory(reactor, model=make_model(MODEL, threads), **options)
    server = (
        Server(factory) if kind == "direct" else SecureServer(factory, server_context(certificate))
    )
    try:
        yield server
    finally:
        await server.stop()


WAYS = pytest.mark.parametrize("way", ["direct", "relayed"])


@WAYS
@pytest_twisted.ensureDeferred
async def test_an_unchanged_client_thread_owns_its_socket(way: str, certificate: Path) -> None:
    async with both(way, certificate, handler=clientthread) as server:
        clients = [await server.connect() for _ in range(3)]
        for client in clients:
            await client.receive(BANNER)
        for word in (b"happy\n", b"days\n"):
            for client in clients:
                client.send(word)
            for client in clients:
                await client.receive(b"OK..." + word)


@pytest.mark.parametrize("returned", [b"reply", Close(b"reply")])
@pytest_twisted.ensureDeferred
async def test_a_reply_that_a_connection_handler_returns_does_not_vanish_silently(
    returned: object, log: Log
) -> None:
    async with serving(MODEL, handler=lambda conn: returned) as server:
        client = await server.connect()
        assert await client.receive_all() == b""
        await eventually(lambda: server.factory.metrics.ended == {"handler error": 1})
    (error,) = log.take_errors()
    assert "its return value is ignored; mark it with @message_handler" in error


@WAYS
@pytest_twisted.ensureDeferred
async def test_an_unchanged_socketserver_handler_runs(way: str, certificate: Path) -> None:
    async with both(way, certificate, handler=Shouter) as server:
        client = await server.connect()
        client.send(b"happy\n")
        await client.receive(b"127.0.0.1:HAPPY\n")
        assert server.factory.handler.kind is Kind.CONNECTION


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_loop_over_a_socket_and_its_address_runs_unchanged(
    way: str, certificate: Path
) -> None:
    def loop(conn: socket.socket, addr: tuple[str, int]) -> None:
        while data := conn.recv(1024):
            conn.sendall(addr[0].encode() + b":" + data)

    async with both(way, certificate, handler=loop) as server:
        client = await server.connect()
        client.send(b"happy\n")
        await client.receive(b"127.0.0.1:happy\n")


@WAYS
@pytest_twisted.ensureDeferred
async def test_the_socket_is_what_a_socket_is(way: str, certificate: Path) -> None:
    seen: dict[str, Any] = {}

    def look(conn: socket.socket) -> None:
        seen["peer"], seen["local"] = conn.getpeername()[:2], conn.getsockname()[:2]
        seen["readable"] = select.select([conn], [], [], 10)[0] == [conn]
        conn.settimeout(0.01)
        seen["data"] = conn.recv(100)
        try:
            conn.recv(100)
        except TimeoutError:
            seen["timed out"] = True
        conn.settimeout(None)
        with conn.makefile("rw", newline="\n") as file:
            print("bye", file=file)

    async with both(way, certificate, handler=look) as server:
        client = await server.connect()
        host = client.transport.getHost()
        client.send(b"happy\n")
        assert await client.receive_all() == b"bye\n"
        assert client.clean
        assert seen == {
            "peer": (host.host, host.port),
            "local": ("127.0.0.1", server.number),
            "readable": True,
            "data": b"happy\n",
            "timed out": True,
        }


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_megabyte_goes_both_ways(way: str, certificate: Path) -> None:
    data = b"happy days\n" * 100_000

    def mirror(conn: socket.socket) -> None:
        while chunk := conn.recv(65536):
            conn.sendall(chunk)
            if chunk.endswith(b"\0"):
                return

    async with both(way, certificate, handler=mirror) as server:
        client = await server.connect()
        client.send(data + b"\0")
        assert await client.receive_all() == data + b"\0"
        assert client.clean


def through_a_duplicate(conn: socket.socket) -> None:
    with conn.dup() as other:
        other.shutdown(socket.SHUT_WR)


def through_its_descriptor(conn: socket.socket) -> None:
    with socket.socket(fileno=conn.detach()) as other:
        other.shutdown(socket.SHUT_WR)


@WAYS
@pytest.mark.parametrize(
    "end",
    [
        lambda conn: conn.close(),
        lambda conn: conn.shutdown(socket.SHUT_WR),
        lambda conn: conn.shutdown(socket.SHUT_RDWR),
        lambda conn: (conn.shutdown(socket.SHUT_WR), conn.close()),
        through_a_duplicate,
        through_its_descriptor,
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_handler_may_end_the_stream_itself_before_it_returns(
    way: str, certificate: Path, end: Callable[[socket.socket], object]
) -> None:
    leave = threading.Event()

    def handler(conn: socket.socket) -> None:
        conn.recv(5)
        conn.sendall(b"x" * 100_000)
        end(conn)
        leave.wait(10)

    async with both(way, certificate, handler=handler) as server:
        for _ in range(5):
            leave.clear()
            client = await server.connect()
            client.send(b"quit\n" * 20_000)
            await client.until(lambda client=client: len(client.data) == 100_000)
            leave.set()
            assert await client.receive_all() == b"x" * 100_000
            assert client.clean
            # A late handler would miss its permission, and occupy the next one's thread.
            await eventually(lambda: not server.factory.model.pool.busy)
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"handler closed": 5}


def by_itself(conn: socket.socket) -> None:
    conn.shutdown(socket.SHUT_WR)


@WAYS
@pytest.mark.parametrize("end", [by_itself, through_a_duplicate, through_its_descriptor])
@pytest_twisted.ensureDeferred
async def test_all_that_a_handler_sent_before_it_ended_the_stream_arrives(
    way: str, certificate: Path, end: Callable[[socket.socket], object]
) -> None:
    """Fault 98: A handler may end its stream through any descriptor of the connection, and leave
    input unread: all that it sent before arrives.
    """
    size = 200_000

    def handler(conn: socket.socket) -> None:
        conn.recv(5)
        conn.sendall(b"x" * size)
        end(conn)

    async with both(way, certificate, handler=handler) as server:
        client = await server.connect()
        client.send(b"quit\n" * 60_000)
        client.transport.pauseProducing()
        served = await server.accepted()
        await eventually(lambda: served._reason is not None)
        client.transport.resumeProducing()
        assert len(await client.receive_all()) == size
        assert client.clean
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"handler closed": 1}


@WAYS
@pytest.mark.parametrize("client_ends", ["first", "then"])
@pytest.mark.parametrize("end", [by_itself, through_a_duplicate, through_its_descriptor])
@pytest_twisted.ensureDeferred
async def test_a_connection_ends_when_its_handler_has_ended_the_stream(
    way: str, certificate: Path, end: Callable[[socket.socket], object], client_ends: str
) -> None:
    """Fault 98: A handler may end its stream through another descriptor of the connection, and
    return later: the connection closes then.
    """
    leave = threading.Event()

    def handler(conn: socket.socket) -> None:
        conn.sendall(b"bye")
        leave.wait(10 if client_ends == "first" else 0)
        end(conn)
        leave.wait(10)

    limits = Limits(write_timeout=0, linger=0)
    async with both(way, certificate, handler=handler, limits=limits) as server:
        client = await server.connect()
        await client.receive(b"bye")
        if client_ends == "first":
            client.finish()
            leave.set()
        await client.until(lambda: client.ended)
        leave.set()
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"handler closed": 1}


@pytest_twisted.ensureDeferred
async def test_above_max_threads_a_client_gets_a_line_and_a_close() -> None:
    async with serving(MODEL, threads=2, handler=clientthread) as server:
        served = [await server.connect() for _ in range(2)]
        for client in served:
            await client.receive(BANNER)
        refused = await server.connect()
        assert await refused.receive_all() == (
            b"Server busy: all 2 threads are in use, try again later\n"
        )
        assert refused.clean
        assert server.factory.metrics.refused == {"max-threads": 1}
        await eventually(lambda: server.factory.metrics.ended == {"refused": 1})
        assert server.factory.metrics.bytes_sent == 55
        served[0].finish()
        await served[0].receive_all()
        await eventually(lambda: len(server.factory.connections) == 1)
        await (await server.connect()).receive(BANNER)


@pytest_twisted.ensureDeferred
async def test_a_client_that_has_gone_has_its_address_s_place_until_the_thread_is_free(
    certificate: Path,
) -> None:
    released = threading.Event()

    def block(conn: socket.socket) -> None:
        assert released.wait(10)

    async with both("relayed", certificate, handler=block) as server:
        model, metrics = server.factory.model, server.factory.metrics
        assert isinstance(model, ThreadPerConnection)
        clients = [await server.connect() for _ in range(3)]
        await eventually(lambda: model.pool.busy == 3)
        for client in clients:
            client.transport.abortConnection()
        await eventually(lambda: metrics.ended.total() == 3)
        await (await server.connect()).receive_all()
        assert metrics.refused == {"threads-per-address": 1}
        released.set()
        await eventually(lambda: model.pool.available == 4)
        for client in [await server.connect() for _ in range(3)]:
            await client.receive_all()
        assert metrics.refused == {"threads-per-address": 1}


@pytest.mark.parametrize("kind", ["direct", "relayed"])
@pytest_twisted.ensureDeferred
async def test_without_a_thread_for_it_a_client_gets_a_line_and_a_close(
    kind: str, certificate: Path, log: Log
) -> None:
    async with both(kind, certificate, handler=clientthread) as server:
        with no_more_threads():
            refused = await server.connect()
            assert await refused.receive_all() == (
                b"Server busy: no thread can be started, try again later\n"
            )
            assert refused.clean
        await eventually(lambda: server.factory.metrics.ended == {"refused": 1})
        assert server.factory.metrics.bytes_sent == 55
        assert server.factory.metrics.refused == {"threads": 1}
        assert "Traceback" not in log.text
        await (await server.connect()).receive(BANNER)


@pytest.mark.parametrize("kind", ["direct", "relayed"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_is_gone_needs_not_be_told_that_there_is_no_thread(
    kind: str, certificate: Path
) -> None:
    submitted: list[Callable[[Any], None]] = []
    async with both(kind, certificate, handler=clientthread) as server:
        server.factory.model.pool.submit = lambda done, *_: submitted.append(done)
        await server.connect()
        await eventually(lambda: submitted)
        server.factory.abort()
        await eventually(lambda: not server.factory.connections)
        submitted[0](Failure(Busy("no thread can be started", Refusal.THREADS)))
        assert not server.factory.metrics.refused


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_banner_that_was_asked_for_precedes_the_handler(
    way: str, certificate: Path
) -> None:
    def handler(conn: socket.socket) -> None:
        conn.sendall(b"hello\n")

    async with both(way, certificate, handler=handler, banner=b"Hi\n") as server:
        assert await (await server.connect()).receive_all() == b"Hi\nhello\n"


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_handler_that_raises_is_logged_once(way: str, certificate: Path, log: Log) -> None:
    def handler(conn: socket.socket) -> None:
        raise RuntimeError(conn.recv(100).decode())

    async with both(way, certificate, handler=handler) as server:
        client = await server.connect()
        client.send(b"\x1b[31m {peer}")
        assert await client.receive_all() == b""
        await eventually(lambda: not server.factory.connections)
        (error,) = log.take_errors()
        assert r"RuntimeError: \x1b[31m {peer}" in error


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_silent_client_is_disconnected_but_a_busy_handler_is_not(
    way: str, certificate: Path
) -> None:
    leave = threading.Event()

    def handler(conn: socket.socket) -> None:
        if conn.recv(100) == b"work\n":
            leave.wait(10)
            conn.sendall(b"done\n")

    limits = Limits(idle_timeout=0.6, linger=0.2)
    async with both(way, certificate, handler=handler, limits=limits) as server:
        silent, working = await server.connect(), await server.connect()
        working.send(b"work\n")
        assert await silent.receive_all() == b""
        await eventually(lambda: len(server.factory.connections) == 1)
        assert server.factory.metrics.ended == {"idle-timeout": 1}
        leave.set()
        assert await working.receive_all() == b"done\n"


@WAYS
@pytest.mark.parametrize("ends", ["drain", "reset"])
@pytest_twisted.ensureDeferred
async def test_of_a_client_that_has_sent_nothing_no_byte_is_counted(
    way: str, certificate: Path, ends: str
) -> None:
    def handler(conn: socket.socket) -> None:
        select.select([conn], [], [])

    async with both(way, certificate, handler=handler) as server:
        client = await server.connect()
        served = await server.accepted()
        await eventually(lambda: served._conn is not None and served._is_awaited())
        client.reset() if ends == "reset" else server.factory.drain()
        await eventually(lambda: bool(server.factory.metrics.ended))
        assert served.figures[1] == 0


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_handler_that_is_caught_between_two_waits_is_looked_at_again(
    way: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "MORE_LOOKS", 1000)
    caught, go_on = threading.Event(), threading.Event()

    def handler(conn: socket.socket) -> None:
        conn.fileno()
        caught.set()
        go_on.wait(10)
        select.select([conn], [], [])
        conn.recv(100)

    limits = Limits(first_byte_timeout=0, idle_timeout=600)
    async with both(way, certificate, handler=handler, limits=limits) as server:
        client = await server.connect()
        await eventually(caught.is_set)
        (served,) = server.factory.connections
        await eventually(lambda: not served._channel.unsent())  # includes the bytes of TLS
        served.sweep(reactor.seconds())  # which sees what there was before
        served.sweep(reactor.seconds() + 1000)
        assert not server.factory.metrics.ended
        go_on.set()
        assert await client.receive_all() == b""
        await eventually(lambda: server.factory.metrics.ended == {"idle-timeout": 1})


@pytest_twisted.ensureDeferred
async def test_relayed_bytes_are_on_their_way_before_the_kernel_has_them(
    certificate: Path,
) -> None:
    leave = threading.Event()
    async with both("relayed", certificate, handler=lambda conn: leave.wait(10)) as server:
        await server.connect()
        served = await server.accepted()
        await eventually(lambda: served._channel is not None and served._channel.transport)
        channel = served._channel
        await eventually(lambda: not channel.unsent() + channel.unread())  # TLS's own
        channel.forward(b"question")
        assert channel.unread() == len(b"question")
        arrived = channel.taken().acknowledged
        channel.dataReceived(b"answer")
        underway = channel.unsent() + channel.taken().acknowledged - arrived
        assert underway > len(b"answer")  # with a record's header
        await eventually(lambda: not channel.unsent())
        assert channel.taken().acknowledged - arrived == underway
        leave.set()


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_handler_that_is_at_work_at_every_look_is_not_disturbed(
    way: str, certificate: Path
) -> None:
    at_work, leave = threading.Event(), threading.Event()

    def handler(conn: socket.socket) -> None:
        conn.fileno()
        at_work.set()
        leave.wait(10)
        conn.sendall(b"done\n")

    limits = Limits(first_byte_timeout=0, idle_timeout=600)
    async with both(way, certificate, handler=handler, limits=limits) as server:
        client = await server.connect()
        await eventually(at_work.is_set)
        (served,) = server.factory.connections
        await eventually(lambda: not served._channel.unsent())  # includes the bytes of TLS
        served.sweep(reactor.seconds())
        served.sweep(reactor.seconds() + 1000)
        assert served._next_look is not None
        await eventually(lambda: served._next_look is None)
        assert served._verdict is None
        leave.set()
        assert await client.receive_all() == b"done\n"


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_handler_that_ignores_the_end_does_not_keep_a_silent_client(
    way: str, certificate: Path
) -> None:
    leave = threading.Event()

    def deaf(conn: socket.socket) -> None:
        while not leave.wait(0.01):
            with contextlib.suppress(OSError):
                conn.recv(1)

    limits = Limits(idle_timeout=0.3, linger=0.6)
    async with both(way, certificate, handler=deaf, limits=limits) as server:
        await server.connect()
        await eventually(lambda: server.factory.metrics.ended == {"idle-timeout": 1})
        leave.set()


@WAYS
@pytest_twisted.ensureDeferred
async def test_an_abort_wakes_a_thread_that_is_blocked_in_its_socket(
    way: str, certificate: Path
) -> None:
    async with both(way, certificate, handler=clientthread) as server:
        reading, writing = await server.connect(), await server.connect()
        await reading.receive(BANNER)
        await writing.receive(BANNER)
        writing.transport.pauseProducing()
        writing.send(b"x" * 5_000_000)
        await deferLater(reactor, 0.1)  # most likely it is blocked by then; if not, it is well too
        server.factory.abort()
        await eventually(lambda: not server.factory.connections)
        await eventually(lambda: server.factory.model.pool.available == 4)  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_a_thread_that_is_blocked_elsewhere_does_not_hold_an_abort() -> None:
    leave = threading.Event()
    async with serving(MODEL, handler=lambda conn: leave.wait(10)) as server:
        client = await server.connect()
        await eventually(lambda: server.factory.metrics.accepted == 1)
        server.factory.abort()
        await client.receive_all()
        assert not server.factory.connections
        leave.set()


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_drain_lets_the_thread_read_what_was_received_and_then_the_end(
    way: str, certificate: Path
) -> None:
    go_on = threading.Event()

    def handler(conn: socket.socket) -> None:
        conn.sendall(b"ready\n")
        go_on.wait(10)
        while data := conn.recv(4):
            conn.sendall(data.upper())
        conn.sendall(b"end")

    async with both(way, certificate, handler=handler) as server:
        client = await server.connect()
        await client.receive(b"ready\n")
        client.send(b"happy days")
        await client.arrive()
        drained = server.factory.drain()
        go_on.set()
        assert await client.receive_all() == b"HAPPY DAYSend"
        await drained


# The bytes for a slow reader: at the end of the stream the daemon's kernel still has most of them.
MUCH = b"x" * 200_000


async def connect_slow_reader(server: Server) -> Talker:
    """Return a client that does not read, so that the kernels hold its data."""
    client = await server.connect()
    client.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000)
    client.transport.pauseProducing()
    return client


async def send_after_the_end(client: Talker, server: Server) -> bytes:
    """Send more once the daemon has ended the stream, and only then read; return what came."""
    served = await server.accepted()
    await eventually(lambda: served._state in (State.FIN_SENT, State.LOST))
    client.send(b"came later\n")
    client.transport.resumeProducing()
    return await client.receive_all()


def say_much_at_the_end(conn: socket.socket) -> None:
    while conn.recv(1024):
        pass
    conn.sendall(MUCH)


def wait_with_a_time_out(conn: socket.socket) -> None:
    conn.settimeout(10)
    clientthread(conn)


def wait_in_another_thread(conn: socket.socket) -> None:
    reader = threading.Thread(target=clientthread, args=(conn,))
    reader.start()
    reader.join()


def is_waiting(server: Server) -> bool:
    """Whether the one thread waits for its client."""
    return any(
        each._conn is not None and each._conn.receiving and not unread(each.transport)
        for each in server.factory.connections
    )


@pytest_twisted.ensureDeferred
async def test_who_sends_after_a_drain_gets_all_of_it_and_no_reset() -> None:
    async with serving(MODEL, handler=say_much_at_the_end) as server:
        client = await connect_slow_reader(server)
        await eventually(lambda: is_waiting(server))
        drained = server.factory.drain()
        assert await send_after_the_end(client, server) == MUCH
        assert client.clean
        await drained
        assert server.factory.metrics.ended == {"drained": 1}


@pytest_twisted.ensureDeferred
async def test_a_message_that_was_read_but_not_counted_when_a_drain_began_is_answered_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_read, go_on = threading.Event(), threading.Event()
    plain = thread_socket._recv

    def read_and_linger(*arguments: Any) -> bytes:
        data: bytes = plain(*arguments)
        has_read.set()
        go_on.wait(10)
        return data

    def handler(conn: socket.socket) -> None:
        while conn.recv(1024):
            conn.sendall(MUCH)

    monkeypatch.setattr(thread_socket, "_recv", read_and_linger)
    async with serving(MODEL, handler=handler) as server:
        client = await connect_slow_reader(server)
        client.send(b"happy\n")
        await eventually(has_read.is_set)
        drained = server.factory.drain()
        go_on.set()
        assert await send_after_the_end(client, server) == MUCH
        assert client.clean
        await drained


@pytest.mark.parametrize("handler", [wait_with_a_time_out, wait_in_another_thread])
@pytest_twisted.ensureDeferred
async def test_a_thread_that_cannot_be_interrupted_is_woken_nevertheless(
    handler: Callable[[socket.socket], None],
) -> None:
    async with serving(MODEL, handler=handler) as server:
        client = await server.connect()
        await client.receive(BANNER)
        await eventually(lambda: is_waiting(server))
        await server.factory.drain()
        assert server.factory.metrics.ended == {"drained": 1}


@pytest_twisted.ensureDeferred
async def test_a_client_that_vanishes_from_a_relay_is_forgotten(
    certificate: Path,
) -> None:
    async with both("relayed", certificate, handler=clientthread) as server:
        client = await server.connect()
        await client.receive(BANNER)
        client.transport.abortConnection()
        await eventually(lambda: server.factory.metrics.accepted == 1)
        await eventually(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_unix_sockets_are_handed_over_too(tmp_path: Any) -> None:
    path = str(tmp_path / "echod.sock")
    factory = EchoFactory(reactor, handler=clientthread, model=make_model(MODEL))
    port = reactor.listenUNIX(path, factory)
    client = await connectProtocol(UNIXClientEndpoint(reactor, path), Talker())
    await client.receive(BANNER)
    client.send(b"happy\n")
    await client.receive(b"OK...happy\n")
    (connection,) = factory.connections
    assert connection.client.local == path  # type: ignore[attr-defined]
    client.finish()
    assert await client.receive_all() == b""
    await port.stopListening()
    factory.model.stop()


# As many whole pieces as the kernel makes of what is sent, so that it holds as much after each
# burst as before.
BURST = 12 * 36544


def flood_by_descriptor(conn: socket.socket) -> None:
    rest = memoryview(b"x" * 9 * BURST)
    while rest:
        rest = rest[os.write(conn.fileno(), rest) :]


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_in_bursts_what_a_descriptor_sends_gets_all(
    tmp_path: Path,
) -> None:
    """Fault 98: A client of a UNIX socket that reads some, and pauses, is not taken for one that
    does not read, though the kernel holds as much after each burst as before.
    """
    path = str(tmp_path / "echod.sock")
    limits = Limits(write_timeout=1.0, idle_timeout=1.0, first_byte_timeout=1.0)
    factory = EchoFactory(
        reactor, handler=flood_by_descriptor, model=make_model(MODEL), limits=limits
    )
    port = reactor.listenUNIX(path, factory)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.setblocking(False)
        left = 9 * BURST
        while left and factory.metrics.ended.keys() <= {"handler closed"}:
            take = BURST
            while take:
                with contextlib.suppress(BlockingIOError):
                    count = len(client.recv(take))
                    take, left = take - count, left - count
                    if not count:
                        break
                    continue
                await deferLater(reactor, 0.01)
            await deferLater(reactor, 0.5)
        assert not left
        await eventually(lambda: bool(factory.metrics.ended))
        assert factory.metrics.ended == {"handler closed": 1}
    await port.stopListening()
    await eventually(lambda: not factory.connections)
    factory.model.stop()


@pytest_twisted.ensureDeferred
async def test_a_message_handler_has_framing_and_state_in_its_thread(
    certificate: Path,
) -> None:
    handler = ResolvedHandler("upper", Kind.MESSAGE, bytes.upper)
    async with both("relayed", certificate, handler=handler, framing=Line()) as server:
        client = await server.connect()
        client.send(b"happy\nda")
        await client.receive(b"HAPPY\n")
        client.send(b"ys\n")
        await client.receive(b"DAYS\n")


def answer_by_descriptor(conn: socket.socket) -> None:
    os.write(conn.fileno(), b"OK..." + os.read(conn.fileno(), 1024))


@WAYS
@pytest_twisted.ensureDeferred
async def test_the_end_of_a_client_s_stream_is_not_counted_as_a_byte(
    way: str, certificate: Path
) -> None:
    async with both(way, certificate, handler=answer_by_descriptor) as server:
        client = await server.connect()
        client.send(b"happy")
        assert await client.receive_all() == b"OK...happy"
        await eventually(lambda: bool(server.factory.metrics.ended))
        assert server.factory.metrics.bytes_received == 5
        assert server.factory.metrics.bytes_sent == 10


class Farewell(Handler):
    """Keeps what it is told at the end."""

    reasons: list[str] = []  # noqa: RUF012 - the test looks here

    def received(self, message: bytes) -> bytes:
        return b"OK..." + message

    def closed(self, reason: str) -> None:
        self.reasons.append(reason)


@WAYS
@pytest.mark.parametrize("framing", [Chunk(), Line()])
@pytest.mark.parametrize("handler", [clientthread, Farewell])
@pytest_twisted.ensureDeferred
async def test_a_drain_is_the_reason_that_log_metrics_and_handler_get(
    way: str, certificate: Path, handler: Any, framing: Any
) -> None:
    Farewell.reasons.clear()
    async with both(way, certificate, handler=handler, framing=framing) as server:
        client = await server.connect()
        client.send(b"happy\n")
        await client.until(lambda: b"OK...happy\n" in client.data)
        await server.factory.drain()
        assert server.factory.metrics.ended == {"drained": 1}
        await client.receive_all()
    assert Farewell.reasons == (["drained"] if handler is Farewell else [])


@pytest_twisted.ensureDeferred
async def test_a_read_is_a_message_and_its_handler_may_answer_it_in_every_way() -> None:
    class Tag(bytes):
        """Bytes of a handler's own making."""

    replies = {b"a": Tag(b"tagged"), b"b": None, b"c": Close(b"bye")}

    def handler(message: bytes) -> Any:
        return replies[message]

    framing = Chunk(max_message=1)
    resolved = ResolvedHandler("replies", Kind.MESSAGE, handler)
    async with serving(MODEL, handler=resolved, framing=framing) as server:
        client = await server.connect()
        client.send(b"abcd")
        assert await client.receive_all() == b"taggedbye"
        assert client.clean
        await eventually(lambda: server.factory.metrics.messages == 3)


@pytest_twisted.ensureDeferred
async def test_in_its_thread_too_a_message_has_to_come_in_its_time() -> None:
    def upper(message: bytes) -> bytes:
        return message.upper()

    limits = Limits(message_timeout=0.6)
    async with serving(MODEL, handler=upper, framing=Line(), limits=limits) as server:
        client = await server.connect()
        client.send(b"happy\nbirth")
        await client.receive(b"HAPPY\n")
        while not client.ended:
            client.send(b"x")
            await deferLater(reactor, 0.1)
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"message-timeout": 1}


def flood(conn: socket.socket) -> None:
    conn.sendall(b"x" * 30_000_000)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_what_a_thread_sends_is_disconnected() -> None:
    async with serving(MODEL, handler=flood, limits=Limits(write_timeout=0.6)) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        await eventually(lambda: bool(server.factory.metrics.ended))
        assert server.factory.metrics.ended == {"write-timeout": 1}


@pytest_twisted.ensureDeferred
async def test_one_call_that_sends_much_may_take_longer_than_the_write_time_out() -> None:
    async with serving(MODEL, handler=flood, limits=Limits(write_timeout=1.5)) as server:
        client = await server.connect()
        for _ in range(10):
            client.transport.pauseProducing()
            await deferLater(reactor, 0.2)
            client.transport.resumeProducing()
            await deferLater(reactor, 0.01)
        assert len(await client.receive_all()) == 30_000_000
        await eventually(lambda: bool(server.factory.metrics.ended))
        assert server.factory.metrics.ended == {"handler closed": 1}


class BufferedEcho(socketserver.StreamRequestHandler):
    """Has something left to send when it fails: `finish` tries once more."""

    wbufsize = -1

    def handle(self) -> None:
        self.wfile.write(b"OK...")
        for line in self.rfile:
            self.wfile.write(line)


def ask_who_it_is(conn: socket.socket) -> None:
    while conn.recv(100):
        pass
    assert conn.getpeername()[0] == conn.getsockname()[0] == "127.0.0.1"
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    conn.sendall(b"bye")
    conn.sendall(b"bye")
    conn.shutdown(socket.SHUT_RDWR)


def by_files(conn: socket.socket) -> None:
    with conn.makefile("rwb") as file:
        for line in file:
            file.write(line * 1000)
            file.flush()
        file.write(b"bye")


def by_descriptor(conn: socket.socket) -> None:
    while data := os.read(conn.fileno(), 100):
        os.write(conn.fileno(), data)
    os.write(conn.fileno(), b"bye")
    os.write(conn.fileno(), b"bye")


def by_duplicate(conn: socket.socket) -> None:
    with conn.dup() as other:
        other.recv(100)
        while True:
            other.sendall(b"x" * 1000)


def by_asyncio(conn: socket.socket) -> None:
    async def talk() -> None:
        conn.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=conn)
        try:
            await reader.read(100)
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
        finally:
            writer.close()

    asyncio.run(talk())


RESET = [
    clientthread,
    Shouter,
    BufferedEcho,
    SimpleHTTPRequestHandler,
    ask_who_it_is,
    by_files,
    by_descriptor,
    by_duplicate,
    by_asyncio,
]


@WAYS
@pytest.mark.parametrize("handler", RESET, ids=lambda handler: handler.__name__)
@pytest_twisted.ensureDeferred
async def test_a_client_that_resets_at_once_is_no_error_of_the_handler(
    way: str, certificate: Path, handler: Any, log: Log
) -> None:
    """Fault 73: Its connection ends without a traceback, and does not count as an error of the
    handler, no matter what the handler does with its socket.
    """
    async with both(way, certificate, handler=handler) as server:
        for _ in range(5):
            client = await server.connect()
            client.reset()
            await client.receive_all()
        await eventually(lambda: sum(server.factory.metrics.ended.values()) == 5)
    assert "handler error" not in server.factory.metrics.ended
    assert "Traceback" not in log.text


@pytest.mark.parametrize("handler", RESET, ids=lambda handler: handler.__name__)
@pytest_twisted.ensureDeferred
async def test_a_client_that_resets_later_is_no_error_of_the_handler(
    handler: Any, log: Log
) -> None:
    """Fault 73: The connection of a client that resets while it is served ends as `connection
    lost`.
    """
    async with serving(MODEL, handler=handler) as server:
        client = await server.connect()
        client.send(b"GET /")
        served = await server.accepted()
        await eventually(lambda: served._conn is not None and not unread(served.transport))
        client.reset()
        await eventually(lambda: bool(server.factory.metrics.ended))
    assert "handler error" not in server.factory.metrics.ended
    assert "Traceback" not in log.text


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_client_that_resets_in_a_handshake_of_the_handlers_is_no_error_of_the_handler(
    way: str, certificate: Path, log: Log
) -> None:
    """Fault 73: If a client resets while a handler shakes hands with it, the connection ends
    without a traceback.
    """

    def handler(conn: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with context.wrap_socket(conn, server_side=True) as wrapped:
            wrapped.recv(100)

    async with both(way, certificate, handler=handler) as server:
        client = await server.connect()
        client.send(b"\x16\x03\x01\x02\x00\x01")  # the first of a ClientHello
        served = await server.accepted()
        await eventually(lambda: served._conn is not None and served._is_awaited())
        client.reset()
        await eventually(lambda: bool(server.factory.metrics.ended))
    assert "handler error" not in server.factory.metrics.ended
    assert "Traceback" not in log.text


@WAYS
@pytest.mark.parametrize("end", ["client", "drain"])
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"])  # the first of a ClientHello
# The second is that of Python 3.11.2, which Debian 12 has.
@pytest.mark.parametrize("reported", [ssl.SSLEOFError, ssl.SSLZeroReturnError])
@pytest_twisted.ensureDeferred
async def test_an_end_of_the_stream_in_a_handshake_of_the_handlers_is_no_error_of_the_handler(
    way: str, certificate: Path, end: str, sent: bytes, reported: type[ssl.SSLError], log: Log
) -> None:
    """Fault 96: The handler ends without a traceback, whether the client ends the stream or the
    daemon drains.
    """

    def handler(conn: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            with context.wrap_socket(conn, server_side=True) as wrapped:
                wrapped.recv(100)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise reported(*error.args) from None

    async with both(way, certificate, handler=handler) as server:
        client = await server.connect()
        client.send(sent)
        served = await server.accepted()
        await eventually(lambda: served._conn is not None and served._is_awaited())
        if end == "drain":
            server.factory.drain()
        else:
            client.finish()
        await eventually(lambda: bool(server.factory.metrics.ended))
    reason = "drained" if end == "drain" else "client closed"
    assert server.factory.metrics.ended == {reason: 1}
    assert "Traceback" not in log.text


def wait_for_a_moment(conn: socket.socket) -> None:
    conn.settimeout(0.05)
    conn.recv(1)


def wait_for_a_moment_by_file(conn: socket.socket) -> None:
    conn.settimeout(0.05)
    with conn.makefile("rb") as file:
        file.readline()


def not_wait(conn: socket.socket) -> None:
    conn.setblocking(False)
    conn.recv(1)


def read_a_file(conn: socket.socket) -> None:
    Path("/nonexistent").read_bytes()


def lose_a_database(conn: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        ours.sendall(b"SELECT 1")


def lose_a_database_over_tls(conn: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.shutdown(socket.SHUT_WR)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(ours, server_hostname="localhost")


def write_behind_its_own_end(conn: socket.socket) -> None:
    conn.shutdown(socket.SHUT_WR)
    conn.sendall(b"x")


@WAYS
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    "handler",
    [
        wait_for_a_moment,
        wait_for_a_moment_by_file,
        not_wait,
        read_a_file,
        lose_a_database,
        lose_a_database_over_tls,
        write_behind_its_own_end,
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_error_of_the_handlers_own_is_logged_though_it_looks_like_the_connections(
    way: str, certificate: Path, handler: Callable[[socket.socket], None], asked: bool, log: Log
) -> None:
    """Fault 74: While its client is connected, a handler's own time-out, an error of its files,
    and the loss of another connection count as its errors, and are logged with a traceback.
    """

    def run(conn: socket.socket) -> None:
        if asked:
            conn.fileno()
        handler(conn)

    async with both(way, certificate, handler=run) as server:
        client = await server.connect()
        assert await client.receive_all() == b""
        await eventually(lambda: bool(server.factory.metrics.ended))
        assert server.factory.metrics.ended == {"handler error": 1}
    (error,) = log.take_errors()
    assert handler.__name__ in error


@pytest_twisted.ensureDeferred
async def test_the_loss_of_another_connection_is_the_handlers_error_though_the_client_is_lost_too(
    log: Log,
) -> None:
    """Fault 74: The loss of another connection counts as the handler's error, even if its client
    has gone as well.
    """
    lost = threading.Event()

    def handler(conn: socket.socket) -> None:
        lost.wait(10)
        with contextlib.suppress(ConnectionResetError):
            conn.recv(1)
        lose_a_database(conn)

    async with serving(MODEL, handler=handler) as server:
        client = await server.connect()
        client.reset()
        await client.receive_all()
        lost.set()
        await eventually(lambda: server.factory.metrics.ended == {"handler error": 1})
    (error,) = log.take_errors()
    assert "BrokenPipeError" in error


@pytest.mark.parametrize("kind", ["tcp", "tls", "proxy"])
@pytest_twisted.ensureDeferred
async def test_addresses_of_ipv6_have_the_four_elements_that_a_socket_gives(
    kind: str, certificate: Path
) -> None:
    seen: list[Any] = []

    def handler(conn: socket.socket) -> None:
        seen.extend([conn.getpeername(), conn.getsockname()])

    factory = EchoFactory(reactor, handler=handler, model=make_model(MODEL))
    listen: Any = factory
    if kind == "tls":
        listen = TLSFactory(factory, server_context(certificate), reactor)
    elif kind == "proxy":
        listen = ProxyFactory(factory, factory, LOOPBACK)
    port = reactor.listenTCP(0, listen, interface="::1")
    with socket.create_connection(("::1", port.getHost().port)) as client:
        expected = [client.getsockname(), client.getpeername()]
        if kind == "proxy":
            client.sendall(b"PROXY TCP6 2001:db8::1 2001:db8::2 60225 8888\r\n")
            expected = [("2001:db8::1", 60225, 0, 0), ("2001:db8::2", 8888, 0, 0)]
        elif kind == "tls":
            client.setblocking(False)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(client, do_handshake_on_connect=False) as secure:
                while True:
                    try:
                        secure.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        await deferLater(reactor, 0.01)
                await eventually(lambda: seen)
        await eventually(lambda: seen)
    assert seen == expected
    await port.stopListening()
    await eventually(lambda: not factory.connections)
    factory.model.stop()
