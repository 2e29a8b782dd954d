"""One suite for every concurrency model, without and with TLS: the same handler gives the same
bytes.
"""

from __future__ import annotations

import functools
import itertools
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import deferLater

from echod import (
    Chunk,
    Client,
    Close,
    EchoFactory,
    Fixed,
    Handler,
    Length,
    Line,
    Netstring,
    Reply,
    Varint,
    connection_handler,
    message_handler,
)
from echod.handlers.builtin import reverse, upper
from echod.handlers.contract import ConcurrencyModel, HandlerError
from echod.messages.framing import Framing
from tests.support.clients import BANNER
from tests.support.framers import Brackets
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import (
    Server,
    eventually,
    in_thread,
    make_model,
    run,
    server_context,
    serving,
)

MODELS = [
    ConcurrencyModel.REACTOR,
    ConcurrencyModel.DEFER_TO_THREAD,
    ConcurrencyModel.THREAD_PER_CONNECTION,
]
pytestmark = [pytest.mark.parametrize("model", MODELS), pytest.mark.whole]

SHORT_LENGTH = Length(bytes=2, order="little", inclusive=True)
# Framings for messages of any length, where the network does not decide what a message is.
FRAMINGS = [Line(), Length(), SHORT_LENGTH, Netstring(), Varint(), Brackets()]


@pytest.fixture(autouse=True, params=["clear", "TLS"])
def way(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    """Let every test serve without TLS, and with it."""
    if request.param == "TLS":
        over = functools.partial(serving, over=server_context(certificate))
        monkeypatch.setattr(sys.modules[__name__], "serving", over)


async def exchange(server: Server, *writes: bytes) -> bytes:
    """Send, shut down writing at once, and return all replies."""
    client = await server.connect()
    for data in writes:
        client.send(data)
    client.finish()
    answer = await client.receive_all()
    assert client.clean
    return answer


def without_prefixes(answer: bytes) -> bytes:
    return answer.removeprefix(BANNER).replace(b"OK...", b"")


@pytest_twisted.ensureDeferred
async def test_a_client_is_greeted_and_echoed(model: str) -> None:
    async with serving(model) as server:
        client = await server.connect()
        await client.receive(BANNER)
        for word in (b"happy\n", b"days\n"):
            client.send(word)
            await client.receive(b"OK..." + word)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("size", "pieces"), [(1024, 1), (1025, 2), (3000, 3)])
async def test_input_is_answered_in_pieces(model: str, size: int, pieces: int) -> None:
    async with serving(model, banner=b"") as server:
        answer = await exchange(server, b"x" * size)
        assert answer.count(b"OK...") == pieces
        assert without_prefixes(answer) == b"x" * size


@pytest_twisted.ensureDeferred
async def test_bytes_are_never_decoded(model: str) -> None:
    data = bytes(range(256)) + b"\r\n\n\0\xff"
    async with serving(model, banner=b"") as server:
        assert await exchange(server, data) == b"OK..." + data


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [10, 100_000, 1_000_000])
async def test_all_is_answered_though_the_client_shuts_down_writing_at_once(
    model: str, size: int
) -> None:
    data = random.Random(size).randbytes(size).replace(b"OK...", b"ok...")
    async with serving(model) as server:
        assert without_prefixes(await exchange(server, data)) == data


class Slow(Handler):
    """Takes a random time for each message, in the way that its model needs."""

    def __init__(self, *, model: str = "", seed: int = 0) -> None:
        self._wait = model == ConcurrencyModel.REACTOR
        self._random = random.Random(seed)

    def received(self, message: bytes) -> Any:
        delay = self._random.choice([0, 0, 0.001, 0.003])
        if self._wait:
            return deferLater(reactor, delay, lambda: message) if delay else message
        time.sleep(delay)
        return message


@pytest_twisted.ensureDeferred
async def test_replies_come_in_order_however_long_each_takes(model: str) -> None:
    """Fault 9: Replies come in the order of their messages, in every model."""

    @settings(max_examples=15)
    @given(
        lines=st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b".")), max_size=25),
        seed=st.integers(0, 2**32),
        places=st.lists(st.integers(0, 600), max_size=5),
    )
    def talk(lines: list[bytes], seed: int, places: list[int]) -> None:
        stream = b"".join(line + b"\n" for line in lines)
        run(send_in_parts(model, seed, stream, sorted(p for p in places if p < len(stream))))

    await in_thread(talk)


async def send_in_parts(model: str, seed: int, stream: bytes, places: list[int]) -> None:
    def handler() -> Slow:
        return Slow(model=model, seed=seed)

    async with serving(model, handler=ready_made(handler), framing=Line()) as server:
        client = await server.connect()
        for start, end in itertools.pairwise([0, *places, len(stream)]):
            client.send(stream[start:end])
            await deferLater(reactor, 0)
        client.finish()
        assert await client.receive_all() == stream


def ready_made(make: Any) -> Any:
    """Return a handler class whose instances come from `make`."""

    class Made(Handler):
        def __new__(cls) -> Any:
            return make()

    return Made


@pytest_twisted.ensureDeferred
async def test_a_reply_may_be_nothing_or_the_last(model: str) -> None:
    def handler(message: bytes) -> Reply:
        return {b"silence": None, b"quit": Close(b"bye"), b"hang up": Close()}.get(
            message, b"what?"
        )

    handler.__echod_kind__ = "message"  # type: ignore[attr-defined]
    async with serving(model, handler=handler, framing=Line()) as server:
        assert await exchange(server, b"silence\nx\nquit\nnever read\n") == b"what?\nbye\n"
        assert await exchange(server, b"hang up\nnever read\n") == b""
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"handler closed": 2}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("framing", "sent", "answer"),
    [
        (Line(b"\r\n"), b"ab\r\n\r\ncd", b"BA\r\n\r\nDC\r\n"),
        (Length(), b"\0\0\0\2ab\0\0\0\0", b"\0\0\0\2BA\0\0\0\0"),
        (SHORT_LENGTH, b"\4\0ab\2\0", b"\4\0BA\2\0"),
        (Netstring(), b"2:ab,0:,", b"2:BA,0:,"),
        (Varint(), b"\2ab\0", b"\2BA\0"),
        (Fixed(2), b"abcd", b"BADC"),
        (Brackets(), b"[ab][]", b"[BA][]"),
    ],
)
async def test_replies_are_framed_as_messages_are(
    model: str, framing: Any, sent: bytes, answer: bytes
) -> None:
    def handler(message: bytes) -> bytes:
        return upper(reverse(message))

    async with serving(model, handler=handler, framing=framing) as server:
        assert await exchange(server, sent) == answer


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("framing", "sent", "answer"),
    [
        (
            Line(max_message=5),
            b"ok\nlonger\nok\n",
            b"OK\nMessage too long: the limit is 5 bytes\n",
        ),
        (Length(), b"\0\0\0\1a\xff\0\0\0", b"\0\0\0\1A\0\0\0\x2bMessage too long: the limit is"),
        (Length(), b"\0\0\0\1a\0\0\0\5ab", b"\0\0\0\1A\0\0\0\x3bMessage cut short: the stream"),
        (SHORT_LENGTH, b"\3\0a\0\0", b"\3\0A\x3e\0Bad length: it counts its own 2 bytes"),
        (Netstring(), b"1:a,x", b"1:A,55:Bad length: a netstring begins with"),
        (Netstring(), b"1:a;", b"45:Bad netstring: no comma behind its last byte\n,"),
        (Netstring(5), b"1:a,6", b"1:A,39:Message too long: the limit is 5 bytes\n,"),
        (Varint(5), b"\1a\x80\x7f", b"\1A\x27Message too long: the limit is 5 bytes\n"),
        (Varint(), b"\1a\x80", b"\1A\x36Message cut short: the stream ended within its length\n"),
        (Fixed(4), b"abcdef", b"ABCDMessage cut short: the stream ended 2 bytes before its end"),
        (Brackets(), b"[a]b", b"[A][a message begins with a bracket\n]"),
        (Brackets(), b"[a][" + b"x" * 70_000, b"[A][Message too long: the limit is 100 bytes\n]"),
    ],
)
async def test_a_broken_framing_is_answered_with_an_error_and_a_close(
    model: str, framing: Any, sent: bytes, answer: bytes
) -> None:
    async with serving(model, handler=upper, framing=framing) as server:
        assert (await exchange(server, sent)).startswith(answer)
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"framing error": 1}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("sent", [b"[a][b]!", b"[a][b][?][c]"], ids=["feed", "next_message"])
async def test_a_framer_that_fails_ends_its_own_connection_with_one_traceback(
    model: str, sent: bytes, log: Log
) -> None:
    async with serving(model, handler=upper, framing=Brackets()) as server:
        steady, failing = await server.connect(), await server.connect()
        failing.send(sent)
        assert await failing.receive_all() == b"[A][B]"
        assert failing.clean
        await eventually(lambda: bool(log.errors) and len(server.factory.connections) == 1)
        steady.send(b"[d]")
        await steady.receive(b"[D]")
        assert server.factory.metrics.ended == {"handler error": 1}
        (error,) = log.take_errors()
        assert error.count("Traceback") == 1
        assert r"KeyError: 'no \x1b[31mgood\r'" in error


class Recorder(Handler):
    """Records its calls."""

    calls: list[Any] = []  # noqa: RUF012 - the test looks here

    def opened(self, client: Client) -> bytes:
        self.calls.append(("opened", client.peer))
        return b"Hello\n"

    def received(self, message: bytes) -> bytes:
        self.calls.append(("received", message))
        return message

    def closed(self, reason: str) -> None:
        self.calls.append(("closed", reason))


@pytest_twisted.ensureDeferred
async def test_a_class_is_opened_then_receives_then_is_closed_once(model: str) -> None:
    Recorder.calls.clear()
    async with serving(model, handler=Recorder, framing=Line()) as server:
        client = await server.connect()
        await client.receive(b"Hello\n")
        peer = f"127.0.0.1:{client.transport.getHost().port}"
        client.send(b"a\nb\n")
        client.finish()
        assert await client.receive_all() == b"a\nb\n"
        await eventually(lambda: len(Recorder.calls) == 4)
    assert Recorder.calls == [
        ("opened", peer),
        ("received", b"a"),
        ("received", b"b"),
        ("closed", "client closed"),
    ]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("banner", "greeting"), [(b"Hi\n", b"Hi\n"), (b"", b""), (None, b"Hello\n")]
)
async def test_a_banner_overrules_the_handlers_greeting(
    model: str, banner: bytes | None, greeting: bytes
) -> None:
    Recorder.calls.clear()
    async with serving(model, handler=Recorder, framing=Line(), banner=banner) as server:
        assert await exchange(server, b"x\n") == greeting + b"x\n"
    assert Recorder.calls[0][0] == "opened"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest.mark.parametrize("framing", [Chunk(), *FRAMINGS], ids=str)
async def test_a_greeting_and_a_last_word_may_be_in_a_buffer(
    model: str, framing: Framing, kind: type
) -> None:
    class Buffered(Handler):
        def opened(self, client: Client) -> Any:
            return kind(b"Hello")

        def received(self, message: bytes) -> Any:
            return Close(kind(b"bye " + message))

    async with serving(model, handler=Buffered, framing=framing) as server:
        answer = await exchange(server, framing.encode(b"x"))
        end = b"\n" if isinstance(framing, Line) else b""
        assert answer == framing.encode(b"Hello" + end) + framing.encode(b"bye x" + end)


def fails(where: str) -> type[Handler]:
    class Failing(Handler):
        def __init__(self) -> None:
            if where == "constructor":
                raise RuntimeError("no \x1b[31mgood\r")

        def opened(self, client: Client) -> Any:
            if where == "opened":
                raise RuntimeError("no \x1b[31mgood\r")
            return "text" if where == "greeting" else None

        def received(self, message: bytes) -> Any:
            if message == b"fail" and where == "received":
                raise RuntimeError("no \x1b[31mgood\r")
            return "text" if message == b"fail" and where == "reply" else message

        def closed(self, reason: str) -> None:
            if where == "closed":
                raise RuntimeError("no \x1b[31mgood\r")

    return Failing


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "where", ["constructor", "opened", "greeting", "received", "reply", "closed"]
)
async def test_a_failing_handler_ends_its_own_connection_with_one_traceback(
    model: str, where: str, log: Log
) -> None:
    async with serving(model, handler=fails(where), framing=Line()) as server:
        client = await server.connect()
        client.send(b"before\nfail\nafter\n")
        if where == "closed":
            client.finish()
        answer = await client.receive_all()
        expected = {"received": b"before\n", "reply": b"before\n"}
        expected["closed"] = b"before\nfail\nafter\n"
        assert answer == expected.get(where, b"")
        await eventually(lambda: not server.factory.connections and bool(log.errors))
        assert server.factory.metrics.accepted == server.factory.metrics.handler_errors == 1
        (reason,) = server.factory.metrics.ended
        # In the connection's own thread, `closed` comes before the end.
        ended = where == "closed" and model != ConcurrencyModel.THREAD_PER_CONNECTION
        assert reason == ("client closed" if ended else "handler error")
        assert client.clean
        (error,) = log.take_errors()
        assert error.count("Traceback") == 1
        assert "\x1b" not in error
        assert "\r" not in error
        if where in ("greeting", "reply"):
            assert "a handler returns bytes, None or Close, not str" in error
        else:
            assert r"RuntimeError: no \x1b[31mgood\r" in error


@pytest_twisted.ensureDeferred
async def test_one_failing_connection_touches_no_other(model: str, log: Log) -> None:
    async with serving(model, handler=fails("received"), framing=Line()) as server:
        steady, failing = await server.connect(), await server.connect()
        steady.send(b"one\n")
        await steady.receive(b"one\n")
        failing.send(b"fail\n")
        await failing.receive_all()
        steady.send(b"two\n")
        await steady.receive(b"two\n")
        # A thread may log after the client has seen the end.
        await eventually(lambda: bool(log.errors) and len(server.factory.connections) == 1)
        assert len(log.take_errors()) == 1


@pytest_twisted.ensureDeferred
async def test_a_close_with_unread_input_does_not_truncate_the_reply(model: str) -> None:
    def handler(message: bytes) -> Reply:
        return Close(b"x" * 200_000)

    handler.__echod_kind__ = "message"  # type: ignore[attr-defined]
    async with serving(model, handler=handler) as server:
        for _ in range(20):
            client = await server.connect()
            client.send(b"quit\n" * 20_000)
            assert await client.receive_all() == b"x" * 200_000
            assert client.clean


@pytest_twisted.ensureDeferred
async def test_a_client_that_resets_is_forgotten_without_a_traceback(model: str) -> None:
    async with serving(model) as server:
        for _ in range(20):
            client = await server.connect()
            client.send(b"happy\n" * 1000)
            client.reset()
        await eventually(lambda: server.factory.metrics.accepted == 20)
        await eventually(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_not_read_from(model: str) -> None:
    async with serving(model, banner=b"") as server:
        client = await server.connect()
        client.transport.pauseProducing()
        # The kernel holds little for this client: else the daemon answers megabytes ahead.
        handle = (await server.accepted()).transport.getHandle()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        client.send(b"x" * 5_000_000)
        other = await server.connect()
        await eventually(lambda: len(server.factory.connections) == 2)
        handled = -1
        while handled != (handled := max(c.figures[1] for c in server.factory.connections)):
            for _ in range(5):
                other.send(b"happy\n")
                await other.receive(b"OK...happy\n")
            await deferLater(reactor, 0.1)
        assert handled < 4_000_000
        client.transport.resumeProducing()
        client.finish()
        assert len(without_prefixes(await client.receive_all())) == 5_000_000


@pytest_twisted.ensureDeferred
async def test_a_drain_answers_what_was_received_and_closes(model: str) -> None:
    async with serving(model, handler=upper, framing=Line()) as server:
        idle, busy = await server.connect(), await server.connect()
        busy.send(b"first\n")
        await busy.receive(b"FIRST\n")
        busy.send(b"second\nthird\nincomp")
        await eventually(lambda: _arrived(server, len(b"first\nsecond\nthird\nincomp")))
        await server.factory.drain()
        assert await busy.receive_all() == b"SECOND\nTHIRD\n"
        assert await idle.receive_all() == b""
        assert idle.clean
        assert server.factory.metrics.ended == {"drained": 2}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("framing", [Chunk(max_message=5), Line(), Length(), Brackets()])
@pytest.mark.parametrize("place", [0, 3, 5])
async def test_a_handler_that_lets_the_factory_drain_answers_all_that_was_received(
    model: str, framing: Framing, place: int
) -> None:
    """Fault 88: In every model and framing, each message received so far gets its reply."""

    @message_handler
    def stopping(message: bytes) -> bytes:
        if message == b"drain":
            _drain(server, model)
        return message.upper()

    words = [b"mes-%d" % number for number in range(5)]
    words.insert(place, b"drain")
    async with serving(model, handler=stopping, framing=framing, banner=b"Hello\n") as server:
        client, idle = await server.connect(), await server.connect()
        for each in (client, idle):
            await each.receive(b"Hello\n")  # over TLS, its handshake is over
        client.send(b"".join(framing.encode(word) for word in words))
        expected = b"".join(framing.encode(word.upper()) for word in words)
        assert await client.receive_all() == expected
        assert await idle.receive_all() == b""
        assert client.clean
        assert idle.clean
        await server.factory.drain()
        assert server.factory.metrics.ended == {"drained": 2}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("framing", [Chunk(), Line(), Length(), Brackets()])
async def test_a_handler_that_lets_the_factory_drain_as_it_is_opened_still_greets(
    model: str, framing: Framing
) -> None:
    class Stopping(Handler):
        def opened(self, client: Client) -> bytes:
            _drain(server, model)
            return b"Hello\n"

        def received(self, message: bytes) -> None: ...

    async with serving(model, handler=Stopping, framing=framing) as server:
        client = await server.connect()
        assert await client.receive_all() == framing.encode(b"Hello\n")
        assert client.clean
        await server.factory.drain()
        assert server.factory.metrics.ended == {"drained": 1}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("framing", [Chunk(), *FRAMINGS], ids=str)
async def test_a_handler_may_let_the_factory_abort(model: str, framing: Framing) -> None:
    @message_handler
    def aborting(message: bytes) -> bytes:
        if model == ConcurrencyModel.REACTOR:
            server.factory.abort()
        else:
            reactor.callFromThread(server.factory.abort)
        return message

    async with serving(model, handler=aborting, framing=framing, banner=b"") as server:
        client = await server.connect()
        client.send(framing.encode(b"one"))
        await client.receive_all()
        await eventually(lambda: server.factory.metrics.ended == {"aborted": 1})


def _drain(server: Server, model: str) -> None:
    """Let the factory drain, from within a handler's call."""
    if model == ConcurrencyModel.REACTOR:
        server.factory.drain()
    else:
        reactor.callFromThread(server.factory.drain)


def _arrived(server: Server, count: int) -> bool:
    return sum(connection.figures[1] for connection in server.factory.connections) >= count


@pytest_twisted.ensureDeferred
async def test_what_moved_is_counted(model: str) -> None:
    async with serving(model) as server:
        answer = await exchange(server, b"happy\n")
        await eventually(lambda: not server.factory.connections)
        metrics = server.factory.metrics
        assert (metrics.accepted, metrics.open, metrics.messages) == (1, 0, 1)
        assert (metrics.bytes_received, metrics.bytes_sent) == (6, len(answer))
        assert metrics.ended == {"client closed": 1}


def test_a_connection_handler_runs_only_in_a_thread_of_its_own(model: str) -> None:
    @connection_handler
    def own(conn: Any) -> None: ...

    if model == ConcurrencyModel.THREAD_PER_CONNECTION:
        assert EchoFactory(reactor, handler=own, model=make_model(model))
    else:
        with pytest.raises(HandlerError, match="own is a connection handler: it runs with"):
            EchoFactory(reactor, handler=own, model=make_model(model))
