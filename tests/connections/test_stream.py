"""Streams: replies in pieces, in every concurrency model, in clear and over TLS."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

import echod
from echod import Chunk, Client, EndReason, Handler, Limits, Line, message_handler
from echod.connections.stream import BUDGET, HOP_SIZE
from echod.handlers.contract import ConcurrencyModel
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import Talker, eventually, server_context, serving, turns
from tests.support.waiting import PATIENCE

MODELS = [
    ConcurrencyModel.REACTOR,
    ConcurrencyModel.DEFER_TO_THREAD,
    ConcurrencyModel.THREAD_PER_CONNECTION,
]
# Each with the kinds of generators that it takes.
WAYS = [(model, "plain") for model in MODELS] + [(ConcurrencyModel.REACTOR, "async")]
every_way = pytest.mark.parametrize(("model", "made"), WAYS)
PIECE = b"x" * 65_535 + b"\n"
CHECKED = contextvars.ContextVar("CHECKED", default=b"")


@pytest.fixture(params=["clear", "TLS"])
def over(request: pytest.FixtureRequest, certificate: Path) -> Any:
    """How clients connect."""
    return server_context(certificate) if request.param == "TLS" else None


class Exporting:
    """The record of the streams of a test."""

    def __init__(self) -> None:
        self.asked = 0
        self.ended: list[str] = []
        self.clients: list[Client] = []
        self.fails_at = -1
        self.go_on = threading.Event()

    def handler(  # noqa: C901 - it is one class
        self, made: str, pieces: list[bytes] | None = None, count: int = 0
    ) -> type:
        """Return a handler that sends `pieces`, or `PIECE` so many times, 0 for ever."""
        test = self
        given = pieces or iter(lambda: PIECE, None)

        class Exported(Handler):
            def opened(self, client: Client) -> None:
                self.client = client
                test.clients.append(client)
                CHECKED.set(client.peer.encode())

            def received(self, message: bytes) -> Any:
                return self.send_async() if made == "async" else self.send()

            def closed(self, reason: str) -> None:
                test.ended.append(reason)

            def send(self) -> Iterator[bytes]:
                assert echod.client() is self.client
                try:
                    for number, piece in enumerate(given):
                        test.asked = number + 1
                        if number == test.fails_at:
                            raise RuntimeError("no good")
                        yield piece
                        assert CHECKED.get() == self.client.peer.encode()
                        if number + 1 == count:
                            return
                except GeneratorExit:
                    assert echod.client() is self.client
                    assert CHECKED.get() == self.client.peer.encode()
                    test.ended.append("GeneratorExit")
                    raise

            async def send_async(self) -> AsyncIterator[bytes]:
                try:
                    for piece in self.send():
                        yield piece
                except GeneratorExit:
                    test.ended.append("GeneratorExit")
                    raise

        return Exported


@every_way
@pytest_twisted.ensureDeferred
async def test_the_next_message_waits_until_the_stream_is_over(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    pieces = [b"%05d" % number for number in range(2000)]
    test = Exporting()
    handler = test.handler(made, pieces)
    async with serving(model, handler=handler, framing=Line(), over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"\n\n\n")
        client.finish()
        assert await client.receive_all() == b"".join(b"%b\n" % one for one in pieces) * 3
        assert client.clean
        await eventually(lambda: test.ended)
        assert test.ended == [EndReason.CLIENT.value]


@every_way
@pytest_twisted.ensureDeferred
async def test_a_generator_function_is_a_handler_of_messages(
    model: ConcurrencyModel, made: str
) -> None:
    def count(message: Any) -> Iterator[bytes]:
        yield b"1,"
        yield bytearray(b"2,")
        yield message

    async def count_async(message: Any) -> AsyncIterator[bytes]:
        for piece in count(message):
            yield piece

    handler = count_async if made == "async" else count
    async with serving(model, handler=handler, banner=b"") as server:
        client = await server.connect()
        for word in (b"happy", b"days"):
            client.send(word)
            await client.receive(b"1,2," + word)


@every_way
@pytest_twisted.ensureDeferred
async def test_a_slow_client_is_asked_no_more_for_than_it_takes(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    test = Exporting()
    count = 400  # 25 MiB
    handler = test.handler(made, count=count)
    async with serving(model, handler=handler, over=over, banner=b"") as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"?")
        before = 0
        while not before or test.asked != before:  # until the kernel takes no more
            before = test.asked
            await deferLater(reactor, 0.3)
        assert 0 < before < count
        connection = await server.accepted()
        if model is not ConcurrencyModel.THREAD_PER_CONNECTION:
            assert connection.is_blocked
        other = await server.connect()  # no thread is held for the first one, nor is the loop
        other.send(b"?")
        await other.until(lambda: len(other.data) > 1_000_000)
        test.asked = 0
        client.transport.resumeProducing()
        await client.until(lambda: len(client.data) == count * len(PIECE))
        assert bytes(client.data) == PIECE * count


@pytest_twisted.ensureDeferred
async def test_in_the_pool_a_slow_client_holds_no_thread(over: Any) -> None:
    test = Exporting()
    handler = test.handler("plain")
    async with serving("defer-to-thread", threads=1, handler=handler, over=over) as server:
        for _ in range(3):
            client = await server.connect()
            client.transport.pauseProducing()
            client.send(b"?")
        await eventually(lambda: len(test.clients) == 3)
        connections = server.factory.connections
        await eventually(lambda: all(one.is_blocked for one in connections))
        await eventually(lambda: not server.factory.model.pool.busy)
        for one in connections:
            assert sum(map(len, one._outbox.parts)) < HOP_SIZE + len(PIECE)


@every_way
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_closes_the_generator(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    """Fault 124: If the client leaves, the generator is closed."""
    test = Exporting()
    async with serving(model, handler=test.handler(made), over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        await client.until(lambda: len(client.data) > 300_000)
        client.transport.pauseProducing()
        await turns(50)
        client.reset()
        await eventually(lambda: not server.factory.connections)
        generators = 2 if made == "async" else 1
        await eventually(lambda: len(test.ended) > generators - 1)
        await eventually(lambda: test.ended[-1] != "GeneratorExit")
        assert test.ended == [*["GeneratorExit"] * (len(test.ended) - 1), EndReason.LOST.value]
        assert server.factory.metrics.handler_errors == 0


@pytest.mark.parametrize("where", ["in a thread", "between two hops"])
@pytest_twisted.ensureDeferred
async def test_a_stop_of_the_pool_closes_the_generators_in_its_threads(where: str) -> None:
    go_on, waits = threading.Event(), threading.Event()
    ended: list[tuple[Client, str]] = []

    def send(message: bytes) -> Iterator[bytes]:
        try:
            while True:
                yield PIECE
                if where == "in a thread" and not waits.is_set():
                    waits.set()
                    assert go_on.wait(PATIENCE)
        finally:
            ended.append((echod.client(), threading.current_thread().name))

    async with serving("defer-to-thread", threads=1, handler=send, banner=b"") as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"?")
        connection = await server.accepted()
        if where == "in a thread":
            await eventually(waits.is_set)
        else:
            await eventually(lambda: connection.is_blocked and not server.factory.model.pool.busy)
        server.factory.abort()
        server.factory.model.stop()
        await eventually(lambda: not server.factory.connections)
        go_on.set()
        await eventually(lambda: ended)
        assert ended == [(connection.client, "echod-0")]
        await eventually(lambda: connection._pending is None)


@every_way
@pytest_twisted.ensureDeferred
async def test_a_stop_closes_the_generator_in_its_context(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    test = Exporting()
    async with serving(model, handler=test.handler(made), over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        await client.until(lambda: len(client.data) > 300_000)
        server.factory.abort()
        server.factory.model.stop()
        await eventually(lambda: "GeneratorExit" in test.ended)
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.handler_errors == 0


async def cut(client: Talker) -> None:
    """Check that the stream does not look complete."""
    client.transport.resumeProducing()
    await client.until(lambda: client.reason is not None)
    assert not client.clean


@every_way
@pytest_twisted.ensureDeferred
async def test_a_stream_that_fails_ends_with_a_reset(
    model: ConcurrencyModel, made: str, over: Any, log: Log
) -> None:
    """Fault 125: The client sees a reset, never an end, if the handler fails."""
    test = Exporting()
    test.fails_at = 3
    async with serving(model, handler=test.handler(made), over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        await cut(client)
        await eventually(lambda: test.ended)
        metrics = server.factory.metrics
        await eventually(lambda: metrics.ended[EndReason.HANDLER_ERROR.value])
        assert metrics.handler_errors == 1
    (error,) = log.take_errors()
    assert error.count("RuntimeError: no good") == 1


@every_way
@pytest_twisted.ensureDeferred
async def test_a_piece_that_is_no_piece_ends_the_stream_with_a_reset(
    model: ConcurrencyModel, made: str, log: Log
) -> None:
    test = Exporting()
    pieces: Any = [PIECE, "text", PIECE]
    handler = test.handler(made, pieces)
    async with serving(model, handler=handler, banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        await cut(client)
    (error,) = log.take_errors()
    assert "TypeError: a handler returns bytes, None or Close, not str" in error


@every_way
@pytest_twisted.ensureDeferred
async def test_a_drain_lets_a_stream_go_on_and_its_deadline_resets_it(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    """Fault 125: The same at the drain's deadline; until then the stream goes on."""
    test = Exporting()
    async with serving(model, handler=test.handler(made), over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        await client.until(lambda: len(client.data) > 300_000)
        server.factory.drain()
        so_far = len(client.data)
        await client.until(lambda: len(client.data) > so_far + 3_000_000)
        server.factory.abort()
        await cut(client)
        reasons = {EndReason.ABORTED.value, EndReason.LOST.value}  # as the thread sees it
        await eventually(lambda: reasons & set(test.ended))
        assert server.factory.metrics.ended[EndReason.ABORTED.value] == 1


@every_way
@pytest_twisted.ensureDeferred
async def test_a_stream_that_ends_while_the_daemon_drains_ends_cleanly(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    test = Exporting()
    handler = test.handler(made, count=100)
    async with serving(model, handler=handler, over=over, banner=b"") as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"?")
        await eventually(lambda: test.asked > 10)
        server.factory.drain()
        client.transport.resumeProducing()
        assert await client.receive_all() == PIECE * 100
        assert client.clean


@every_way
@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_its_stream_is_reset(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    """Fault 125: The same after `--write-timeout`."""
    test = Exporting()
    limits = Limits(write_timeout=0.3)
    handler = test.handler(made)
    async with serving(model, handler=handler, over=over, banner=b"", limits=limits) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        client.send(b"?")
        ended = server.factory.metrics.ended
        await eventually(lambda: ended[EndReason.WRITE_TIMEOUT.value])
        await cut(client)
        await eventually(lambda: test.ended)


@every_way
@pytest_twisted.ensureDeferred
async def test_a_stream_that_another_closes_is_reset(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    test = Exporting()
    async with serving(model, handler=test.handler(made), over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        await client.until(lambda: len(client.data) > 300_000)
        test.clients[0].close(b"bye")
        await cut(client)
        await eventually(lambda: server.factory.metrics.ended[EndReason.HANDLER.value])
        await eventually(lambda: len(test.ended) > (2 if made == "async" else 1))


@pytest_twisted.ensureDeferred
async def test_an_async_stream_that_waits_is_cancelled_if_its_client_leaves() -> None:
    ended: list[str] = []

    async def wait_for_ever(message: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        try:
            await Deferred()
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    async with serving(handler=wait_for_ever, banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        await client.receive(b"first")
        client.reset()
        await eventually(lambda: ended)
        assert ended == ["CancelledError"]
        await eventually(lambda: not server.factory.connections)


@every_way
@pytest_twisted.ensureDeferred
async def test_pushes_of_others_come_between_the_pieces(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    test = Exporting()
    handler = test.handler(made, count=50)
    async with serving(model, handler=handler, framing=Line(), over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"?\n")
        await client.until(lambda: len(client.data) > len(PIECE))
        assert test.clients[0].send(b"push")
        client.finish()
        lines = (await client.receive_all()).splitlines()
        assert lines.count(b"push") == 1
        assert lines.count(PIECE[:-1]) == 50


@pytest.mark.parametrize(("model", "made"), [way for way in WAYS if way != WAYS[0]])
@pytest_twisted.ensureDeferred
async def test_a_piece_arrives_before_the_next_one_exists(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    go_on, may_go_on = threading.Event(), Deferred[None]()

    def send(message: bytes) -> Iterator[bytes]:
        yield b"first"
        assert go_on.wait(PATIENCE)
        yield b"second"

    async def send_async(message: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        await may_go_on
        yield b"second"

    handler = send_async if made == "async" else send
    async with serving(model, handler=handler, over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        try:
            await client.receive(b"first")
        finally:
            go_on.set()
            may_go_on.callback(None)
        await client.receive(b"second")


@every_way
@pytest_twisted.ensureDeferred
async def test_pieces_and_pushes_of_their_handler_arrive_in_the_order_of_the_hand_over(
    model: ConcurrencyModel, made: str, over: Any
) -> None:
    def send(message: bytes) -> Iterator[bytes]:
        for number in range(0, 2000, 2):
            yield b"%05d" % number
            assert echod.client().send(b"%05d" % (number + 1))

    async def send_async(message: bytes) -> AsyncIterator[bytes]:
        for piece in send(message):
            yield piece

    handler = send_async if made == "async" else send
    async with serving(model, handler=handler, framing=Line(), over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"?\n")
        client.finish()
        assert await client.receive_all() == b"".join(b"%05d\n" % one for one in range(2000))


@every_way
@pytest.mark.parametrize("ending", ["close", "error"])
@pytest_twisted.ensureDeferred
async def test_pieces_are_handed_over_before_what_cuts_the_stream(
    model: ConcurrencyModel,
    made: str,
    ending: str,
    over: Any,
    log: Log,
) -> None:
    def send(message: bytes) -> Iterator[bytes]:
        yield b"a\n"
        yield b"b\n"
        if ending == "close":
            echod.client().close(b"bye\n")
        else:
            raise RuntimeError("no good")
        yield b"nothing follows\n"

    async def send_async(message: bytes) -> AsyncIterator[bytes]:
        for piece in send(message):
            yield piece

    handler = send_async if made == "async" else send
    async with serving(model, handler=handler, over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        data = await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        whole = b"a\nb\n" + b"bye\n" * (ending == "close")
        assert whole.startswith(data)  # the reset may have overtaken some
        assert not client.clean
        assert server.factory.metrics.bytes_sent == len(whole)
    assert len(log.take_errors()) == (ending == "error")


@pytest_twisted.ensureDeferred
async def test_a_stream_has_a_share_of_a_turn() -> None:
    sizes: list[int] = []
    test = Exporting()
    handler = test.handler("plain")
    async with serving(handler=handler, banner=b"") as server:
        client, other = [await server.connect() for _ in range(2)]
        client.send(b"?")
        await client.until(lambda: len(client.data) > 1_000_000)
        for _ in range(20):
            before = test.asked
            await turns(1)
            sizes.append((test.asked - before) * len(PIECE))
        assert max(sizes) <= 2 * (BUDGET + HOP_SIZE)
        other.send(b"?")
        await other.until(lambda: len(other.data) > 100_000)


@pytest_twisted.ensureDeferred
async def test_serial_sends_one_stream() -> None:
    test = Exporting()
    handler = test.handler("plain", [b"one ", b"two"])
    async with serving("serial", handler=handler, framing=Chunk()) as server:
        client = await server.connect()
        client.send(b"?")
        assert await client.receive_all() == b"one two"
        await eventually(lambda: test.ended == [EndReason.SERVED.value])


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("model", MODELS[1:])
async def test_an_async_generator_in_a_thread_is_an_error(
    model: ConcurrencyModel, log: Log
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    def handler(message: bytes) -> Any:
        return pieces()

    async with serving(model, handler=message_handler(handler), banner=b"") as server:
        client = await server.connect()
        client.send(b"?")
        assert await client.receive_all() == b""
    (error,) = log.take_errors()
    assert "a handler returns bytes, None or Close, not async_generator" in error
