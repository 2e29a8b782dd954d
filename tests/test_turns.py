from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from echod import Chunk, Close, EchoFactory, Handler, Length, Line
from echod.messages.framing import Framing
from echod.reactor.transport import SHORT_READ
from echod.reasons import EndReason
from echod.stacked import shorten_reads
from echod.turns import LONG, LONGEST_REST, PACE, SLICE, TURN, Share, Turns, go_through
from tests.support.log import Log
from tests.support.looping import BOUND, Loop, Work
from tests.support.reactor import reactor
from tests.support.serving import Talker, eventually, server_by, server_context, serving

FRAMINGS = [Chunk(max_message=1), Line(), Length()]


class Transport(StringTransport):
    half_closed = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        pass


class Waiting:
    """Has `messages` to answer, each of which takes `seconds`, and notes the times."""

    def __init__(self, turns: Turns, work: Work, messages: int, seconds: float) -> None:
        self.left = messages
        self._turns, self._work, self._seconds = turns, work, seconds

    def take_turn(self) -> None:
        share = Share(self._turns, self)
        while self.left:
            self.left -= 1
            self._work.do(self, self._seconds)
            if self.left and share.used_up():
                self._turns.rest(self)
                return


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def work(loop: Loop) -> Work:
    return Work(lambda: loop.turns)


@pytest.fixture
def turns(loop: Loop, work: Work) -> Turns:
    return Turns(loop, work.seconds)


def test_those_who_wait_go_on_in_turn_and_share_each_turn_of_the_loop(
    loop: Loop, work: Work, turns: Turns
) -> None:
    waiting = [Waiting(turns, work, 100, 0.0001) for _ in range(20)]
    for each in waiting:
        turns.rest(each)
    # Every connection has had a share before any has a second one.
    while len(set(work.order)) < len(waiting):
        had = len(work.order)
        loop.turn()
    assert max(work.order[:had].count(each) for each in waiting) <= SLICE / 0.0001 + 1
    while not loop.at_rest:
        loop.turn()
    assert not any(each.left for each in waiting)
    for turn in range(loop.turns + 1):
        together = sum(seconds for (at, _), seconds in work.done.items() if at == turn)
        assert together <= TURN + SLICE
    assert not loop.calls


def test_who_leaves_is_not_called_and_the_last_takes_the_call_with_it(
    loop: Loop, work: Work, turns: Turns
) -> None:
    one, other = (Waiting(turns, work, 1, 0) for _ in range(2))
    turns.rest(one)
    turns.rest(other)
    turns.leave(one, one)
    assert len(loop.calls) == 1
    turns.leave(other, other)
    turns.leave(other, other)
    assert not loop.calls
    assert one.left and other.left


def test_who_leaves_does_not_take_the_shares_of_others_with_it(
    loop: Loop, work: Work, turns: Turns
) -> None:
    one, other = (Waiting(turns, work, 1, 0) for _ in range(2))
    turns.keep(Share(turns, one))
    turns.keep(Share(turns, other))
    turns.leave(one, one)
    assert set(turns.shares) == {other}
    loop.turn()
    assert not turns.shares
    turns.keep(Share(turns, other))
    turns.leave(other, other)
    assert not turns.shares
    assert not loop.calls


def test_one_may_leave_while_another_has_its_turn(loop: Loop, work: Work, turns: Turns) -> None:
    other = Waiting(turns, work, 1, 0)

    class Leaving:
        def take_turn(self) -> None:
            turns.leave(other, other)

    turns.rest(Leaving())
    turns.rest(other)
    loop.turn()
    assert other.left
    assert not loop.calls


def test_an_error_ends_no_other_ones_turn(loop: Loop, work: Work, turns: Turns, log: Log) -> None:
    class Failing:
        def take_turn(self) -> None:
            raise RuntimeError("oh")

    other = Waiting(turns, work, 1, 0)
    turns.rest(Failing())
    turns.rest(other)
    loop.turn()
    assert not other.left
    assert "Resuming a connection failed" in log.take_errors()[0]


# With protocols.


def slow(work: Work, costs: Callable[[bytes], float], reply: bytes | None = None) -> type[Handler]:
    """Return a handler that takes time for each message, but only on the test's clock.

    Args:
        work: notes the time.
        costs: returns the time for a message, in seconds.
        reply: the reply to each message; None: the message.
    """

    class Slow(Handler):
        def received(self, message: bytes) -> bytes:
            work.do(self, costs(message))
            return message if reply is None else reply

    return Slow


def framed(framing: Framing, message: bytes) -> bytes:
    return framing.encode(message)


class Served:
    """A factory with clients in memory, in a loop in memory."""

    def __init__(self, framing: Framing, costs: Callable[[bytes], float], **options: Any) -> None:
        self.loop = Loop()
        self.work = Work(lambda: self.loop.turns)
        self.factory = EchoFactory(
            self.loop,
            **{
                "handler": slow(self.work, costs),
                "framing": framing,
                "banner": b"",
                "turns": Turns(self.loop, self.work.seconds),
                **options,
            },
        )

    def connect(self) -> tuple[Any, Transport]:
        protocol = self.factory.buildProtocol(None)
        assert protocol is not None
        transport = Transport()
        protocol.makeConnection(transport)
        return protocol, transport

    def finish(self, *protocols: Any) -> None:
        """Run until nothing is due, then lose the connections: nothing remains."""
        while not self.loop.at_rest:
            self.loop.turn()
        for protocol in protocols:
            protocol.connectionLost(Failure(ConnectionDone()))
        assert not self.loop.calls


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("cost", [1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("count", [1, 10])
def test_no_turn_answers_one_connection_for_long_while_others_have_input(
    framing: Framing, cost: float, count: int
) -> None:
    """Fault 69: In every framing, and for any handler of up to a millisecond a message, a client
    gets at most 5 ms of a turn of the event loop, and all others get their turn in between.
    """
    served = Served(framing, lambda message: cost)
    greedy = [served.connect() for _ in range(count)]
    polite, answers = served.connect()
    sent = framed(framing, b"x") * 3000
    for protocol, _ in greedy:
        protocol.dataReceived(sent)
    turns = 0
    while not served.loop.at_rest:
        served.loop.turn()
        polite.dataReceived(framed(framing, b"y"))
        turns += 1
        # A client that sends one message at a time is answered in the turn in which it arrives.
        assert answers.value() == framed(framing, b"y") * turns
    assert served.work.most <= BOUND
    for _, transport in greedy:
        assert transport.value() == sent
        assert transport.producerState == "producing"
    served.finish(polite, *(protocol for protocol, _ in greedy))


def any_size(name: str, size: int) -> tuple[Framing, bytes]:
    """Return a framing, and a message of `size` bytes as it is sent."""
    match name:
        case "chunk":
            return Chunk(max_message=size), b"x" * size
        case "line":
            return Line(max_message=1 << 20), b"x" * (size - 1) + b"\n"
        case _:
            framing = Length(max_message=1 << 20)
            return framing, framing.encode(b"x" * (size - len(framing.encode(b""))))


# Of a message, in bytes: at most three, and many of them make a read after which another may come.
SIZES = [4, 20_000, 33_000, LONG, 256_000]


@given(
    st.sampled_from(["chunk", "line", "length"]),
    st.sampled_from(SIZES),
    st.lists(st.sampled_from([0.0, 1e-6, 1e-5, 1e-4, 2e-4, 5e-4, 1e-3]), min_size=1, max_size=50),
    st.integers(0, 32),
    st.sampled_from([LONG, 256_000]),
    st.integers(1, 50),
    st.booleans(),
)
def test_the_bound_holds_whatever_the_messages_take_and_however_they_come(
    name: str,
    size: int,
    costs: list[float],
    full_reads: int,
    filled: int,
    percent: int,
    blocked: bool,
) -> None:
    times = iter(costs * 1000)
    framing, message = any_size(name, size)
    served = Served(framing, lambda message: next(times, 0.0))
    protocol, transport = served.connect()
    sent = message * min(1000, 2_000_000 // size)
    left, last_read = memoryview(sent), min(LONG - 1, len(sent) * percent // 100)
    while left:
        # In one turn, a reactor reads on from a connection after reads that fill its buffer.
        for length in (*[filled] * full_reads, last_read):
            if left and transport.producerState == "producing":
                protocol.dataReceived(bytes(left[:length]))
                left = left[length:]
        if not left:
            protocol.readConnectionLost()
        if blocked:
            # The client reads, after the replies have filled the buffer for writing.
            protocol.pauseProducing()
            protocol.resumeProducing()
        served.loop.turn()
    while not served.loop.at_rest:
        served.loop.turn()
    assert served.work.most <= BOUND
    assert len(transport.value()) == len(sent)
    assert transport.half_closed
    served.finish(protocol)


@pytest.mark.parametrize("name", ["chunk", "line", "length"])
@pytest.mark.parametrize("size", [33_000, LONG])
def test_after_a_long_read_that_took_the_share_there_is_no_other_in_this_turn(
    name: str, size: int
) -> None:
    framing, message = any_size(name, size)
    served = Served(framing, lambda message: 5e-4)
    protocol, transport = served.connect()
    protocol.dataReceived(message * (2 * LONG // size))
    # All of it is answered: no input is held, and the next data is left to the kernel.
    assert len(served.work.order) == 2 * LONG // size
    assert transport.producerState == "paused"
    served.loop.turn()
    assert transport.producerState == "producing"
    protocol.dataReceived(message)
    assert len(served.work.order) == 2 * LONG // size + 1
    served.finish(protocol)


def greedy(framing: Framing, **options: Any) -> tuple[Served, Any, Transport, bytes]:
    """A client that has sent more than can be answered in a turn, and rests."""
    served = Served(framing, lambda message: 1e-3, **options)
    protocol, transport = served.connect()
    sent = framed(framing, b"x") * 50
    protocol.dataReceived(sent)
    assert len(transport.value()) < len(sent)
    assert transport.producerState == "paused"
    return served, protocol, transport, sent


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_client_that_has_ended_its_stream_is_answered_to_the_end(framing: Framing) -> None:
    """Fault 69: A client's messages before the end of its stream are answered, in order, over as
    many turns as needed, then the connection ends.
    """
    served, protocol, transport, sent = greedy(framing)
    protocol.readConnectionLost()
    assert not transport.half_closed
    while not served.loop.at_rest:
        served.loop.turn()
    assert transport.value() == sent
    assert transport.half_closed
    served.finish(protocol)
    assert served.factory.metrics.ended == {EndReason.CLIENT.value: 1}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_drain_waits_for_those_that_rest(framing: Framing) -> None:
    served, protocol, transport, sent = greedy(framing)
    done = served.factory.drain()
    assert not transport.half_closed
    while not served.loop.at_rest:
        served.loop.turn()
    assert transport.value() == sent
    assert transport.half_closed
    assert not done.called
    served.finish(protocol)
    assert done.called


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_connection_that_is_lost_while_it_rests_leaves_nothing(framing: Framing) -> None:
    served, protocol, _, _ = greedy(framing)
    before = len(served.work.order)
    protocol.connectionLost(Failure(ConnectionDone()))
    assert not served.loop.calls
    assert len(served.work.order) == before
    assert not served.factory.connections


@pytest.mark.parametrize("framing", FRAMINGS)
def test_resting_is_not_the_clients_silence(framing: Framing) -> None:
    served, protocol, transport, _ = greedy(framing)
    protocol.sweep(1e6)
    assert not transport.half_closed
    served.finish(protocol)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_client_that_does_not_read_is_not_answered_in_its_turn(framing: Framing) -> None:
    served, protocol, transport, sent = greedy(framing)
    protocol.pauseProducing()
    before = transport.value()
    while not served.loop.at_rest:
        served.loop.turn()
    assert transport.value() == before
    protocol.resumeProducing()
    while not served.loop.at_rest:
        served.loop.turn()
    assert transport.value() == sent
    served.finish(protocol)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_handler_that_closes_in_a_later_turn_is_the_last_to_be_called(framing: Framing) -> None:
    work = Work(lambda: 0)

    class Quitting(Handler):
        def received(self, message: bytes) -> bytes | Close:
            work.do(None, 1e-3)
            return message if len(work.order) < 20 else Close(b"bye")

    loop = Loop()
    served = Served(
        framing, lambda message: 0.0, handler=Quitting, turns=Turns(loop, work.seconds)
    )
    protocol, transport = served.connect()
    protocol.dataReceived(framed(framing, b"x") * 50)
    while not loop.at_rest:
        loop.turn()
    assert transport.value() == framed(framing, b"x") * 19 + framed(framing, b"bye")
    assert transport.half_closed
    assert len(work.order) == 20
    assert not loop.calls
    served.finish(protocol)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_error_in_a_later_turn_ends_the_connection(framing: Framing, log: Log) -> None:
    work = Work(lambda: 0)

    class Failing(Handler):
        def received(self, message: bytes) -> bytes:
            work.do(None, 1e-3)
            if len(work.order) == 20:
                raise RuntimeError("oh")
            return message

    loop = Loop()
    served = Served(framing, lambda message: 0.0, handler=Failing, turns=Turns(loop, work.seconds))
    protocol, transport = served.connect()
    protocol.dataReceived(framed(framing, b"x") * 50)
    while not loop.at_rest:
        loop.turn()
    assert transport.value() == framed(framing, b"x") * 19
    assert transport.half_closed
    assert len(log.take_errors()) == 1
    served.finish(protocol)


def test_coroutines_that_never_wait_have_no_more_than_others() -> None:
    loop = Loop()
    work = Work(lambda: loop.turns)

    async def handler(message: bytes) -> bytes:
        work.do(None, 1e-4)
        return message

    served = Served(Line(), lambda message: 0.0, handler=handler, turns=Turns(loop, work.seconds))
    protocol, transport = served.connect()
    protocol.dataReceived(b"x\n" * 1000)
    while not loop.at_rest:
        loop.turn()
    assert work.most <= BOUND
    assert transport.value() == b"x\n" * 1000
    served.finish(protocol)


@pytest.mark.parametrize("framing", [Chunk(max_message=1), Line()])
def test_awaited_replies_have_no_more_of_a_turn_however_many_come_in_it(framing: Framing) -> None:
    loop = Loop()
    work = Work(lambda: loop.turns)
    replies: list[Deferred[bytes]] = []

    def handler(message: bytes) -> Deferred[bytes]:
        work.do(None, 1e-3)
        replies.append(Deferred())
        return replies[-1]

    served = Served(framing, lambda message: 0.0, handler=handler, turns=Turns(loop, work.seconds))
    protocol, transport = served.connect()
    sent = framed(framing, b"x") * 100
    protocol.dataReceived(sent)
    while replies:
        # Another connection's handler may fire one, and then the next one, in the same turn.
        while replies:
            replies.pop().callback(b"x")
        loop.turn()
    assert work.most <= BOUND
    assert transport.value() == sent
    served.finish(protocol)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_reads_of_a_few_messages_do_without_the_clock(framing: Framing) -> None:
    looks: list[float] = []

    def seconds() -> float:
        looks.append(0.0)
        return 0.0

    served = Served(framing, lambda message: 0.0, turns=Turns(Loop(), seconds))
    protocol, _ = served.connect()
    for _ in range(10):
        protocol.dataReceived(framed(framing, b"x"))
    assert not looks
    protocol.dataReceived(framed(framing, b"x") * 300)
    assert len(looks) <= 300 / PACE + 2
    served.finish(protocol)


# In the reactor.


def test_a_read_that_fills_the_smallest_buffer_is_long() -> None:
    assert LONG == SHORT_READ


@pytest.fixture
def count_turns() -> Iterator[Callable[[], int]]:
    """Counts how many turns the reactor has begun."""
    count = 0

    def begin() -> None:
        nonlocal count, call
        count += 1
        call = reactor.callLater(0, begin)

    call = reactor.callLater(0, begin)
    yield lambda: count
    call.cancel()


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("over", ["tcp", "tls"])
@pytest_twisted.ensureDeferred
async def test_in_the_reactor_others_are_served_beside_a_greedy_client(
    framing: Framing, over: str, certificate: Any, count_turns: Callable[[], int]
) -> None:
    """Fault 69: On either reactor, without and with TLS, a client with many messages is answered
    over many turns, and others are served in between.
    """
    work = Work(count_turns)
    async with serving(
        handler=slow(work, lambda message: 1e-4),
        framing=framing,
        banner=b"",
        turns=Turns(reactor, work.seconds),
        over=server_context(certificate) if over == "tls" else None,
    ) as server:
        one, other = await server.connect(), await server.connect()
        other.send(framed(framing, b"y"))
        await other.receive(framed(framing, b"y"))
        sent = framed(framing, b"x") * 5000
        one.send(sent)
        await one.until(lambda: bool(one.data))
        other.send(framed(framing, b"y"))
        await other.receive(framed(framing, b"y"))
        polite = work.order[0]
        answered = len(work.order)
        await one.receive(sent)
        assert work.order.count(polite) == 2
        assert answered < len(work.order)
        assert work.most <= BOUND


@asynccontextmanager
async def served_by(
    way: str, factory: EchoFactory, certificate: Path, path: Path
) -> AsyncIterator[Talker]:
    """Serve by `way`; give a client, and let the kernel hold much of its data."""
    if way == "UNIX":
        port = reactor.listenUNIX(str(path), factory)
        talker = await connectProtocol(clientFromString(reactor, f"unix:{path}"), Talker())
        server = None
    else:
        server = server_by(way, factory, certificate)
        port = server.port
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        talker = await server.connect()
    try:
        yield talker
    finally:
        if server is not None:
            await server.stop()
        else:
            talker.transport.abortConnection()
            await port.stopListening()
            await eventually(lambda: not factory.connections and talker.reason)


@pytest.mark.parametrize("way", ["clear", "UNIX", "TLS", "PROXY"])
@pytest.mark.parametrize("name", ["chunk", "line", "length"])
@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("cost", [2e-4, 1e-3])
@pytest_twisted.ensureDeferred
async def test_on_the_wire_the_bound_is_that_of_a_whole_turn_however_long_the_reads_are(
    way: str,
    name: str,
    size: int,
    cost: float,
    certificate: Path,
    tmp_path: Path,
    count_turns: Callable[[], int],
) -> None:
    """Fault 69: On either reactor the same bound holds if reads fill the buffer, after which the
    reactor reads on in the same turn, over TCP, UNIX sockets and TLS, and behind a proxy.
    """
    work = Work(count_turns)
    framing, message = any_size(name, size)
    factory = EchoFactory(
        reactor,
        handler=slow(work, lambda message: cost, reply=b"k"),
        framing=framing,
        banner=b"",
        turns=Turns(reactor, work.seconds),
    )
    async with served_by(way, factory, certificate, tmp_path / "socket") as client:
        await eventually(lambda: bool(factory.connections))
        for connection in factory.connections:
            stream = getattr(connection, "transport", None)
            shorten_reads(getattr(stream, "transport", stream))
        count = 4_000_000 // size
        client.send(message * count)
        await client.until(lambda: len(client.data) >= count * len(framed(framing, b"k")))
    assert work.most <= BOUND


def test_work_in_steps_rests_as_long_as_each_step_took_and_never_long() -> None:
    clock = Clock()
    steps: list[float] = []

    def work() -> Generator[None, None, str]:
        for took in (0.002, 0.004, 0.5):
            steps.append(clock.seconds())
            clock.rightNow += took
            yield
        return "done"

    results: list[str] = []
    Deferred.fromCoroutine(go_through(clock, work())).addCallback(results.append)
    assert steps == [0]
    while not results:
        clock.advance(0.001)
    assert steps == pytest.approx([0, 0.004, 0.012])
    assert clock.seconds() == pytest.approx(0.512 + LONGEST_REST)
    assert not clock.getDelayedCalls()
