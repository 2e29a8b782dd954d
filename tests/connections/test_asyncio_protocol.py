"""Protocols of asyncio, served as they are, by each way in which a client may come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_twisted

from echod.connections.asyncio_protocol import loop_of
from echod.connections.factory import EchoFactory
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.serving import Server, eventually, make_model, server_by

WAYS = ["clear", "TLS", "PROXY"]

pytestmark = pytest.mark.usefixtures("_on_a_loop")


@pytest.fixture(scope="module")
def _on_a_loop() -> None:
    if loop_of(reactor) is None:
        not_here("this reactor has no asyncio loop: see test_build.py")


class Recorder(asyncio.Protocol):
    """Sends back what it gets, and remembers what it was told."""

    made: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        self.told: list[object] = []
        self.data = bytearray()
        self.made.append(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.transport.write(data)

    def eof_received(self) -> bool | None:
        self.told.append("eof")
        return None

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(("lost", exc))


class Buffered(asyncio.BufferedProtocol):
    """The same with a buffer of its own."""

    made: ClassVar[list[Any]] = Recorder.made

    def __init__(self) -> None:
        self.told: list[object] = []
        self.buffer = bytearray(1000)
        self.data = bytearray()
        self.made.append(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.told.append("made")

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]
        self.transport.write(bytes(self.buffer[:nbytes]))

    def eof_received(self) -> None:
        self.told.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(("lost", exc))


@pytest.fixture(autouse=True)
def _forget_those_made() -> None:
    Recorder.made.clear()


@asynccontextmanager
async def serving(
    handler: Callable[..., object], way: str, certificate: Path, **options: Any
) -> AsyncIterator[Server]:
    factory = EchoFactory(reactor, model=make_model("reactor"), handler=handler, **options)
    server = server_by(way, factory, certificate)
    try:
        yield server
    finally:
        await server.stop()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("handler", [Recorder, Buffered])
@pytest_twisted.ensureDeferred
async def test_a_protocol_answers_and_hears_of_the_end(
    way: str, handler: type, certificate: Path
) -> None:
    async with serving(handler, way, certificate) as server:
        client = await server.connect()
        for size in (1, 1000, 100_000):
            client.send(bytes(size))
            await client.receive(bytes(size))
        client.finish()
        await client.receive_all()
        assert client.clean
        (protocol,) = Recorder.made
        assert protocol.told == ["made", "eof", ("lost", None)]
        assert bytes(protocol.data) == bytes(101_001)
        await eventually(lambda: not server.factory.connections)
        metrics = server.factory.metrics
        assert metrics.ended["client closed"] == 1
        assert (metrics.bytes_received, metrics.bytes_sent) == (101_001, 101_001)
