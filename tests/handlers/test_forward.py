"""`forward`, on real sockets: both streams, both ends, resets, and nothing left."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from echod.connections.factory import EchoFactory
from echod.handlers.builtin import CharacterGenerator, plain_echo
from echod.handlers.contract import HandlerError
from echod.handlers.forward import Forward, _told
from echod.limits import Limits
from echod.listening.proxy import ProxyFactory
from echod.proxy_header import HeaderParser, ProxyHeader
from echod.reasons import EndReason
from echod.settings.definitions import LOOPBACK
from echod.tls import TLSError, TLSFactory
from tests.support.log import Log
from tests.support.ports import free_port
from tests.support.reactor import reactor
from tests.support.serving import (
    Server,
    Talker,
    eventually,
    in_thread,
    no_more_threads,
    server_by,
    server_context,
    turns,
)

BIG = 1_000_000
WAYS = ["clear", "TLS", "PROXY"]
UPSTREAMS = ["tcp", "tls", "unix"]


@implementer(IHalfCloseableProtocol)
class Scripted(Protocol):
    """An upstream's side of a connection, which the test leads."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self.reason: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def readConnectionLost(self) -> None:
        self.ended = True

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = reason


class Upstream:
    """An upstream that the test leads, with its connections."""

    def __init__(self) -> None:
        self.made: list[Scripted] = []
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = self._build
        self.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.to = f"127.0.0.1:{self.port.getHost().port}"

    def _build(self, addr: object) -> Scripted:
        self.made.append(Scripted())
        return self.made[-1]

    async def accepted(self) -> Scripted:
        await eventually(lambda: self.made)
        return self.made[0]

    async def stop(self) -> None:
        await self.port.stopListening()
        for one in self.made:
            if one.reason is None:
                one.transport.abortConnection()
        await eventually(lambda: all(one.reason for one in self.made))


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    try:
        yield made
    finally:
        await made.stop()


def forwarding(
    certificate: Path, way: str = "clear", limits: Limits | None = None, **options: Any
) -> Server:
    factory = EchoFactory(reactor, handler=Forward(**options), limits=limits)
    return server_by(way, factory, certificate)


async def forwarded(server: Server, up: Upstream) -> tuple[Talker, Scripted]:
    """Connect a client, and wait for what it sends; return it, and its upstream's side."""
    client = await server.connect()
    client.send(b"hello")
    served = await up.accepted()
    await eventually(lambda: served.data == b"hello")
    return client, served


@asynccontextmanager
async def echoing(kind: str, certificate: Path, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """An upstream that echoes, by one of `UPSTREAMS`; gives the arguments of `forward`."""
    factory = EchoFactory(reactor, handler=plain_echo)
    options: dict[str, Any]
    if kind == "unix":
        path = str(folder / "up.sock")
        port = reactor.listenUNIX(path, factory)
        options = {"to": f"unix:{path}"}
    elif kind == "tls":
        context = server_context(certificate)
        wrapped = TLSFactory(factory, context, reactor)
        port = reactor.listenTCP(0, wrapped, interface="127.0.0.1")
        options = {"to": f"tls:127.0.0.1:{port.getHost().port}", "ca": str(certificate)}
    else:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        options = {"to": f"127.0.0.1:{port.getHost().port}"}
    try:
        yield options
    finally:
        await port.stopListening()
        factory.abort()
        await eventually(lambda: not factory.connections)


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port that answers no SYN: its queue is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        try:
            yield port
        finally:
            for one in waiting:
                one.close()


@pytest.mark.parametrize("kind", UPSTREAMS)
@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_clients_end_is_passed_on_behind_its_bytes_and_the_replies_come_whole(
    way: str, kind: str, certificate: Path, tmp_path: Path
) -> None:
    """Fault 150: All bytes arrive, then the end; all replies come, then the end."""
    async with (
        echoing(kind, certificate, tmp_path) as options,
        forwarding(certificate, way, **options) as server,
    ):
        data = os.urandom(BIG)
        for size in (0, 10, BIG):
            client = await server.connect()
            client.send(data[:size])
            client.finish()
            assert await client.receive_all() == data[:size]
            assert client.clean
        await eventually(lambda: not server.factory.connections)


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_an_upstreams_end_is_passed_on_and_the_client_may_write_on(
    way: str, certificate: Path
) -> None:
    """Fault 150: The client sees the end, and all that it sends after that arrives."""
    async with upstream() as up, forwarding(certificate, way, to=up.to) as server:
        client = await server.connect()
        client.readConnectionLost = lambda: setattr(client, "ended", True)
        served = await up.accepted()
        served.transport.write(b"said")
        served.transport.loseWriteConnection()
        await eventually(lambda: client.ended)
        assert client.data == b"said"
        data = os.urandom(BIG)
        client.send(data)
        client.finish()
        await eventually(lambda: served.ended)
        assert served.data == data
        await eventually(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_an_upstreams_reset_is_a_reset_to_the_client_and_a_line_in_the_log(
    certificate: Path, log: Log
) -> None:
    """Fault 152: The other side sees a reset, too."""
    async with upstream() as up, forwarding(certificate, to=up.to) as server:
        client, served = await forwarded(server, up)
        served.transport.abortConnection()
        await client.until(lambda: client.reason is not None)
        assert not client.clean
        await eventually(lambda: not server.factory.connections)
    assert log.text.count(f"{up.to} has broken off for 127.0.0.1:") == 1


@pytest_twisted.ensureDeferred
async def test_a_clients_reset_is_a_reset_to_the_upstream(certificate: Path) -> None:
    """Fault 152: The other side sees a reset, too."""
    async with upstream() as up, forwarding(certificate, to=up.to) as server:
        client, served = await forwarded(server, up)
        client.reset()
        await eventually(lambda: served.reason is not None)
        assert not served.ended
        assert not served.reason.check(type(connectionDone.value))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The forwarded connections."""
    made: list[Any] = []
    build = Forward.buildProtocol

    def build_and_note(self: Forward, addr: Any) -> Any:
        made.append(build(self, addr))
        return made[-1]

    monkeypatch.setattr(Forward, "buildProtocol", build_and_note)
    return made


@pytest_twisted.ensureDeferred
async def test_a_slow_client_gets_all_of_an_upstream_that_ends_and_then_resets(
    certificate: Path, built: list[Any], log: Log
) -> None:
    """Fault 152: A reset behind the end of its stream loses nothing that came before."""
    data = os.urandom(2 * BIG)
    async with upstream() as up, forwarding(certificate, to=up.to) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.number))
            client.setblocking(False)
            served = await up.accepted()
            served.transport.write(data)
            served.transport.loseWriteConnection()
            got = bytearray()
            while not built[0]._upstream_ended:
                await eventually(lambda: readable(client))
                got += client.recv(65536)
                await turns(3)
            served.transport.abortConnection()
            await eventually(lambda: served.reason)
            client.send(b"more")  # only a write finds the reset behind an end
            await eventually(lambda: log.text.count("has broken off for 127.0.0.1:"))
            while len(got) < len(data):
                await eventually(lambda: readable(client))
                got += client.recv(BIG) or pytest.fail(f"{len(data) - len(got)} are lost")
            assert got == data
            await eventually(lambda: readable(client))
            assert client.recv(1) == b""
        await eventually(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_a_slow_upstream_gets_all_of_a_client_that_ends_and_then_resets(
    certificate: Path, built: list[Any]
) -> None:
    """Fault 152: A reset behind the end of its stream loses nothing that came before."""
    data = os.urandom(2 * BIG)
    async with upstream() as up, forwarding(certificate, to=up.to) as server:
        with socket.create_connection(("127.0.0.1", server.number)) as client:
            served = await up.accepted()
            served.transport.pauseProducing()
            served.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

            def send() -> None:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)

            sent = in_thread(send)
            while not built[0]._client_ended:
                served.transport.resumeProducing()
                await turns(1)
                served.transport.pauseProducing()
                await turns(3)
            await sent
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: not server.factory.connections)
        served.transport.resumeProducing()
        await eventually(lambda: served.ended or served.reason)
        assert served.data == data
        assert served.ended


def readable(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0])


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_what_an_upstream_sends_right_before_its_reset_reaches_the_client(
    way: str, certificate: Path
) -> None:
    async with upstream() as up, forwarding(certificate, way, to=up.to) as server:
        client, served = await forwarded(server, up)
        os.write(served.transport.getHandle().fileno(), b"its last words")
        served.transport.abortConnection()
        await client.until(lambda: client.reason is not None)
        assert client.data == b"its last words"
        assert not client.clean
        await eventually(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_what_a_client_sends_right_before_its_reset_reaches_the_upstream(
    certificate: Path,
) -> None:
    async with upstream() as up, forwarding(certificate, to=up.to) as server:
        with socket.create_connection(("127.0.0.1", server.number)) as client:
            client.send(b"hello")
            served = await up.accepted()
            await eventually(lambda: served.data == b"hello")
            client.send(b", and good-bye")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: served.reason is not None)
        assert served.data == b"hello, and good-bye"
        assert not served.reason.check(type(connectionDone.value))


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_an_upstream_that_is_gone_resets_the_client_and_the_log_says_why(
    way: str, certificate: Path, log: Log
) -> None:
    """Fault 151: The client sees a reset, and the log has one line."""
    to = f"127.0.0.1:{free_port()}"
    async with forwarding(certificate, way, to=to) as server:
        client = await server.connect()
        await client.until(lambda: client.reason is not None)
        assert not client.clean
        await eventually(lambda: not server.factory.connections)
    assert log.text.count("Cannot forward ") == 1
    assert f" to {to}: connection refused" in log.text
    assert log.text.count(": handler error (") == 1


@pytest_twisted.ensureDeferred
async def test_a_name_that_no_thread_can_look_up_resets_the_client_and_the_log_says_why(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    pool = ThreadPool(0, 1)
    pool.start()
    monkeypatch.setattr(reactor, "getThreadPool", lambda: pool)
    async with upstream() as up:
        to = f"localhost:{up.port.getHost().port}"
        async with forwarding(certificate, to=to) as server:
            with no_more_threads():
                client = await server.connect()
                await client.until(lambda: client.reason is not None)
            assert not client.clean
            await eventually(lambda: not server.factory.connections)
            _, served = await forwarded(server, up)
            served.transport.loseConnection()
    pool.stop()
    why = "no thread can look up its name (can't start new thread; see ulimit -u)"
    assert log.text.count("Cannot forward ") == 1
    assert f" to {to}: {why}" in log.text


@pytest_twisted.ensureDeferred
async def test_an_upstream_that_does_not_answer_is_given_up_after_the_time_out(
    certificate: Path, log: Log
) -> None:
    """Fault 151: The client sees a reset after the time-out, and the log has one line."""
    with full_backlog() as port:
        to = f"127.0.0.1:{port}"
        async with forwarding(certificate, to=to, connect_timeout=0.3) as server:
            client = await server.connect()
            await client.until(lambda: client.reason is not None)
            assert not client.clean
            await eventually(lambda: not server.factory.connections)
    assert f" to {to}: it has not answered within 0.3 s" in log.text


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_does_not_end_is_given_up_too(certificate: Path, log: Log) -> None:
    """Fault 151: The client sees a reset after the time-out, and the log has one line."""
    async with (
        upstream() as up,
        forwarding(certificate, to=f"tls:{up.to}", connect_timeout=0.3) as server,
    ):
        client = await server.connect()
        await client.until(lambda: client.reason is not None)
        assert not client.clean
        served = await up.accepted()
        await eventually(lambda: served.reason is not None)
    assert "it has not answered within 0.3 s" in log.text


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_while_its_upstream_is_connected_leaves_nothing(
    certificate: Path, log: Log
) -> None:
    with full_backlog() as port:
        async with forwarding(certificate, to=f"127.0.0.1:{port}") as server:
            client = await server.connect()
            await server.accepted()
            client.reset()
            await eventually(lambda: not server.factory.connections)
    assert "Cannot forward" not in log.text


@pytest_twisted.ensureDeferred
async def test_the_upstreams_certificate_is_verified_unless_that_is_switched_off(
    certificate: Path, tmp_path: Path, log: Log
) -> None:
    async with echoing("tls", certificate, tmp_path) as options:
        to = options["to"]
        async with forwarding(certificate, to=to) as server:
            client = await server.connect()
            await client.until(lambda: client.reason is not None)
            assert not client.clean
        assert f" to {to}: TLS: " in log.text
        wrong = {**options, "server_name": "elsewhere.example"}
        async with forwarding(certificate, **wrong) as server:
            client = await server.connect()
            await client.until(lambda: client.reason is not None)
        assert "hostname mismatch" in log.text
        async with forwarding(certificate, to=to, verify=False) as server:
            client = await server.connect()
            client.send(b"happy")
            await client.receive(b"happy")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_the_header_that_is_sent_ahead_has_the_clients_address(
    way: str, version: Any, certificate: Path
) -> None:
    async with upstream() as up, forwarding(certificate, way, to=up.to, proxy=version) as server:
        client = await server.connect()
        client.send(b"happy")
        served = await up.accepted()
        await eventually(lambda: served.data.endswith(b"happy"))
        parser = HeaderParser()
        header = parser.feed(bytes(served.data))
        assert header is not None
        assert parser.rest == b"happy"
        assert header.version == int(version[1])
        host = client.transport.getHost()
        if way != "PROXY":
            assert header.source == ("127.0.0.1", host.port)
            assert header.destination == ("127.0.0.1", server.number)
        else:  # the address in the header that came
            (connection,) = server.factory.connections
            assert header.source == connection.client.proxy.source


@pytest_twisted.ensureDeferred
async def test_the_header_goes_before_tls_in_clear(certificate: Path) -> None:
    factory = EchoFactory(reactor, handler=plain_echo)
    secure = TLSFactory(factory, server_context(certificate), reactor)
    port = reactor.listenTCP(0, ProxyFactory(secure, factory, LOOPBACK), interface="127.0.0.1")
    to = f"tls:127.0.0.1:{port.getHost().port}"
    try:
        async with forwarding(certificate, to=to, ca=str(certificate), proxy="v2") as server:
            client = await server.connect()
            client.send(b"happy")
            await client.receive(b"happy")
            connection: Any = next(iter(factory.connections))
            assert connection.client.port == client.transport.getHost().port
    finally:
        await port.stopListening()
        factory.abort()
        await eventually(lambda: not factory.connections)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_pauses_its_upstream(certificate: Path) -> None:
    """Fault 153: The other side is paused, and goes on later."""
    source = EchoFactory(reactor, handler=CharacterGenerator)
    port = reactor.listenTCP(0, source, interface="127.0.0.1")
    try:
        to = f"127.0.0.1:{port.getHost().port}"
        async with forwarding(certificate, to=to) as server:
            client = await server.connect()
            client.transport.pauseProducing()
            await eventually(lambda: source.connections)
            generating: Any = next(iter(source.connections))
            await eventually(lambda: generating.is_blocked)
            forwarded = await server.accepted()
            await eventually(lambda: forwarded.is_blocked)
            client.transport.resumeProducing()
            had = generating.figures[2]
            await eventually(lambda: generating.figures[2] > had + 20_000_000)
    finally:
        await port.stopListening()
        source.abort()
        await eventually(lambda: not source.connections)


@pytest_twisted.ensureDeferred
async def test_an_upstream_that_does_not_read_pauses_its_client(certificate: Path) -> None:
    """Fault 153: The other side is paused, and nothing is lost."""
    async with upstream() as up, forwarding(certificate, to=up.to) as server:
        client = await server.connect()
        served = await up.accepted()
        served.transport.pauseProducing()
        data = os.urandom(20_000_000)
        client.send(data)
        forwarded = await server.accepted()
        await eventually(lambda: forwarded._has_paused)
        assert forwarded.figures[1] < len(data)
        served.transport.resumeProducing()
        client.finish()
        await eventually(lambda: served.ended)
        assert served.data == data


@pytest_twisted.ensureDeferred
async def test_a_drain_ends_the_upstreams_input_and_waits_for_its_last_reply(
    certificate: Path,
) -> None:
    """Fault 155: The upstream sees the end of its input, and its last reply arrives."""
    async with upstream() as up, forwarding(certificate, to=up.to) as server:
        client = await server.connect()
        client.send(b"question")
        served = await up.accepted()
        await eventually(lambda: served.data == b"question")
        drained = server.factory.drain()
        served.transport.write(b"first ")  # now it is the client's turn
        await eventually(lambda: served.ended)
        served.transport.write(b"second")
        await client.receive(b"first second")
        served.transport.loseConnection()
        assert await client.receive_all() == b""
        assert client.clean
        await drained


@pytest_twisted.ensureDeferred
async def test_an_idle_client_is_disconnected_and_its_upstream_sees_the_end(
    certificate: Path,
) -> None:
    limits = Limits(idle_timeout=0.2)
    async with upstream() as up, forwarding(certificate, limits=limits, to=up.to) as server:
        client = await server.connect()
        served = await up.accepted()
        assert await client.receive_all() == b""
        assert client.clean
        await eventually(lambda: served.ended)
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended[EndReason.IDLE_TIMEOUT.value] == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"to": "nowhere"}, "is not HOST:PORT"),
        ({"to": "a:1", "ca": "x.pem"}, "are for to=tls:HOST:PORT"),
        ({"to": "a:1", "connect_timeout": 0.0}, "must be above 0"),
        ({"to": "tls:a:1", "ca": "/nosuch.pem"}, "cannot read /nosuch.pem"),
        ({"to": "tls:a:1", "ca": os.devnull}, "holds no certificate"),
    ],
)
def test_wrong_arguments_are_an_error_of_the_start(options: dict[str, Any], error: str) -> None:
    with pytest.raises(HandlerError, match=error):
        Forward(**options)


def test_the_parts_of_an_error_that_a_log_line_has_are_few_words() -> None:
    assert _told(Failure(OSError(111, "Connection refused"))) == "[errno 111] connection refused"
    assert (
        _told(Failure(TLSError("certificate verify failed"))) == "TLS: certificate verify failed"
    )


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest_twisted.ensureDeferred
async def test_a_client_of_a_unix_socket_is_forwarded_and_has_no_address_in_the_header(
    version: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "in.sock")
    async with upstream() as up:
        factory = EchoFactory(reactor, handler=Forward(to=up.to, proxy=version))
        port = reactor.listenUNIX(path, factory)
        client = Talker()
        await connectProtocol(UNIXClientEndpoint(reactor, path), client)
        client.send(b"happy")
        client.finish()
        served = await up.accepted()
        await eventually(lambda: served.ended)
        parser = HeaderParser()
        assert parser.feed(bytes(served.data)) == ProxyHeader(int(version[1]))
        assert parser.rest == b"happy"
        served.transport.write(b"joy")
        served.transport.loseConnection()
        assert await client.receive_all() == b"joy"
        assert client.clean
        await port.stopListening()
        await eventually(lambda: not factory.connections)
