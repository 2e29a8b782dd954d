"""Handlers that take a reader and a writer, as for `asyncio.start_server`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ssl
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from echod.connections import streams_protocol
from echod.connections.transport_layers import tls_of
from echod.daemon.slow import SlowCalls
from echod.limits import Limits
from tests.support.asyncio_serving import WAYS, ended, on_a_loop, serving
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import eventually, server_context, turns
from tests.support.tls_peer import client_context, hello_of

__all__ = ["on_a_loop"]

pytestmark = pytest.mark.usefixtures("on_a_loop")


async def echo(reader: Reader, writer: Writer) -> None:
    """The echo of many a tutorial."""
    while data := await reader.read(1024):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def lines(reader: Reader, writer: Writer) -> None:
    while line := await reader.readline():
        await asyncio.sleep(0)
        writer.write(line.upper())
        await writer.drain()


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_the_echo_of_a_tutorial_serves_a_client(way: str, certificate: Path) -> None:
    async with serving(echo, way, certificate) as server:
        client = await server.connect()
        for size in (1, 1000, 300_000):
            client.send(bytes(size))
            await client.receive(bytes(size))
        client.finish()
        await client.receive_all()
        assert client.clean
        await eventually(lambda: not server.factory.connections)
        assert ended(server) == {"client closed": 1}
        metrics = server.factory.metrics
        assert (metrics.bytes_received, metrics.bytes_sent) == (301_001, 301_001)
        assert metrics.messages == 0


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_what_a_client_sends_before_its_end_is_answered(way: str, certificate: Path) -> None:
    """Fault 101: All replies come before FIN, over TLS too."""

    async def slow(reader: Reader, writer: Writer) -> None:
        data = await reader.read()
        await asyncio.sleep(0.05)
        writer.write(data * 2)

    async with serving(slow, way, certificate) as server:
        client = await server.connect()
        client.send(b"happy" * 20_000)
        client.finish()
        assert await client.receive_all() == b"happy" * 40_000
        assert client.clean


async def reads_on(reader: Reader, writer: Writer) -> None:
    while True:
        writer.write(await reader.read(100))


async def reads_lines_on(reader: Reader, writer: Writer) -> None:
    while True:
        writer.write(await reader.readline())


async def reads_on_after_errors(reader: Reader, writer: Writer) -> None:
    while True:
        with contextlib.suppress(asyncio.IncompleteReadError):
            writer.write(await reader.readexactly(3))
        with contextlib.suppress(asyncio.IncompleteReadError):
            writer.write(await reader.readuntil(b"\n"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("handler", [reads_on, reads_lines_on, reads_on_after_errors])
@pytest_twisted.ensureDeferred
async def test_a_handler_that_reads_nothing_but_the_end_is_ended(
    handler: Any, way: str, certificate: Path, log: Log
) -> None:
    async with serving(handler, way, certificate) as server:
        client = await server.connect()
        client.send(b"ok\n")
        client.finish()
        assert await client.receive_all() == b"ok\n"
        await eventually(lambda: not server.factory.connections)
        (error,) = log.take_errors()
        assert "the handler has read this end 10000 times" in error
        assert ended(server) == {"handler error": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_handler_may_look_for_more_while_it_waits_for_something_else(
    way: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def polls(reader: Reader, writer: Writer) -> None:
        for _ in range(20):
            await reader.read(100)
            await reader.readline()
            assert [await reader.read(0) for _ in range(9)] == [b""] * 9  # no read of the end
            await asyncio.sleep(0)
        writer.write(b"done")

    monkeypatch.setattr(streams_protocol, "MOST_ENDS", 3)
    async with serving(polls, way, certificate) as server:
        client = await server.connect()
        client.finish()
        assert await client.receive_all() == b"done"


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_an_exception_is_logged_once_and_ends_its_own_connection(
    way: str, certificate: Path, log: Log
) -> None:
    async def fails(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.readexactly(2))
        if await reader.readexactly(1) == b"!":
            raise SystemExit("no such thing")

    async with serving(fails, way, certificate) as server:
        client, other = await server.connect(), await server.connect()
        client.send(b"ab!")
        assert await client.receive_all() == b"ab"
        assert client.clean
        other.send(b"cd")
        await other.receive(b"cd")
        await eventually(lambda: len(server.factory.connections) == 1)
        (error,) = log.take_errors()
        assert "SystemExit: no such thing" in error
        assert ended(server) == {"handler error": 1}
        assert server.factory.metrics.handler_errors == 1
        other.send(b".")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("leave", ["finish", "reset"])
@pytest.mark.parametrize("handler", ["reads exactly", "reads a line", "writes"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_away_is_no_error(
    way: str, leave: str, handler: str, certificate: Path, log: Log
) -> None:
    done: list[BaseException | None] = []

    async def talks(reader: Reader, writer: Writer) -> None:
        try:
            assert await reader.readexactly(1)
            if handler == "reads exactly":
                await reader.readexactly(10)
            elif handler == "reads a line":
                await reader.readuntil(b"\n")
            else:
                while True:
                    writer.write(bytes(1000))
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except BaseException as error:
            done.append(error)
            raise

    async with serving(talks, way, certificate) as server:
        client = await server.connect()
        client.send(b"a")
        await client.arrive()
        if handler == "writes":
            client.reset()
        else:
            getattr(client, leave)()
        await eventually(lambda: done and not server.factory.connections)
    assert server.factory.metrics.handler_errors == 0
    assert log.take_errors() == []


@pytest_twisted.ensureDeferred
async def test_a_task_that_is_cancelled_is_no_error(certificate: Path, log: Log) -> None:
    async def cancels_itself(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.read(1))
        raise asyncio.CancelledError

    async with serving(cancels_itself, "clear", certificate) as server:
        client = await server.connect()
        client.send(b"a")
        assert await client.receive_all() == b"a"
        assert client.clean
        await eventually(lambda: not server.factory.connections)
        assert ended(server) == {"handler closed": 1}
    assert server.factory.metrics.handler_errors == 0
    assert log.take_errors() == []


@pytest_twisted.ensureDeferred
async def test_sendfile_is_refused_by_name(certificate: Path, log: Log, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"happy")

    async def sends(reader: Reader, writer: Writer) -> None:
        with (tmp_path / "file").open("rb") as file:
            await asyncio.get_running_loop().sendfile(writer.transport, file)

    async with serving(sends, "clear", certificate) as server:
        client = await server.connect()
        assert await client.receive_all() == b""
        (error,) = log.take_errors()
        assert "The handler sends uses sendfile, which does not work on this connection" in error


@pytest_twisted.ensureDeferred
async def test_a_deferred_is_awaited_as_a_future(certificate: Path, log: Log) -> None:
    async def waits(reader: Reader, writer: Writer) -> None:
        deferred = deferLater(reactor, 0, lambda: b"fired")
        writer.write(await deferred.asFuture(asyncio.get_running_loop()))
        deferred = deferLater(reactor, 0, lambda: b"fired")
        await deferred

    async with serving(waits, "clear", certificate) as server:
        client = await server.connect()
        assert await client.receive_all() == b"fired"
        (error,) = log.take_errors()
        assert "The handler waits awaits a Deferred as an asyncio task: write await def" in error


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_what_a_handler_does_not_read_is_bounded(way: str, certificate: Path) -> None:
    may_read = asyncio.Event()
    held: list[int] = []

    async def waits(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.readexactly(1))
        await may_read.wait()
        held.append(len(reader._buffer))  # type: ignore[attr-defined]
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async with serving(waits, way, certificate, limits=Limits(max_pending=10_000)) as server:
        client = await server.connect()
        client.send(b"a")
        await client.receive(b"a")
        client.send(bytes(20_000_000))
        await turns(200)
        may_read.set()
        await client.receive(bytes(20_000_000))
        assert 20_000 < held[0] < 600_000


@pytest_twisted.ensureDeferred
async def test_each_connection_has_a_context_of_its_own(certificate: Path) -> None:
    name = contextvars.ContextVar("name", default=b"nobody")

    async def remembers(reader: Reader, writer: Writer) -> None:
        while data := await reader.read(100):
            writer.write(name.get() + b",")
            name.set(data)

    async with serving(remembers, "clear", certificate) as server:
        one, other = await server.connect(), await server.connect()
        for client, said, heard in ((one, b"one", b"nobody,"), (other, b"other", b"nobody,")):
            client.send(said)
            await client.receive(heard)
        one.send(b"again")
        await one.receive(b"one,")
    assert name.get() == b"nobody"


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_drain_gives_the_reader_what_had_come_and_then_the_end(
    way: str, certificate: Path, log: Log
) -> None:
    """Fault 102: Every request that had arrived is answered."""
    may_read: asyncio.Event = asyncio.Event()

    async def waits(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.readexactly(1))
        await may_read.wait()
        await lines(reader, writer)

    async with serving(waits, way, certificate) as server:
        client, idle = await server.connect(), await server.connect()
        for each in (client, idle):
            each.send(b"a")
            await each.receive(b"a")
        client.send((b"one" * 20 + b"\n") * 1000)
        await client.arrive()
        drained = server.factory.drain()
        await turns(10)
        may_read.set()
        assert await client.receive_all() == (b"ONE" * 20 + b"\n") * 1000
        assert await idle.receive_all() == b""
        assert client.clean
        assert idle.clean
        await drained
        assert ended(server) == {"drained": 2}


@pytest_twisted.ensureDeferred
async def test_a_task_that_does_not_end_is_cancelled_and_keeps_its_place_until_it_has_ended(
    certificate: Path,
) -> None:
    cancelled: Deferred[None] = Deferred()
    may_end = asyncio.Event()

    async def stays(reader: Reader, writer: Writer) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.callback(None)
            await may_end.wait()

    limits = Limits(linger=0.2)
    async with serving(stays, "clear", certificate, limits=limits) as server:
        client = await server.connect()
        await server.accepted()
        client.reset()
        await eventually(lambda: not server.factory.connections or cancelled.called)
        await cancelled
        await turns(5)
        assert len(server.factory.connections) == 1
        assert not ended(server)
        may_end.set()
        await eventually(lambda: not server.factory.connections)
        assert ended(server) == {"connection lost": 1}


@pytest_twisted.ensureDeferred
async def test_at_the_deadline_of_the_drain_a_task_is_cancelled_at_once(
    certificate: Path, log: Log
) -> None:
    done: list[str] = []

    async def stays(reader: Reader, writer: Writer) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            done.append("cancelled")
            raise

    async with serving(stays, "clear", certificate, limits=Limits(linger=3600)) as server:
        await server.connect()
        await server.accepted()
        drained = server.factory.drain()
        await turns(5)
        assert not done
        server.factory.abort()
        await drained
        assert done == ["cancelled"]
        assert ended(server) == {"aborted": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_task_may_wait_in_its_finally_after_the_deadline_of_the_drain(
    way: str, certificate: Path
) -> None:
    """Fault 199: A stream handler that the drain's deadline cancels may wait in its `finally`,
    as long as coroutines of other kinds may, and is cancelled once.
    """
    done: list[str] = []
    may_end = asyncio.Event()

    async def says_goodbye(reader: Reader, writer: Writer) -> None:
        writer.write(b"hello")
        try:
            await asyncio.sleep(3600)
        finally:
            done.append("cancelled")
            await may_end.wait()
            done.append("ended")

    async with serving(says_goodbye, way, certificate, limits=Limits(linger=0.01)) as server:
        client = await server.connect()
        await client.receive(b"hello")
        drained = server.factory.drain()
        server.factory.abort()
        await eventually(lambda: done)
        (connection,) = server.factory.connections
        for _ in range(3):  # each sweep finds it longer after its end than it may linger
            connection.sweep(server.factory.seconds() + 10)
            await turns(5)
        assert done == ["cancelled"]
        assert not drained.called
        may_end.set()
        await drained
        assert done == ["cancelled", "ended"]
        assert ended(server) == {"aborted": 1}


@pytest.mark.parametrize("first", ["the drain", "the client"])
@pytest_twisted.ensureDeferred
async def test_a_task_that_goes_on_after_it_was_cancelled_does_not_hold_up_the_end(
    first: str, certificate: Path, log: Log
) -> None:
    may_end = asyncio.Event()
    cancelled: list[str] = []

    async def swallows(reader: Reader, writer: Writer) -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                cancelled.append("cancelled")

    async with serving(swallows, "clear", certificate, limits=Limits(linger=0.2)) as server:
        client = await server.connect()
        await server.accepted()
        (connection,) = server.factory.connections
        if first == "the client":
            client.reset()
            await eventually(lambda: cancelled)
            assert server.factory.connections == {connection}
            slow = SlowCalls(reactor, server.factory.model, 0.0)
            (line,) = slow.left_behind(server.factory.connections)
            assert ", which is gone: the handler is at test_streams_protocol.py:" in line
            assert "in swallows" in line
        drained = server.factory.drain()
        await turns(5)
        assert not drained.called
        server.factory.abort()
        server.factory.let_go()
        await drained
        assert cancelled
        assert not server.factory.connections
        reason = "aborted" if first == "the drain" else "connection lost"
        assert ended(server) == {reason: 1}
        may_end.set()
        await turns(5)
        assert ended(server) == {reason: 1}
    assert not log.errors


@pytest_twisted.ensureDeferred
async def test_a_handler_may_begin_tls(certificate: Path, log: Log) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    said: list[object] = []

    async def starttls(reader: Reader, writer: Writer) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go ahead\n")
        await writer.start_tls(context)
        said.append(writer.get_extra_info("ssl_object").version())
        said.append(writer.get_extra_info("client").tls.version)
        while line := await reader.readline():
            writer.write(line.upper())
        with pytest.raises(RuntimeError, match="encrypted already"):
            await writer.start_tls(context)

    async with serving(starttls, "clear", certificate) as server:
        loop = asyncio.get_running_loop()

        async def talk() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.number)
            writer.write(b"STARTTLS\nan injected line\n")
            assert await reader.readline() == b"go ahead\n"
            trusting = ssl.create_default_context(cafile=str(certificate))
            trusting.check_hostname = False
            await writer.start_tls(trusting)
            writer.write(b"happy days\n")
            reply = await reader.readline()
            writer.close()
            return reply

        reply = await Deferred.fromFuture(loop.create_task(talk()))
        assert reply == b"HAPPY DAYS\n"
        assert said == ["TLSv1.3", "TLSv1.3"]
        await eventually(lambda: not server.factory.connections)
        metrics = server.factory.metrics
        assert metrics.bytes_received == len(b"STARTTLS\nan injected line\n" + b"happy days\n")
        assert metrics.bytes_sent == len(b"go ahead\n" + b"happy days\n")


@pytest_twisted.ensureDeferred
async def test_a_handler_may_begin_tls_by_the_context_of_the_listener(certificate: Path) -> None:
    async def starttls(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.readline())
        await writer.start_tls()  # type: ignore[call-arg]
        writer.write((await reader.readline()).upper())

    offered = server_context(certificate)
    async with serving(starttls, "clear", certificate, starttls=offered) as server:

        async def talk() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.number)
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"STARTTLS\n"
            await writer.start_tls(client_context())
            writer.write(b"happy days\n")
            reply = await reader.readline()
            writer.close()
            return reply

        reply = await Deferred.fromFuture(asyncio.get_running_loop().create_task(talk()))
        assert reply == b"HAPPY DAYS\n"


@pytest_twisted.ensureDeferred
async def test_without_a_context_nor_such_a_listener_start_tls_says_so(certificate: Path) -> None:
    refused: list[str] = []

    async def starttls(reader: Reader, writer: Writer) -> None:
        with pytest.raises(RuntimeError) as caught:
            await writer.start_tls()  # type: ignore[call-arg]
        refused.append(str(caught.value))
        with pytest.raises(RuntimeError, match="this one has the connection itself"):
            writer.get_extra_info("client").start_tls()
        writer.write(b"in clear\n")

    async with serving(starttls, "clear", certificate) as server:
        client = await server.connect()
        assert await client.receive_all() == b"in clear\n"
    assert len(refused) == 1
    assert refused[0].endswith(
        "or a listener as in starttls:8888:certificate=cert.pem:key=key.pem"
    )


@pytest.mark.parametrize(
    ("sent", "reason"), [(b"no ClientHello", "handshake error"), (b"", "handshake-timeout")]
)
@pytest_twisted.ensureDeferred
async def test_a_handshake_that_fails_is_told_to_the_handler_and_is_no_error(
    sent: bytes, reason: str, certificate: Path, log: Log
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    raised: list[type] = []

    async def starttls(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.readline())
        try:
            await writer.start_tls(context)
        except ConnectionError as error:
            raised.append(type(error))
            raise

    limits = Limits(handshake_timeout=0.5)
    async with serving(starttls, "clear", certificate, limits=limits) as server:
        client = await server.connect()
        client.send(b"STARTTLS\n")
        await client.receive(b"STARTTLS\n")
        await turns(5)
        client.send(sent)
        await client.receive_all()
        assert client.clean
        await eventually(lambda: not server.factory.connections and raised)
        assert raised == [ConnectionResetError]
        assert ended(server) == {reason: 1}
        assert server.factory.metrics.handler_errors == 0


@pytest.mark.parametrize("sent", [b"", hello_of(None)], ids=["silent", "half-way"])
@pytest_twisted.ensureDeferred
async def test_a_handler_that_gives_a_handshake_up_closes_at_once(
    sent: bytes, certificate: Path
) -> None:
    async def starttls(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.readline())
        with pytest.raises(TimeoutError):
            await writer.start_tls(context, ssl_handshake_timeout=0.1)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with serving(starttls, "clear", certificate) as server:
        client = await server.connect()
        client.send(b"STARTTLS\n")
        await client.receive(b"STARTTLS\n")
        client.send(sent)
        await client.receive_all()
        assert client.clean
        await eventually(lambda: not server.factory.connections)
        assert ended(server) == {"handler closed": 1}


@pytest.mark.parametrize("sent", [b"", hello_of(None)], ids=["silent", "half-way"])
@pytest_twisted.ensureDeferred
async def test_a_drain_ends_a_handshake_that_the_client_does_not_end(
    sent: bytes, certificate: Path
) -> None:
    """Fault 210: So does a client whose handshake a handler of streams awaits."""

    async def starttls(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.readline())
        await writer.start_tls()  # type: ignore[call-arg]

    offered = server_context(certificate)
    async with serving(starttls, "clear", certificate, starttls=offered) as server:
        client = await server.connect()
        client.send(b"STARTTLS\n")
        await client.receive(b"STARTTLS\n")
        client.send(sent)
        (connection,) = server.factory.connections
        await eventually(lambda: tls_of(connection.transport) is not None)
        await client.until(lambda: bool(client.data) == bool(sent))
        drained = server.factory.drain()
        client.send(b"a byte that is on its way")
        await client.receive_all()
        assert client.clean
        await drained
        assert ended(server) == {"drained": 1}
        assert server.factory.metrics.handler_errors == 0


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=3000), max_size=12), way=st.sampled_from(WAYS)
)
@pytest_twisted.inlineCallbacks
def test_nothing_is_lost_or_reordered(pieces: list[bytes], way: str, certificate: Path) -> Any:
    async def talk() -> None:
        async with serving(echo, way, certificate) as server:
            client = await server.connect()
            for piece in pieces:
                client.send(piece)
                await turns(1)
            client.finish()
            assert await client.receive_all() == b"".join(pieces)

    yield Deferred.fromCoroutine(talk())


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_handler_that_keeps_its_client_waiting_is_in_the_log(
    way: str, certificate: Path, log: Log
) -> None:
    """Fault 76: The log also shows a handler of asyncio streams that takes as long."""
    may_go_on = asyncio.Event()

    async def upstream() -> None:
        await may_go_on.wait()

    async def talks(reader: Reader, writer: Writer) -> None:
        while line := await reader.readline():
            if line == b"slow\n":
                await upstream()
            writer.write(line)
            if line == b"subscribe\n":
                await upstream()

    async with serving(talks, way, certificate) as server:
        connections: Any = server.factory.connections
        clock = Clock()
        slow = SlowCalls(clock, server.factory.model, 4.0, conversing=lambda: connections)
        slow.start()
        for line in (b"happy\n", b"subscribe\n"):
            client = await server.connect()
            client.send(line)
            await client.receive(line)
        others = set(connections)
        waiting = await server.connect()
        waiting.send(b"happy\n")
        await waiting.receive(b"happy\n")
        await deferLater(reactor, 0.02)  # a tick of the kernel's clock, which tells who spoke last
        waiting.send(b"slow\n")
        await eventually(lambda: any(getattr(one, "call", None) for one in connections - others))
        # The kernel's clock may not yet tell that the subscriber's handler has spoken last.
        await eventually(lambda: not any(one.call for one in others))
        clock.pump([1] * 6)
        (peer,) = [one.client.peer for one in connections - others]
        assert log.text.count("has lasted") == 1
        assert f"A call of the handler for {peer} has lasted" in log.text
        assert "in upstream" in log.text
        lines = slow.left_behind(connections)
        assert [line for line in lines if "in upstream" in line] == [lines[0]]
        assert lines[0].startswith(f"{peer}: the handler is at ")
        assert len(lines) == 3
        may_go_on.set()
        await waiting.receive(b"slow\n")
        clock.advance(1)
        assert f"The call of the handler for {peer} is over" in log.text
        assert slow.oldest() == 0
        slow.stop()
