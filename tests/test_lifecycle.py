from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from ssl import DER_cert_to_PEM_cert
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor, ssl
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport

from echod import Client, EchoFactory, Handler, Limits
from echod.handlers import ConcurrencyModel
from echod.lifecycle import traffic
from echod.tls.context import certificates_in
from tests.certificates import Authority
from tests.conftest import Log
from tests.serving import (
    BANNER,
    ClientContext,
    ExhaustedContext,
    SecureServer,
    Server,
    Talker,
    TwistedSecureServer,
    eventually,
    make_model,
    server_context,
    serving,
)


@asynccontextmanager
async def secure(
    certificate: Path, model: str = "reactor", **options: Any
) -> AsyncIterator[SecureServer]:
    factory = EchoFactory(reactor, model=make_model(model), **options)
    server = SecureServer(factory, server_context(certificate))
    try:
        yield server
    finally:
        await server.stop()


async def connect_in_clear(server: Server) -> Talker:
    """A client that knows nothing of TLS."""
    return await Server.connect(server)


@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_over_tls_clients_are_greeted_and_answered(certificate: Path, model: str) -> None:
    async with secure(certificate, model) as server:
        client = await server.connect()
        if model != ConcurrencyModel.SERIAL:
            await client.receive(BANNER)
        client.send(b"happy\n")
        await client.receive(b"OK...happy\n")
        assert all(connection.client.tls for connection in server.factory.connections)


@pytest.mark.parametrize("model", [*ConcurrencyModel][:3])
@pytest_twisted.ensureDeferred
async def test_a_handler_knows_what_tls_knows_of_its_client(tmp_path: Path, model: str) -> None:
    seen: list[Client] = []

    class Asking(Handler):
        def opened(self, client: Client) -> bytes:
            seen.append(client)
            return b"hello\n"

        def received(self, message: bytes) -> None: ...

    authority = Authority("an authority")
    for name, content in {
        "ca.pem": authority.certificate,
        "server.pem": authority.issue("server"),
        "client.pem": authority.issue("somebody"),
    }.items():
        (tmp_path / name).write_bytes(content)
    asking = server_context(
        tmp_path / "server.pem", client_ca=str(tmp_path / "ca.pem"), alpn=("echo",)
    )
    client = ClientContext()
    client.context.load_cert_chain(tmp_path / "client.pem")
    client.context.set_alpn_protocols(["echo"])
    client.server_name = "example.com"
    async with serving(model, over=asking, handler=Asking) as server:
        assert isinstance(server, SecureServer)
        await (await server.connect(client)).receive(b"hello\n")
        stranger = await server.connect(ClientContext())
        assert await stranger.receive_all() == b""
        await eventually(lambda: server.factory.metrics.ended["no TLS handshake"] == 1)
    (facts,) = (client.tls for client in seen)
    assert facts is not None
    assert (facts.version, facts.alpn, facts.server_name) == ("TLSv1.3", "echo", "example.com")
    assert facts.certificate is not None
    assert facts.certificate.common_name == "somebody"
    pem = (tmp_path / "client.pem").read_text()
    assert DER_cert_to_PEM_cert(facts.certificate.der).split() == certificates_in(pem)[0].split()


@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_over_twisteds_own_tls_clients_are_greeted_answered_and_drained(
    certificate: Path, model: str
) -> None:
    options = ssl.PrivateCertificate.loadPEM(certificate.read_bytes())
    server = TwistedSecureServer(EchoFactory(reactor, model=make_model(model)), options)
    client = await server.connect()
    if model != ConcurrencyModel.SERIAL:
        await client.receive(BANNER)
    client.send(b"happy\n")
    await client.receive(b"OK...happy\n")
    if model != ConcurrencyModel.SERIAL:
        (connection,) = server.factory.connections
        assert connection.client.tls
        assert connection.client.tls.version == "TLSv1.3"
    await server.factory.drain()
    assert await client.receive_all() == b""
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_shake_hands_is_disconnected_in_time(
    certificate: Path,
) -> None:
    async with secure(certificate, limits=Limits(handshake_timeout=0.6)) as server:
        silent = await connect_in_clear(server)
        assert await silent.receive_all() == b""
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"no TLS handshake": 1}


@pytest_twisted.ensureDeferred
async def test_a_client_for_whom_tls_has_no_memory_is_closed_logged_and_counted_out(
    log: Log,
) -> None:
    factory = EchoFactory(reactor)
    server = SecureServer(factory, ExhaustedContext())
    client = await connect_in_clear(server)
    assert await client.receive_all() == b""
    await eventually(lambda: factory.metrics.ended["no TLS handshake"] == 1)
    assert factory.admission.open == 0
    assert not factory.admission.by_address
    assert log.text.count("no TLS handshake: no memory") == 1
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_drain_does_not_wait_for_a_handshake(certificate: Path) -> None:
    async with secure(certificate) as server:
        await connect_in_clear(server)
        await eventually(lambda: bool(server.factory.connections))
        await server.factory.drain()
        assert server.factory.metrics.ended == {"drained": 1}


@pytest_twisted.ensureDeferred
async def test_a_client_that_ignores_the_end_of_tls_is_disconnected_in_time(
    certificate: Path,
) -> None:
    async with secure(certificate, limits=Limits(linger=0.2)) as server:
        client = await server.connect()
        await client.receive(BANNER)
        client.transport.pauseProducing()
        (connection,) = server.factory.connections
        drained = server.factory.drain()
        await drained
        assert connection.figures[2] == len(BANNER)
        client.transport.resumeProducing()


@pytest_twisted.ensureDeferred
async def test_the_kernels_share_of_a_reply_is_waited_for() -> None:
    factory = EchoFactory(reactor, limits=Limits(linger=0.3), banner=b"x" * 200_000)
    server = Server(factory)
    client = await server.connect()
    client.transport.pauseProducing()
    await eventually(lambda: bool(factory.connections))
    drained = factory.drain()
    await deferLater(reactor, 1.2)
    client.transport.resumeProducing()
    assert await client.receive_all() == b"x" * 200_000
    assert client.clean
    await drained
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_over_a_unix_socket_too_a_client_has_to_read(tmp_path: Path) -> None:
    factory = EchoFactory(reactor, banner=b"", limits=Limits(write_timeout=0.6))
    path = str(tmp_path / "socket")
    port = reactor.listenUNIX(path, factory)
    client = await connectProtocol(UNIXClientEndpoint(reactor, path), Talker())
    client.transport.pauseProducing()
    client.send(b"x" * 3_000_000)
    await eventually(lambda: bool(factory.metrics.ended))
    assert factory.metrics.ended == {"client did not read": 1}
    client.transport.abortConnection()
    await eventually(lambda: client.reason is not None)
    await port.stopListening()


def test_what_waits_in_the_kernel_for_a_client_to_read_is_counted_as_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            ours.setblocking(False)
            taken = ours.send(b"x" * 1_000_000)
            assert taken > 100_000
            transport = StringTransport()
            transport.getHandle = lambda: ours
            assert traffic(transport, input_ended=False) == (0, taken)
            ours.shutdown(socket.SHUT_WR)
            assert traffic(transport, input_ended=False) == (0, taken)
            with client.makefile("rb") as stream:
                assert len(stream.read()) == taken
            assert traffic(transport, input_ended=False) == (0, taken)
