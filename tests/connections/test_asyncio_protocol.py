"""Protocols of asyncio, served as they are, by each way in which a client may come."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import ssl
from asyncio.trsock import TransportSocket
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from echod.connections.factory import EchoFactory
from echod.handlers.contract import HandlerError
from echod.limits import Limits
from tests.support.asyncio_serving import WAYS, ended, on_a_loop, serving
from tests.support.log import Log
from tests.support.serving import eventually, turns

__all__ = ["on_a_loop"]

pytestmark = pytest.mark.usefixtures("on_a_loop")


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
        assert ended(server) == {"client closed": 1}
        assert (metrics.bytes_received, metrics.bytes_sent) == (101_001, 101_001)


class Fails(Recorder):
    """Raises in one of its callbacks."""

    where: ClassVar[str] = ""
    error: ClassVar[BaseException] = ValueError("no good")

    def __getattribute__(self, name: str) -> Any:
        if name == type(self).where:

            def fails(*arguments: object) -> None:
                raise type(self).error

            return fails
        return super().__getattribute__(name)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "where", ["connection_made", "data_received", "eof_received", "connection_lost"]
)
@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, SystemExit])
@pytest_twisted.ensureDeferred
async def test_an_exception_in_any_callback_is_logged_once_and_ends_its_connection(
    way: str, where: str, error: type[BaseException], certificate: Path, log: Log
) -> None:
    """Fault 103: One traceback, and no other connection is touched."""

    class FailsHere(Fails):
        pass

    FailsHere.where = where
    FailsHere.error = error("no good")
    async with serving(FailsHere, way, certificate) as server:
        client = await server.connect()
        if where != "connection_made":
            await server.accepted()
        client.send(b"a")
        if where in ("eof_received", "connection_lost"):
            await client.receive(b"a")
            client.finish()
        else:
            client.send(b"b")
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        (logged,) = log.take_errors()
        assert logged.count("Traceback") == 1
        assert "no good" in logged
        reason = "client closed" if where == "connection_lost" else "handler error"
        assert ended(server) == {reason: 1}
        assert server.factory.metrics.handler_errors == 1
        (protocol,) = Recorder.made
        lost = [one for one in protocol.told if isinstance(one, tuple)]
        if where != "connection_lost":
            assert lost == [("lost", FailsHere.error)]


class FailsToFill(asyncio.BufferedProtocol):
    """Raises in one of the callbacks for what is read, at the second read."""

    where: ClassVar[str] = ""
    error: ClassVar[BaseException] = ValueError("no good")
    lost: ClassVar[list[BaseException | None]] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = bytearray(100)
        self.calls = 0

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.fail_in("get_buffer") or self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.fail_in("buffer_updated")
        self.transport.write(self.buffer[:nbytes])
        self.calls += 1

    def fail_in(self, name: str) -> None:
        if self.calls and name == self.where:
            raise self.error

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["get_buffer", "buffer_updated"])
@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, SystemExit])
@pytest_twisted.ensureDeferred
async def test_an_exception_in_a_callback_for_a_buffer_is_logged_once_and_ends_its_connection(
    way: str, where: str, error: type[BaseException], certificate: Path, log: Log
) -> None:
    """Fault 103: It is the user's own exception, of a `BufferedProtocol`, too."""

    class FailsHere(FailsToFill):
        lost: ClassVar[list[BaseException | None]] = []

    FailsHere.where = where
    FailsHere.error = error("no good")
    async with serving(FailsHere, way, certificate) as server:
        client = await server.connect()
        client.send(b"a")
        await client.receive(b"a")
        client.send(b"b")
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        (logged,) = log.take_errors()
        assert logged.count("Traceback") == 1
        assert "no good" in logged
        assert f"in {where}" in logged
        assert ended(server) == {"handler error": 1}
        assert server.factory.metrics.handler_errors == 1
        assert FailsHere.lost == [FailsHere.error]


@pytest.mark.parametrize("buffer", [bytearray(), None, bytes(10)])
@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_buffer_that_cannot_be_filled_ends_its_connection(
    way: str, buffer: object, certificate: Path, log: Log
) -> None:
    class Wrong(FailsToFill):
        lost: ClassVar[list[BaseException | None]] = []

        def get_buffer(self, sizehint: int) -> Any:
            return buffer

    async with serving(Wrong, way, certificate) as server:
        client = await server.connect()
        client.send(b"a")
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        (logged,) = log.take_errors()
        assert logged.count("Traceback") <= 1
        assert ended(server) == {"handler error": 1}
        assert len(Wrong.lost) == 1


@pytest_twisted.ensureDeferred
async def test_a_constructor_that_fails_ends_the_connection_in_good_order(
    certificate: Path, log: Log
) -> None:
    class Unmade(Recorder):
        def __init__(self) -> None:
            raise ValueError("cannot be made")

    for way in WAYS:
        async with serving(Unmade, way, certificate) as server:
            client = await server.connect()
            assert await client.receive_all() == b""
            assert client.clean
            await eventually(lambda: not server.factory.connections)
            (logged,) = log.take_errors()
            assert "cannot be made" in logged
            assert ended(server) == {"handler error": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_what_a_protocol_has_written_arrives_before_it_closes(
    way: str, certificate: Path
) -> None:
    class Closes(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.writelines([bytes(500_000), bytearray(500_000), memoryview(b"end")])
            self.transport.close()
            assert self.transport.is_closing()
            self.transport.write(b"dropped")
            self.transport.close()

    async with serving(Closes, way, certificate) as server:
        client = await server.connect()
        client.send(b"go" * 1000)
        assert await client.receive_all() == bytes(1_000_000) + b"end"
        assert client.clean
        await eventually(lambda: not server.factory.connections)
        assert ended(server) == {"handler closed": 1}
        assert Recorder.made[0].told == ["made", ("lost", None)]


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_protocol_that_aborts_resets(way: str, certificate: Path) -> None:
    class Aborts(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.abort()

    async with serving(Aborts, way, certificate) as server:
        client = await server.connect()
        client.send(b"go")
        await client.receive_all()
        assert not client.clean
        await eventually(lambda: not server.factory.connections)
        assert ended(server) == {"handler closed": 1}
        assert Recorder.made[0].told == ["made", ("lost", None)]


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_protocol_may_end_its_stream_and_read_on(way: str, certificate: Path) -> None:
    class EndsFirst(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            assert transport.can_write_eof()
            transport.write(b"all that I say")
            transport.write_eof()

        def data_received(self, data: bytes) -> None:
            self.data += data

    async with serving(EndsFirst, way, certificate) as server:
        client = await server.connect()
        client.readConnectionLost = lambda: None  # type: ignore[method-assign]
        await client.receive(b"all that I say")
        client.send(b"happy")
        await eventually(lambda: Recorder.made and Recorder.made[0].data == b"happy")
        client.finish()
        await eventually(lambda: not server.factory.connections)
        assert ended(server) == {"client closed": 1}
        assert Recorder.made[0].told == ["made", "eof", ("lost", None)]


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_protocol_knows_its_connection(way: str, certificate: Path) -> None:
    async with serving(Recorder, way, certificate) as server:
        client = await server.connect()
        client.send(b"a")
        await client.receive(b"a")
        transport = Recorder.made[0].transport
        info = transport.get_extra_info
        peer, local = info("peername"), info("sockname")
        assert info("client").peer == f"{peer[0]}:{peer[1]}"
        assert info("client").local == f"{local[0]}:{local[1]}"
        if way == "PROXY":
            assert peer == ("203.0.113.7", 56324)
        else:
            assert local == ("127.0.0.1", server.number)
        assert isinstance(info("socket"), TransportSocket)
        assert info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert not hasattr(info("socket"), "close")
        assert info("nonsense", "none") == "none"
        secure = way == "TLS"
        assert isinstance(info("ssl_object"), ssl.SSLObject) is secure
        assert isinstance(info("sslcontext"), ssl.SSLContext) is secure
        assert (info("cipher") is not None) is secure
        assert info("peercert") in (None, {})
        assert transport.get_protocol() is Recorder.made[0]
        assert transport.is_reading()
        assert not transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        assert "open" in repr(transport)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("second", [Recorder, Buffered])
@pytest.mark.parametrize("first", [Recorder, Buffered])
@pytest_twisted.ensureDeferred
async def test_a_protocol_may_hand_over_to_another(
    way: str, first: type, second: type, certificate: Path
) -> None:
    async with serving(first, way, certificate) as server:
        client = await server.connect()
        client.send(b"one")
        await client.receive(b"one")
        before = Recorder.made[0]
        after = second()
        after.transport = before.transport
        before.transport.set_protocol(after)
        client.send(b"two")
        await client.receive(b"two")
        client.finish()
        await client.receive_all()
        assert (bytes(before.data), bytes(after.data)) == (b"one", b"two")
        assert before.told == ["made"]
        assert after.told == ["eof", ("lost", None)]


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_protocol_may_pause_reading(way: str, certificate: Path) -> None:
    async with serving(Recorder, way, certificate) as server:
        client = await server.connect()
        client.send(b"one")
        await client.receive(b"one")
        (protocol,) = Recorder.made
        protocol.transport.pause_reading()
        protocol.transport.pause_reading()
        assert not protocol.transport.is_reading()
        client.send(b"two")
        await client.arrive()
        await turns(20)
        assert bytes(protocol.data) == b"one"
        protocol.transport.resume_reading()
        protocol.transport.resume_reading()
        await client.receive(b"two")


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_protocol_is_told_to_pause_at_the_limits_that_it_sets(
    way: str, certificate: Path
) -> None:
    waiting: list[int] = []

    class Writes(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=5000, low=1000)
            assert transport.get_write_buffer_limits() == (1000, 5000)

        def data_received(self, data: bytes) -> None:
            while "pause" not in self.told:
                self.transport.write(bytes(1000))
                self.data += bytes(1000)
            # Over TLS, what is written in one call is encrypted in pieces of 80 KiB.
            waiting.append(self.transport.get_write_buffer_size())

    async with serving(Writes, way, certificate) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"go")
        await eventually(lambda: Recorder.made and "pause" in Recorder.made[0].told)
        assert "resume" not in Recorder.made[0].told
        assert 5000 < waiting[0] < 200_000
        client.transport.resumeProducing()
        await client.receive(bytes(len(Recorder.made[0].data)))
        await eventually(lambda: "resume" in Recorder.made[0].told)


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_one_that_goes_on_writing_what_is_not_read_is_aborted(
    way: str, certificate: Path
) -> None:
    """Fault 104: Its connection costs at most `--max-unsent` and a second's writing."""

    class Careless(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(bytes(10_000))
            if not self.transport.is_closing():
                asyncio.get_running_loop().call_later(0.005, self.data_received, b"")

    async with serving(Careless, way, certificate, limits=Limits(max_unsent=100_000)) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"go")
        await eventually(lambda: not server.factory.connections and ended(server))
        assert ended(server) == {"max-unsent": 1}
        assert not Recorder.made[0].told.count("resume")


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_one_long_write_is_not_aborted(way: str, certificate: Path) -> None:
    class WritesMuch(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(bytes(20_000_000))

    async with serving(WritesMuch, way, certificate, limits=Limits(max_unsent=1000)) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"go")
        await eventually(lambda: Recorder.made and "pause" in Recorder.made[0].told)
        connection = await server.accepted()
        await eventually(lambda: connection._queued > 1_000_000)
        for _ in range(3):
            connection.sweep(server.factory.seconds())
        client.transport.resumeProducing()
        await client.receive(bytes(20_000_000))


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_each_connection_has_a_context_of_its_own(way: str, certificate: Path) -> None:
    name = contextvars.ContextVar("name", default=b"nobody")

    class Remembers(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.before = name.get()
            name.set(b"made")

        def data_received(self, data: bytes) -> None:
            self.transport.write(name.get())
            name.set(data)

        def connection_lost(self, exc: Exception | None) -> None:
            self.told.append(name.get())

    async with serving(Remembers, way, certificate) as server:
        one, other = await server.connect(), await server.connect()
        for client, said in ((one, b"one"), (other, b"other")):
            client.send(said)
            await client.receive(b"made")
        for client in (one, other):
            client.finish()
            await client.receive_all()
        assert [one.before for one in Recorder.made] == [b"nobody", b"nobody"]
        assert [one.told[-1] for one in Recorder.made] == [b"one", b"other"]
    assert name.get() == b"nobody"


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_drain_ends_a_conversation_at_the_clients_turn(
    way: str, certificate: Path
) -> None:
    """Fault 105: A request that has begun is answered, and then the protocol is told."""

    class Answers(Recorder):
        def data_received(self, data: bytes) -> None:
            self.data += data
            if self.data.endswith(b"."):
                self.transport.write(b"250\n")

    async with serving(Answers, way, certificate) as server:
        client, idle, silent = [await server.connect() for _ in range(3)]
        idle.send(b".")
        await idle.receive(b"250\n")
        client.send(b"half of a request")
        await client.arrive()
        drained = server.factory.drain()
        await eventually(lambda: idle.ended)
        assert not client.ended
        client.send(b" and the rest.")
        assert await client.receive_all() == b"250\n"
        assert client.clean
        await silent.receive_all()
        await drained
        told = [one.told for one in Recorder.made if b"rest" in one.data]
        assert told == [["made", "eof", ("lost", None)]]
        assert set(ended(server)) == {"drained"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("finishes", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_protocol_that_goes_on_at_the_end_of_its_input_ends_by_itself_in_a_drain(
    way: str, finishes: bool, certificate: Path
) -> None:
    """Fault 105: The rest of an answer comes, also to a client that has ended its stream."""

    class Confirms(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(b"confirmed\n")

        def eof_received(self) -> bool:
            super().eof_received()
            return True

    async with serving(Confirms, way, certificate) as server:
        client = await server.connect()
        client.send(b"work")
        await client.receive(b"confirmed\n")
        (protocol,) = Recorder.made
        if finishes:
            client.finish()
            await eventually(lambda: "eof" in protocol.told)
        drained = server.factory.drain()
        await eventually(lambda: "eof" in protocol.told)
        for connection in list(server.factory.connections) * 3:
            connection.sweep(server.factory.reactor.seconds())
        protocol.transport.write(b"done\n")
        protocol.transport.close()
        assert (await client.receive_all()).endswith(b"done\n")
        assert client.clean
        await drained
        assert ended(server) == {"client closed" if finishes else "drained": 1}


@pytest_twisted.ensureDeferred
async def test_a_client_that_resets_is_noticed_while_reading_is_paused(certificate: Path) -> None:
    class Pauses(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    for way in ("clear", "TLS"):
        Recorder.made.clear()
        async with serving(Pauses, way, certificate) as server:
            client = await server.connect()
            await server.accepted()
            await turns(5)
            client.reset()
            await eventually(lambda: not server.factory.connections)
            assert ended(server) == {"connection lost": 1}
            assert isinstance(Recorder.made[0].told[-1], tuple)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("reason", "limits"),
    [
        ("first-byte-timeout", Limits(first_byte_timeout=0.5)),
        ("idle-timeout", Limits(idle_timeout=0.5)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_client_may_not_be_silent_for_ever(
    way: str, reason: str, limits: Limits, certificate: Path
) -> None:
    class Greets(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.write(b"hello")

    async with serving(Greets, way, certificate, limits=limits) as server:
        client = await server.connect()
        await client.receive(b"hello")
        if reason == "idle-timeout":
            client.send(b"a")
            await client.receive(b"a")
        assert await client.receive_all() == b""
        assert client.clean
        await eventually(lambda: not server.factory.connections)
        assert ended(server) == {reason: 1}
        assert Recorder.made[0].told == ["made", ("lost", None)]


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_disconnected(way: str, certificate: Path) -> None:
    class WritesMuch(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(bytes(20_000_000))

    async with serving(WritesMuch, way, certificate, limits=Limits(write_timeout=0.5)) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"go")
        await eventually(lambda: not server.factory.connections and ended(server))
        assert ended(server) == {"write-timeout": 1}
        assert Recorder.made[0].told == ["made", "pause", ("lost", None)]


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=3000), max_size=12),
    way=st.sampled_from(WAYS),
    handler=st.sampled_from([Recorder, Buffered]),
)
@pytest_twisted.inlineCallbacks
def test_nothing_is_lost_or_reordered(
    pieces: list[bytes], way: str, handler: type, certificate: Path
) -> Any:
    async def talk() -> None:
        async with serving(handler, way, certificate) as server:
            client = await server.connect()
            for piece in pieces:
                client.send(piece)
                await turns(1)
            client.finish()
            assert await client.receive_all() == b"".join(pieces)

    yield Deferred.fromCoroutine(talk())


def test_a_factory_refuses_a_reactor_without_a_loop() -> None:
    with pytest.raises(HandlerError, match="Recorder is an asyncio protocol, which needs an asy"):
        EchoFactory(MemoryReactorClock(), handler=Recorder)
