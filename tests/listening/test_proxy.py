from __future__ import annotations

import ipaddress
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from zope.interface import implementer

from echod import Client, EchoFactory, Handler, Limits
from echod.connections.direct_protocol import DirectProtocol
from echod.handlers.contract import ConcurrencyModel
from echod.listening.proxy import ProxyFactory
from echod.proxy_header import FieldType
from echod.reasons import EndReason, Refusal
from echod.settings.definitions import LOOPBACK
from echod.tls import TLSFactory
from tests.support.clients import BANNER
from tests.support.log import Log
from tests.support.proxy_headers import DESTINATION, SIGNATURE, SOURCE, binary, line, tls_field
from tests.support.reactor import reactor
from tests.support.serving import (
    ClientContext,
    ExhaustedContext,
    Server,
    Talker,
    eventually,
    in_thread,
    make_model,
    run,
    server_context,
    turns,
)
from tests.support.tls_peer import hello_of

TALKATIVE = [model for model in ConcurrencyModel if model is not ConcurrencyModel.SERIAL]


def proxied_server(factory: EchoFactory, wrapped: Any = None, trusted: Any = LOOPBACK) -> Server:
    """Listen for proxies, whose headers the test sends itself."""
    return Server(factory, ProxyFactory(wrapped or factory, factory, trusted))


@asynccontextmanager
async def proxied(
    model: str = "reactor", trusted: Any = LOOPBACK, **options: Any
) -> AsyncIterator[Server]:
    factory = EchoFactory(reactor, model=make_model(model), **options)
    server = proxied_server(factory, trusted=trusted)
    try:
        yield server
    finally:
        await server.stop()


class WhoAreYou(Handler):
    """Tells its clients their addresses."""

    def opened(self, client: Client) -> bytes:
        self.client = client
        return f"{client.peer} at {client.local}\n".encode()

    def received(self, message: bytes) -> bytes:
        return repr(self.client.proxy).encode()


def who(conn):  # type: ignore[no-untyped-def]
    conn.sendall(repr((conn.getpeername(), conn.getsockname())).encode())


@pytest.mark.parametrize("header", [line(), binary(), binary(SOURCE, DESTINATION, (1, b"h2"))])
@pytest.mark.parametrize("model", TALKATIVE)
@pytest_twisted.ensureDeferred
async def test_clients_are_greeted_after_the_header_and_answered(
    model: str, header: bytes
) -> None:
    async with proxied(model) as server:
        client = await server.connect()
        client.send(header[:5])
        await eventually(lambda: server.factory.connections)
        await turns(5)
        assert not client.data
        client.send(header[5:] + b"happy\n")
        await client.receive(BANNER)
        await client.receive(b"OK...happy\n")
        client.send(b"birthday\n")
        await client.receive(b"OK...birthday\n")
        assert [each.client.peer for each in server.factory.connections] == ["203.0.113.7:56324"]
        client.finish()
        await client.receive_all()
        assert client.clean


@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_header_message_and_end_in_one_go_are_answered_in_full(model: str) -> None:
    async with proxied(model, banner=b"") as server:
        for header in (line(), binary(None)):
            client = await server.connect()
            client.send(header + b"x" * 1000)
            client.finish()
            assert await client.receive_all() == b"OK..." + b"x" * 1000


@pytest_twisted.ensureDeferred
async def test_what_comes_with_the_header_waits_for_its_turn() -> None:
    async with proxied("serial") as server:
        first, second = await server.connect(), await server.connect()
        first.send(line())
        await eventually(lambda: server.factory.metrics.accepted == 1)
        second.send(line() + b"second\n")
        await eventually(lambda: server.factory.metrics.accepted == 2)
        await turns(5)
        assert not second.data
        first.send(b"first\n")
        assert await first.receive_all() == b"OK...first\n"
        assert await second.receive_all() == b"OK...second\n"


@pytest.mark.parametrize(
    ("header", "greeting"),
    [
        (line(), b"203.0.113.7:56324 at 198.51.100.1:443\n"),
        (line(("2001:db8::1", 1), ("::1", 2)), b"[2001:db8::1]:1 at [::1]:2\n"),
        (binary(b"/run/a\x1b", b""), b"/run/a\\x1b at \n"),
        (binary(b"\0a", b"\0b"), b"\\x00a at \\x00b\n"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_handlers_and_logs_see_the_real_client(
    log: Log, header: bytes, greeting: bytes
) -> None:
    async with proxied(handler=WhoAreYou) as server:
        client = await server.connect()
        client.send(header)
        await client.receive(greeting)
        client.finish()
        await client.receive_all()
    assert f"Connected with {greeting.decode().split(' at ')[0]}" in log.text


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", binary(None), binary(kind=0)])
@pytest_twisted.ensureDeferred
async def test_a_header_that_names_nobody_leaves_the_sockets_addresses(header: bytes) -> None:
    async with proxied(handler=WhoAreYou) as server:
        client = await server.connect()
        client.send(header)
        ours, theirs = client.transport.getHost(), client.transport.getPeer()
        await client.receive(f"127.0.0.1:{ours.port} at 127.0.0.1:{theirs.port}\n".encode())


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(
    ("sent", "answer", "kind"),
    [
        (binary(None), BANNER, "local"),
        (binary(None) + b"happy\n", BANNER + b"OK...happy\n", "local"),
        (b"", b"", "connect"),
    ],
)
@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_a_health_check_is_no_client_and_no_line_tells_of_it(
    model: str, sent: bytes, answer: bytes, kind: str, resets: bool, log: Log
) -> None:
    if model == "serial" and not sent.endswith(b"happy\n"):
        answer = b""  # there is no greeting
    elif model == "serial":
        answer = b"OK...happy\n"
    async with proxied(model) as server:
        metrics = server.factory.metrics
        for number in (1, 2):
            check = await server.connect()
            await server.accepted()
            check.send(sent)
            await check.receive(answer)
            if resets:
                check.reset()
            else:
                check.finish()
                await check.receive_all()
            await eventually(lambda number=number: metrics.checks.total() == number)
        assert metrics.checks == {kind: 2}
        assert (metrics.accepted, metrics.open, metrics.ended.total()) == (0, 0, 0)
        assert not metrics.refused.total()
        assert metrics.bytes_received == 2 * len(sent.removeprefix(binary(None)))
    assert "onnected" not in log.text


@pytest.mark.parametrize("answered", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_health_check_over_tls_is_one_too(
    certificate: Path, log: Log, answered: bool
) -> None:
    factory = EchoFactory(reactor)
    server = proxied_server(factory, TLSFactory(factory, server_context(certificate), reactor))
    try:
        check = await server.connect()
        check.send(binary(None) + (b"" if answered else b"no handshake"))
        check.finish()
        await check.receive_all()
        await eventually(lambda: factory.metrics.checks == {"local": 1})
        assert factory.metrics.accepted == 0
    finally:
        await server.stop()
    assert "onnected" not in log.text


@pytest_twisted.ensureDeferred
async def test_a_health_check_on_which_the_handler_fails_is_logged(log: Log) -> None:
    def fail(message: bytes) -> None:
        raise ValueError("odd")

    async with proxied(handler=fail) as server:
        check = await server.connect()
        check.send(binary(None) + b"happy\n")
        await check.receive_all()
        await eventually(lambda: server.factory.metrics.checks == {"local": 1})
        (error,) = log.take_errors()
        assert "odd" in error


@pytest_twisted.ensureDeferred
async def test_handlers_see_what_the_proxy_said_besides() -> None:
    tls = tls_field(1, 0, (FieldType.SSL_CN, b"Ada"))
    async with proxied() as server:
        client = await server.connect()
        client.send(binary(SOURCE, DESTINATION, (FieldType.AUTHORITY, b"echo.example"), tls))
        await client.receive(BANNER)
        (connection,) = server.factory.connections
        said = connection.client.proxy
        assert said.authority == "echo.example"
        assert said.tls.common_name == "Ada"
        assert connection.client.tls is None


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (line(), (SOURCE, DESTINATION)),
        (binary(b"/run/a", b"/run/b"), ("/run/a", "/run/b")),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_connection_handlers_socket_has_the_real_addresses(
    header: bytes, names: Any
) -> None:
    async with proxied("thread-per-connection", handler=who) as server:
        client = await server.connect()
        client.send(header)
        assert await client.receive_all() == repr(names).encode()


@pytest_twisted.ensureDeferred
async def test_a_health_checks_socket_has_the_proxys_addresses() -> None:
    async with proxied("thread-per-connection", handler=who) as server:
        client = await server.connect()
        client.send(binary(None))
        ours, theirs = client.transport.getHost(), client.transport.getPeer()
        names = ("127.0.0.1", ours.port), ("127.0.0.1", theirs.port)
        assert await client.receive_all() == repr(names).encode()


@pytest.mark.parametrize("model", TALKATIVE)
@pytest_twisted.ensureDeferred
async def test_the_header_comes_before_tls(certificate: Path, model: str) -> None:
    factory = EchoFactory(reactor, model=make_model(model))
    server = proxied_server(factory, TLSFactory(factory, server_context(certificate), reactor))
    try:
        # The header and the client's first flight of TLS leave together, and are split anywhere.
        for place in range(0, 40, 13):
            talker = Talker()
            wanted = Factory.forProtocol(lambda talker=talker: talker)
            layer = TLSFactory(wanted, ClientContext(), reactor).buildProtocol(None)
            await server.connect_with(Split(layer, line(), place))
            await talker.receive(BANNER)
            (connection,) = factory.connections
            assert connection.client.tls.version == "TLSv1.3"  # type: ignore[attr-defined]
            assert connection.client.peer == "203.0.113.7:56324"  # type: ignore[attr-defined]
            talker.send(b"happy\n")
            talker.finish()
            assert await talker.receive_all() == b"OK...happy\n"
            await eventually(lambda: not factory.connections)
    finally:
        await server.stop()


@implementer(IHalfCloseableProtocol)
class Split(Talker):
    """Lets another protocol talk, after a header that is cut in two."""

    def __init__(self, inner: Any, header: bytes, place: int) -> None:
        super().__init__()
        self._inner = inner
        self._parts = [header[:place], header[place:]]

    def connectionMade(self) -> None:
        first, second = self._parts
        self.transport.setTcpNoDelay(True)
        self.transport.write(first)
        reactor.callLater(0.01, self._go_on, second)

    def _go_on(self, second: bytes) -> None:
        self.transport.write(second)
        self._inner.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        self._inner.dataReceived(data)

    def readConnectionLost(self) -> None:
        self._inner.readConnectionLost()

    def writeConnectionLost(self) -> None:
        self._inner.writeConnectionLost()

    def connectionLost(self, reason: Any = None) -> None:
        self._inner.connectionLost(reason)
        super().connectionLost(reason)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no PROXY header"),
        (b"PROXY TCP4 \x1b[31m 1.2.3.4 1 1\r\n", "control characters in the line"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 1\r\nhappy\n", "an invalid port"),
        (SIGNATURE + b"\x21\x11\xff\xff", "longer than 4096 bytes"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_broken_header_is_refused_counted_and_logged(
    log: Log, sent: bytes, why: str
) -> None:
    async with proxied() as server:
        client = await server.connect()
        port = client.transport.getHost().port
        client.send(sent)
        assert await client.receive_all() == b""
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.refused == {Refusal.PROXY_HEADER.value: 1}
        assert server.factory.metrics.accepted == server.factory.admission.open == 0
    lines = [each for each in log.text.splitlines() if "Refused" in each]
    assert lines == [f"Refused 127.0.0.1:{port}: proxy-header ({why})"]
    (refused,) = (event for event in log.events if "limit" in event)
    assert (refused["limit"], refused["listener"]) == (
        Refusal.PROXY_HEADER.value,
        server.factory.listener,
    )
    assert "\x1b" not in log.text


@pytest_twisted.ensureDeferred
async def test_a_header_that_ends_too_early_is_refused(log: Log) -> None:
    async with proxied() as server:
        client = await server.connect()
        client.send(line()[:-1])
        client.finish()
        assert await client.receive_all() == b""
        await eventually(lambda: server.factory.metrics.refused == {Refusal.PROXY_HEADER.value: 1})
    assert "it ends within the header" in log.text


@pytest_twisted.ensureDeferred
async def test_who_looks_whether_the_port_is_open_is_no_error(log: Log) -> None:
    async with proxied() as server:
        for end in (Talker.finish, Talker.reset):
            client = await server.connect()
            await eventually(lambda: server.factory.connections)
            end(client)
            await eventually(lambda: not server.factory.connections)
        assert not server.factory.metrics.refused
    assert "Refused" not in log.text


@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 1.2.3.4"])
@pytest_twisted.ensureDeferred
async def test_a_header_that_does_not_come_in_time_is_refused(log: Log, sent: bytes) -> None:
    async with proxied(limits=Limits(proxy_timeout=0.3)) as server:
        client = await server.connect()
        client.send(sent)
        assert await client.receive_all() == b""
        assert client.clean
        assert server.factory.metrics.refused == {Refusal.PROXY_TIMEOUT.value: 1}
    assert "no PROXY header in time" in log.text


@pytest_twisted.ensureDeferred
async def test_without_a_limit_a_header_is_waited_for() -> None:
    async with proxied(limits=Limits(proxy_timeout=0)) as server:
        client = await server.connect()
        waiting = await server.accepted()
        waiting.sweep(reactor.seconds() + 10**9)
        client.send(line())
        await client.receive(BANNER)


@pytest_twisted.ensureDeferred
async def test_only_trusted_proxies_are_heard(log: Log) -> None:
    async with proxied(trusted=[ipaddress.ip_network("10.0.0.0/8")]) as server:
        client = await server.connect()
        port = client.transport.getHost().port
        client.send(line())
        assert await client.receive_all() == b""
        assert server.factory.metrics.refused == {Refusal.PROXY_TRUST.value: 1}
        assert not server.factory.connections
    assert f"Refused 127.0.0.1:{port}: proxy-trust (PROXY headers are not taken from" in log.text


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        (IPv4Address("TCP", "127.9.9.9", 1), True),
        (IPv6Address("TCP", "::1", 1), True),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 1), True),
        (UNIXAddress(b"/run/x"), True),
        (UNIXAddress(None), True),
        (IPv4Address("TCP", "10.0.0.1", 1), False),
        (IPv6Address("TCP", "::ffff:10.0.0.1", 1), False),
        (IPv6Address("TCP", "fe80::1%lo", 1), False),
    ],
)
def test_loopback_and_unix_sockets_are_trusted(address: Any, trusted: bool) -> None:
    factory = EchoFactory(reactor)
    assert bool(ProxyFactory(factory, factory, LOOPBACK).buildProtocol(address)) is trusted


@pytest_twisted.ensureDeferred
async def test_over_a_unix_socket_it_is_the_same(tmp_path: Path) -> None:
    factory = EchoFactory(reactor, handler=WhoAreYou)
    port = reactor.listenUNIX(str(tmp_path / "s"), ProxyFactory(factory, factory, ()))
    client = await connectProtocol(UNIXClientEndpoint(reactor, str(tmp_path / "s")), Talker())
    client.send(line())
    await client.receive(b"203.0.113.7:56324 at 198.51.100.1:443\n")
    client.finish()
    await client.receive_all()
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_drain_ends_who_has_sent_no_header_without_a_reset() -> None:
    """Fault 210: So does a proxy whose header has yet to come."""
    async with proxied() as server:
        silent = await server.connect()
        await eventually(lambda: server.factory.connections)
        drained = server.factory.drain()
        silent.send(line())
        assert await silent.receive_all() == b""
        assert silent.clean
        await drained
        assert not server.factory.metrics.refused


@pytest_twisted.ensureDeferred
async def test_a_proxy_that_does_not_close_after_a_drain_is_reset() -> None:
    async with proxied(limits=Limits(linger=0.1)) as server:
        deaf = await server.connect()
        await eventually(lambda: server.factory.connections)
        deaf.transport.pauseProducing()
        await server.factory.drain()
        deaf.transport.resumeProducing()


@pytest_twisted.ensureDeferred
async def test_a_drain_answers_what_had_come_with_the_header() -> None:
    async with proxied(banner=b"") as server:
        client = await server.connect()
        client.send(line()[:10])
        waiting = await server.accepted()
        waiting.transport.pauseProducing()
        client.send(line()[10:] + b"happy\n")
        await client.arrive()
        drained = server.factory.drain()
        waiting.transport.resumeProducing()
        assert await client.receive_all() == b"OK...happy\n"
        await drained


@pytest_twisted.ensureDeferred
async def test_a_drain_does_not_wait_for_the_rest_of_a_header() -> None:
    async with proxied(limits=Limits(proxy_timeout=0)) as server:
        client = await server.connect()
        client.send(line()[:10])
        await eventually(lambda: server.factory.connections)
        (waiting,) = server.factory.connections
        waiting.transport.pauseProducing()
        client.send(line()[10:20])
        await client.arrive()
        drained = server.factory.drain()
        waiting.transport.resumeProducing()
        assert await client.receive_all() == b""
        assert client.clean
        await drained


@pytest_twisted.ensureDeferred
async def test_a_gradual_drain_does_not_cut_off_who_has_sent_the_header_meanwhile() -> None:
    async with proxied(banner=b"") as server:
        client = await server.connect()
        waiting = await server.accepted()
        client.send(line() + b"happy\n")
        await client.receive(b"OK...happy\n")
        waiting.drain()  # its turn comes when it is no more
        waiting.abort(EndReason.DRAINED)
        client.send(b"still here\n")
        client.finish()
        assert await client.receive_all() == b"OK...still here\n"


@pytest_twisted.ensureDeferred
async def test_a_connection_that_fails_on_what_comes_behind_the_header_is_forgotten(
    log: Log,
) -> None:
    class Failing(DirectProtocol):
        def dataReceived(self, data: bytes) -> None:
            raise ValueError("odd")

    async with proxied() as server:
        server.factory.protocol = Failing
        client = await server.connect()
        client.send(line() + b"happy\n")
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        assert log.take_errors()


@pytest_twisted.ensureDeferred
async def test_an_abort_closes_who_has_sent_no_header() -> None:
    async with proxied() as server:
        silent = await server.connect()
        await eventually(lambda: server.factory.connections)
        server.factory.abort()
        await silent.receive_all()
        await eventually(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_what_comes_after_a_refusal_is_ignored() -> None:
    async with proxied() as server:
        await server.connect()
        waiting = await server.accepted()
        waiting.dataReceived(b"junk")
        waiting.dataReceived(b"more")
        waiting.sweep(reactor.seconds() + 10**9)
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.refused == {Refusal.PROXY_HEADER.value: 1}


@pytest_twisted.ensureDeferred
async def test_the_next_factory_may_refuse_the_client() -> None:
    async with proxied() as server:
        server.factory.buildProtocol = lambda address: None
        client = await server.connect()
        client.send(line() + b"happy\n")
        assert await client.receive_all() == b""
        await eventually(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_who_has_sent_no_header_counts_among_all_connections() -> None:
    async with proxied(limits=Limits(max_connections=1)) as server:
        waiting = await server.connect()
        await eventually(lambda: server.factory.admission.open == 1)
        refused = await server.connect()
        assert (
            await refused.receive_all() == b"Server busy: too many connections, try again later\n"
        )
        assert server.factory.metrics.refused == {"max-connections": 1}
        waiting.reset()
        await eventually(lambda: server.factory.admission.open == 0)
        assert not server.factory.admission.by_address


@pytest_twisted.ensureDeferred
async def test_the_limit_by_address_is_for_the_real_clients() -> None:
    async with proxied(limits=Limits(max_connections_per_address=1)) as server:
        first, second, third = [await server.connect() for _ in range(3)]
        first.send(line())
        await first.receive(BANNER)
        second.send(line(("203.0.113.8", 1), DESTINATION))
        await second.receive(BANNER)
        third.send(line() + b"happy\n")
        assert await third.receive_all() == (
            b"Server busy: too many connections from your address, try again later\n"
        )
        assert server.factory.metrics.refused == {"max-connections-per-address": 1}
        assert server.factory.admission.by_address == {"203.0.113.7": 1, "203.0.113.8": 1}
        assert server.factory.admission.open == 2
        for client in (first, second):
            client.finish()
            await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        assert server.factory.admission.open == 0
        assert not server.factory.admission.by_address


@pytest_twisted.ensureDeferred
async def test_who_waits_for_tls_is_refused_without_a_word(certificate: Path) -> None:
    factory = EchoFactory(reactor, limits=Limits(max_connections=1))
    server = proxied_server(factory, TLSFactory(factory, server_context(certificate), reactor))
    try:
        await server.connect()
        await eventually(lambda: factory.admission.open == 1)
        assert await (await server.connect()).receive_all() == b""
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_client_for_whom_tls_has_no_memory_is_counted_out() -> None:
    factory = EchoFactory(reactor)
    server = proxied_server(factory, TLSFactory(factory, ExhaustedContext(), reactor))
    try:
        client = await server.connect()
        client.send(line() + hello_of("host"))
        assert await client.receive_all() == b""
        await eventually(lambda: factory.metrics.ended["handshake error"] == 1)
        assert factory.admission.open == 0
        assert not factory.admission.by_address
    finally:
        await server.stop()


def test_the_factory_behind_starts_and_stops_with_it() -> None:
    factory = EchoFactory(reactor)
    wrapping = ProxyFactory(factory, factory, ())
    wrapping.doStart()
    assert factory.numPorts == 1
    wrapping.doStop()
    assert factory.numPorts == 0


@pytest_twisted.inlineCallbacks
def test_nothing_is_lost_however_the_stream_is_cut() -> Any:
    @given(
        st.sampled_from([line(), binary(SOURCE, DESTINATION, (4, b"..."), checksum=True)]),
        st.binary(min_size=1, max_size=3000),
        st.lists(st.integers(0, 4000), max_size=6),
    )
    def check(header: bytes, data: bytes, places: list[int]) -> None:
        run(talk(header + data, places, data))

    async def talk(stream: bytes, places: list[int], data: bytes) -> None:
        async with proxied(handler=lambda message: message) as server:
            client = await server.connect()
            client.transport.setTcpNoDelay(True)
            cuts = [0, *sorted(place % len(stream) for place in places), len(stream)]
            for start, end in itertools.pairwise(cuts):
                client.send(stream[start:end])
                await deferLater(reactor, 0)
            client.finish()
            assert await client.receive_all() == data

    yield in_thread(check)
