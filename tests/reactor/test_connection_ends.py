"""How a connection ends, with a producer or without: on this reactor as on Twisted's epoll."""

from __future__ import annotations

import queue
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import crypto
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.portforward import ProxyFactory, ProxyServer
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from tests.support.certificates import Authority
from tests.support.waiting import PATIENCE

from .harness import Echo, Harness, dial, read_all

AUTHORITY = Authority()

#: More than the kernel holds for a peer that has not read yet, if its own buffer does not grow.
MUCH = b"x" * 8_000_000
RECEIVE_BUFFER = 1 << 17


class Server:
    """A port of one kind, and blocking clients for it."""

    def __init__(self, harness: Harness, kind: str, folder: Path) -> None:
        self._reactor = harness.reactor
        self._kind = kind
        self._path = str(folder / "socket")

    def listen(self, factory: Any) -> None:
        factory.noisy = False
        if self._kind == "unix":
            self._reactor.listenUNIX(self._path, factory)
        elif self._kind == "tcp":
            self._port = self._reactor.listenTCP(0, factory, interface="127.0.0.1")
        else:
            # As listenSSL, which takes the global reactor for its clock.
            secured = TLSMemoryBIOFactory(tls_options(), False, factory, self._reactor)
            self._port = self._reactor.listenTCP(0, secured, interface="127.0.0.1")

    def dial(self) -> socket.socket:
        if self._kind == "unix":
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(PATIENCE)
            client.connect(self._path)
            return client
        client = dial(self._port.getHost().port)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if self._kind == "tcp":
            return client
        context = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
        return context.wrap_socket(client, server_hostname="127.0.0.1")


def tls_options() -> CertificateOptions:
    return CertificateOptions(
        privateKey=crypto.load_privatekey(crypto.FILETYPE_PEM, AUTHORITY.key),
        certificate=crypto.load_certificate(crypto.FILETYPE_PEM, AUTHORITY.certificate),
    )


@pytest.fixture(params=["tcp", "unix"])
def server(either: Harness, request: pytest.FixtureRequest, tmp_path: Path) -> Server:
    return Server(either, request.param, tmp_path)


@implementer(IPushProducer)
class Scripted(Protocol):
    """Begins when the client has said hello; a producer that notes its calls."""

    events: list[str]
    over: threading.Event

    def begin(self) -> None: ...

    def resumed(self) -> None: ...

    def dataReceived(self, data: bytes) -> None:
        self.events.append(data.decode())
        if len(self.events) == 1:
            self.begin()

    def connectionLost(self, reason: Any = None) -> None:
        self.events.append(reason.type.__name__)
        self.over.set()

    def pauseProducing(self) -> None:
        self.events.append("pause")

    def resumeProducing(self) -> None:
        self.events.append("resume")
        self.resumed()

    def stopProducing(self) -> None:
        self.events.append("stop")


def scripted(**functions: Callable[[Any], None]) -> Any:
    return type("Script", (Scripted,), {"events": [], "over": threading.Event(), **functions})


def lose_much(self: Any) -> None:
    """Close while much is unsent, and a streaming producer is registered."""
    self.transport.registerProducer(self, True)
    self.transport.write(MUCH)
    self.transport.loseConnection()


def talk(harness: Harness, server: Server, protocol: Any) -> bytes:
    """Say hello, and return what comes until the server ends its stream."""
    server.listen(Factory.forProtocol(protocol))
    got: list[bytes] = []

    def client() -> None:
        with server.dial() as connection:
            connection.sendall(b"hello")
            got.append(read_all(connection))
        assert protocol.over.wait(PATIENCE)

    harness.run(client)
    assert harness.failures == []
    return got[0]


@pytest.mark.parametrize("last", [b"last", MUCH], ids=["little", "much"])
def test_a_streaming_producer_does_not_keep_a_connection_open(
    either: Harness, server: Server, last: bytes
) -> None:
    """Fault 77: The connection closes once all is sent, on uvloop's reactor as on Twisted's own,
    although a streaming producer is registered.
    """

    def begin(self: Any) -> None:
        self.transport.write(last)
        self.transport.registerProducer(self, True)
        self.transport.loseConnection()

    protocol = scripted(begin=begin)
    assert talk(either, server, protocol) == last
    # The reactor may pause it in between, without a notification.
    assert protocol.events == ["hello", "stop", "ConnectionDone"]


def test_a_paused_producer_is_asked_for_the_rest(either: Harness, server: Server) -> None:
    def resumed(self: Any) -> None:
        self.transport.write(b"the")
        self.transport.write(b" rest")

    protocol = scripted(begin=lose_much, resumed=resumed)
    assert talk(either, server, protocol) == MUCH + b"the rest"
    assert protocol.events == ["hello", "pause", "resume", "stop", "ConnectionDone"]


def test_a_paused_producer_may_take_its_time(either: Harness, server: Server) -> None:
    def resumed(self: Any) -> None:
        either.reactor.callLater(0.05, more, self)

    def more(self: Any) -> None:
        self.events.append("more")
        self.transport.write(b"the")
        self.transport.write(b" rest")

    protocol = scripted(begin=lose_much, resumed=resumed)
    assert talk(either, server, protocol) == MUCH + b"the rest"
    assert protocol.events == ["hello", "pause", "resume", "more", "stop", "ConnectionDone"]


def test_a_paused_producer_that_fills_the_buffer_again_is_asked_again(
    either: Harness, server: Server
) -> None:
    def resumed(self: Any) -> None:
        self.transport.write(MUCH if self.events.count("resume") < 3 else b"end")

    protocol = scripted(begin=lose_much, resumed=resumed)
    assert talk(either, server, protocol) == MUCH * 3 + b"end"
    expected = ["hello", *["pause", "resume"] * 3, "stop", "ConnectionDone"]
    assert protocol.events == expected


def test_a_paused_producer_that_unregisters_ends_it(either: Harness, server: Server) -> None:
    def resumed(self: Any) -> None:
        either.reactor.callLater(0.05, self.transport.unregisterProducer)

    protocol = scripted(begin=lose_much, resumed=resumed)
    assert talk(either, server, protocol) == MUCH
    assert protocol.events == ["hello", "pause", "resume", "ConnectionDone"]


def test_a_pull_producer_is_asked_until_it_unregisters(either: Harness, server: Server) -> None:
    def begin(self: Any) -> None:
        self.transport.registerProducer(self, False)
        self.transport.loseConnection()

    def resumed(self: Any) -> None:
        if self.events.count("resume") < 4:
            self.transport.write(b"x" * 100_000)
        else:
            self.transport.unregisterProducer()

    protocol = scripted(begin=begin, resumed=resumed)
    assert talk(either, server, protocol) == b"x" * 300_000
    assert protocol.events == ["hello", *["resume"] * 4, "ConnectionDone"]


def test_stop_consuming_closes(either: Harness, server: Server) -> None:
    def begin(self: Any) -> None:
        self.transport.registerProducer(self, True)
        self.transport.write(MUCH)
        self.transport.stopConsuming()

    protocol = scripted(begin=begin)
    assert talk(either, server, protocol) == MUCH
    assert protocol.events == ["hello", "pause", "ConnectionDone"]


def test_abort_stops_a_producer(either: Harness, server: Server) -> None:
    def begin(self: Any) -> None:
        lose_much(self)
        self.transport.abortConnection()

    protocol = scripted(begin=begin)

    server.listen(Factory.forProtocol(protocol))

    def client() -> None:
        with server.dial() as connection:
            connection.sendall(b"hello")
            assert protocol.over.wait(PATIENCE)
            with suppress(ConnectionResetError):
                assert len(read_all(connection)) < len(MUCH)

    either.run(client)
    assert protocol.events == ["hello", "pause", "stop", "ConnectionAborted"]


def test_what_is_written_right_behind_is_sent(either: Harness, server: Server) -> None:
    def begin(self: Any) -> None:
        self.transport.loseConnection()
        self.transport.write(b"right")
        self.transport.writeSequence([b" be", b"hind"])

    protocol = scripted(begin=begin)
    assert talk(either, server, protocol) == b"right behind"
    assert protocol.events == ["hello", "ConnectionDone"]


def test_nothing_is_read_any_more(either: Harness, server: Server) -> None:
    def begin(self: Any) -> None:
        lose_much(self)
        self.transport.resumeProducing()

    def resumed(self: Any) -> None:
        self.transport.unregisterProducer()

    protocol = scripted(begin=begin, resumed=resumed)
    server.listen(Factory.forProtocol(protocol))

    def client() -> None:
        with server.dial() as connection:
            connection.sendall(b"hello")
            assert connection.recv(1)
            connection.sendall(b"again")
            # "again" is unread: with the end comes a reset
            with suppress(ConnectionResetError):
                read_all(connection)
        assert protocol.over.wait(PATIENCE)

    either.run(client)
    assert "again" not in protocol.events


# The writing side alone


@implementer(IHalfCloseableProtocol)
class HalfClosing(Scripted):
    def writeConnectionLost(self) -> None:
        self.events.append("write lost")

    def readConnectionLost(self) -> None:
        self.events.append("read lost")
        self.transport.loseConnection()


def half_closing(**functions: Callable[[Any], None]) -> Any:
    return type("Script", (HalfClosing,), {"events": [], "over": threading.Event(), **functions})


@pytest.mark.parametrize("last", [b"last", MUCH], ids=["little", "much"])
def test_a_streaming_producer_does_not_keep_the_writing_side_open(
    either: Harness, server: Server, last: bytes
) -> None:
    def begin(self: Any) -> None:
        self.transport.write(last)
        self.transport.registerProducer(self, True)
        self.transport.loseWriteConnection()

    protocol = half_closing(begin=begin)
    assert talk(either, server, protocol) == last
    assert protocol.events == ["hello", "write lost", "read lost", "stop", "ConnectionDone"]


def test_a_paused_producer_is_asked_for_the_rest_of_the_writing_side(
    either: Harness, server: Server
) -> None:
    def begin(self: Any) -> None:
        self.transport.registerProducer(self, True)
        self.transport.write(MUCH)
        self.transport.loseWriteConnection()

    def resumed(self: Any) -> None:
        self.transport.write(b"the rest")

    protocol = half_closing(begin=begin, resumed=resumed)
    assert talk(either, server, protocol) == MUCH + b"the rest"
    assert protocol.events == [
        *["hello", "pause", "resume"],
        *["write lost", "read lost", "stop", "ConnectionDone"],
    ]


def test_closing_after_the_writing_side(either: Harness, server: Server) -> None:
    """A producer is still registered when both sides are told to close, one after the other."""

    def begin(self: Any) -> None:
        self.transport.registerProducer(self, True)
        self.transport.loseWriteConnection()

    protocol = half_closing(
        begin=begin, writeConnectionLost=lambda self: self.transport.loseConnection()
    )
    assert talk(either, server, protocol) == b""
    assert protocol.events == ["hello", "stop", "ConnectionDone"]


# Whole programs


@pytest.fixture
def backend(either: Harness) -> Any:
    """An echo; how many it has is in ``open``."""

    class Backend(Echo):
        open: set[Any] = set()  # noqa: RUF012
        gone = threading.Event()

        def connectionMade(self) -> None:
            self.open.add(self)

        def connectionLost(self, reason: Any = None) -> None:
            self.open.discard(self)
            if not self.open:
                self.gone.set()

    return Backend


def test_a_port_forwarder_keeps_no_connection(either: Harness, backend: Any) -> None:
    """Fault 77: A port forwarder made of Twisted's parts closes each connection when its other
    half has ended.
    """
    target = either.listen(backend)
    server = Factory.forProtocol(type("Server", (ProxyServer,), {"reactor": either.reactor}))
    server.host, server.port = "127.0.0.1", target  # type: ignore[attr-defined]
    server.noisy = False
    assert ProxyFactory.protocol is ProxyServer
    forwarder = either.reactor.listenTCP(0, server, interface="127.0.0.1").getHost().port

    def client() -> None:
        for number in range(20):
            with dial(forwarder) as connection:
                connection.sendall(b"hello")
                assert connection.recv(5) == b"hello"
                if number % 2:
                    connection.shutdown(socket.SHUT_WR)
                    assert read_all(connection) == b""
        assert backend.gone.wait(PATIENCE)

    either.run(client)
    assert either.failures == []


@pytest.mark.parametrize("begun", ["listenSSL", "startTLS"])
def test_a_reset_below_twisteds_tls_looks_like_no_clean_end(either: Harness, begun: str) -> None:
    """Fault 208: A protocol over Twisted's own TLS that aborts sends no close_notify before."""

    class Aborts(Protocol):
        def dataReceived(self, data: bytes) -> None:
            if data == b"S":
                self.transport.write(b"T")
                self.transport.startTLS(tls_options(), True)
            else:
                self.transport.write(b"half")
                if begun == "startTLS":
                    self.transport.protocol.abortConnection()  # TLS itself, as at a wrong peer
                else:
                    self.transport.abortConnection()

    factory: Any = Factory.forProtocol(Aborts)
    if begun == "listenSSL":
        factory = TLSMemoryBIOFactory(tls_options(), False, factory, either.reactor)
    factory.noisy = False
    port = either.reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port
    context = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())

    def client() -> None:
        with dial(port) as plain:
            if begun == "startTLS":
                plain.sendall(b"S")
                assert plain.recv(1) == b"T"
            with context.wrap_socket(
                plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False
            ) as connection:
                connection.sendall(b"hello")
                with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                    # Not more: it would be a clean end, which raises nothing.
                    read_all(connection)

    either.run(client)
    assert either.failures == []


@pytest.mark.parametrize("ending", ["close_notify", "FIN"])
def test_clients_that_leave_a_tls_port_are_let_go_of(
    either: Harness, tmp_path: Path, ending: str
) -> None:
    """Fault 77: Clients that close leave no socket on a port of Twisted's own TLS, with any kind
    of producer registered.
    """
    lost = threading.Semaphore(0)

    class Produces(Echo):
        def connectionMade(self) -> None:
            self.transport.registerProducer(Scripted(), True)

        def connectionLost(self, reason: Any = None) -> None:
            lost.release()

    Scripted.events = []
    server = Server(either, "tls", tmp_path)
    server.listen(Factory.forProtocol(Produces))

    def client() -> None:
        for _ in range(10):
            with server.dial() as connection:
                assert isinstance(connection, ssl.SSLSocket)
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"
                if ending == "close_notify":
                    with connection.unwrap():
                        pass
        for _ in range(10):
            assert lost.acquire(timeout=PATIENCE)

    either.run(client)
    del Scripted.events
    assert either.failures == []


def test_a_web_server_with_tls_lets_clients_go(either: Harness, tmp_path: Path) -> None:
    open_now: set[Any] = set()
    none_left = threading.Event()

    class Counting(Site):
        def buildProtocol(self, address: Any) -> Any:
            channel: Any = super().buildProtocol(address)
            open_now.add(channel)
            lost = channel._channel.connectionLost

            def connection_lost(reason: Any) -> None:
                open_now.discard(channel)
                lost(reason)
                if not open_now:
                    none_left.set()

            channel._channel.connectionLost = connection_lost
            return channel

    root = Resource()
    page = Resource()
    page.isLeaf = True
    page.render_GET = lambda request: b"page"  # type: ignore[attr-defined]
    root.putChild(b"", page)
    site = Counting(root, reactor=either.reactor)
    site.displayTracebacks = False
    server = Server(either, "tls", tmp_path)
    server.listen(site)

    def client() -> None:
        connections = [server.dial() for _ in range(10)]
        for connection in connections:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while not connection.recv(65536).endswith(b"page"):
                pass
        for connection in connections:
            assert isinstance(connection, ssl.SSLSocket)
            with connection.unwrap():
                pass
        assert none_left.wait(PATIENCE)

    either.run(client)


def test_a_producer_that_is_gone_is_not_waited_for(harness: Harness) -> None:
    """Twisted's own reactors do: a transport that has ended writes no more, nor unregisters."""
    transports: list[Any] = []
    accepted, lost = threading.Event(), threading.Event()
    much = threading.Event()

    class Both(Protocol):
        def connectionMade(self) -> None:
            transports.append(self.transport)
            accepted.set()
            if len(transports) == 2:
                transports[0].registerProducer(transports[1], True)
                transports[0].write(MUCH)
                transports[1].abortConnection()
                transports[0].loseConnection()
                much.set()

        def connectionLost(self, reason: Any = None) -> None:
            if self.transport is transports[0]:
                lost.set()

    port = harness.listen(Both)

    def client() -> None:
        with dial(port) as first:
            assert accepted.wait(PATIENCE)
            with suppress(ConnectionResetError):  # it is aborted at once
                dial(port)
            assert much.wait(PATIENCE)
            assert read_all(first) == MUCH
            assert lost.wait(PATIENCE)

    harness.run(client)


class EndsLate:
    """A transport as a producer that ends when it is asked for more."""

    def __init__(self, transport: Any, how: str) -> None:
        self._transport = transport
        self._how = how

    def resumeProducing(self) -> None:
        getattr(self._transport, self._how)()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.mark.parametrize("how", ["abortConnection", "loseConnection"])
def test_a_producer_that_is_about_to_be_gone_is_not_waited_for(harness: Harness, how: str) -> None:
    transports: list[Any] = []
    accepted, lost = threading.Event(), threading.Event()

    class Both(Protocol):
        def connectionMade(self) -> None:
            transports.append(self.transport)
            accepted.set()
            if len(transports) == 2:
                transports[0].registerProducer(EndsLate(transports[1], how), True)
                transports[0].write(MUCH)
                transports[0].loseConnection()

        def connectionLost(self, reason: Any = None) -> None:
            if self.transport is transports[0]:
                lost.set()

    port = harness.listen(Both)

    def client() -> None:
        with dial(port) as first:
            assert accepted.wait(PATIENCE)
            dial(port)
            assert read_all(first) == MUCH
            assert lost.wait(PATIENCE)

    harness.run(client)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@pytest.mark.parametrize("opened", ["here", "there"])
def test_a_reset_right_behind_data_is_no_end_of_the_stream(either: Harness, opened: str) -> None:
    """The reactor finds both at once."""
    peers: queue.Queue[socket.socket] = queue.Queue()

    def meet(self: Any) -> None:
        peer = peers.get(timeout=PATIENCE)  # the reactor reads nothing meanwhile
        peer.sendall(b"last words")
        reset(peer)

    protocol = scripted(connectionMade=meet)
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    if opened == "there":
        port = either.reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port
        either.run(lambda: peers.put(dial(port)), lambda: protocol.over.wait(PATIENCE))
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            endpoint = TCP4ClientEndpoint(either.reactor, *listening.getsockname())
            either.reactor.callWhenRunning(endpoint.connect, factory)
            either.run(
                lambda: peers.put(listening.accept()[0]), lambda: protocol.over.wait(PATIENCE)
            )
    assert protocol.events == ["last words", "ConnectionLost"]
    assert either.failures == []
