"""The time that a handler may take, in each kind and model, with a factory of one's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

import echod
from echod.awaiting import loop_of
from echod.handlers.kinds import connection_handler, message_handler
from echod.limits import Limits
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.serving import eventually, serving, together

pytestmark = pytest.mark.long

SHORT = Limits(handler_timeout=0.3)


class Hangs:
    """Handlers that hang in one way each, until the test is over."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.cancelled = 0

    async def wait(self) -> None:
        try:
            await Deferred()
        except BaseException:
            self.cancelled += 1
            raise

    async def coroutine(self, message: bytes) -> None:
        await self.wait()

    async def stream(self, message: bytes) -> AsyncIterator[bytes]:
        yield b"one"
        await self.wait()

    def blocking(self, message: bytes) -> None:
        self.go.wait()

    def pieces(self, message: bytes) -> Iterator[bytes]:
        yield b"one"
        self.go.wait()

    def owning(self, conn: Any) -> None:
        conn.recv(2)
        self.go.wait()

    async def streams(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(2))
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def marked(handlers: object, name: str) -> Callable[..., object]:
    method = getattr(handlers, name)
    if name == "streams":
        if loop_of(reactor) is None:
            not_here("this reactor has no asyncio loop, so such a handler is refused")

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await method(reader, writer)

        return handle
    if name == "owning":
        return connection_handler(lambda conn: method(conn))
    return message_handler(lambda message: method(message))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("coroutine", "reactor"),
        ("coroutine", "serial"),
        ("stream", "reactor"),
        ("stream", "serial"),
        ("blocking", "defer-to-thread"),
        ("pieces", "defer-to-thread"),
        ("blocking", "thread-per-connection"),
        ("pieces", "thread-per-connection"),
        ("owning", "thread-per-connection"),
        ("streams", "reactor"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_handler_that_makes_no_progress_ends_its_connection(name: str, model: str) -> None:
    """Fault 133: This holds for every kind, and a coroutine that waits is cancelled."""
    hangs = Hangs()
    async with serving(model, handler=marked(hangs, name), limits=SHORT, banner=b"") as server:
        try:
            client = await server.connect()
            client.send(b"go")
            if name == "owning":
                await client.arrive()
                client.send(b"more")
            await client.receive_all()
            if name in ("blocking", "coroutine") and model != "thread-per-connection":
                assert client.data == b"Handler too slow: the limit is 0.3 s\n"
            if name in ("coroutine", "stream", "streams"):
                await eventually(lambda: hangs.cancelled == 1)
            hangs.go.set()
            await eventually(lambda: not server.factory.connections)
            assert dict(server.factory.metrics.ended) == {"handler-timeout": 1}
        finally:
            hangs.go.set()


async def on_each(
    test: Callable[[str, str], Coroutine[Any, Any, None]], *cases: tuple[str, str]
) -> None:
    """Run a test, which waits for long, with each handler and model at the same time.

    A handler of asyncio's streams is refused where the reactor has no asyncio loop.
    """
    await together(
        {
            f"{name}, {model}": test(name, model)
            for name, model in cases
            if name != "streams" or loop_of(reactor) is not None
        }
    )


class Slow:
    """Handlers whose whole work takes longer than allowed, but no piece of it."""

    # A busy machine may take five times as long.
    count, pause = 30, 0.1

    async def sleep(self) -> None:
        due: Deferred[None] = Deferred()
        reactor.callLater(self.pause, due.callback, None)
        await due

    async def stream(self, message: bytes) -> AsyncIterator[bytes]:
        for _ in range(self.count):
            await self.sleep()
            yield b"."

    def pieces(self, message: bytes) -> Iterator[bytes]:
        for _ in range(self.count):
            threading.Event().wait(self.pause)
            yield b"."

    async def streams(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(2)
        for _ in range(self.count):
            await asyncio.sleep(self.pause)
            writer.write(b".")


@pytest_twisted.ensureDeferred
async def test_each_piece_begins_the_time_anew() -> None:
    """Fault 133: A stream that goes on may last as long as it likes."""
    limits = Limits(handler_timeout=5 * Slow.pause)

    async def read(name: str, model: str) -> None:
        handler = marked(Slow(), name)
        async with serving(model, handler=handler, limits=limits, banner=b"") as server:
            client = await server.connect()
            client.send(b"go")
            client.finish()
            assert await client.receive_all() == b"." * Slow.count
            assert "handler-timeout" not in server.factory.metrics.ended

    await on_each(
        read,
        ("stream", "reactor"),
        ("stream", "serial"),
        ("pieces", "defer-to-thread"),
        ("pieces", "thread-per-connection"),
        ("streams", "reactor"),
    )


class Fast:
    """Handlers that always have more to send."""

    async def stream(self, message: bytes) -> AsyncIterator[bytes]:
        while True:
            yield bytes(10_000)

    async def drained(self, message: bytes) -> None:
        client = echod.client()
        while not client.closing:
            client.send(bytes(10_000))
            await client.drained()

    def pieces(self, message: bytes) -> Iterator[bytes]:
        while True:
            yield bytes(10_000)

    def pushing(self, message: bytes) -> None:
        client = echod.client()
        while not client.closing:
            client.send(bytes(10_000))
            client.drained()

    def owning(self, conn: Any) -> None:
        while True:
            conn.sendall(bytes(10_000))

    async def streams(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(10_000))
            await writer.drain()


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_has_another_reason() -> None:
    """Fault 133: The time in which a handler waits for its client to read is the client's, and
    ends by `write-timeout`.
    """
    limits = Limits(handler_timeout=0.3, write_timeout=1.5, linger=0.3)

    async def read_nothing(name: str, model: str) -> None:
        handler = marked(Fast(), name)
        async with serving(model, handler=handler, limits=limits, banner=b"") as server:
            client = await server.connect()
            client.transport.pauseProducing()
            client.send(b"go")
            await eventually(lambda: server.factory.connections)
            await eventually(lambda: not server.factory.connections)
            assert dict(server.factory.metrics.ended) == {"write-timeout": 1}

    await on_each(
        read_nothing,
        ("stream", "reactor"),
        ("drained", "reactor"),
        ("pieces", "reactor"),
        ("pieces", "defer-to-thread"),
        ("pushing", "defer-to-thread"),
        ("pieces", "thread-per-connection"),
        ("owning", "thread-per-connection"),
        ("streams", "reactor"),
    )


@pytest_twisted.ensureDeferred
async def test_a_handler_of_streams_may_wait_for_its_clients_next_bytes() -> None:
    """Fault 133: The time in which it waits for them does not count."""

    async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)

    if loop_of(reactor) is None:
        not_here("this reactor has no asyncio loop, so such a handler is refused")
    limits = Limits(handler_timeout=0.3, idle_timeout=2.0)
    async with serving(handler=echoes, limits=limits) as server:
        client = await server.connect()
        client.send(b"happy")
        await client.receive(b"happy")
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        assert dict(server.factory.metrics.ended) == {"idle-timeout": 1}


@pytest_twisted.ensureDeferred
async def test_a_message_that_waits_for_a_thread_does_not_use_up_its_time() -> None:
    """Fault 133: The time begins with the handler's work."""
    hangs = Hangs()
    handler = message_handler(lambda message: message if message == b"a" else hangs.go.wait())
    async with serving("defer-to-thread", threads=1, handler=handler, limits=SHORT) as server:
        try:
            first, second = await server.connect(), await server.connect()
            first.send(b"go")
            await first.arrive()
            second.send(b"a")
            await first.receive_all()
            await eventually(lambda: server.factory.metrics.ended.get("handler-timeout"))
            hangs.go.set()
            await second.receive(b"a")
            assert server.factory.metrics.ended["handler-timeout"] == 1
        finally:
            hangs.go.set()
