"""Each conversation has a context of its own: in every model, framing and kind of connection."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from echod import Chunk, Client, EchoFactory, Handler, Length, Line, connection_handler
from echod.contexts import Followed, call_in, context_of, is_entered, take_over
from echod.handlers.contract import ConcurrencyModel
from echod.limits import Limits
from echod.messages.framing import Framing
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import Server, Talker, eventually, make_model, server_by, serving

# Set by a handler's constructor, by `opened`, and by `received`.
MADE: ContextVar[object] = ContextVar("made", default=None)
OPENED: ContextVar[object] = ContextVar("opened", default=None)
LAST: ContextVar[object] = ContextVar("last", default=None)


class Confidant(Handler):
    """Sets its context variables in each call, and notes their earlier values."""

    made: ClassVar[list[Confidant]] = []

    def __init__(self) -> None:
        self.knew: list[tuple[object, object, object]] = []
        self.over = False
        self.note()
        MADE.set(self)
        self.made.append(self)

    def note(self) -> None:
        self.knew.append((MADE.get(), OPENED.get(), LAST.get()))

    def opened(self, client: Client) -> bytes | None:
        self.note()
        OPENED.set(self)
        return None

    def received(self, message: bytes) -> Any:
        self.note()
        LAST.set(message)
        return message

    def closed(self, reason: str) -> None:
        self.note()
        self.over = True

    def told(self, *messages: bytes) -> list[tuple[object, object, object]]:
        """Return the expected earlier values of its variables in each call."""
        seen = [(self, self, last) for last in (None, *messages)]
        return [(None, None, None), (self, None, None), *seen]


class Awaiting(Confidant):
    """Each call is a coroutine that waits in the middle."""

    async def opened(self, client: Client) -> bytes | None:
        await deferLater(reactor, 0)
        return super().opened(client)

    async def received(self, message: bytes) -> bytes:
        self.note()
        LAST.set(b"forgotten")
        await deferLater(reactor, 0)
        LAST.set(message)
        return message

    async def closed(self, reason: str) -> None:
        await deferLater(reactor, 0)
        super().closed(reason)


class Prompt(Confidant):
    """Each call is a coroutine that waits for nothing."""

    async def opened(self, client: Client) -> bytes | None:
        return super().opened(client)

    async def received(self, message: bytes) -> Any:
        return super().received(message)


class Deferring(Confidant):
    """Its results come later, from the code that fires them."""

    waiting: ClassVar[list[Deferred[None]]] = []

    def received(self, message: bytes) -> Deferred[bytes]:
        reply = super().received(message)
        ready: Deferred[None] = Deferred()
        reactor.callLater(0, ready.callback, None)
        return ready.addCallback(lambda _: reply)


HANDLERS = {
    ConcurrencyModel.REACTOR: [Confidant, Awaiting, Prompt, Deferring],
    ConcurrencyModel.SERIAL: [Confidant, Awaiting, Prompt, Deferring],
    ConcurrencyModel.DEFER_TO_THREAD: [Confidant],
    ConcurrencyModel.THREAD_PER_CONNECTION: [Confidant],
}
FRAMINGS: list[tuple[Framing, Callable[[bytes], bytes]]] = [
    (Chunk(), bytes),
    (Line(), lambda word: word + b"\n"),
    (Length(), lambda word: len(word).to_bytes(4, "big") + word),
]


@asynccontextmanager
async def reached(
    way: str, certificate: Path, model: ConcurrencyModel, **options: Any
) -> AsyncIterator[Server]:
    """Serve in this way, with a pool of one thread where there is a pool."""
    threads = 1 if model is ConcurrencyModel.DEFER_TO_THREAD else 4
    factory = EchoFactory(reactor, model=make_model(model, threads), banner=b"", **options)
    server = server_by(way, factory, certificate)
    Confidant.made.clear()
    try:
        yield server
        await eventually(lambda: all(handler.over for handler in Confidant.made))
    finally:
        await server.stop()


TABLE = [
    pytest.param(
        model, handler, framing, frame, id=f"{model}-{handler.__name__}-{type(framing).__name__}"
    )
    for model in ConcurrencyModel
    for handler, (framing, frame) in itertools.product(HANDLERS[model], FRAMINGS)
]


@pytest.mark.parametrize("way", ["clear", "TLS", "Twisted's TLS", "PROXY"])
@pytest.mark.parametrize(("model", "handler", "framing", "frame"), TABLE)
@pytest_twisted.ensureDeferred
async def test_a_conversation_finds_its_own_variables_in_each_call_and_nobody_elses(
    model: ConcurrencyModel,
    handler: type[Confidant],
    framing: Framing,
    frame: Callable[[bytes], bytes],
    way: str,
    certificate: Path,
) -> None:
    """Fault 75: No other client's handler sees the context variables that one client's handler
    sets.
    """
    words = [b"happy", b"days"]
    async with reached(way, certificate, model, handler=handler, framing=framing) as server:
        if model is ConcurrencyModel.SERIAL:  # one message each, and the others wait
            words = words[:1]
        clients = [await server.connect() for _ in range(3)]
        for word in words:
            for client in clients:
                client.send(frame(word))
            for client in clients:
                await client.receive(frame(word))
        if way == "Twisted's TLS":  # which does not always hear of a client's end
            await server.factory.drain()
        for client in clients:
            client.transport.loseConnection()
    assert len(Confidant.made) == 3
    for confidant in Confidant.made:
        assert confidant.knew == confidant.told(*words)


@pytest.mark.parametrize("end", ["finish", "reset", "idle", "drain", "abort", "error"])
@pytest.mark.parametrize("over", ["clear", "TLS"])
@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest_twisted.ensureDeferred
async def test_closed_finds_the_conversations_variables_however_it_ends(
    model: ConcurrencyModel, over: str, end: str, certificate: Path, log: Log
) -> None:
    """Fault 75: The context variables of a conversation keep their values until its end."""

    class Ending(Confidant):
        def received(self, message: bytes) -> Any:
            super().received(message)
            if end == "error":
                raise ValueError("on purpose")
            return None

    leave: Callable[[Talker], None] = {
        "finish": Talker.finish,
        "reset": lambda client: client.transport.abortConnection(),
    }.get(end, lambda client: None)
    limits = Limits(idle_timeout=0.5 if end == "idle" else 0, linger=0.1)
    async with reached(over, certificate, model, handler=Ending, limits=limits) as server:
        count = 1 if model is ConcurrencyModel.SERIAL else 2
        clients = [await server.connect() for _ in range(count)]
        for client in clients:
            client.send(b"happy")
        await eventually(lambda: len(Confidant.made) == count)
        await eventually(lambda: all(len(one.knew) > 2 for one in Confidant.made))
        if end == "drain":
            server.factory.drain()
        elif end == "abort":
            server.factory.abort()
        for client in clients:
            if not client.reason:
                leave(client)
        await eventually(lambda: all(client.reason for client in clients))
    if end == "error":
        log.take_errors()
    for confidant in Confidant.made:
        assert confidant.knew == confidant.told(b"happy")


@pytest_twisted.ensureDeferred
async def test_a_connection_handlers_thread_has_a_context_of_its_own() -> None:
    """Fault 75: The next connection of a thread does not see the variables that the previous one
    has set.
    """
    knew: list[object] = []

    @connection_handler
    def talk(conn: Any) -> None:
        knew.append(LAST.get())
        LAST.set(conn)
        conn.sendall(b"done")

    async with serving("thread-per-connection", threads=1, handler=talk, banner=b"") as server:
        for _ in range(3):
            client = await server.connect()
            assert await client.receive_all() == b"done"
    assert knew == [None] * 3


@pytest_twisted.ensureDeferred
async def test_a_coroutine_that_is_cancelled_leaves_its_variables_to_closed() -> None:
    handlers: list[Confidant] = []

    class Endless(Confidant):
        async def received(self, message: bytes) -> Any:
            handlers.append(self)
            LAST.set(message)
            await Deferred()

    async with serving(handler=Endless, banner=b"") as server:
        client = await server.connect()
        client.send(b"happy")
        await eventually(lambda: bool(handlers))
        client.reset()
        await eventually(lambda: handlers[0].over)
    assert handlers[0].knew[-1] == (handlers[0], handlers[0], b"happy")


def test_a_call_within_its_own_context_is_a_plain_call() -> None:
    context = Context()

    def inner() -> object:
        return LAST.get()

    def nested() -> tuple[object, object]:
        LAST.set(b"happy")
        return call_in(context, inner), call_in(Context(), inner)

    assert call_in(context, nested) == (b"happy", None)


def test_a_context_is_entered_until_what_runs_in_it_returns_but_no_copy_of_it() -> None:
    context = Context()
    assert not is_entered(context)
    assert context.run(is_entered, context)
    assert context.run(Context().run, is_entered, context)
    assert not context.run(is_entered, context.copy())
    assert not is_entered(context)


def test_a_functions_own_runtime_error_is_its_own() -> None:
    calls = []

    def fail() -> None:
        calls.append(LAST.get())
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        call_in(Context(), fail)
    assert calls == [None]


VARIABLES = [ContextVar[int](f"number {index}") for index in range(4)]


@given(st.lists(st.tuples(st.sampled_from(VARIABLES), st.integers())), st.data())
def test_what_a_changed_copy_knows_is_known(
    values: list[tuple[ContextVar[int], int]], data: st.DataObject
) -> None:
    before, changed = Context(), Context()
    for variable, value in values:
        data.draw(st.sampled_from([before, changed])).run(variable.set, value)
    expected = {**dict(before.items()), **dict(changed.items())}
    before.run(take_over, changed)
    assert dict(before.items()) == expected


@pytest_twisted.ensureDeferred
async def test_what_a_coroutine_sets_can_be_taken_over_once_it_is_done() -> None:
    async def work() -> None:
        LAST.set(b"first")
        await deferLater(reactor, 0)
        LAST.set(b"last")

    followed = Followed(work())
    await Deferred.fromCoroutine(followed.run())
    context = Context()
    context.run(followed.take_over)
    assert context[LAST] == b"last"


def test_only_a_context_is_taken_for_a_transports() -> None:
    class Transport:
        context = Context()

    assert context_of(Transport()) is Transport.context
    assert context_of(object()) is None
    Transport.context = "something else"  # type: ignore[assignment]
    assert context_of(Transport()) is None
