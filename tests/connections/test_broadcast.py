"""One message to many clients: what `Client.send` promises holds for each of them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st

from echod import Client, Handler, Limits, Line, broadcast, connection_handler
from echod.handlers.contract import ConcurrencyModel
from echod.messages.framing import Chunk, Framing
from tests.connections.test_outbox import Room, every_model, in_a_thread, wake_ups
from tests.support.serving import eventually, in_thread, run, server_context, serving, turns


@pytest.fixture(autouse=True)
def empty_room() -> None:
    Room.clients.clear()


@pytest.fixture(params=["clear", "TLS"])
def over(request: pytest.FixtureRequest, certificate: Path) -> Any:
    """How clients connect."""
    return server_context(certificate) if request.param == "TLS" else None


@pytest.fixture(params=["loop", "thread"])
def sending(request: pytest.FixtureRequest) -> Any:
    """Calls a function in the event loop, or in a thread, and waits for its result."""

    async def in_loop(function: Any, *arguments: object) -> Any:
        return function(*arguments)

    return in_loop if request.param == "loop" else in_a_thread


async def members(server: Any, count: int) -> list[Any]:
    """Connect clients; return them in the order of `Room.clients`."""
    clients = []
    for number in range(count):
        clients.append(await server.connect())
        await eventually(lambda number=number: len(Room.clients) == number + 1)
    return clients


@every_model
@pytest.mark.parametrize("framing", [Chunk(), Line()], ids=["chunk", "line"])
@pytest_twisted.ensureDeferred
async def test_each_client_gets_the_message_as_a_send_would_frame_it(
    model: ConcurrencyModel, framing: Framing, over: Any, sending: Any
) -> None:
    async with serving(model, handler=Room, framing=framing, over=over, banner=b"") as server:
        clients = await members(server, 3)
        for _ in range(2):  # the first makes the outboxes
            assert await sending(broadcast, Room.clients, bytearray(b"happy")) == []
            for client in clients:
                await client.receive(framing.encode(b"happy"))


@every_model
@pytest_twisted.ensureDeferred
async def test_sends_and_broadcasts_from_several_threads_arrive_in_order(
    model: ConcurrencyModel, over: Any
) -> None:
    @settings(max_examples=5, deadline=None)
    @given(st.lists(st.booleans(), min_size=1, max_size=100), st.integers(1, 3))
    def talk(are_broadcast: list[bool], threads: int) -> None:
        run(talk_in_threads(model, over, are_broadcast, threads))

    await in_thread(talk)


async def talk_in_threads(
    model: ConcurrencyModel, over: Any, are_broadcast: list[bool], threads: int
) -> None:
    def speak(name: int) -> None:
        for number, to_all in enumerate(are_broadcast):
            message = b"%d %d" % (name, number)
            if to_all:
                assert not broadcast(Room.clients, message)
            else:
                assert all(client.send(message) for client in Room.clients)

    Room.clients.clear()
    async with serving(model, handler=Room, framing=Line(), over=over, banner=b"") as server:
        clients = await members(server, 3)
        speakers = [threading.Thread(target=speak, args=(name,)) for name in range(threads)]
        for speaker in speakers:
            speaker.start()
        speak(threads)  # the event loop, too
        count = len(are_broadcast) * (threads + 1)
        for client in clients:
            await eventually(lambda client=client: client.data.count(b"\n") == count)
            heard: dict[bytes, list[int]] = {}
            for line in bytes(client.data).splitlines():
                name, number = line.split()
                heard.setdefault(name, []).append(int(number))
            assert [*heard.values()] == [[*range(len(are_broadcast))]] * (threads + 1)
        for speaker in speakers:
            speaker.join()


@every_model
@pytest_twisted.ensureDeferred
async def test_clients_that_are_gone_or_do_not_read_are_returned_and_keep_no_other_waiting(
    model: ConcurrencyModel, over: Any, sending: Any
) -> None:
    limits = Limits(max_unsent=100_000)
    async with serving(model, handler=Room, over=over, banner=b"", limits=limits) as server:
        clients = await members(server, 3)
        clients[0].reset()
        gone, slow, _ = Room.clients
        await eventually(lambda: gone.closing)
        clients[1].transport.pauseProducing()
        piece, sent, missed = b"x" * 50_000, 0, [gone]
        while slow not in missed:
            missed = await sending(broadcast, Room.clients, piece)
            sent += len(piece)
            await clients[2].receive(piece)
        assert missed == [gone, slow]
        clients[1].transport.resumeProducing()
        await clients[1].receive(b"x" * (sent - len(piece)))
        await eventually(lambda: not broadcast([slow], b"y"))


@every_model
@pytest_twisted.ensureDeferred
async def test_a_long_message_is_taken_if_nothing_waits(
    model: ConcurrencyModel, sending: Any
) -> None:
    long = bytes(range(250)) * 80_000
    async with serving(model, handler=Room, banner=b"", limits=Limits(max_unsent=10)) as server:
        (client,) = await members(server, 1)
        assert not await sending(broadcast, Room.clients, long)
        assert await sending(broadcast, Room.clients, b"x" * 11) == Room.clients
        await client.receive(long)


@pytest_twisted.ensureDeferred
async def test_a_broadcast_by_a_thread_wakes_the_loop_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(handler=Room, banner=b"") as server:
        clients = await members(server, 4)
        await in_a_thread(broadcast, Room.clients, b"x")
        for client in clients:
            await client.receive(b"x")
        calls = wake_ups(monkeypatch, lambda: broadcast(Room.clients, b"happy"))
        assert len(calls) == 1
        calls[0]()
        for client in clients:
            await client.receive(b"happy")


@pytest_twisted.ensureDeferred
async def test_clients_of_several_factories_get_it_each_in_its_own_framing(sending: Any) -> None:
    async with (
        serving(handler=Room, banner=b"", framing=Line()) as lines,
        serving("thread-per-connection", handler=Room, banner=b"") as threads,
        serving(handler=Room, banner=b"") as chunks,
    ):
        clients = [(await members(one, 1))[0] for one in (lines,)]
        for server in (threads, chunks, lines):
            clients.append(await server.connect())
            await eventually(lambda: len(Room.clients) == len(clients))
        for _ in range(2):
            assert not await sending(broadcast, Room.clients, b"happy")
            for client, expected in zip(
                clients, (b"happy\n", b"happy", b"happy", b"happy\n"), strict=True
            ):
                await client.receive(expected)


@pytest_twisted.ensureDeferred
async def test_a_set_of_clients_may_change_meanwhile() -> None:
    room: set[Client] = set()

    class Leaving(Handler):
        def opened(self, client: Client) -> None:
            self.client = client
            room.add(client)

        def received(self, message: bytes) -> None:
            assert not broadcast(room, message)

        def closed(self, reason: str) -> None:
            room.discard(self.client)

    async with serving(handler=Leaving, banner=b"") as server:
        clients = [await server.connect() for _ in range(3)]
        await eventually(lambda: len(room) == 3)
        clients[0].send(b"happy")
        clients[1].reset()
        await clients[2].receive(b"happy")
        await eventually(lambda: len(room) == 2)
        assert not broadcast(room, b"again")
        await clients[2].receive(b"again")


def test_what_cannot_be_sent_is_an_error_before_anyone_gets_it() -> None:
    with pytest.raises(TypeError, match="only bytes can be sent, not str"):
        broadcast([], "text")  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_those_before_a_handler_with_its_own_connection_get_the_message(
    sending: Any,
) -> None:
    @connection_handler
    def alone(conn: Any) -> None:
        conn.recv(1)

    async with (
        serving(handler=Room, banner=b"") as room,
        serving("thread-per-connection", handler=alone, banner=b"") as server,
    ):
        (client,) = await members(room, 1)
        await server.connect()
        connection = await server.accepted()
        await turns(5)
        for _ in range(2):  # the first makes the outbox
            with pytest.raises(RuntimeError, match="this one has the connection itself"):
                await sending(broadcast, [*Room.clients, connection.client], b"x")
            await client.receive(b"x")


def test_a_client_without_a_connection_is_missed() -> None:
    client = Client("127.0.0.1:1")
    assert broadcast({client}, b"x") == [client]
