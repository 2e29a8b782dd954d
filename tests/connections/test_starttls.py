"""TLS that a handler of messages begins: the order, the input that is dropped, the failures."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from echod import Chunk, Client, EchoFactory, Handler, Limits, Line, message_handler
from echod.tls import TLSConnection
from tests.support.proxy_headers import line
from tests.support.reactor import reactor
from tests.support.serving import (
    ProxiedServer,
    Server,
    eventually,
    in_thread,
    run,
    server_context,
    serving,
    turns,
)
from tests.support.tls_peer import client_context, hello_of
from tests.support.waiting import PATIENCE

MODELS = ["reactor", "serial", "defer-to-thread"]
every_model = pytest.mark.parametrize("model", MODELS)
every_framing = pytest.mark.parametrize("framing", [Line(), Chunk()], ids=["line", "chunk"])


class Upgrading(Handler):
    """Begins TLS when it is asked to, and keeps all that it gets."""

    heard: ClassVar[list[bytes]] = []
    clients: ClassVar[list[Client]] = []

    def opened(self, client: Client) -> None:
        self.client = client
        self.clients.append(client)

    def received(self, message: bytes) -> Any:
        self.heard.append(message)
        if message.startswith(b"STARTTLS"):
            self.client.start_tls()
            return b"go ahead"
        return b"in TLS" if self.client.tls else b"in clear"


class Waiting(Upgrading):
    """The same, with a reply that comes later."""

    async def received(self, message: bytes) -> Any:
        reply = super().received(message)
        await deferLater(reactor, 0, lambda: None)
        return reply


class Slow(Upgrading):
    """The same, in a thread that needs a while for its reply."""

    def received(self, message: bytes) -> Any:
        reply = super().received(message)
        time.sleep(0.05)
        return reply


@pytest.fixture(autouse=True)
def nothing_heard() -> None:
    Upgrading.heard.clear()
    Upgrading.clients.clear()


@asynccontextmanager
async def offering(
    certificate: Path, model: str = "reactor", handler: Any = Upgrading, **options: Any
) -> AsyncIterator[Server]:
    """Serve in clear, and offer TLS."""
    options.setdefault("framing", Line())
    offered = server_context(certificate)
    async with serving(model, handler=handler, starttls=offered, banner=b"", **options) as server:
        yield server


async def talk(server: Server, conversation: Callable[[socket.socket], None]) -> None:
    """Hold a conversation with blocking calls, in a thread."""

    def work() -> None:
        with socket.create_connection(("127.0.0.1", server.number), PATIENCE) as client:
            conversation(client)

    await in_thread(work)


def receive(client: socket.socket, data: bytes) -> None:
    """Receive exactly `data`."""
    got = b""
    while len(got) < len(data) and (more := client.recv(len(data) - len(got))):
        got += more
    assert got == data


def encrypted(client: socket.socket) -> ssl.SSLSocket:
    return client_context().wrap_socket(client.dup())


@every_framing
@every_model
@pytest_twisted.ensureDeferred
async def test_what_came_in_clear_behind_starttls_is_dropped(
    model: str, framing: Any, certificate: Path
) -> None:
    """Fault 126: No byte that came in clear behind STARTTLS is answered: neither a message of the
    same read, nor the beginning of another.
    """

    def conversation(client: socket.socket) -> None:
        injected = b"STARTTLS\nan injected message\nthe beginning of anoth"
        client.sendall(injected)
        end = b"\n" if isinstance(framing, Line) else b""
        receive(client, b"go ahead" + end)
        with encrypted(client) as secure:
            secure.sendall(b"happy\n")
            receive(secure, b"in TLS" + end)

    async with offering(certificate, model, framing=framing) as server:
        await talk(server, conversation)
        first = b"STARTTLS" if isinstance(framing, Line) else Upgrading.heard[0]
        second = b"happy" if isinstance(framing, Line) else b"happy\n"
        assert Upgrading.heard == [first, second]
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.messages == 2


@pytest.mark.parametrize("pieces", [2, 3])
@pytest_twisted.ensureDeferred
async def test_pieces_of_a_long_read_in_clear_are_dropped_too(
    pieces: int, certificate: Path
) -> None:
    """Fault 126: Nor are the pieces into which chunk framing cuts a long read."""

    def conversation(client: socket.socket) -> None:
        client.sendall(b"STARTTLS".ljust(1024, b".") * pieces)
        receive(client, b"go ahead")
        with encrypted(client) as secure:
            secure.sendall(b"happy")
            receive(secure, b"in TLS")

    async with offering(certificate, framing=Chunk()) as server:
        await talk(server, conversation)
    assert len(Upgrading.heard) == 2


@pytest.mark.parametrize(("model", "handler"), [("reactor", Waiting), ("defer-to-thread", Slow)])
@pytest_twisted.ensureDeferred
async def test_what_comes_while_the_reply_is_awaited_is_dropped(
    model: str, handler: type[Upgrading], certificate: Path
) -> None:
    """Fault 126: Nor is what comes before the reply to STARTTLS has gone out."""

    def conversation(client: socket.socket) -> None:
        client.sendall(b"STARTTLS\n")
        client.sendall(b"an injected message\n")
        receive(client, b"go ahead\n")
        with encrypted(client) as secure:
            secure.sendall(b"happy\n")
            receive(secure, b"in TLS\n")

    # On a clear connection that is paused, the injected bytes may stay in the kernel: then they
    # are no ClientHello, and the handshake fails. Neither way are they answered.
    async with offering(certificate, model, handler) as server:
        try:
            await talk(server, conversation)
        except (OSError, AssertionError):
            await eventually(lambda: not server.factory.connections)
            assert server.factory.metrics.ended == {"handshake error": 1}
            assert Upgrading.heard == [b"STARTTLS"]
        else:
            assert Upgrading.heard == [b"STARTTLS", b"happy"]


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_late_gets_the_reply_in_clear_behind_all_pushes(
    certificate: Path,
) -> None:
    ready: Deferred[None] = Deferred()
    pushes = 8

    class Pushing(Upgrading):
        async def received(self, message: bytes) -> Any:
            if message != b"STARTTLS":
                return super().received(message)
            for number in range(pushes):
                assert self.client.send(b"%d" % number * 1_000_000)
            await ready
            assert self.client.send(b"last")
            return super().received(message)

    def conversation(client: socket.socket) -> None:
        client.sendall(b"STARTTLS\n")
        block(answer)
        for number in range(pushes):
            receive(client, b"%d" % number * 1_000_000 + b"\n")
        receive(client, b"last\ngo ahead\n")
        with encrypted(client) as secure:
            secure.sendall(b"happy\n")
            receive(secure, b"in TLS\n")

    async def answer() -> None:
        await eventually(lambda: any(is_blocked(one) for one in Upgrading.clients))
        ready.callback(None)

    async with offering(certificate, handler=Pushing, limits=Limits(max_unsent=0)) as server:
        await talk(server, conversation)


def is_blocked(client: Any) -> bool:
    """Return whether `client` does not read what was sent to it."""
    return bool(client._link.is_blocked)


@pytest_twisted.ensureDeferred
async def test_behind_a_proxy_tls_begins_likewise(certificate: Path) -> None:
    def conversation(client: socket.socket) -> None:
        client.sendall(line() + b"STARTTLS\nan injected message\n")
        receive(client, b"go ahead\n")
        with encrypted(client) as secure:
            secure.sendall(b"happy\n")
            receive(secure, b"in TLS\n")

    options: Any = {"handler": Upgrading, "framing": Line(), "banner": b""}
    offered = server_context(certificate)
    server = ProxiedServer(EchoFactory(reactor, starttls=offered, **options))
    try:
        await talk(server, conversation)
        assert Upgrading.heard == [b"STARTTLS", b"happy"]
    finally:
        await server.stop()


@every_model
@pytest_twisted.ensureDeferred
async def test_the_reply_is_the_last_in_clear_and_pushes_wait_for_the_handshake(
    model: str, certificate: Path
) -> None:
    async def push() -> None:
        client = Upgrading.clients[0]
        assert client.tls is None
        assert client.send(b"pushed in the handshake")

    def conversation(client: socket.socket) -> None:
        client.sendall(b"STARTTLS\n")
        receive(client, b"go ahead\n")
        block(push)
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE)
        with encrypted(client) as secure:
            receive(secure, b"pushed in the handshake\n")
            secure.sendall(b"happy\n")
            receive(secure, b"in TLS\n")

    async with offering(certificate, model) as server:
        await talk(server, conversation)
    assert Upgrading.clients[0].tls is not None


def block(function: Callable[[], Any]) -> None:
    """Call a coroutine function in the reactor, from a client's thread."""
    run(function())


@pytest_twisted.ensureDeferred
async def test_a_push_of_the_same_turn_does_not_come_between_reply_and_tls(
    certificate: Path,
) -> None:
    class Chatty(Upgrading):
        def received(self, message: bytes) -> Any:
            if message == b"tell":
                for other in self.clients:
                    if other is not self.client:
                        other.send(b"told")
                return None
            return super().received(message)

    def conversation(client: socket.socket) -> None:
        with socket.create_connection(client.getpeername(), PATIENCE) as other:
            other.sendall(b"hello\n")
            receive(other, b"in clear\n")
            for _ in range(5):
                other.sendall(b"tell\n")
            client.sendall(b"STARTTLS\n")
            for _ in range(5):
                other.sendall(b"tell\n")
            got = b""
            while not got.endswith(b"go ahead\n"):
                got += client.recv(1)
            with encrypted(client) as secure:
                receive(secure, b"told\n" * (10 - got.count(b"told\n")))

    async with offering(certificate, handler=Chatty) as server:
        await talk(server, conversation)


@pytest_twisted.ensureDeferred
async def test_a_handler_may_begin_tls_outside_of_a_message(certificate: Path) -> None:
    async def begin() -> None:
        Upgrading.clients[0].start_tls()
        await turns(3)

    def conversation(client: socket.socket) -> None:
        client.sendall(b"hello\n")
        receive(client, b"in clear\n")
        block(begin)
        with encrypted(client) as secure:
            secure.sendall(b"happy\n")
            receive(secure, b"in TLS\n")

    async with offering(certificate) as server:
        await talk(server, conversation)


@every_model
@pytest_twisted.ensureDeferred
async def test_a_second_start_tls_is_refused(model: str, certificate: Path) -> None:
    refused: list[str] = []

    class Twice(Upgrading):
        def received(self, message: bytes) -> Any:
            reply = super().received(message)
            try:
                self.client.start_tls()
            except RuntimeError as error:
                refused.append(str(error))
            return reply

    def conversation(client: socket.socket) -> None:
        client.sendall(b"STARTTLS\n")
        receive(client, b"go ahead\n")
        with encrypted(client) as secure:
            secure.sendall(b"happy\n")
            receive(secure, b"in TLS\n")

    async with offering(certificate, model, Twice) as server:
        await talk(server, conversation)
    assert refused == [
        "this connection begins TLS already",
        "this connection is encrypted already",
    ]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        *((model, "tcp:8888 offers no TLS to begin: listen by starttls:") for model in MODELS),
        ("thread-per-connection", "client.start_tls is for handlers of messages under reactor"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_without_such_a_listener_one_line_says_which_to_use(model: str, why: str) -> None:
    refused: list[str] = []

    @message_handler
    class Refused(Handler):
        def opened(self, client: Client) -> None:
            self.client = client

        def received(self, message: bytes) -> bytes:
            with pytest.raises(RuntimeError) as caught:
                self.client.start_tls()
            refused.append(str(caught.value))
            return b"still in clear"

    def conversation(client: socket.socket) -> None:
        client.sendall(b"STARTTLS\n")
        receive(client, b"still in clear\n")

    options: Any = {"handler": Refused, "framing": Line(), "banner": b""}
    async with serving(model, listener="tcp:8888", **options) as server:
        await talk(server, conversation)
    assert len(refused) == 1
    assert re.match(why, refused[0])
    assert "\n" not in refused[0]


@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_closing_or_gone_begins_no_tls(certificate: Path) -> None:
    refused: list[str] = []

    class Closing(Upgrading):
        def received(self, message: bytes) -> Any:
            self.client.close(b"bye")
            with pytest.raises(RuntimeError) as caught:
                self.client.start_tls()
            refused.append(str(caught.value))

    async with offering(certificate, handler=Closing) as server:
        await talk(server, lambda client: (client.sendall(b"x\n"), receive(client, b"bye\n"))[1])
        await eventually(lambda: not server.factory.connections)
    assert refused == ["this connection is closing"]
    with pytest.raises(RuntimeError, match="this client is gone"):
        Upgrading.clients[0].start_tls()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(b"in clear, as before\n", "handshake error"), (b"", "handshake-timeout")],
)
@every_model
@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_on_in_clear_or_falls_silent_is_disconnected(
    model: str, sent: bytes, reason: str, certificate: Path
) -> None:
    """Fault 126: A client that goes on in clear is disconnected, and its text is not answered."""

    def conversation(client: socket.socket) -> None:
        client.sendall(b"STARTTLS\n")
        receive(client, b"go ahead\n")
        client.sendall(sent)
        while data := client.recv(1024):
            assert b"in" not in data

    limits = Limits(handshake_timeout=0.5)
    async with offering(certificate, model, limits=limits) as server:
        await talk(server, conversation)
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {reason: 1}
        assert server.factory.metrics.handler_errors == 0
        assert Upgrading.heard == [b"STARTTLS"]
        assert not server.factory.starts_tls.asked


@every_model
@pytest_twisted.ensureDeferred
async def test_a_drain_ends_a_handshake_that_has_not_come(model: str, certificate: Path) -> None:
    """Fault 210: So does a client whose handshake within the conversation has yet to come."""
    async with offering(certificate, model) as server:
        client = await server.connect()
        client.send(b"STARTTLS\n")
        await client.receive(b"go ahead\n")
        await eventually(lambda: all(is_tls(one) for one in server.factory.connections))
        drained = server.factory.drain()
        client.send(hello_of(None))
        assert await client.receive_all() == b""
        assert client.clean
        await drained
        assert server.factory.metrics.ended == {"drained": 1}


def is_tls(connection: Any) -> bool:
    return isinstance(connection.transport, TLSConnection)


@pytest_twisted.ensureDeferred
async def test_a_drain_before_the_reply_closes_in_clear_behind_it(certificate: Path) -> None:
    ready: Deferred[None] = Deferred()

    class Held(Upgrading):
        async def received(self, message: bytes) -> Any:
            reply = super().received(message)
            await ready
            return reply

    async with offering(certificate, handler=Held) as server:
        client = await server.connect()
        client.send(b"STARTTLS\n")
        await eventually(lambda: bool(server.factory.starts_tls.asked))
        drained = server.factory.drain()
        ready.callback(None)
        assert await client.receive_all() == b"go ahead\n"
        await drained
        assert server.factory.metrics.ended == {"drained": 1}


@pytest_twisted.ensureDeferred
async def test_a_close_during_the_handshake_does_not_wait_for_it(certificate: Path) -> None:
    async with offering(certificate) as server:
        client = await server.connect()
        client.send(b"STARTTLS\n")
        await client.receive(b"go ahead\n")
        Upgrading.clients[0].close()
        assert await client.receive_all() == b""
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"handler closed": 1}


@pytest_twisted.ensureDeferred
async def test_pushes_during_the_handshake_are_bounded(certificate: Path) -> None:
    limits = Limits(max_unsent=100_000, handshake_timeout=0.5)
    async with offering(certificate, limits=limits) as server:
        client = await server.connect()
        client.send(b"STARTTLS\n")
        await client.receive(b"go ahead\n")
        sent = [Upgrading.clients[0].send(bytes(10_000)) for _ in range(50)]
        assert 5 <= sent.count(True) <= 15
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"handshake-timeout": 1}


@pytest_twisted.ensureDeferred
async def test_all_pushes_of_the_handshake_arrive_behind_it(certificate: Path) -> None:
    async def push() -> None:
        for number in range(20):
            assert Upgrading.clients[0].send(b"%05d" % number * 1000)

    def conversation(client: socket.socket) -> None:
        client.sendall(b"STARTTLS\n")
        receive(client, b"go ahead\n")
        block(push)
        with encrypted(client) as secure:
            for number in range(20):
                receive(secure, b"%05d" % number * 1000 + b"\n")
            secure.sendall(b"happy\n")
            receive(secure, b"in TLS\n")

    async with offering(certificate) as server:
        await talk(server, conversation)
