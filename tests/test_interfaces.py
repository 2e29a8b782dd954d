"""The types of Twisted's objects are correct: real reactors and transports provide them."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorCore,
    IReactorFromThreads,
    IReactorSocket,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
)
from twisted.internet.testing import StringTransport
from zope.interface import Interface, Invalid
from zope.interface.verify import verifyObject

from echod.connections.factory import EchoFactory
from echod.interfaces import Stream
from echod.listening.unix import UNIXEndpoint
from tests.support.certificates import Authority
from tests.support.serving import WAYS, Talker, eventually, server_by


@pytest.mark.parametrize(
    "interface",
    [
        *(IReactorCore, IReactorTime, IReactorTCP),  # those of the type `Reactor`
        *(IReactorFromThreads, IReactorSocket, IReactorUNIX),  # to these it is adapted
    ],
)
def test_the_reactor_is_all_that_the_daemon_takes_it_for(interface: type[Interface]) -> None:
    assert interface(reactor) is reactor


def test_a_timed_call_is_one() -> None:
    call = reactor.callLater(60, str)
    assert IDelayedCall.providedBy(call)
    call.cancel()


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_the_transport_of_each_stream_is_one(way: str, tmp_path: Path) -> None:
    certificate = tmp_path / "server.pem"
    certificate.write_bytes(Authority().pem)
    server = server_by(way, EchoFactory(reactor), certificate)
    await server.connect()
    connection = await server.accepted()
    assert verifyObject(Stream, connection.transport, tentative=True)
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_the_transport_of_a_unix_stream_is_one(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    factory = EchoFactory(reactor)
    port = await UNIXEndpoint(reactor, path).listen(factory)
    client = Talker()
    await connectProtocol(clientFromString(reactor, f"unix:{path}"), client)
    await eventually(lambda: factory.connections)
    (connection,) = factory.connections
    for transport in (client.transport, connection.transport):  # type: ignore[attr-defined]
        assert verifyObject(Stream, transport, tentative=True)
    factory.abort()
    await eventually(lambda: client.reason and not factory.connections)
    await port.stopListening()


def test_a_transport_that_lacks_a_method_is_no_stream() -> None:
    with pytest.raises(Invalid):
        verifyObject(Stream, StringTransport(), tentative=True)
