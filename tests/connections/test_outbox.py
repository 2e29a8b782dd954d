"""Pushes: messages that are no replies, in every concurrency model, in clear and over TLS."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool

import echod
from echod import (
    Chunk,
    Client,
    EchoFactory,
    EndReason,
    Fixed,
    Handler,
    Length,
    Limits,
    Line,
    connection_handler,
)
from echod.concurrency.pool import WorkerPool
from echod.connections import direct_protocol
from echod.handlers.contract import ConcurrencyModel
from echod.messages.framing import Framing
from tests.support.reactor import reactor
from tests.support.serving import eventually, in_thread, run, server_context, serving, turns
from tests.support.waiting import PACE, block_until

MODELS = [
    ConcurrencyModel.REACTOR,
    ConcurrencyModel.DEFER_TO_THREAD,
    ConcurrencyModel.THREAD_PER_CONNECTION,
]
every_model = pytest.mark.parametrize("model", MODELS)
PIECE = b"x" * 65_536


@pytest.fixture(params=["clear", "TLS"])
def over(request: pytest.FixtureRequest, certificate: Path) -> Any:
    """How clients connect."""
    return server_context(certificate) if request.param == "TLS" else None


class Room(Handler):
    """Keeps the clients."""

    clients: ClassVar[list[Client]] = []

    def opened(self, client: Client) -> None:
        self.client = client
        self.clients.append(client)

    def received(self, message: bytes) -> bytes | None:
        return message


@pytest.fixture(autouse=True)
def empty_room() -> None:
    Room.clients.clear()


class Pushing(Room):
    """Sends something before each reply."""

    def received(self, message: bytes) -> bytes | None:
        assert self.client.send(b"push " + message)
        return b"reply " + message


async def in_a_thread(function: Any, *arguments: object) -> Any:
    """Call `function` in a thread of its own, and wait for it without blocking the reactor."""
    pool = WorkerPool(1, reactor.callFromThread)
    try:
        return await deferToThreadPool(reactor, pool, function, *arguments)  # type: ignore[arg-type]
    finally:
        pool.stop()


def pushes_and_replies(count: int, ending: bytes = b"") -> bytes:
    return b"".join(
        b"push %03d%breply %03d%b" % (one, ending, one, ending) for one in range(count)
    )


@every_model
@pytest.mark.parametrize("framing", [Chunk(3), Line()], ids=["chunk", "line"])
@pytest_twisted.ensureDeferred
async def test_a_push_comes_before_the_reply_of_the_handler_that_sends_it(
    model: ConcurrencyModel, framing: Framing, over: Any
) -> None:
    ending = b"\n" if isinstance(framing, Line) else b""
    async with serving(model, handler=Pushing, framing=framing, over=over) as server:
        client = await server.connect()
        client.send(b"".join(b"%03d%b" % (number, ending) for number in range(300)))
        client.finish()
        assert await client.receive_all() == pushes_and_replies(300, ending)
        assert client.clean


@pytest_twisted.ensureDeferred
async def test_serial_pushes_before_it_replies() -> None:
    async with serving(ConcurrencyModel.SERIAL, handler=Pushing, framing=Chunk(3)) as server:
        client = await server.connect()
        client.send(b"000")
        assert await client.receive_all() == pushes_and_replies(1)


def sequences(data: bytes) -> dict[bytes, list[int]]:
    """Return the numbers that each sender has sent, in the order of arrival."""
    found: dict[bytes, list[int]] = {}
    for line in data.splitlines():
        name, number, *_ = line.split(b" ")
        found.setdefault(name, []).append(int(number))
    return found


class Numbering(Room):
    """Replies with a number, and gives other threads something to do."""

    def __init__(self) -> None:
        self.count = 0

    def received(self, message: bytes) -> bytes:
        self.count += 1
        return b"reply %d %b" % (self.count - 1, message)


@every_model
@pytest_twisted.ensureDeferred
async def test_replies_and_pushes_from_several_threads_arrive_in_order(
    model: ConcurrencyModel, over: Any
) -> None:
    """Fault 123: Each thread's pushes arrive in order, and the replies; no byte is lost."""

    @settings(max_examples=15, deadline=None)
    @given(
        threads=st.integers(1, 3),
        pushes=st.integers(1, 200),
        messages=st.integers(1, 200),
        length=st.sampled_from([0, 10, 3000]),
        slow=st.booleans(),
    )
    def talk(threads: int, pushes: int, messages: int, length: int, slow: bool) -> None:
        run(push_and_reply(model, over, threads, pushes, messages, length, slow=slow))

    await in_thread(talk)


async def push_and_reply(
    model: ConcurrencyModel,
    over: Any,
    threads: int,
    pushes: int,
    messages: int,
    length: int,
    *,
    slow: bool,
) -> None:
    Room.clients.clear()

    def push(name: bytes) -> None:
        to = Room.clients[0]
        for number in range(pushes):
            line = b"%b %d %b" % (name, number, b"x" * length)
            while not to.send(line):
                assert not to.closing
                to.drained()

    limits = Limits(max_unsent=50_000)
    async with serving(
        model, handler=Numbering, framing=Line(max_message=4096), over=over, limits=limits
    ) as server:
        client = await server.connect()
        await eventually(lambda: Room.clients)
        if slow:
            client.transport.pauseProducing()
        names = [b"thread%d" % one for one in range(threads)]
        pushing = [Deferred.fromCoroutine(in_a_thread(push, name)) for name in names]
        for _ in range(messages):
            client.send(b"y" * length + b"\n")
        await turns(3)
        client.transport.resumeProducing()
        for one in pushing:
            await one
        client.finish()
        found = sequences(await client.receive_all())
        assert client.clean
        expected = {name: list(range(pushes)) for name in names}
        assert found == {b"reply": list(range(messages)), **expected}


@every_model
@pytest_twisted.ensureDeferred
async def test_what_waits_for_a_client_that_does_not_read_is_bounded_and_it_is_disconnected(
    model: ConcurrencyModel, over: Any
) -> None:
    most, piece = 100_000, b"x" * 50_000
    limits = Limits(max_unsent=most, write_timeout=0.3)
    async with serving(model, handler=Room, over=over, banner=b"", limits=limits) as server:
        deaf = await server.connect()
        await eventually(lambda: Room.clients)
        deaf.transport.pauseProducing()
        (to,) = Room.clients
        while to.send(piece):
            await turns(1)
        assert not to.closing
        other = await server.connect()
        while not to.closing:  # meanwhile the others are served
            to.send(piece)  # the kernel's buffer may have grown
            other.send(b"happy")
            await other.receive(b"happy")
            await deferLater(reactor, PACE)
        assert not to.send(b"x")
        ended = server.factory.metrics.ended
        await eventually(lambda: ended[EndReason.WRITE_TIMEOUT.value])


@every_model
@pytest_twisted.ensureDeferred
async def test_one_message_may_be_longer_than_the_limit_if_nothing_waits(
    model: ConcurrencyModel, over: Any
) -> None:
    long = bytes(range(250)) * 80_000
    limits = Limits(max_unsent=1000)
    async with serving(model, handler=Room, over=over, banner=b"", limits=limits) as server:
        client = await server.connect()
        await eventually(lambda: Room.clients)
        assert Room.clients[0].send(long)
        assert not Room.clients[0].send(b"x" * 1001)
        await client.receive(long)


@every_model
@pytest.mark.parametrize("waiter", ["loop", "thread"])
@pytest_twisted.ensureDeferred
async def test_a_sender_can_wait_for_room_or_for_the_end(
    model: ConcurrencyModel, over: Any, waiter: str
) -> None:
    def wait(to: Client) -> None:
        to.drained()

    async with serving(model, handler=Room, over=over, banner=b"") as server:
        for ends in (False, True):
            Room.clients.clear()
            client = await server.connect()
            await eventually(lambda: Room.clients)
            (to,) = Room.clients
            await to.drained()
            client.transport.pauseProducing()
            assert to.send(b"x" * 20_000_000)
            waiting = Deferred.fromCoroutine(
                in_a_thread(wait, to) if waiter == "thread" else until_drained(to)
            )
            await turns(20)
            assert not waiting.called
            if ends:
                client.reset()
            else:
                client.transport.resumeProducing()
            await waiting
            assert ends or len(client.data) > 1_000_000
            client.transport.resumeProducing()
            await to.drained()
            client.transport.abortConnection()


async def until_drained(to: Client) -> None:
    await to.drained()


@every_model
@pytest.mark.parametrize("where", ["loop", "thread"])
@pytest_twisted.ensureDeferred
async def test_close_comes_after_what_was_sent_before_and_nothing_after_it(
    model: ConcurrencyModel, over: Any, where: str
) -> None:
    def say_goodbye(to: Client) -> bool:
        to.send(b"last ")
        to.close(b"words")
        to.close(b"!")
        return to.closing and not to.send(b"!")

    async with serving(model, handler=Room, over=over, banner=b"") as server:
        client = await server.connect()
        await eventually(lambda: Room.clients)
        (to,) = Room.clients
        assert not to.closing
        done = await in_a_thread(say_goodbye, to) if where == "thread" else say_goodbye(to)
        assert done
        assert await client.receive_all() == b"last words"
        assert client.clean
        await eventually(lambda: to._link is None)
        assert to.closing
        assert not to.send(b"!")
        to.close(b"!")
        to.abort()
        assert server.factory.metrics.ended[EndReason.HANDLER.value] == 1


class Closing(Room):
    """Closes in the middle of its answer."""

    def received(self, message: bytes) -> bytes | None:
        self.client.close(b"bye")
        return b"too late"


@every_model
@pytest.mark.parametrize("framing", [Chunk(1), Line()], ids=["chunk", "line"])
@pytest_twisted.ensureDeferred
async def test_a_reply_after_close_is_dropped(
    model: ConcurrencyModel, over: Any, framing: Framing
) -> None:
    async with serving(model, handler=Closing, framing=framing, over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"\n\n\n")
        assert await client.receive_all() == framing.encode(b"bye")
        assert client.clean


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize("framing", [Chunk(1), Line()], ids=["chunk", "line"])
@pytest_twisted.ensureDeferred
async def test_a_reply_after_close_is_dropped_while_others_are_answered(
    model: ConcurrencyModel, framing: Framing
) -> None:
    async with serving(model, handler=Closing, framing=framing, banner=b"") as server:
        clients = [await server.connect() for _ in range(30)]
        for client in clients:
            client.send(b"\n\n\n")
        answers = [await client.receive_all() for client in clients]
        assert answers == [framing.encode(b"bye")] * 30


class ClosedByAnother(Room):
    """Another thread closes once a reply is on its way to the event loop, behind a push."""

    def received(self, message: bytes) -> bytes:
        stands, self.goes_on = threading.Event(), threading.Event()

        def stand_still() -> None:
            stands.set()
            self.goes_on.wait()

        reactor.callFromThread(stand_still)
        stands.wait()
        if message.startswith(b"push"):
            self.client.send(b"push, ")
        threading.Thread(target=self.close).start()
        return b"reply, "

    def close(self) -> None:
        connection: Any = self.client._link
        block_until(lambda: connection.owner.model.pool._results)
        self.client.close(b"bye")
        self.goes_on.set()


@pytest.mark.parametrize("framing", [Chunk(), Line()], ids=["chunk", "line"])
@pytest.mark.parametrize("words", [[b"reply, "], [b"push, ", b"reply, "]], ids=["reply", "both"])
@pytest_twisted.ensureDeferred
async def test_a_reply_before_a_close_by_another_thread_arrives_before_its_last_words(
    framing: Framing, words: list[bytes]
) -> None:
    async with serving(
        ConcurrencyModel.DEFER_TO_THREAD, handler=ClosedByAnother, framing=framing, banner=b""
    ) as server:
        client = await server.connect()
        client.send(framing.encode(words[0]))
        assert await client.receive_all() == b"".join(map(framing.encode, [*words, b"bye"]))


class ClosedByAnotherMeanwhile(Room):
    """Another thread closes while the event loop answers the second message of a read."""

    def received(self, message: bytes) -> bytes:
        if message == b"2":
            thread = threading.Thread(target=self.client.close, args=(b"bye",))
            thread.start()
            thread.join()
        return message


@pytest.mark.parametrize("framing", [Chunk(1), Line()], ids=["chunk", "line"])
@pytest_twisted.ensureDeferred
async def test_no_reply_follows_the_last_words_of_another_thread(framing: Framing) -> None:
    async with serving(handler=ClosedByAnotherMeanwhile, framing=framing, banner=b"") as server:
        client = await server.connect()
        client.send(b"".join(framing.encode(message) for message in (b"1", b"2", b"3")))
        assert (await client.receive_all()).endswith(framing.encode(b"bye"))


@every_model
@pytest_twisted.ensureDeferred
async def test_abort_resets_the_connection(model: ConcurrencyModel) -> None:
    async with serving(model, handler=Room, banner=b"") as server:
        client = await server.connect()
        await eventually(lambda: Room.clients)
        Room.clients[0].abort()
        await client.until(lambda: client.reason is not None)
        assert not client.clean
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended[EndReason.HANDLER.value] == 1


@pytest_twisted.ensureDeferred
async def test_a_handler_that_has_the_socket_sends_by_that() -> None:
    errors: list[RuntimeError] = []

    @connection_handler
    def converse(conn: Any) -> None:
        client = echod.client()
        for refused in (lambda: client.send(b"x"), client.drained):
            with pytest.raises(RuntimeError, match="this one has the connection itself") as caught:
                refused()
            errors.append(caught.value)
        conn.sendall(client.peer.encode())

    async with serving("thread-per-connection", handler=converse, banner=b"") as server:
        client = await server.connect()
        assert (await client.receive_all()).startswith(b"127.0.0.1:")
    assert len(errors) == 2


@pytest_twisted.ensureDeferred
async def test_only_bytes_can_be_sent() -> None:
    async with serving(handler=Room, banner=b"") as server:
        client = await server.connect()
        await eventually(lambda: Room.clients)
        buffer = bytearray(b"happy")
        assert Room.clients[0].send(buffer)
        buffer[:] = b"-----"
        with pytest.raises(TypeError, match="only bytes can be sent, not str"):
            Room.clients[0].send("text")  # type: ignore[arg-type]
        await client.receive(b"happy")


@pytest_twisted.ensureDeferred
async def test_a_client_that_is_not_served_yet_cannot_be_sent_to() -> None:
    async with serving("serial", handler=Room) as server:
        first = await server.connect()
        await eventually(lambda: Room.clients)
        await server.connect()
        await eventually(lambda: len(server.factory.connections) == 2)
        waiting = next(one for one in server.factory.connections if one._waiting)
        assert not waiting.client.send(b"x")
        first.send(b"happy")
        assert await first.receive_all() == b"happy"


@every_model
@pytest_twisted.ensureDeferred
async def test_a_client_that_only_listens_is_not_idle(model: ConcurrencyModel) -> None:
    limits = Limits(idle_timeout=1, first_byte_timeout=1)
    async with serving(model, handler=Room, banner=b"", limits=limits) as server:
        listening, silent = [await server.connect() for _ in range(2)]
        await eventually(lambda: len(Room.clients) == 2)
        ports = {one.transport.getHost().port: one for one in (listening, silent)}
        (to,) = (one for one in Room.clients if ports[one.port] is listening)
        while silent.reason is None:
            assert to.send(b"tick")
            await deferLater(reactor, 0.02)  # its pace
        for _ in range(3):
            assert to.send(b"tock")
        await listening.until(lambda: listening.data.endswith(b"tock" * 3))


@every_model
@pytest_twisted.ensureDeferred
async def test_sends_are_taken_while_the_daemon_drains(model: ConcurrencyModel, over: Any) -> None:
    told: list[bool] = []

    class Draining(Room):
        def received(self, message: bytes) -> bytes | None:
            started.set()
            go_on.wait()
            told.append(self.client.send(b"push "))
            return b"reply"

    started, go_on = threading.Event(), threading.Event()
    if model is ConcurrencyModel.REACTOR:
        go_on.set()
    async with serving(model, handler=Draining, over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"happy")
        await eventually(started.is_set)
        server.factory.drain()
        go_on.set()
        assert await client.receive_all() == b"push reply"
        assert told == [True]


def wake_ups(monkeypatch: pytest.MonkeyPatch, function: Any) -> list[Any]:
    """Call `function` in a thread, which ends before the loop goes on; return what it asks for."""
    calls: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(reactor, "callFromThread", calls.append)
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()
    return calls


@pytest_twisted.ensureDeferred
async def test_many_sends_from_threads_cost_one_wake_up_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(handler=Room, banner=b"") as server:
        clients = [await server.connect() for _ in range(5)]
        await eventually(lambda: len(Room.clients) == 5)
        calls = wake_ups(
            monkeypatch, lambda: [one.send(b"x") for one in Room.clients for _ in range(100)]
        )
        assert len(calls) == 1
        calls[0]()
        for one in clients:
            await one.receive(b"x" * 100)


@pytest.mark.parametrize("pushed_before", [False, True], ids=["first", "after a thread's"])
@pytest_twisted.ensureDeferred
async def test_a_push_from_the_loop_counts_as_sent_and_calls_what_a_reply_calls(
    pushed_before: bool,
) -> None:
    async with serving(handler=Room, banner=b"") as server:
        client = await server.connect()
        await eventually(lambda: Room.clients)
        (to,) = Room.clients
        if pushed_before:
            await in_a_thread(to.send, b"thread ")
            await client.receive(b"thread ")
        connection = await server.accepted()
        calls: list[str] = []

        def note(frame: Any, event: str, called: Any) -> None:
            if event == "call":
                calls.append(frame.f_code.co_name)

        sys.setprofile(note)
        try:
            taken = to.send(b"happy")
        finally:
            sys.setprofile(None)
        assert taken
        await client.receive(b"happy")
        assert connection.figures[2] == len(b"thread happy" if pushed_before else b"happy")
        if connection._count_below is not None:
            assert {*calls} == {"send", "push", "push_here"}


@pytest_twisted.ensureDeferred
async def test_a_push_that_leaves_among_replies_waits_no_more() -> None:
    async with serving(handler=Room, banner=b"") as server:
        await server.connect()
        connection = await server.accepted()
        await eventually(lambda: Room.clients)
        outbox = connection._open_outbox()
        await in_a_thread(take_among_replies, outbox)
        await eventually(lambda: outbox.is_clear)


@pytest.mark.parametrize("framing", [Chunk(), Line()], ids=["chunk", "line"])
@pytest_twisted.ensureDeferred
async def test_replies_that_an_outbox_has_not_taken_over_leave_behind_the_pushes_in_it(
    framing: Framing,
) -> None:
    async with serving(handler=Room, banner=b"", framing=framing) as server:
        client = await server.connect()
        connection = await server.accepted()
        await eventually(lambda: Room.clients)
        outbox = connection._open_outbox()  # by a thread, just before the loop has begun a batch
        outbox._is_due = True
        await in_a_thread(outbox.put, b"push ")
        connection._send_batch([b"first ", b"second"])
        await client.receive(b"push first second")
        assert outbox.is_clear


@pytest_twisted.ensureDeferred
async def test_a_push_just_before_a_read_of_several_pieces_comes_before_their_replies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(handler=Room, framing=Chunk(3), banner=b"") as server:
        client = await server.connect()
        connection = await server.accepted()
        await eventually(lambda: Room.clients)
        (to,) = Room.clients
        all_turns = connection.owner.turns
        pushes = [b"push "]

        def look(factory: object) -> Any:
            while pushes:  # the loop has looked for an outbox already
                thread = threading.Thread(target=to.send, args=(pushes.pop(),))
                thread.start()
                thread.join()
            return all_turns

        monkeypatch.setattr(EchoFactory, "turns", property(look))
        client.send(b"onetwo")
        await client.receive(b"push onetwo")
        assert connection.figures[0] == 2


@pytest_twisted.ensureDeferred
async def test_a_push_just_before_the_replies_of_a_read_leave_comes_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Opening:
        """The lock, at the moment after which an outbox takes over no reply."""

        def locked(self) -> bool:
            if pushes:
                thread = threading.Thread(target=to.send, args=(pushes.pop(),))
                thread.start()
                thread.join()
            return False

    async with serving(handler=Room, framing=Chunk(3), banner=b"") as server:
        client = await server.connect()
        await eventually(lambda: Room.clients)
        (to,) = Room.clients
        pushes = [b"push "]
        monkeypatch.setattr(direct_protocol, "opening", Opening())
        client.send(b"onetwo")
        await client.receive(b"onetwopush ")


class Asked(Room):
    """Lets another thread do something with its client while it answers, but for `quiet`."""

    # In the thread, by message.
    do: ClassVar[dict[bytes, Callable[[Client], object]]] = {}

    def received(self, message: bytes) -> bytes | None:
        if (do := self.do.get(message)) is not None:
            thread = threading.Thread(target=do, args=(self.client,))
            thread.start()
            thread.join()
        return None if message == b"quiet" else message


@pytest.mark.parametrize(
    "framing", [Chunk(3), Line(), Length(), Fixed(3)], ids=["chunk", "line", "length", "fixed"]
)
@pytest.mark.parametrize("first", [1, 2, 5])
@pytest_twisted.ensureDeferred
async def test_what_another_thread_does_amid_a_read_comes_behind_the_replies_so_far(
    framing: Framing, first: int, monkeypatch: pytest.MonkeyPatch, over: Any
) -> None:
    messages = [b"%03d" % number for number in range(8)]
    monkeypatch.setattr(
        Asked,
        "do",
        {
            messages[first - 1]: lambda client: client.drained(),  # sends nothing
            messages[first]: lambda client: client.send(b"one") and client.send(b"two"),
            messages[7]: lambda client: client.send(b"end"),
        },
    )
    async with serving(handler=Asked, framing=framing, over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"".join(map(framing.encode, messages)))
        expected = [*messages[:first], b"one", b"two", *messages[first:7], b"end", messages[7]]
        await client.receive(b"".join(map(framing.encode, expected)))
        assert (await server.accepted()).figures[0] == 8


@pytest.mark.parametrize("framing", [Chunk(3), Line(), Length()], ids=["chunk", "line", "length"])
@pytest.mark.parametrize("message", [b"one", b"two"])
@pytest.mark.parametrize("pushes", [[], [b"push"]], ids=["takes over", "pushes"])
@pytest_twisted.ensureDeferred
async def test_what_another_thread_does_amid_two_messages_has_its_place_among_the_replies(
    framing: Framing,
    message: bytes,
    pushes: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    over: Any,
) -> None:
    def do(client: Client) -> None:
        client.drained()
        for data in pushes:
            client.send(data)

    monkeypatch.setattr(Asked, "do", {message: do})
    async with serving(handler=Asked, framing=framing, over=over, banner=b"") as server:
        client = await server.connect()
        client.send(framing.encode(b"one") + framing.encode(b"two"))
        replies = [*pushes, b"one", b"two"] if message == b"one" else [b"one", *pushes, b"two"]
        await client.receive(b"".join(map(framing.encode, replies)))
        client.send(framing.encode(b"six"))
        await client.receive(framing.encode(b"six"))


@pytest.mark.parametrize("message", [b"first", b"quiet"])
@pytest_twisted.ensureDeferred
async def test_replies_that_a_thread_takes_over_and_adds_nothing_to_leave_at_the_end_of_the_read(
    message: bytes, monkeypatch: pytest.MonkeyPatch, over: Any
) -> None:
    monkeypatch.setattr(Asked, "do", {message: lambda client: client.drained()})
    async with serving(handler=Asked, framing=Line(), over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"zero\nfirst\nquiet\n")
        await client.receive(b"zero\nfirst\n")


def take_among_replies(outbox: Any) -> None:
    """Put a push, and take it out as a batch of replies may, before the loop has come by."""
    outbox._is_due = True
    assert outbox.put(b"push")
    outbox.parts.clear()
    assert not outbox.is_clear
    outbox._errands.add(outbox)


@pytest_twisted.ensureDeferred
async def test_a_push_into_a_connection_that_closes_meanwhile_is_dropped() -> None:
    async with serving(handler=Room, banner=b"") as server:
        client = await server.connect()
        connection = await server.accepted()
        await eventually(lambda: Room.clients)
        connection.close(EndReason.HANDLER)
        outbox = connection._open_outbox()  # by a thread that has looked just before
        assert not outbox.put(b"too late", True)
        assert await client.receive_all() == b""
        assert client.clean


@every_model
@pytest_twisted.ensureDeferred
async def test_a_connection_that_pushes_nothing_has_no_outbox(model: ConcurrencyModel) -> None:
    async with serving(model, handler=Room, banner=b"") as server:
        client = await server.connect()
        client.send(b"x" * 5000)
        await client.receive(b"x" * 5000)
        connection = await server.accepted()
        if model is ConcurrencyModel.THREAD_PER_CONNECTION:
            assert connection._conn.outbox is None
        else:
            assert connection._outbox is None
            assert connection._batch is None


class Leaving(Room):
    """Sends something, and resets the connection."""

    def received(self, message: bytes) -> None:
        self.client.send(message)
        self.client.abort()


@every_model
@pytest_twisted.ensureDeferred
async def test_what_is_sent_before_an_abort_arrives(model: ConcurrencyModel, over: Any) -> None:
    async with serving(model, handler=Leaving, over=over, banner=b"") as server:
        client = await server.connect()
        client.send(b"happy")
        await client.until(lambda: client.reason is not None)
        assert client.data == b"happy"
        assert not client.clean
