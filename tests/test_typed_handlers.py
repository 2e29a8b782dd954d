"""Handlers of users, checked by mypy as strictly as it can, with echod's types as installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.needs import not_here
from tests.support.paths import ROOT

GOOD = {
    "streams": """
        import asyncio
        from typing import assert_type

        from echod import Client


        async def handle(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, size: int = 5
        ) -> None:
            while data := await reader.read(size):
                writer.write(data)
                await writer.drain()
            client: Client = writer.get_extra_info("client")
            assert_type(client.peer, str)
    """,
    "asyncio_protocol": """
        import asyncio


        class Echo(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                self.transport.write(data)
    """,
    "maker": """
        import asyncio
        from collections.abc import Callable
        from typing import assert_type

        from echod import EchoFactory, protocol_factory


        class Echo(asyncio.Protocol):
            def __init__(self, size: int) -> None:
                self.size = size


        @protocol_factory
        def make(*, size: int = 5) -> Echo:
            return Echo(size)


        assert_type(make(size=3), Echo)
        by_lambda = protocol_factory(lambda: Echo(3))
        EchoFactory(handler=make)
        EchoFactory(handler=Echo)
    """,
    "twisted_protocols": """
        from twisted.internet.protocol import Factory, Protocol

        from echod import EchoFactory


        class Greeter(Protocol):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(b"hello")


        class Greeters(Factory):
            protocol = Greeter


        def make() -> Greeters:
            return Greeters()


        EchoFactory(handler=Greeter)
        EchoFactory(handler=Greeters)
        EchoFactory(handler=Greeters())
        EchoFactory(handler=make)
    """,
    "messages": """
        from collections.abc import AsyncIterator, Iterator

        from twisted.internet.defer import Deferred, succeed

        from echod import Client, Close, EchoFactory, Handler, Reply, message_handler


        def shout(message: bytes) -> bytes:
            return message.upper()


        @message_handler(framing="line")
        def ends(message: bytes, *, word: bytes = b"bye") -> bytes | Close | None:
            return Close(b"so long") if message == word else None


        async def later(message: bytes) -> bytes:
            return message


        def pieces(message: bytes) -> Iterator[bytes]:
            yield message


        async def late_pieces(message: bytes) -> AsyncIterator[bytes]:
            yield message


        class Total(Handler):
            def __init__(self, *, start: int = 0) -> None:
                self.total = start

            def received(self, message: bytes) -> Reply:
                self.total += len(message)
                return Close(b"enough") if self.total > 99 else b"%d" % self.total


        class Late(Handler):
            async def opened(self, client: Client) -> bytes:
                return b"welcome"

            async def received(self, message: bytes) -> bytes | None:
                return message

            async def closed(self, reason: str) -> None: ...


        class Pieces(Handler):
            def received(self, message: bytes) -> Iterator[bytes]:
                yield message


        class LatePieces(Handler):
            async def received(self, message: bytes) -> AsyncIterator[bytes]:
                yield message


        class Fires(Handler):
            def received(self, message: bytes) -> Deferred[bytes]:
                return succeed(message)


        for handler in (shout, ends, later, pieces, late_pieces, Total, Late, Fires):
            EchoFactory(handler=handler)
    """,
    "push": """
        from typing import ClassVar, assert_type

        from echod import Client, Handler, client


        class Chat(Handler):
            room: ClassVar[set[Client]] = set()

            def opened(self, client: Client) -> bytes:
                self.client = client
                self.room.add(client)
                client.state.name = "Ann"
                return b"welcome"

            def received(self, message: bytes) -> None:
                for other in self.room - {self.client}:
                    assert_type(other.send(message), bool)
                if message == b"quit":
                    self.client.close(b"bye")

            def closed(self, reason: str) -> None:
                self.room.discard(self.client)


        async def waits(message: bytes) -> None:
            assert_type(client(), Client)
            client().send(message)
            await client().drained()
    """,
    "sockets": """
        import socket
        import socketserver

        from echod import connection_handler


        @connection_handler
        def loop(connection: socket.socket, *, size: int = 1024) -> None:
            while data := connection.recv(size):
                connection.sendall(data)


        class Lines(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(self.rfile.readline())
    """,
    "buffered_protocol": """
        import asyncio

        from echod import EchoFactory


        class Echo(asyncio.BufferedProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                self.transport = transport
                self.buffer = bytearray(1024)

            def get_buffer(self, sizehint: int) -> bytearray:
                return self.buffer

            def buffer_updated(self, nbytes: int) -> None:
                self.transport.write(bytes(self.buffer[:nbytes]))


        EchoFactory(handler=Echo)
    """,
    "services": """
        from collections.abc import AsyncIterator, Iterator
        from functools import partial

        import echod
        from echod import PerThread, SettingError, Service


        def answer(names: dict[bytes, bytes], message: bytes) -> bytes | None:
            return names.get(message)


        @echod.service
        async def lookups(service: Service, *, size: int = 4) -> AsyncIterator[object]:
            service.clients
            yield partial(answer, {})


        @lookups.check
        def _(*, size: int) -> None:
            if size < 1:
                raise SettingError("size", "must be at least 1")


        @echod.service(framing="line")
        def plain(service: Service) -> Iterator[object]:
            threads: PerThread[dict[bytes, bytes]] = PerThread(dict, dict.clear)
            yield lambda message: answer(threads.get(), message)
    """,
    "framings": """
        from echod import BufferingFramer, EchoFactory, Framer, Framing, MessageTooLong
        from echod.testing import serving


        class Semicolons:
            max_message = 100

            def framer(self) -> Framer:
                return SemicolonFramer(self.max_message)

            def encode(self, reply: bytes) -> bytes:
                return reply + b";"

            def encode_line(self, text: bytes) -> bytes:
                return self.encode(text)


        class SemicolonFramer(BufferingFramer):
            def next_message(self) -> bytes | None:
                message, semicolon, rest = bytes(self.buffer).partition(b";")
                if len(message) > self.max_message:
                    raise MessageTooLong(self.max_message)
                if not semicolon:
                    return None
                self.buffer[:] = rest
                return message


        framing: Framing = Semicolons()
        EchoFactory(framing=framing)
        serving("echo", framing=Semicolons)
    """,
}

# Each with the lines that mypy does not accept, and what it says of one of them.
WRONG = {
    "number": (
        """
            from echod import protocol_factory

            protocol_factory(7)
        """,
        [4],
        'Value of type variable "F" of "protocol_factory" cannot be "int"',
    ),
    "framing": (
        """
            from content_length import ContentLength

            from echod import EchoFactory, Framing


            class Lacking(ContentLength):
                encode_line = None


            def choose(short: bool) -> Framing:
                return ContentLength(max_message=5) if short else ContentLength()


            EchoFactory(framing=choose(short=True))
            EchoFactory(framing=Lacking())
        """,
        [8, 16],
        '"Lacking"; expected "Framing',
    ),
}

# The example of a framing of one's own.
CONTENT_LENGTH = ROOT / "examples" / "services" / "echod-content-length" / "content_length.py"

# mypy's settings for echod's own code are not the strictest: see pyproject.toml.
STRICTEST = "# mypy: disallow-untyped-calls\n"


@pytest.mark.timeout(300)
def test_a_handler_of_each_kind_passes_the_strictest_check_and_a_wrong_one_does_not(
    tmp_path: Path,
) -> None:
    if importlib.util.find_spec("mypy") is None:
        not_here("mypy is not in this environment: `make check` has it in .venv")
    written = GOOD | {name: wrong for name, (wrong, _, _) in WRONG.items()}
    paths = [shutil.copy(CONTENT_LENGTH, tmp_path)]
    for name, source in written.items():
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(dedent(source) + STRICTEST)
    # In the same folder, so that it has the cache of `make check`, which knows Twisted and echod.
    command = [sys.executable, "-m", "mypy", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    # An error from the cache has the folder of an earlier run.
    lines = [line.rpartition("/")[2] for line in done.stdout.splitlines()[:-1]]
    found = [line for line in lines if ": note: " not in line]
    assert sorted(line.partition(" error: ")[0] for line in found) == sorted(
        f"{name}.py:{number}:" for name, (_, lines, _) in WRONG.items() for number in lines
    ), done.stdout + done.stderr
    for name, (_, _, said) in WRONG.items():
        assert any(said in line for line in found if line.startswith(f"{name}.py")), done.stdout
