"""One suite for every kind of result that a handler may give, in every place of a long read.

Several pieces of code answer messages: one for each concurrency model, and in chunk framing a
shorter way for what is plain bytes. Here all of them are held to one rule, `expected`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import queue
import socket
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from echod import Chunk, Client, Close, EchoFactory, Handler, Length, Line, Serial
from echod.concurrency.conversation import Conversation
from echod.concurrency.lending import Lender
from echod.concurrency.model import Model
from echod.concurrency.models import InPool, InReactor
from echod.concurrency.pool import WorkerPool
from echod.concurrency.thread_socket import ConnectionSocket
from echod.connections.direct_protocol import DirectProtocol
from echod.connections.message_protocol import EchoProtocol
from echod.handlers.contract import ConcurrencyModel
from echod.messages.framing import Framing
from echod.messages.prefixed import Netstring
from echod.turns import PACE, Turns
from tests.support.framers import cut
from tests.support.log import Log
from tests.support.looping import Loop
from tests.support.memory import Transport
from tests.support.reactor import reactor
from tests.support.serving import eventually, server_context, serving
from tests.support.waiting import PATIENCE

# The messages, each named for its result. Each says which it was, to show order.
REPLY, EMPTY, LONG, NOTHING = b"r", b"e", b"l", b"n"
LAST, HANG_UP, RAISES, TEXT = b"q", b"h", b"x", b"t"
# In a buffer that the handler uses again for its next reply, and as every second byte of one.
BUFFER, VIEW, LAST_BUFFER = b"b", b"v", b"B"
# Streams: some pieces, none, many, one that is returned, `Close` as the last.
PIECES, NO_PIECES, MANY, RETURNED, LAST_PIECE = b"p", b"0", b"m", b"R", b"L"
STREAMS = (PIECES, NO_PIECES, MANY, RETURNED, LAST_PIECE)
AT_ONCE = (
    *(REPLY, EMPTY, LONG, NOTHING, LAST, HANG_UP, RAISES, TEXT, BUFFER, VIEW, LAST_BUFFER),
    *STREAMS,
)
# In the event loop: Deferreds and coroutines that have their result, and that have it later.
FIRED, FAILED, LATER, NOTHING_LATER = b"f", b"F", b"d", b"N"
BUFFER_LATER = b"u"
LAST_LATER, FAILS_LATER, TEXT_LATER = b"Q", b"X", b"T"
ASYNC_PIECES, ASYNC_MANY, LAST_ASYNC, RETURNS_STREAM = b"z", b"M", b"Z", b"s"
ASYNC_STREAMS = (ASYNC_PIECES, ASYNC_MANY, LAST_ASYNC, RETURNS_STREAM)
RETURNS, AWAITS, RAISES_THERE, LAST_THERE, LAST_AWAITED = b"c", b"a", b"y", b"k", b"K"
ANY = (
    *AT_ONCE,
    *(FIRED, FAILED, LATER, NOTHING_LATER, BUFFER_LATER, LAST_LATER, FAILS_LATER, TEXT_LATER),
    *(RETURNS, AWAITS, RAISES_THERE, LAST_THERE, LAST_AWAITED),
    *ASYNC_STREAMS,
)

ERRORS = {RAISES, TEXT, FAILED, FAILS_LATER, TEXT_LATER, RAISES_THERE}
LASTS = {LAST, LAST_BUFFER, LAST_LATER, LAST_THERE, LAST_AWAITED, HANG_UP, LAST_PIECE, LAST_ASYNC}

# The handler lets its own factory drain, or abort, and replies.
DRAIN, ABORT = b"D", b"A"

EVENT_LOOP = {ConcurrencyModel.REACTOR, ConcurrencyModel.SERIAL}
FRAMINGS = [Chunk(max_message=1), Line(), Length()]


def reply_to(kind: bytes, number: int) -> bytes | None:
    """The bytes of the answer to message `number`, in any kind of result."""
    if kind in (EMPTY, NOTHING, NOTHING_LATER, HANG_UP) or kind in ERRORS:
        return b"" if kind == EMPTY else None
    return b"%s%d." % (kind, number) * (5_000 if kind == LONG else 1)


def pieces_of(kind: bytes, number: int) -> list[bytes]:
    """The messages that answer message `number`."""
    if kind in (*STREAMS, *ASYNC_STREAMS):
        count = {NO_PIECES: 0, MANY: 50, ASYNC_MANY: 50}.get(kind, 3)
        length = 500 if count == 50 else 1
        return [b"%s%d-%d." % (kind, number, one) * length for one in range(count)]
    reply = reply_to(kind, number)
    return [] if reply is None else [reply]


@dataclass
class Ending:
    """The bytes that a client gets, and the counters."""

    wire: bytes = b""
    messages: int = 0
    reason: str = "client closed"
    errors: int = 0


def expected(kinds: list[bytes], framing: Framing, *, served: int | None = None) -> Ending:
    """Replies in order, up to the first `Close`, or to the first error."""
    end = Ending()
    for number, kind in enumerate(kinds, 1):
        end.messages = number
        end.wire += b"".join(map(framing.encode, pieces_of(kind, number)))
        if kind in ERRORS:
            end.reason, end.errors = "handler error", 1
            break
        if kind in LASTS:
            end.reason = "handler closed"
            break
        if number == served:
            end.reason = "served"
            break
    return end


@dataclass
class Script:
    """The calls of one server's handlers, and the results that they wait for."""

    later: Callable[[Callable[[], object]], object]
    received: list[bytes] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    factory: EchoFactory | None = None
    buffer: bytearray = field(default_factory=bytearray)
    spread: bytearray = field(default_factory=lambda: bytearray(64))

    def handler(self) -> type[Handler]:
        """Return a handler that gives the result which each message names."""
        script = self

        class Scripted(Handler):
            def opened(self, client: Client) -> Any:
                script.buffer[:] = b""
                return script.buffer

            def __init__(self) -> None:
                self._count = 0

            def received(self, message: bytes) -> Any:
                self._count += 1
                script.received.append(message)
                if message in STREAMS:
                    return script.stream(message, pieces_of(message, self._count))
                if message == RETURNS_STREAM:
                    return script.later_stream(pieces_of(message, self._count))
                if message in ASYNC_STREAMS:
                    return script.async_stream(message, pieces_of(message, self._count))
                return script.result(message, reply_to(message, self._count))

            def closed(self, reason: str) -> None:
                script.closed.append(reason)

        return Scripted

    def result(self, kind: bytes, reply: bytes | None) -> Any:
        if kind in (RETURNS, AWAITS, RAISES_THERE, LAST_THERE, LAST_AWAITED):
            return self._coroutine(kind, reply)
        if kind in (DRAIN, ABORT):
            assert self.factory is not None
            self.factory.drain() if kind == DRAIN else self.factory.abort()
        give: dict[bytes, Callable[[], Any]] = {
            LAST: lambda: Close(reply or b""),
            BUFFER: lambda: self._buffered(reply),
            VIEW: lambda: self._spread(reply),
            LAST_BUFFER: lambda: Close(self._buffered(reply)),
            BUFFER_LATER: lambda: self._soon(self._buffered(reply)),
            HANG_UP: Close,
            RAISES: self._fail,
            TEXT: lambda: "text",
            FIRED: lambda: succeed(reply),
            FAILED: lambda: fail(RuntimeError("no good")),
            LATER: lambda: self._soon(reply),
            NOTHING_LATER: lambda: self._soon(None),
            LAST_LATER: lambda: self._soon(Close(reply or b"")),
            FAILS_LATER: lambda: self._soon(Failure(RuntimeError("no good"))),
            TEXT_LATER: lambda: self._soon("text"),
        }
        return give.get(kind, lambda: reply)()

    def stream(self, kind: bytes, pieces: list[bytes]) -> Generator[Any, None, Any]:
        yield None
        for piece in pieces[:-1]:
            yield self._buffered(piece)
            yield None
        if kind == LAST_PIECE:
            yield Close(pieces[-1])
            raise AssertionError("a stream ends at its last piece")
        if kind == RETURNED:
            return pieces[-1]
        yield from pieces[-1:]
        return None

    async def later_stream(self, pieces: list[bytes]) -> Iterator[Any]:
        await self._soon(None)
        return self.stream(PIECES, pieces)

    async def async_stream(self, kind: bytes, pieces: list[bytes]) -> AsyncIterator[Any]:
        for number, piece in enumerate(pieces):
            if number % 10 == 1:
                await self._soon(None)
            yield Close(piece) if kind == LAST_ASYNC and piece is pieces[-1] else piece
            if number % 10 == 2:
                await self._soon(None)

    def _buffered(self, reply: bytes | None) -> bytearray:
        self.buffer[:] = reply or b""
        return self.buffer

    def _spread(self, reply: bytes | None) -> memoryview:
        assert reply
        view = memoryview(self.spread)[: 2 * len(reply) : 2]
        view[:] = reply
        return view

    def _fail(self) -> None:
        raise RuntimeError("no good")

    def _soon(self, result: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred()
        self.later(lambda: deferred.callback(result))
        return deferred

    async def _coroutine(self, kind: bytes, reply: bytes | None) -> Any:
        if kind in (AWAITS, LAST_AWAITED):
            await self._soon(None)
        if kind == RAISES_THERE:
            self._fail()
        return Close(reply or b"") if kind in (LAST_THERE, LAST_AWAITED) else reply


# In memory, with nothing left to chance: the models of the event loop, and each way in.


class Narrow(Transport):
    """A TCP connection in memory, which is full after some bytes."""

    ROOM = 8_000

    def __init__(self, handle: socket.socket) -> None:
        super().__init__()
        self.context = contextvars.copy_context()  # as uvloop's transports have
        self.full = False
        self.receive: Callable[[bytes], object]
        self._handle = handle
        self._room = self.ROOM

    def receiveBy(self, receive: Callable[[bytes], object]) -> None:
        self.receive = receive

    def getHandle(self) -> socket.socket:
        return self._handle

    def write(self, data: bytes) -> None:
        assert not self.half_closed, "written behind the end of our stream"
        super().write(data)
        self._room -= len(data)
        if self._room < 0 and not self.full and self.producer:
            self.full = True
            self.producer.pauseProducing()

    def closeIfSent(self) -> bool:
        return False  # as where the kernel has yet to take the last bytes

    def make_room(self) -> None:
        self._room, self.full = self.ROOM, False
        if self.producer:
            self.producer.resumeProducing()


@dataclass(frozen=True)
class Way:
    """How messages arrive, and where they are answered."""

    framing: Framing
    serial: bool = False
    # As uvloop's transports call a protocol.
    directly: bool = False
    # As where each message takes long: the connection rests as often as it can.
    hurried: bool = False
    # In a thread of the pool.
    pooled: bool = False
    # Each read waits until the one before it is answered.
    patient: bool = False

    def model(self, pool: WorkerPool) -> Model:
        if self.pooled:
            return InPool(pool)
        return Serial(lambda: 0.0, patience=0, queue_size=1) if self.serial else InReactor()

    def turns(self, loop: Loop) -> Turns:
        looks = itertools.count()
        return Turns(loop, lambda: float(next(looks)) if self.hurried else 0.0)


class Turned(asyncio.SelectorEventLoop):
    """An asyncio loop that counts as running, and takes a turn when the test says so."""

    counts = False

    def __init__(self) -> None:
        super().__init__()
        self.counts = True

    def is_running(self) -> bool:
        return self.counts

    def close(self) -> None:
        self.counts = False
        super().close()

    @property
    def at_rest(self) -> bool:
        return not self._ready  # type: ignore[attr-defined]

    def turn(self) -> None:
        self._run_once()  # type: ignore[attr-defined]


# Twisted's epoll reactor runs no such loop.
WITH_ASYNCIO = hasattr(reactor, "_asyncioEventloop")


class LoopOfThreads(Loop):
    """A loop that keeps in a queue what threads ask of it."""

    def __init__(self, asked: queue.SimpleQueue[Callable[[], None]]) -> None:
        super().__init__()
        self._asked = asked

    def callFromThread(self, function: Callable[[], None]) -> None:
        self._asked.put(function)


class Server:
    """A factory in memory, and the loops that it runs in; its clients come one after another."""

    def __init__(self, way: Way, tasks: Turned) -> None:
        self.way = way
        self._waiting: list[Callable[[], object]] = []
        self._results: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._loop = LoopOfThreads(self._results)
        self._pool = WorkerPool(1, self._loop.callFromThread)
        self._tasks = tasks
        self._script = Script(self._waiting.append)
        self._factory = self._script.factory = EchoFactory(
            self._loop,
            handler=self._script.handler(),
            framing=way.framing,
            model=way.model(self._pool),
            banner=b"",
            turns=way.turns(self._loop),
        )
        if WITH_ASYNCIO and isinstance(self._factory.model, InReactor):
            self._factory.model.lender = Lender(self._tasks)

    def stop(self) -> None:
        """End the model and its threads."""
        self._factory.model.stop()
        while not self._loop.at_rest:
            self._loop.turn()  # idle tasks end
        self._pool.stop()
        assert not self._loop.calls

    @contextlib.contextmanager
    def _connected(self) -> Iterator[tuple[EchoProtocol, Narrow]]:
        """Connect a protocol."""
        protocol = self._factory.buildProtocol(None)
        assert isinstance(protocol, EchoProtocol)
        # The kernel counts for a socket that is connected to nothing, too.
        with socket.socket() as handle:
            transport = Narrow(handle)
            transport.receive = protocol.dataReceived
            if self.way.directly:
                assert isinstance(protocol, DirectProtocol)
                transport.receive = protocol.connect_directly(transport, transport)
                assert transport.receive != protocol.dataReceived
            protocol.makeConnection(transport)
            yield protocol, transport
            assert not self._factory.connections

    def converse(
        self, kinds: list[bytes], cuts: list[int], *, finish: bool = True
    ) -> tuple[Ending, Script]:
        """Send these messages, in reads that end after each of `cuts`; return the outcome.

        Args:
            kinds: the messages.
            cuts: where a read ends.
            finish: whether the client ends its stream by itself.
        """
        self._script.received.clear()
        self._script.closed.clear()
        metrics = self._factory.metrics
        metrics.ended.clear()
        before = metrics.messages
        with self._connected() as (protocol, wire):
            parts = [framed(kind, self.way.framing) for kind in kinds]
            for start, end in itertools.pairwise(sorted({0, len(kinds), *cuts})):
                if self.way.patient or wire.producerState != "producing":
                    self._go_on(wire)
                wire.context.run(wire.receive, b"".join(parts[start:end]))
            if finish:
                protocol.readConnectionLost()
            self._go_on(wire)
            end_streams(protocol, wire, finish=finish)
            sent = wire.value()
            wire.full = False
            self._go_on(wire)  # in the pool, `closed` is due
        assert not self._loop.calls
        (reason,) = metrics.ended
        assert metrics.ended.total() == 1
        return Ending(sent, metrics.messages - before, reason), self._script

    def _go_on(self, wire: Narrow) -> None:
        """Fire the pending results."""
        loop, tasks, pool = self._loop, self._tasks, self._pool
        while self._waiting or wire.full or pool.busy or not (loop.at_rest and tasks.at_rest):
            if not tasks.at_rest:
                tasks.turn()
            elif wire.full:
                wire.make_room()
            elif pool.busy:
                self._results.get(timeout=PATIENCE)()
            elif self._waiting:
                self._waiting.pop(0)()
            else:
                loop.turn()


@contextlib.contextmanager
def in_memory(way: Way) -> Iterator[Server]:
    """Give a server, and stop it."""
    with contextlib.closing(Turned()) as tasks:
        server = Server(way, tasks)
        try:
            yield server
        finally:
            server.stop()


def end_streams(protocol: EchoProtocol, wire: Narrow, *, finish: bool) -> None:
    """Let the streams end that are yet to end, and the connection with them."""
    assert wire.half_closed or wire.disconnecting or wire.aborting
    if not wire.aborting:
        protocol.writeConnectionLost()
        if not finish:
            protocol.readConnectionLost()
        assert wire.disconnecting
    protocol.connectionLost(Failure(ConnectionDone()))


def framed(kind: bytes, framing: Framing) -> bytes:
    return framing.encode(kind)


HURRY = ["", ", in a hurry"]
WAYS = {
    name + hurry: replace(way, hurried=bool(hurry))
    for name, way in {
        "chunk, from uvloop": Way(Chunk(max_message=1), directly=True),
        "chunk": Way(Chunk(max_message=1)),
        "line": Way(Line()),
        "length, from uvloop": Way(Length(), directly=True),
        "netstring": Way(Netstring()),
        "serial, chunk": Way(Chunk(max_message=1), serial=True),
        "serial, line": Way(Line(), serial=True),
        "serial, length": Way(Length(), serial=True),
    }.items()
    for hurry in HURRY
}


# As two parameters: where fewer combinations are asked for, each way is in a hurry or not.
@pytest.fixture(params=HURRY)
def hurry(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[name for name, way in WAYS.items() if not way.hurried])
def way(request: pytest.FixtureRequest, hurry: str) -> str:
    return f"{request.param}{hurry}"


def check(server: Server, kinds: list[bytes], cuts: list[int], log: Log) -> None:
    due = expected(kinds, server.way.framing, served=1 if server.way.serial else None)
    ending, script = server.converse(kinds, cuts)
    errors = log.take_errors()
    assert all(error.count("Traceback") == 1 for error in errors), kinds
    ending.errors = len(errors)
    assert ending == due, kinds
    assert script.received == kinds[: due.messages]
    assert script.closed == [due.reason], kinds


def test_a_result_of_any_kind_takes_its_place_among_those_of_one_read(way: str, log: Log) -> None:
    """Fault 68: Replies come in order, up to the `Close` or the error, and none after it."""
    serial = WAYS[way].serial  # it answers one message
    with in_memory(WAYS[way]) as server:
        before_it = (0, 1) if serial else (0, 1, PACE - 1, PACE, PACE + 2)
        for kind, before, after in itertools.product(ANY, before_it, (0, 2)):
            check(server, [REPLY] * before + [kind] + [REPLY] * after, [], log)
        for kind in () if serial else ANY:
            check(server, [kind, REPLY], [], log)
            for other in others(kind, way):
                check(server, [kind, other], [], log)
                check(server, [REPLY, NOTHING, kind, other, REPLY], [], log)


def others(kind: bytes, way: str) -> tuple[bytes, ...]:
    """Return the kinds that follow this kind in this way: each follows in two of the ways."""
    return ANY[(ANY.index(kind) + [*WAYS].index(way)) % 5 :: 5]


def test_results_are_sent_in_order_up_to_the_last_however_the_input_comes(
    way: str, log: Log
) -> None:
    @given(
        kinds=st.lists(st.sampled_from([*ANY, *[REPLY, LONG, LATER, AWAITS] * 5]), min_size=1),
        cuts=st.lists(st.integers(1, 20), max_size=4),
    )
    def talk(kinds: list[bytes], cuts: list[int]) -> None:
        check(server, kinds, [place for place in cuts if place < len(kinds)], log)

    with in_memory(WAYS[way]) as server:
        talk()


def test_a_handler_may_let_its_own_factory_drain(way: str) -> None:
    """Fault 88: Every message received so far is answered, in order, and then the connection
    closes.
    """
    served = 1 if WAYS[way].serial else None
    for before, after in itertools.product(range(PACE + 3), (0, 1, 2, PACE + 3)):
        kinds = [REPLY] * before + [DRAIN] + [REPLY] * after
        due = expected(kinds, WAYS[way].framing, served=served)
        if served is None:
            due.reason = "drained"
        with in_memory(WAYS[way]) as server:
            ending, script = server.converse(kinds, [], finish=False)
        assert ending == due
        assert script.closed == [due.reason]


def test_a_handler_may_let_its_own_factory_abort(way: str) -> None:
    """Fault 88: An abort ends the connection at once, and does not count as an error of the
    handler.
    """
    for before, after in itertools.product((0,) if WAYS[way].serial else range(PACE + 3), (0, 2)):
        kinds = [REPLY] * before + [ABORT] + [REPLY] * after
        with in_memory(WAYS[way]) as server:
            ending, script = server.converse(kinds, [], finish=False)
        assert (ending.messages, ending.reason) == (before + 1, "aborted")
        assert script.received == kinds[: before + 1]
        assert script.closed == ["aborted"]


# In threads: of the pool, and of the connection's own.


POOLED = {
    name + (", one by one" if patient else ""): Way(framing, pooled=True, patient=patient)
    for name, framing in {
        "chunk": Chunk(max_message=1),
        "line": Line(),
        "length": Length(),
    }.items()
    for patient in (False, True)
}


@pytest.mark.parametrize("way", POOLED)
def test_in_the_pool_a_result_of_any_kind_takes_its_place_in_each_read(way: str, log: Log) -> None:
    with in_memory(POOLED[way]) as server:
        for kind in AT_ONCE:
            for kinds in ([kind], [REPLY, kind], [kind, REPLY], [REPLY, NOTHING, kind, REPLY]):
                check(server, kinds, [], log)
                check(server, kinds, list(range(1, len(kinds))), log)


@pytest.mark.parametrize("way", POOLED)
def test_in_the_pool_results_are_sent_in_order_however_the_input_comes(way: str, log: Log) -> None:
    @given(
        kinds=st.lists(st.sampled_from([*AT_ONCE, *[REPLY, LONG, NOTHING] * 5]), min_size=1),
        cuts=st.lists(st.integers(1, 20), max_size=4),
    )
    def talk(kinds: list[bytes], cuts: list[int]) -> None:
        check(server, kinds, [place for place in cuts if place < len(kinds)], log)

    with in_memory(POOLED[way]) as server:
        talk()


def by_thread(
    kinds: list[bytes], framing: Framing, *, draining: bool, cuts: list[int] | None = None
) -> tuple[Ending, Script]:
    """Hold a conversation in a thread of its own, with all messages in the socket already.

    `cuts`: where a read ends, beside the end of 1000 bytes; None: the kernel decides.
    """
    script = Script(lambda call: None)
    factory = EchoFactory(Loop(), handler=script.handler(), framing=framing, banner=b"")
    conversation = Conversation(
        factory.handler, framing, Client("somewhere"), b"", factory.stand_in
    )
    data = b"".join(framed(kind, framing) for kind in kinds)
    pieces, kind = [data], socket.SOCK_STREAM
    if cuts is not None:
        pieces, kind = cut(data, [*cuts, *range(0, len(data), 1000)]), socket.SOCK_SEQPACKET
    ours, theirs = socket.socketpair(type=kind)
    wire = bytearray()

    def read() -> None:
        while more := theirs.recv(100_000):
            wire.extend(more)

    with theirs:
        for piece in pieces:
            theirs.sendall(piece)
        theirs.shutdown(socket.SHUT_WR)
        conn = ConnectionSocket(ours.detach(), peer="", local="")
        reader = threading.Thread(target=read)
        reader.start()
        with conn:
            if draining:
                conn.drain(len(data))
            try:
                ending = Ending(reason=conversation.answer_messages(conn).value)
            except (RuntimeError, TypeError):
                ending = Ending(reason="handler error", errors=1)
            conn.shutdown(socket.SHUT_WR)
            reader.join(PATIENCE)
            ending.messages, ending.wire = conn.messages, bytes(wire)
    return ending, script


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_in_a_thread_of_its_own_results_are_sent_in_order_up_to_the_last(
    framing: Framing, draining: bool
) -> None:
    @given(kinds=st.lists(st.sampled_from([*AT_ONCE, *[REPLY, LONG, NOTHING] * 5]), min_size=1))
    def talk(kinds: list[bytes]) -> None:
        due = expected(kinds, framing)
        if draining and due.reason == "client closed":
            due.reason = "drained"
        ending, script = by_thread(kinds, framing, draining=draining)
        assert ending == due
        assert script.received == kinds[: due.messages]
        assert script.closed == [due.reason]

    talk()


@pytest.mark.parametrize("framing", [Line(), Length()])
def test_in_a_thread_of_its_own_results_do_not_depend_on_how_messages_are_cut_into_reads(
    framing: Framing,
) -> None:
    @given(
        kinds=st.lists(st.sampled_from([*AT_ONCE, *[REPLY, LONG, NOTHING] * 5]), min_size=1),
        cuts=st.lists(st.integers(0, 10_000), max_size=6),
        draining=st.booleans(),
    )
    def talk(kinds: list[bytes], cuts: list[int], draining: bool) -> None:
        due = expected(kinds, framing)
        if draining and due.reason == "client closed":
            due.reason = "drained"
        ending, script = by_thread(kinds, framing, draining=draining, cuts=cuts)
        assert ending == due
        assert script.received == kinds[: due.messages]
        assert script.closed == [due.reason]

    talk()


# Over the network: every model and framing, without and with TLS.


# TLS knows nothing of the framing.
@pytest.mark.parametrize("model", ConcurrencyModel)
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("way", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_every_model_and_framing_gives_the_same_results(
    model: ConcurrencyModel, framing: Framing, way: str, certificate: Path, log: Log
) -> None:
    """Fault 68: Each kind of result has the same effect in every model and framing, and at every
    place of a read.
    """
    script = Script(lambda call: reactor.callLater(0, call))
    over = server_context(certificate) if way == "TLS" else None
    served = 1 if model is ConcurrencyModel.SERIAL else None
    options = {"handler": script.handler(), "framing": framing, "banner": b"", "over": over}
    async with serving(model, **options) as server:
        metrics = server.factory.metrics
        # Alone, too: in the pool, a read that is one message has a way of its own.
        places = [(0, 0), (1, 1)] if way == "TLS" else [(0, 0), (0, 2), (1, 1), (2, 0)]
        for kind, place in itertools.product(ANY if model in EVENT_LOOP else AT_ONCE, places):
            kinds = [REPLY] * place[0] + [kind] + [REPLY] * place[1]
            due = expected(kinds, framing, served=served)
            script.received.clear()
            script.closed.clear()
            metrics.ended.clear()
            before = metrics.messages
            client = await server.connect()
            client.send(b"".join(framed(one, framing) for one in kinds))
            client.finish()
            assert await client.receive_all() == due.wire, kinds
            assert client.clean
            await eventually(lambda: bool(script.closed and metrics.ended))
            assert metrics.ended == {due.reason: 1}
            assert script.closed == [due.reason]
            assert script.received == kinds[: metrics.messages - before] == kinds[: due.messages]
            errors = log.take_errors()
            assert [error.count("Traceback") for error in errors] == [1] * due.errors


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("model", sorted({*ConcurrencyModel} - EVENT_LOOP))
@pytest_twisted.ensureDeferred
async def test_in_a_thread_nothing_can_be_waited_for(
    model: ConcurrencyModel, framing: Framing, log: Log
) -> None:
    class Waiting(Handler):
        def received(self, message: bytes) -> Any:
            return message if message == REPLY else succeed(message)

    async with serving(model, handler=Waiting, framing=framing, banner=b"") as server:
        client = await server.connect()
        client.send(b"".join(framed(one, framing) for one in (REPLY, FIRED, REPLY)))
        assert await client.receive_all() == framing.encode(REPLY)
        await eventually(lambda: bool(server.factory.metrics.ended))
        (error,) = log.take_errors()
        assert "a handler returns bytes, None or Close, not Deferred" in error
