"""Connections that this side opens."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.internet.protocol import ClientCreator, ClientFactory, Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from .harness import Harness
from .test_connection_ends import AUTHORITY, tls_options

COUNT = 50


def greets(ended: Callable[[], None]) -> type[Protocol]:
    """Return the protocol that sends at once: data is there when the client begins to read."""

    class Greets(Protocol):
        def connectionMade(self) -> None:
            self.transport.write(b"greeting")

        def connectionLost(self, reason: Any = None) -> None:
            ended()

    return Greets


def end_of_all(reactor: Any) -> Callable[[], None]:
    """Return what each side of each connection calls at its end: the last stops the reactor."""
    left = 2 * COUNT

    def ended() -> None:
        nonlocal left
        left -= 1
        if not left:
            reactor.stop()

    return ended


@implementer(IFileDescriptorReceiver)
class ReceivesDescriptors(Protocol):
    def fileDescriptorReceived(self, descriptor: int) -> None: ...


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls", "descriptors"])
def test_what_connection_made_schedules_comes_before_the_first_data(
    either: Harness, tmp_path: Path, kind: str
) -> None:
    """As `callLater(0, ...)` within `connectionMade` is on Twisted's own reactors."""
    reactor = either.reactor
    ended = end_of_all(reactor)
    orders: list[list[str]] = []

    class Client(ReceivesDescriptors if kind == "descriptors" else Protocol):  # type: ignore[misc]
        def connectionMade(self) -> None:
            self.order: list[str] = []
            # One that is due, and not yet called, must not take the place of the next.
            reactor.callLater(0, self.order.append, "first")
            reactor.callLater(0, self.order.append, "second")

        def dataReceived(self, data: bytes) -> None:
            self.order.append("data")
            self.transport.loseConnection()

        def connectionLost(self, reason: Any = None) -> None:
            orders.append(self.order)
            if len(orders) < COUNT:
                connect()
            ended()

    greeter: Any = Factory.forProtocol(greets(ended))
    client: Any = ClientFactory.forProtocol(Client)
    greeter.noisy = client.noisy = False
    if kind == "tls":
        greeter = TLSMemoryBIOFactory(tls_options(), False, greeter, reactor)
        options = optionsForClientTLS("127.0.0.1", trustRootFromCertificates([certificate()]))
        client = TLSMemoryBIOFactory(options, True, client, reactor)
    if kind in ("tcp", "tls"):
        port = reactor.listenTCP(0, greeter, interface="127.0.0.1").getHost().port
    else:
        reactor.listenUNIX(str(tmp_path / "socket"), greeter)

    def connect() -> None:
        if kind in ("tcp", "tls"):
            reactor.connectTCP("127.0.0.1", port, client)
        else:
            reactor.connectUNIX(str(tmp_path / "socket"), client)

    reactor.callWhenRunning(connect)
    either.run_until_stopped()
    assert orders == [["first", "second", "data"]] * COUNT


def certificate() -> Any:
    from twisted.internet.ssl import Certificate

    return Certificate.loadPEM(AUTHORITY.certificate)


def test_a_client_creator_tells_of_the_connection_first(either: Harness) -> None:
    """Twisted's own FTP client sets itself up in what ClientCreator calls."""
    reactor = either.reactor
    ended = end_of_all(reactor)
    order: list[str] = []

    class Client(Protocol):
        def dataReceived(self, data: bytes) -> None:
            order.append("data")
            self.transport.loseConnection()

        def connectionLost(self, reason: Any = None) -> None:
            if len(order) < 2 * COUNT:
                connect()
            ended()

    def connect() -> None:
        connecting = ClientCreator(reactor, Client).connectTCP("127.0.0.1", port)
        connecting.addCallback(lambda protocol: order.append("connected"))

    port = either.listen(greets(ended))
    reactor.callWhenRunning(connect)
    either.run_until_stopped()
    assert order == ["connected", "data"] * COUNT


@pytest.mark.parametrize(
    ("steps", "reads"),
    [
        (["pauseProducing"], False),
        (["pauseProducing", "resumeProducing"], True),
        (["stopReading"], False),
        (["stopReading", "startReading"], True),
        (["loseConnection"], False),
    ],
)
def test_a_client_reads_from_the_start_unless_told_otherwise(
    either: Harness, steps: list[str], reads: bool
) -> None:
    reactor = either.reactor
    got: list[bytes] = []

    class Client(Protocol):
        def connectionMade(self) -> None:
            for step in steps:
                getattr(self.transport, step)()
            assert (self.transport in reactor.getReaders()) == reads
            if not reads:
                reactor.callLater(0.1, self.transport.abortConnection)

        def dataReceived(self, data: bytes) -> None:
            got.append(data)
            self.transport.abortConnection()

        def connectionLost(self, reason: Any = None) -> None:
            reactor.callLater(0, reactor.stop)

    port = either.listen(greets(lambda: None))
    reactor.connectTCP("127.0.0.1", port, ClientFactory.forProtocol(Client))
    either.run_until_stopped()
    assert got == ([b"greeting"] if reads else [])
    assert either.failures == []


def test_closing_at_once_is_seen_by_both(either: Harness) -> None:
    ended: list[str] = []

    class Client(Protocol):
        def connectionMade(self) -> None:
            self.transport.loseConnection()

        def connectionLost(self, reason: Any = None) -> None:
            ended.append(reason.type.__name__)
            if len(ended) == 2:
                reactor.stop()

    reactor = either.reactor
    port = either.listen(type("Server", (Client,), {"connectionMade": Protocol.connectionMade}))
    reactor.connectTCP("127.0.0.1", port, ClientFactory.forProtocol(Client))
    either.run_until_stopped()
    assert ended == ["ConnectionDone"] * 2
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        pass
