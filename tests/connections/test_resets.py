"""The ends of protocols of asyncio's and Twisted's, if their clients reset the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.awaiting import loop_of
from echod.connections.factory import EchoFactory
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.serving import Server, Talker, eventually, make_model, server_by, turns

WAYS = ["clear", "TLS", "PROXY"]
# The state in which a connection is reset, or is closed by its protocol.
STATES = [
    "open",
    "paused",
    "client has ended",
    "both",
    "we have ended",
    "paused and we have ended",
]


class OfAsyncio(asyncio.Protocol):
    """Notes how its connection ends."""

    kind = "asyncio"
    reset, done, aborted = ConnectionResetError, type(None), type(None)

    def __init__(self) -> None:
        self.lost: list[object] = []
        self.eof = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def eof_received(self) -> bool:
        self.eof = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    def pause(self) -> None:
        self.transport.pause_reading()

    def end(self) -> None:
        self.transport.write_eof()

    def close(self) -> None:
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()


@implementer(IHalfCloseableProtocol)
class OfTwisted(Protocol):
    """The same."""

    kind = "Twisted"
    reset, done, aborted = ConnectionLost, ConnectionDone, ConnectionAborted

    def __init__(self) -> None:
        self.lost: list[object] = []
        self.eof = False

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]

    def readConnectionLost(self) -> None:
        self.eof = True

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.append(reason.value)

    def pause(self) -> None:
        self.transport.pauseProducing()  # type: ignore[union-attr]

    def end(self) -> None:
        self.transport.loseWriteConnection()  # type: ignore[union-attr]

    def close(self) -> None:
        self.transport.loseConnection()  # type: ignore[union-attr]

    def abort(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]


@asynccontextmanager
async def a_connection(
    kind: type[Any], way: str, state: str, certificate: Path
) -> AsyncIterator[tuple[Server, Talker, Any]]:
    """Yield a server, its client and the protocol, with a connection in `state`."""
    if kind is OfAsyncio and loop_of(reactor) is None:
        not_here("this reactor has no asyncio loop, so such a handler is refused at the start")
    made: list[Any] = []

    class Made(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    handler: Any = Made if kind is OfAsyncio else Factory.forProtocol(Made)
    factory = EchoFactory(reactor, model=make_model("reactor"), handler=handler)
    server = server_by(way, factory, certificate)
    try:
        client = await server.connect()
        client.readConnectionLost = lambda: None  # type: ignore[method-assign]
        client.send(b"happy")
        await client.receive(b"happy")
        (protocol,) = made
        if "client has ended" in state or state == "both":
            client.finish()
            await eventually(lambda: protocol.eof)
        if "paused" in state or state == "both":
            protocol.pause()
        if "we have ended" in state:
            protocol.end()
            await turns(10)
        yield server, client, protocol
    finally:
        await server.stop()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [OfAsyncio, OfTwisted])
@pytest_twisted.ensureDeferred
async def test_a_reset_is_told_as_one_in_every_state(
    kind: type[Any], way: str, state: str, certificate: Path
) -> None:
    """Fault 134: `connection_lost` gets a ConnectionResetError, `connectionLost` ConnectionLost,
    and the log's reason is `connection lost`.
    """
    async with a_connection(kind, way, state, certificate) as (server, client, protocol):
        client.reset()
        await eventually(lambda: not server.factory.connections)
        (lost,) = protocol.lost
        assert type(lost) is kind.reset
        assert dict(server.factory.metrics.ended) == {"connection lost": 1}


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [OfAsyncio, OfTwisted])
@pytest_twisted.ensureDeferred
async def test_an_end_of_its_own_is_told_as_one_in_every_state(
    kind: type[Any], way: str, state: str, how: str, certificate: Path
) -> None:
    """Fault 134: An end that the protocol has asked for is none, even if its client resets the
    connection behind it.
    """
    async with a_connection(kind, way, state, certificate) as (server, client, protocol):
        getattr(protocol, how)()
        await eventually(lambda: protocol.lost)
        if how == "close":
            client.reset()
        await eventually(lambda: not server.factory.connections)
        (lost,) = protocol.lost
        assert type(lost) is (kind.done if how == "close" else kind.aborted)
        assert "connection lost" not in server.factory.metrics.ended
