"""Twisted's protocols and factories, unchanged, within echod's connections."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import ssl
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPullProducer,
    IPushProducer,
    ISSLTransport,
    ITLSTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols import basic, policies, wire
from twisted.python.failure import Failure
from zope.interface import implementer

from echod import EchoFactory
from echod.handlers.contract import HandlerError
from echod.limits import Limits
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import WAYS, Server, eventually, in_thread, run, server_by, turns

BIG = 400_000


class Noting(Protocol):
    """Notes what it is told, in its factory."""

    def note(self, event: object) -> None:
        self.factory.events.append(event)  # type: ignore[union-attr]

    def connectionMade(self) -> None:
        self.factory.last = self  # type: ignore[union-attr]
        self.note("made")

    def dataReceived(self, data: bytes) -> None:
        self.note(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.note(reason.type)


class NotingFactory(Factory):
    """A factory of the user's that knows what has happened."""

    noisy = False
    protocol = Noting

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.addresses: list[Any] = []
        self.last: Any = None

    def buildProtocol(self, addr: Any) -> Any:
        self.addresses.append(addr)
        return super().buildProtocol(addr)

    def startFactory(self) -> None:
        self.events.append("start")

    def stopFactory(self) -> None:
        self.events.append("stop")


def provides(interface: Any, transport: object) -> bool:
    return bool(interface.providedBy(transport))


def serving(handler: Any, certificate: Path, way: str = "clear", **limits: float) -> Server:
    factory = EchoFactory(reactor, handler=handler, limits=Limits(**limits))  # type: ignore[arg-type]
    return server_by(way, factory, certificate)


def with_protocol(made: Any) -> NotingFactory:
    factory = NotingFactory()
    factory.protocol = made
    return factory


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_twisteds_own_echo_runs_unchanged(way: str, certificate: Path) -> None:
    async with serving(wire.Echo, certificate, way) as server:
        client = await server.connect()
        for data in (b"happy", os.urandom(BIG)):
            client.send(data)
            await client.receive(data)
        if way != "Twisted's TLS":  # which has no half-close
            (connection,) = server.factory.connections
            await eventually(lambda: connection.figures == (0, BIG + 5, BIG + 5))
            client.finish()
            assert await client.receive_all() == b""
            assert client.clean
            await eventually(lambda: not server.factory.connections)
            assert server.factory.metrics.bytes_sent == BIG + 5


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_all_that_is_written_before_lose_connection_arrives(
    way: str, certificate: Path
) -> None:
    class Once(Protocol):
        def connectionMade(self) -> None:
            self.transport.write(bytes(BIG))
            self.transport.writeSequence([b"a", b"b"])
            self.transport.loseConnection()
            self.transport.loseConnection()

    async with serving(Once, certificate, way) as server:
        client = await server.connect()
        assert await client.receive_all() == bytes(BIG) + b"ab"
        assert client.clean


@pytest_twisted.ensureDeferred
async def test_a_protocol_is_made_and_told_as_under_listen_tcp(certificate: Path) -> None:
    factory = NotingFactory()
    async with serving(factory, certificate) as server:
        client = await server.connect()
        client.send(b"happy")
        await eventually(lambda: b"happy" in factory.events)
        own = client.transport.getHost()
        transport: Any = factory.last.transport
        assert factory.addresses == [own] == [transport.getPeer()]
        assert transport.getHost().port == server.number
        assert provides(ITLSTransport, transport)
        assert not provides(ISSLTransport, transport)
        assert transport.protocol is factory.last
        assert transport.reactor is reactor
        transport.setTcpNoDelay(False)
        transport.setTcpKeepAlive(True)
        assert not transport.getTcpNoDelay()
        assert transport.getTcpKeepAlive()
        assert transport.getHandle().getpeername() == (own.host, own.port)
        client.finish()
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
    assert factory.events == ["start", "made", b"happy", ConnectionDone, "stop"]
    assert factory.last.transport.connected == 0


@pytest_twisted.ensureDeferred
async def test_over_tls_the_handshake_is_over_when_a_protocol_is_told(certificate: Path) -> None:
    @implementer(IHandshakeListener)
    class Listening(Noting):
        def handshakeCompleted(self) -> None:
            self.note("handshake")

    factory = with_protocol(Listening)
    async with serving(factory, certificate, "TLS") as server:
        await server.connect()
        await eventually(lambda: "handshake" in factory.events)
        transport: Any = factory.last.transport
        assert provides(ISSLTransport, transport)
        assert not provides(ITLSTransport, transport)
        assert transport.TLS
        assert transport.getPeerCertificate() is None
        assert transport.negotiatedProtocol is None
    assert factory.events[:3] == ["start", "made", "handshake"]


@pytest_twisted.ensureDeferred
async def test_behind_a_proxy_a_factory_gets_the_real_clients_address(certificate: Path) -> None:
    factory = NotingFactory()
    async with serving(factory, certificate, "PROXY") as server:
        client = await server.connect()
        await eventually(lambda: factory.last)
        own = client.transport.getHost()
        (address,) = factory.addresses
        assert address.host != own.host
        assert factory.last.transport.getPeer() == address


@pytest_twisted.ensureDeferred
async def test_a_factory_may_refuse_a_client(certificate: Path, log: Log) -> None:
    class Refusing(Factory):
        noisy = False

        def buildProtocol(self, addr: object) -> None:
            return None

    async with serving(Refusing(), certificate) as server:
        client = await server.connect()
        client.send(b"happy")
        assert await client.receive_all() == b""
        await eventually(lambda: not server.factory.connections)
    assert ": refused (" in log.text


@pytest.mark.parametrize("way", ["clear", "TLS", "PROXY"])
@pytest.mark.parametrize(
    "hook", ["makeConnection", "connectionMade", "dataReceived", "connectionLost", "buildProtocol"]
)
@pytest_twisted.ensureDeferred
async def test_an_exception_in_any_callback_is_one_traceback_and_ends_its_own_connection(
    way: str, hook: str, certificate: Path, log: Log
) -> None:
    """Fault 116: One traceback; the connection ends, and no other one."""

    def fail(*_: object) -> None:
        if factory.broken:
            raise ArithmeticError("broken")

    factory: Any = with_protocol(type("Broken", (wire.Echo, Noting), {}))
    factory.broken = False
    owner = factory if hook == "buildProtocol" else factory.protocol
    before = getattr(owner, hook)

    def both(*arguments: object) -> object:
        fail()
        return before(*arguments)

    setattr(owner, hook, both)
    async with serving(factory, certificate, way) as server:
        other = await server.connect()
        other.send(b"one")
        await other.receive(b"one")
        factory.broken = True
        client = await server.connect()
        client.send(b"happy")
        if hook == "connectionLost":
            await client.receive(b"happy")
            client.finish()
        await client.receive_all()
        await eventually(lambda: len(server.factory.connections) == 1)
        factory.broken = False
        other.send(b"two")
        await other.receive(b"two")
    (error,) = log.take_errors()
    assert error.count("ArithmeticError: broken") == 1


@pytest_twisted.ensureDeferred
async def test_a_protocol_learns_which_error_of_its_own_has_ended_it(
    certificate: Path, log: Log
) -> None:
    class Broken(Noting):
        def dataReceived(self, data: bytes) -> None:
            raise ArithmeticError

    factory = with_protocol(Broken)
    async with serving(factory, certificate) as server:
        client = await server.connect()
        client.send(b"happy")
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
    assert factory.events == ["start", "made", ArithmeticError, "stop"]
    log.take_errors()


@pytest.mark.parametrize("way", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_an_abort_is_a_reset(way: str, certificate: Path) -> None:
    class Aborting(Noting):
        def dataReceived(self, data: bytes) -> None:
            self.transport.abortConnection()

    factory = with_protocol(Aborting)
    async with serving(factory, certificate, way) as server:
        client = await server.connect()
        client.send(b"happy")
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
    assert factory.events[-2:] == [ConnectionAborted, "stop"]
    if way == "clear":
        assert not client.clean


@pytest.mark.parametrize("way", ["clear", "TLS", "PROXY"])
@pytest_twisted.ensureDeferred
async def test_a_half_closeable_protocol_answers_after_the_clients_end(
    way: str, certificate: Path
) -> None:
    @implementer(IHalfCloseableProtocol)
    class Summing(Noting):
        count = 0

        def dataReceived(self, data: bytes) -> None:
            self.count += len(data)

        def readConnectionLost(self) -> None:
            self.note("read lost")
            self.transport.write(b"%d" % self.count)
            self.transport.loseConnection()

        def writeConnectionLost(self) -> None:
            self.note("write lost")

    factory = with_protocol(Summing)
    async with serving(factory, certificate, way) as server:
        client = await server.connect()
        client.send(bytes(BIG))
        client.finish()
        assert await client.receive_all() == b"%d" % BIG
        await eventually(lambda: not server.factory.connections)
    assert factory.events == ["start", "made", "read lost", ConnectionDone, "stop"]


@pytest.mark.parametrize("way", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_a_protocol_may_end_its_own_stream_and_read_on(way: str, certificate: Path) -> None:
    @implementer(IHalfCloseableProtocol)
    class Ending(Noting):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.write(b"said")
            self.transport.loseWriteConnection()

        def readConnectionLost(self) -> None:
            self.transport.loseConnection()

        def writeConnectionLost(self) -> None:
            self.note("write lost")

    factory = with_protocol(Ending)
    async with serving(factory, certificate, way) as server:
        client = await server.connect()
        client.readConnectionLost = lambda: None  # type: ignore[method-assign] # write on
        await client.receive(b"said")
        await eventually(lambda: "write lost" in factory.events)
        client.send(b"happy")
        await eventually(lambda: b"happy" in factory.events)
        client.finish()
        await eventually(lambda: not server.factory.connections)


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_producer_that_is_asked_for_each_piece_sends_all(
    way: str, certificate: Path
) -> None:
    data = os.urandom(2_000_000)

    class Sending(Protocol):
        def connectionMade(self) -> None:
            sender = basic.FileSender()
            done = sender.beginFileTransfer(BytesIO(data), self.transport)
            done.addCallback(lambda _: self.transport.loseConnection())

    async with serving(Sending, certificate, way) as server:
        client = await server.connect()
        assert await client.receive_all() == data
        assert client.clean


@pytest.mark.parametrize("way", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_lose_connection_waits_for_such_a_producer(way: str, certificate: Path) -> None:
    data = os.urandom(2_000_000)

    class Sending(Protocol):
        def connectionMade(self) -> None:
            basic.FileSender().beginFileTransfer(BytesIO(data), self.transport)
            self.transport.loseConnection()

    async with serving(Sending, certificate, way) as server:
        client = await server.connect()
        assert await client.receive_all() == data
        assert client.clean


@implementer(IPushProducer)
class Pushing(Noting):
    """Pushes until it is paused."""

    size = 8_000_000
    ends = False

    def connectionMade(self) -> None:
        super().connectionMade()
        self.left = self.size
        self.paused = False
        self.transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        while self.left and not self.paused:
            self.left -= 10_000
            self.transport.write(bytes(10_000))
        if not self.left:
            self.note("pushed")
            self.transport.unregisterProducer()

    def pauseProducing(self) -> None:
        self.note("paused")
        self.paused = True
        if self.ends:
            self.transport.loseConnection()

    def stopProducing(self) -> None:
        self.note("stopped")


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "loses its connection"])
@pytest.mark.parametrize("way", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_a_producer_is_paused_while_its_client_does_not_read(
    way: str, ends: bool, certificate: Path
) -> None:
    factory = with_protocol(type("P", (Pushing,), {"ends": ends}))
    async with serving(factory, certificate, way) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        await eventually(lambda: "paused" in factory.events)
        await turns(5)
        assert "pushed" not in factory.events
        client.transport.resumeProducing()
        await client.until(lambda: len(client.data) == Pushing.size)
        assert "pushed" in factory.events
        if ends:
            await client.receive_all()
            assert client.clean


@pytest_twisted.ensureDeferred
async def test_a_producer_is_stopped_when_its_connection_is_lost(certificate: Path) -> None:
    factory = with_protocol(Pushing)
    async with serving(factory, certificate) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        await eventually(lambda: "paused" in factory.events)
        client.reset()
        await eventually(lambda: not server.factory.connections)
    assert factory.events.count("stopped") == 1


@pytest.mark.parametrize("how", ["reset", "abort", "half-closes"])
@pytest.mark.parametrize("way", ["clear", "TLS", "PROXY"])
@pytest_twisted.ensureDeferred
async def test_the_bytes_of_a_connection_are_counted_however_it_ends(
    way: str, how: str, certificate: Path
) -> None:
    @implementer(IHalfCloseableProtocol)
    class Halving(Noting):
        def dataReceived(self, data: bytes) -> None:
            if how == "half-closes":
                self.transport.write(data)
                self.transport.loseWriteConnection()

        def readConnectionLost(self) -> None:
            self.transport.loseConnection()

        def writeConnectionLost(self) -> None:
            pass

    factory = with_protocol(Halving if how == "half-closes" else wire.Echo)
    async with serving(factory, certificate, way) as server:
        client = await server.connect()
        client.send(b"happy")
        if how == "half-closes":
            client.readConnectionLost = lambda: None  # type: ignore[method-assign] # write on
            await client.receive(b"happy")
            client.send(b"more!")
            await client.arrive()
            client.finish()
        else:
            await client.receive(b"happy")
            client.reset() if how == "reset" else server.factory.abort()
        await eventually(lambda: not server.factory.connections)
        received = 10 if how == "half-closes" else 5
        metrics = server.factory.metrics
        assert (metrics.bytes_received, metrics.bytes_sent) == (received, 5)


@pytest_twisted.ensureDeferred
async def test_a_second_producer_is_refused_and_one_of_a_closed_connection_is_stopped(
    certificate: Path,
) -> None:
    factory = with_protocol(Pushing)
    factory.protocol.size = 10_000 * 800  # type: ignore[attr-defined]
    async with serving(factory, certificate) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        await eventually(lambda: "paused" in factory.events)
        with pytest.raises(RuntimeError, match="never unregistered"):
            factory.last.transport.registerProducer(factory.last, True)
        client.reset()
        await eventually(lambda: not server.factory.connections)
    factory.last.transport.registerProducer(factory.last, True)
    assert factory.events.count("stopped") == 2


@pytest_twisted.ensureDeferred
async def test_reading_pauses_and_resumes_as_a_protocol_wants(certificate: Path) -> None:
    factory = NotingFactory()
    async with serving(factory, certificate) as server:
        client = await server.connect()
        await eventually(lambda: factory.last)
        factory.last.transport.pauseProducing()
        client.send(b"happy")
        await client.arrive()
        assert b"happy" not in factory.events
        factory.last.transport.resumeProducing()
        await eventually(lambda: b"happy" in factory.events)


@pytest_twisted.ensureDeferred
async def test_a_protocol_may_be_replaced_and_so_may_its_method(certificate: Path) -> None:
    factory = NotingFactory()
    async with serving(factory, certificate) as server:
        client = await server.connect()
        await eventually(lambda: factory.last)
        client.send(b"one")
        await eventually(lambda: b"one" in factory.events)
        taken: list[bytes] = []
        factory.last.dataReceived = taken.append
        client.send(b"two")
        await eventually(lambda: taken == [b"two"])
        echo = wire.Echo()
        transport: Any = factory.last.transport
        echo.transport, transport.protocol = transport, echo
        client.send(b"three")
        await client.receive(b"three")


@pytest_twisted.ensureDeferred
async def test_start_tls_by_a_context_of_the_protocols_own(certificate: Path) -> None:
    context = ssl.PrivateCertificate.loadPEM(certificate.read_bytes()).options()

    class Starting(basic.LineReceiver):
        def lineReceived(self, line: bytes) -> None:
            if line == b"STARTTLS":
                self.sendLine(b"go ahead")
                self.transport.startTLS(context)
            elif line == b"QUIT":
                self.sendLine(b"bye")
                self.transport.loseConnection()
            else:
                self.sendLine(b"encrypted" if self.transport.TLS else b"clear")

    async with serving(Starting, certificate) as server:
        client = await server.connect()
        client.send(b"NOOP\r\n")
        await client.receive(b"clear\r\n")
        client.send(b"STARTTLS\r\n")
        await client.receive(b"go ahead\r\n")
        client.transport.startTLS(ssl.CertificateOptions())
        client.send(b"NOOP\r\n")
        await client.receive(b"encrypted\r\n")
        client.send(b"QUIT\r\n")
        assert await client.receive_all() == b"bye\r\n"
        assert client.clean
        await eventually(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_after_start_tls_no_byte_in_clear_reaches_the_protocol(certificate: Path) -> None:
    """Fault 117: Bytes in clear end the handshake, and the protocol does not see them."""
    context = ssl.PrivateCertificate.loadPEM(certificate.read_bytes()).options()

    class Starting(Noting):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.transport.write(b"go ahead")
            self.transport.startTLS(context)

    factory = with_protocol(Starting)
    async with serving(factory, certificate) as server:
        client = await server.connect()
        client.send(b"STARTTLS")
        await client.receive(b"go ahead")
        client.send(b"in clear, by someone between\r\n" * 4)
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
    assert factory.events.count(b"STARTTLS") == 1
    assert not [one for one in factory.events if isinstance(one, bytes) and b"clear" in one]


@pytest_twisted.ensureDeferred
async def test_a_drain_after_start_tls_ends_with_close_notify(certificate: Path) -> None:
    context = ssl.PrivateCertificate.loadPEM(certificate.read_bytes()).options()

    class Encrypted(wire.Echo):
        def connectionMade(self) -> None:
            self.transport.startTLS(context)

    async with serving(Encrypted, certificate) as server:
        client = await server.connect()
        client.transport.startTLS(ssl.CertificateOptions())
        client.send(b"happy")
        await client.receive(b"happy")
        drained = server.factory.drain()
        assert await client.receive_all() == b""
        assert client.clean  # an end without close_notify would be ConnectionLost
        await drained


@pytest_twisted.ensureDeferred
async def test_a_timeout_of_the_protocols_own_ends_it(certificate: Path) -> None:
    class Impatient(policies.TimeoutMixin, Noting):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.setTimeout(0.1)

    async with serving(with_protocol(Impatient), certificate) as server:
        client = await server.connect()
        assert await client.receive_all() == b""
        await eventually(lambda: not server.factory.connections)


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_drain_ends_an_idle_conversation_at_once(
    way: str, certificate: Path, log: Log
) -> None:
    factory = with_protocol(type("E", (wire.Echo, Noting), {}))
    async with serving(factory, certificate, way) as server:
        client = await server.connect()
        client.send(b"happy")
        await client.receive(b"happy")
        drained = server.factory.drain()
        assert await client.receive_all() == b""
        assert client.clean
        await drained
    assert ": drained (" in log.text
    assert factory.events[-2:] == [ConnectionDone, "stop"]


@pytest.mark.parametrize("way", ["clear", "TLS", "PROXY"])
@pytest_twisted.ensureDeferred
async def test_a_drain_lets_an_answer_that_is_owed_come(way: str, certificate: Path) -> None:
    """Fault 118: A protocol that owes an answer gives it, and then its client is disconnected."""

    class Late(Noting):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            reactor.callLater(0.3, self.transport.write, b"late: " + data)

    factory = with_protocol(Late)
    async with serving(factory, certificate, way) as server:
        client = await server.connect()
        client.send(b"happy")
        await eventually(lambda: b"happy" in factory.events)
        drained = server.factory.drain()
        assert await client.receive_all() == b"late: happy"
        await drained


@implementer(IPullProducer)
class InPieces(Noting):
    """Sends one piece, and the rest when `rest` is set."""

    rest = b""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        # Later, by the kernel's clock, than the client has spoken.
        reactor.callLater(0.05, self.begin)

    def begin(self) -> None:
        self.transport.write(b"a piece")  # type: ignore[union-attr]
        self.transport.registerProducer(self, False)  # type: ignore[union-attr]

    def resumeProducing(self) -> None:
        if self.rest:
            self.transport.write(self.rest)  # type: ignore[union-attr]
            self.transport.unregisterProducer()  # type: ignore[union-attr]

    def stopProducing(self) -> None:
        self.note("stopped")


@pytest.mark.parametrize("way", [*WAYS, "STARTTLS"])
@pytest_twisted.ensureDeferred
async def test_a_drain_lets_a_producer_that_is_asked_for_each_piece_send_all(
    way: str, certificate: Path
) -> None:
    """Fault 118: A protocol that has sent a part sends the rest, although its client has received
    all so far.
    """
    context = ssl.PrivateCertificate.loadPEM(certificate.read_bytes()).options()

    class Encrypted(InPieces):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.startTLS(context)  # type: ignore[union-attr]

    within = way == "STARTTLS"
    factory = with_protocol(Encrypted if within else InPieces)
    async with serving(factory, certificate, "clear" if within else way) as server:
        client = await server.connect()
        if within:
            client.transport.startTLS(ssl.CertificateOptions())
        client.send(b"happy")
        await client.receive(b"a piece")
        drained = server.factory.drain()
        await turns(3)
        factory.last.rest = b" and the rest"
        assert await client.receive_all() == b" and the rest"
        assert client.clean
        await drained
    assert "stopped" not in factory.events


@pytest_twisted.ensureDeferred
async def test_a_careless_protocol_whose_client_does_not_read_is_aborted(
    certificate: Path, log: Log
) -> None:
    class Careless(Noting):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.write_on()

        def write_on(self) -> None:
            if self.transport.connected:
                self.transport.write(bytes(100_000))
                reactor.callLater(0.01, self.write_on)

    async with serving(with_protocol(Careless), certificate, max_unsent=1 << 20) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        await eventually(lambda: server.factory.connections)
        await eventually(lambda: not server.factory.connections)
        await turns(5)
    assert ": max-unsent (" in log.text


@pytest_twisted.ensureDeferred
async def test_a_silent_client_is_disconnected_in_time(certificate: Path, log: Log) -> None:
    async with serving(NotingFactory(), certificate, idle_timeout=0.5) as server:
        client = await server.connect()
        assert await client.receive_all() == b""
        await eventually(lambda: not server.factory.connections)
    assert "-timeout (" in log.text


@pytest_twisted.inlineCallbacks
def test_whatever_the_pieces_each_byte_is_echoed(certificate: Path) -> object:
    async def talk(pieces: list[bytes], way: str) -> bytes:
        async with serving(wire.Echo, certificate, way) as server:
            client = await server.connect()
            for piece in pieces:
                client.send(piece)
            client.finish()
            return await client.receive_all()

    @settings(max_examples=30)
    @given(st.lists(st.binary(min_size=1, max_size=70_000), max_size=6), st.sampled_from(WAYS[:2]))
    def check(pieces: list[bytes], way: str) -> None:
        assert run(talk(pieces, way)) == b"".join(pieces)

    yield in_thread(check)


def test_a_factory_whose_start_fails_is_one_line() -> None:
    class Failing(Factory):
        noisy = False

        def startFactory(self) -> None:
            raise ArithmeticError("no\nmore")

    words = r"startFactory failed: ArithmeticError: no\\nmore \(.*, line \d+\)$"
    with pytest.raises(HandlerError, match=words):
        EchoFactory(reactor, handler=Failing()).doStart()


def test_a_factory_whose_stop_fails_is_logged(log: Log) -> None:
    class Failing(Factory):
        noisy = False
        protocol = Protocol

        def stopFactory(self) -> None:
            raise ArithmeticError

    factory = EchoFactory(reactor, handler=Failing())
    factory.doStart()
    factory.doStop()
    (error,) = log.take_errors()
    assert "stopFactory failed" in error


@pytest.mark.parametrize("way", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_a_producer_that_raises_when_it_is_asked_is_one_traceback(
    way: str, certificate: Path, log: Log
) -> None:
    asked: list[int] = []

    @implementer(IPullProducer)
    class Raising:
        def __init__(self, transport: Any) -> None:
            self.transport = transport

        def resumeProducing(self) -> None:
            asked.append(1)
            if len(asked) > 1:
                raise ArithmeticError("broken")
            self.transport.write(b"happy")

        def stopProducing(self) -> None:
            pass

    class Pulled(Noting):
        def dataReceived(self, data: bytes) -> None:
            self.transport.registerProducer(Raising(self.transport), False)  # type: ignore[union-attr]

    factory = with_protocol(Pulled)
    async with serving(factory, certificate, way) as server:
        client = await server.connect()
        client.send(b"go")
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        await turns(5)
    (error,) = log.take_errors()
    assert error.count("ArithmeticError: broken") == 1
    assert len(asked) == 2
