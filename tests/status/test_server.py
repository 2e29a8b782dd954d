from __future__ import annotations

import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import clientFromString, connectProtocol

from echod.daemon.build import build_service
from echod.daemon.resolve import StartError
from echod.settings.definitions import Settings
from tests.support.clients import BANNER
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import LOOPBACK, Talker


async def talker(address: Any) -> Talker:
    endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{address.port}")
    return await connectProtocol(endpoint, Talker())


async def get(address: Any, path: str) -> bytes:
    client = await talker(address)
    client.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    return await client.receive_all()


@pytest.mark.parametrize("model", ["reactor", "defer-to-thread", "thread-per-connection"])
@pytest_twisted.ensureDeferred
async def test_a_service_shows_its_status_while_it_runs(model: str) -> None:
    wanted = Settings(listen=(LOOPBACK,), status=LOOPBACK, concurrency=model)  # type: ignore[arg-type]
    service = build_service(wanted, reactor)
    assert service.status is not None
    assert service.status.address is None
    service.startService()
    address = service.status.address
    client = await talker(service.listeners[0].address)
    await client.receive(BANNER)
    client.send(b"happy\n")
    await client.receive(b"OK...happy\n")
    metrics = await get(address, "/metrics")
    assert b'echod_connections_open{listener="tcp:0:interface=127.0.0.1"} 1.0' in metrics
    assert b"echod_handler_seconds_count 1.0" in metrics
    assert (b"echod_pool_threads" in metrics) is (model != "reactor")
    assert b"echod_log" not in metrics  # it has no log of its own
    assert b"<title>echod: " in await get(address, "/")
    await service.stopService()
    await client.receive_all()
    assert service.status.address is None


@pytest_twisted.ensureDeferred
async def test_a_status_that_cannot_listen_stops_the_start(log: Log) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        service = build_service(Settings(listen=(LOOPBACK,), status=endpoint), reactor)
        with pytest.raises(StartError, match=f"^--status {endpoint}: Bind failed"):
            service.privilegedStartService()
        assert "Bind failed" in log.take_errors()[0]


def test_an_endpoint_that_makes_no_sense_is_the_flags_error() -> None:
    with pytest.raises(StartError, match="--status nosuch:1: "):
        build_service(Settings(status="nosuch:1"), reactor)
