"""A factory that listens, and clients of it, in the test's own reactor."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from ssl import MemoryBIO, SSLObject, TLSVersion
from typing import Any, Self

import pytest
from twisted.internet import ssl
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import clientFromString, connectProtocol, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocolFactory
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import blockingCallFromThread
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.concurrency.model import Model
from echod.concurrency.models import InPool, InReactor, Serial, ThreadPerConnection
from echod.concurrency.pool import WorkerPool
from echod.connections.factory import EchoFactory
from echod.handlers.contract import ConcurrencyModel
from echod.limits import Limits
from echod.listening.proxy import ProxyFactory
from echod.settings.definitions import LOOPBACK as TRUSTED
from echod.tls import Context, Files, ServerContext, TLSFactory
from tests.support.clients import unacknowledged
from tests.support.proxy_headers import line
from tests.support.reactor import reactor
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE

LOOPBACK = "tcp:0:interface=127.0.0.1"

# By which a client may reach a factory.
WAYS = ["clear", "TLS", "Twisted's TLS", "PROXY"]


def make_model(name: ConcurrencyModel | str, threads: int = 4) -> Model:
    """Return a model on the test's reactor."""
    limits = Limits()
    match ConcurrencyModel(name):
        case ConcurrencyModel.REACTOR:
            return InReactor()
        case ConcurrencyModel.SERIAL:
            return Serial(reactor.seconds, patience=limits.serial_timeout, queue_size=3)
        case ConcurrencyModel.DEFER_TO_THREAD:
            return InPool(WorkerPool(threads, reactor.callFromThread))
        case ConcurrencyModel.THREAD_PER_CONNECTION:
            return ThreadPerConnection(WorkerPool(threads, reactor.callFromThread, queues=False))


@implementer(IHalfCloseableProtocol)
class Talker(Protocol):
    """A client that keeps what it gets."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self.reason: Failure | None = None
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self._look()

    def readConnectionLost(self) -> None:
        self.ended = True
        self._look()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = True
        self.reason = reason
        self._look()

    def _look(self) -> None:
        for waiting in list(self._waiting):
            if waiting[0]():
                self._waiting.remove(waiting)
                waiting[1].callback(None)

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fire once `condition` holds; fail if it does not in time."""
        deferred: Deferred[None] = Deferred()
        self._waiting.append((condition, deferred))
        self._look()
        return deferred.addTimeout(PATIENCE, reactor)

    async def receive(self, data: bytes) -> None:
        """Wait for exactly `data`, and forget it."""
        await self.until(lambda: self.ended or len(self.data) >= len(data))
        assert self.data[: len(data)] == data
        del self.data[: len(data)]

    async def receive_all(self) -> bytes:
        """Wait for the end of the stream, while more comes; return what came before it."""
        while self.reason is None:
            had = len(self.data)
            await self.until(lambda had=had: self.reason is not None or len(self.data) > had)
        return bytes(self.data)

    @property
    def clean(self) -> bool:
        """Whether the connection ended without a reset."""
        assert self.reason is not None
        return self.reason.check(ConnectionDone) is not None

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    async def arrive(self) -> None:
        """Wait until the server's kernel has the sent data, and its reactor could read it."""
        await turns(2)  # uvloop sends at the end of a turn
        await eventually(lambda: not unacknowledged(self.transport.getHandle()))
        await turns(5)

    def finish(self) -> None:
        """Shut down writing."""
        self.transport.loseWriteConnection()

    def reset(self) -> None:
        """Vanish with RST."""
        self.transport.getHandle().setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.transport.abortConnection()


async def eventually(condition: Callable[[], object]) -> None:
    """Let the reactor run until `condition` holds; fail if it does not in time."""
    deadline = reactor.seconds() + PATIENCE
    while not condition():
        assert reactor.seconds() < deadline, "this has not come true in time"
        await deferLater(reactor, 0.005)


async def together(conversations: Mapping[str, Coroutine[Any, Any, object]]) -> None:
    """Hold all conversations at the same time, to their ends.

    The first error of any is raised, with the name of its conversation.
    """
    all_of_them = map(Deferred.fromCoroutine, conversations.values())
    results: Any = await DeferredList([*all_of_them], consumeErrors=True)
    for name, (succeeded, result) in zip(conversations, results, strict=True):
        if not succeeded:
            result.value.add_note(name)
            result.raiseException()


async def turns(count: int) -> None:
    """Let the reactor go round so many times."""
    for _ in range(count):
        await deferLater(reactor, 0)


class Server:
    """A listening factory.

    Attributes:
        factory: what counts and serves the connections.
        port: where it listens.
        clients: the clients that this object has connected.
    """

    def __init__(
        self,
        factory: EchoFactory,
        wrapped: IProtocolFactory | None = None,
        interface: str = "127.0.0.1",
    ) -> None:
        """Listen.

        Args:
            factory: serves the connections.
            wrapped: the same with its wrappers, such as TLS.
            interface: the address to listen on.
        """
        self.factory: Any = factory  # tests look into its connections
        self.port = reactor.listenTCP(0, wrapped or factory, interface=interface)
        self.clients: list[Talker] = []

    @property
    def number(self) -> int:
        return int(self.port.getHost().port)

    async def connect(self) -> Talker:
        return await self.connect_with(Talker())

    async def connect_with(self, client: Talker) -> Talker:
        endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{self.number}")
        self.clients.append(client)
        await connectProtocol(endpoint, client)
        return client

    async def accepted(self) -> Any:
        """Return the only connection, which exists a moment later than for its client."""
        await eventually(lambda: bool(self.factory.connections))
        (connection,) = self.factory.connections
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        await self.port.stopListening()
        self.factory.abort()
        for client in self.clients:
            if client.reason is None:
                client.transport.abortConnection()
        await eventually(lambda: not self.factory.connections)
        await eventually(lambda: all(client.reason for client in self.clients))
        self.factory.model.stop()


class SecureServer(Server):
    """The same over TLS."""

    def __init__(self, factory: EchoFactory, context: Context) -> None:
        super().__init__(factory, TLSFactory(factory, context, reactor, factory.turns))

    async def connect(self, context: Context | None = None) -> Talker:
        context = context or ClientContext()
        talker = Talker()
        client = Factory.forProtocol(lambda: talker)
        endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{self.number}")
        await endpoint.connect(TLSFactory(client, context, reactor))
        self.clients.append(talker)
        return talker


def server_context(certificate: Path, **options: Any) -> ServerContext:
    """Return the server's side of TLS, by a file with certificate and key."""
    return ServerContext(Files(str(certificate), **options))


class ClientContext:
    """The client's side of TLS, which trusts every server."""

    server_side = False

    def __init__(self, version: TLSVersion = TLSVersion.TLSv1_3) -> None:
        self.context = client_context(version)
        self.server_name: str | None = None

    def wrap(self, incoming: MemoryBIO, outgoing: MemoryBIO, server_name: str | None) -> SSLObject:
        name = self.server_name
        return self.context.wrap_bio(incoming, outgoing, server_hostname=name)


class ExhaustedContext:
    """A context for which there is no memory left."""

    server_side = True

    def wrap(self, incoming: MemoryBIO, outgoing: MemoryBIO, server_name: str | None) -> SSLObject:
        raise MemoryError


class TwistedSecureServer(Server):
    """The same over Twisted's own TLS."""

    def __init__(self, factory: EchoFactory, certificate: ssl.PrivateCertificate) -> None:
        self.factory: Any = factory
        self.port = reactor.listenSSL(0, factory, certificate.options(), interface="127.0.0.1")
        self.clients: list[Talker] = []

    async def connect(self) -> Talker:
        talker = Talker()
        connected: Deferred[None] = Deferred()
        talker.connectionMade = lambda: connected.callback(None)  # type: ignore[method-assign]
        client = ClientFactory()
        client.noisy = False
        client.buildProtocol = lambda addr: talker
        reactor.connectSSL("127.0.0.1", self.number, client, ssl.CertificateOptions())
        await connected
        self.clients.append(talker)
        return talker


class ProxiedServer(Server):
    """The same behind a proxy, whose header comes with the first message."""

    def __init__(self, factory: EchoFactory) -> None:
        super().__init__(factory, ProxyFactory(factory, factory, TRUSTED))

    async def connect(self) -> Talker:
        talker = await super().connect()
        talker.send(line())
        return talker


def server_by(way: str, factory: EchoFactory, certificate: Path) -> Server:
    """Return a server for `factory`, in one of `WAYS`."""
    match way:
        case "clear":
            return Server(factory)
        case "TLS":
            return SecureServer(factory, server_context(certificate))
        case "Twisted's TLS":
            pem = certificate.read_bytes()
            return TwistedSecureServer(factory, ssl.PrivateCertificate.loadPEM(pem))
        case _:
            return ProxiedServer(factory)


class SlowEndpoint:
    """Listens late; `listening` fires when the test says so."""

    def __init__(self) -> None:
        self.listening: Deferred[Any] = Deferred()
        self._factory: Any = None

    def listen(self, factory: Any) -> Deferred[Any]:
        self._factory = factory
        return self.listening

    async def begin(self) -> Any:
        """Listen now; return the port."""
        port = await serverFromString(reactor, LOOPBACK).listen(self._factory)
        self.listening.callback(port)
        return port


def serving(
    model: ConcurrencyModel | str = "reactor",
    *,
    threads: int = 4,
    over: ServerContext | None = None,
    **options: Any,
) -> Server:
    """Return a server with an `EchoFactory` of these options, without or with TLS."""
    factory = EchoFactory(reactor, model=make_model(model, threads), **options)
    return Server(factory) if over is None else SecureServer(factory, over)


@contextmanager
def no_more_threads() -> Iterator[None]:
    """No thread can be started, as at the system's limit."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def in_thread(function: Callable[[], None]) -> Deferred[None]:
    """Run `function` in a thread of its own; there `run` may be called.

    Hypothesis calls a test many times and knows no Deferred; the reactor's thread cannot wait.
    """
    done: Deferred[None] = Deferred()

    def work() -> None:
        result = None
        try:
            function()
        except BaseException:
            result = Failure()
        reactor.callFromThread(done.callback, result)

    threading.Thread(target=work).start()
    return done


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in the reactor, from another thread, and wait for it."""
    return blockingCallFromThread(reactor, Deferred.fromCoroutine, coroutine)
