from __future__ import annotations

import asyncio
import functools
import socket
import socketserver
import subprocess
import sys
from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol, Factory, ProcessProtocol, Protocol
from twisted.protocols.wire import Echo as WireEcho

from echod.handlers.client import Client
from echod.handlers.contract import ConcurrencyModel, Handler, HandlerError
from echod.handlers.kinds import (
    KINDS,
    Defaults,
    Kind,
    connection_handler,
    defaults_of,
    given_to,
    kind_of,
    message_handler,
    models_for,
    protocol_factory,
)
from echod.messages.framing import Line

ANY = tuple(ConcurrencyModel)
EVENT_LOOP = (ConcurrencyModel.REACTOR, ConcurrencyModel.SERIAL)
OWN_THREAD = (ConcurrencyModel.THREAD_PER_CONNECTION,)


def plain(data):  # type: ignore[no-untyped-def]
    return data


def takes_bytes(message: bytes) -> bytes:
    return message


def takes_socket(conn: socket.socket) -> None: ...


def takes_unknown(thing: Unknown) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def takes_nothing() -> None: ...


async def asynchronous(message):  # type: ignore[no-untyped-def]
    return message


@message_handler
def marked_message(conn: socket.socket) -> bytes:
    return b""


@connection_handler
def marked_connection(data: bytes) -> None: ...


class Stateful(Handler):
    def received(self, message: bytes) -> bytes:
        return message


class StatefulAsync:
    async def received(self, message: bytes) -> bytes:
        return message


class OpensAsync(Handler):
    async def opened(self, client: Client) -> bytes:
        return b""

    def received(self, message: bytes) -> bytes:
        return message


class ClosesAsync:
    def received(self, message: bytes) -> bytes:
        return message

    async def closed(self, reason: str) -> None: ...


class Callable:
    def __call__(self, message: bytes) -> bytes:
        return message


class AsyncCallable:
    async def __call__(self, message: bytes) -> bytes:
        return message


class Stream(socketserver.StreamRequestHandler):
    pass


async def streams(reader, writer): ...


async def streams_with_arguments(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int = 5, *, name: str = ""
) -> None: ...


async def message_with_a_size(message: bytes, size: int) -> bytes:
    return message[:size]


@message_handler
async def marked_message_with_a_size(message, size):
    return message[:size]


class Server:
    async def handle(self, reader, writer): ...

    def make(self): ...

    def loop(self, conn): ...


class CallableStreams:
    async def __call__(self, reader, writer): ...


class Lines(asyncio.Protocol):
    def __init__(self, size: int = 5) -> None: ...


class Buffers(asyncio.BufferedProtocol):
    # It answers to `received`, too, but its base class counts.
    def received(self) -> None: ...


class Wired(Protocol): ...


class WiredFactory(Factory):
    protocol = Wired


def makes_lines() -> Lines:
    return Lines()


def makes_lines_of(*, size: int = 3) -> Lines:
    return Lines(size)


def makes_wired() -> Wired:
    return Wired()


def makes_a_factory() -> Factory:
    return WiredFactory()


class BaseLines(asyncio.BaseProtocol):
    def data_received(self, data: bytes) -> None: ...


def makes_base_lines() -> BaseLines:
    return BaseLines()


@protocol_factory
def marked_maker():  # type: ignore[no-untyped-def]
    return Lines()


@protocol_factory
def marked_maker_of_a_factory() -> Factory:
    return WiredFactory()


def makes_no_protocol() -> bytes:
    return b""


def takes_a_message_and_gives_a_protocol(message) -> Lines:  # type: ignore[no-untyped-def]
    return Lines()


@pytest.mark.parametrize(
    ("target", "kind", "models"),
    [
        (plain, None, ANY),
        (takes_unknown, None, ANY),
        (takes_nothing, None, ANY),
        (bytes.upper, None, ANY),
        (takes_bytes, Kind.MESSAGE, ANY),
        (takes_socket, Kind.CONNECTION, OWN_THREAD),
        (asynchronous, Kind.MESSAGE, EVENT_LOOP),
        (marked_message, Kind.MESSAGE, ANY),
        (marked_connection, Kind.CONNECTION, OWN_THREAD),
        (Stateful, Kind.MESSAGE, ANY),
        (Stateful(), Kind.MESSAGE, ANY),
        (StatefulAsync, Kind.MESSAGE, EVENT_LOOP),
        (OpensAsync, Kind.MESSAGE, EVENT_LOOP),
        (ClosesAsync, Kind.MESSAGE, EVENT_LOOP),
        (ClosesAsync(), Kind.MESSAGE, EVENT_LOOP),
        (Callable(), Kind.MESSAGE, ANY),
        (AsyncCallable(), Kind.MESSAGE, EVENT_LOOP),
        (Stream, Kind.CONNECTION, OWN_THREAD),
    ],
)
def test_a_handler_says_what_it_is_called_with_and_where_it_can_run(
    target: object, kind: Kind | None, models: tuple[ConcurrencyModel, ...]
) -> None:
    assert kind_of(target) is kind
    assert models_for(target) == models


def test_what_cannot_be_called_is_no_handler() -> None:
    with pytest.raises(HandlerError, match="7 is not callable"):
        kind_of(7)


@pytest.mark.parametrize("target", [dict, socketserver.DatagramRequestHandler])
def test_a_class_without_received_is_no_handler(target: Any) -> None:
    with pytest.raises(HandlerError, match=f"{target.__name__} has no method `received`"):
        kind_of(target)


@pytest.mark.parametrize("name", ["recieved", "receive", "dataReceived", "on_received"])
def test_a_received_by_another_name_is_told_at_the_start(name: str) -> None:
    made = type("Misspelt", (Handler,), {name: lambda self, message: message})
    for target in (made, made(), functools.partial(made)):
        with pytest.raises(HandlerError, match=f"has no method `received`: rename its `{name}`$"):
            kind_of(target)


@pytest.mark.parametrize(
    ("base", "method", "name"),
    [
        (asyncio.Protocol, "data_received", "data_recieved"),
        (asyncio.Protocol, "data_received", "dataReceived"),
        (Protocol, "dataReceived", "dataRecieved"),
        (Protocol, "dataReceived", "data_received"),
    ],
)
def test_a_protocol_that_misspells_its_input_is_told_at_the_start(
    base: type, method: str, name: str
) -> None:
    made = type("Misspelt", (base,), {name: lambda self, data: None})
    for target in (made, functools.partial(made)):
        with pytest.raises(HandlerError, match=f"no method `{method}`: rename its `{name}`$"):
            kind_of(target)


def test_a_protocol_may_take_no_input() -> None:
    class Both(asyncio.Protocol, asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None: ...

    class Timer(Protocol):
        def connectionMade(self) -> None: ...

    assert kind_of(Both) is Kind.ASYNCIO_PROTOCOL
    assert kind_of(Timer) is Kind.TWISTED_PROTOCOL


def test_a_server_of_the_standard_library_names_its_handler() -> None:
    with (
        socketserver.TCPServer(("127.0.0.1", 0), Stream, bind_and_activate=False) as server,
        pytest.raises(HandlerError, match="TCPServer listens by itself: name its handler, Str"),
    ):
        kind_of(server)


def test_a_handler_that_only_greets_needs_no_received() -> None:
    class Greeting(Handler):
        receiver = None

        def opened(self, client: Client) -> bytes:
            return self.reverse().encode()

        def reverse(self) -> str:
            return "hello"[::-1]

    assert kind_of(Greeting) is Kind.MESSAGE


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (streams, Kind.STREAMS),
        (streams_with_arguments, Kind.STREAMS),
        (Server().handle, Kind.STREAMS),
        (CallableStreams(), Kind.STREAMS),
        (functools.partial(streams_with_arguments, name="n"), Kind.STREAMS),
        (message_with_a_size, Kind.MESSAGE),
        (marked_message_with_a_size, Kind.MESSAGE),
        (Lines, Kind.ASYNCIO_PROTOCOL),
        (Buffers, Kind.ASYNCIO_PROTOCOL),
        (functools.partial(Lines, 7), Kind.ASYNCIO_PROTOCOL),
        (
            functools.partial(message_handler(lambda message, *, times: message), times=2),
            Kind.MESSAGE,
        ),
        (
            message_handler(functools.partial(lambda conn, *, times: conn, times=2)),
            Kind.MESSAGE,
        ),
        (BaseLines, Kind.ASYNCIO_PROTOCOL),
        (makes_base_lines, Kind.ASYNCIO_PROTOCOL),
        (protocol_factory(Server().make), Kind.ASYNCIO_PROTOCOL),
        (connection_handler(Server().loop), Kind.CONNECTION),
        (message_handler(bytes.upper), Kind.MESSAGE),
        (makes_lines, Kind.ASYNCIO_PROTOCOL),
        (makes_lines_of, Kind.ASYNCIO_PROTOCOL),
        (functools.partial(makes_lines_of, size=7), Kind.ASYNCIO_PROTOCOL),
        (marked_maker, Kind.ASYNCIO_PROTOCOL),
        (protocol_factory(lambda: Lines()), Kind.ASYNCIO_PROTOCOL),
        (Wired, Kind.TWISTED_PROTOCOL),
        (WireEcho, Kind.TWISTED_PROTOCOL),
        (WiredFactory, Kind.TWISTED_PROTOCOL),
        (WiredFactory(), Kind.TWISTED_PROTOCOL),
        (Factory.forProtocol(Wired), Kind.TWISTED_PROTOCOL),
        (makes_wired, Kind.TWISTED_PROTOCOL),
        (makes_a_factory, Kind.TWISTED_PROTOCOL),
        (marked_maker_of_a_factory, Kind.TWISTED_PROTOCOL),
        (makes_no_protocol, None),
        (takes_a_message_and_gives_a_protocol, None),
    ],
)
def test_the_code_of_asyncio_and_twisted_is_told_by_its_own_idiom(
    target: object, kind: Kind | None
) -> None:
    assert kind_of(target) is kind


@pytest.mark.parametrize(
    "target",
    [asyncio.DatagramProtocol, asyncio.SubprocessProtocol, DatagramProtocol, ProcessProtocol],
)
def test_a_protocol_that_serves_no_connection_is_no_handler(target: type) -> None:
    with pytest.raises(HandlerError, match=f"class {target.__name__} has no method `received`"):
        kind_of(target)


@pytest.mark.parametrize("target", [Lines(), Wired()])
def test_one_protocol_cannot_serve_all_connections(target: object) -> None:
    made = type(target).__name__
    with pytest.raises(HandlerError, match=f"this {made} serves one connection only: name the"):
        kind_of(target)


@pytest.mark.parametrize(
    ("target", "given"),
    [
        (plain, ("message",)),
        (takes_socket, ("connection",)),
        (streams, ("reader", "writer")),
        (makes_lines, ()),
        (Lines, ()),
        (WiredFactory(), ()),
        (Stateful(), ()),
        (Stream, ("request", "client_address", "server")),
    ],
)
def test_each_kind_is_called_with_arguments_of_its_own(
    target: object, given: tuple[str, ...]
) -> None:
    assert given_to(target) == given


def test_the_table_has_each_kind() -> None:
    assert set(KINDS) == set(Kind)


def test_telling_a_kind_imports_neither_asyncio_nor_twisted() -> None:
    program = (
        "import sys, echod\n"
        "from echod.handlers.kinds import kind_of, models_for\n"
        "def shout(message): return message.upper()\n"
        "async def wait(message): return message\n"
        "class Own(echod.Handler): ...\n"
        "for one in (shout, wait, Own): kind_of(one), models_for(one)\n"
        "print([m for m in ('asyncio', 'twisted', 'zope') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_handler_may_ask_for_settings() -> None:
    @message_handler(framing="line", concurrency="serial", banner=b"")
    def marked(message: bytes) -> bytes:
        return message

    class Asking(Handler):
        framing, concurrency, banner = "line", ConcurrencyModel.SERIAL, b"Hello"

    class Other:
        framing = 7

        def received(self, message: bytes) -> None: ...

    class Greeting(Other):
        banner = "Hello"

        def opened(self, client: Client) -> bytes:
            return self.banner.encode()

    asking = message_handler(framing="line")
    assert kind_of(marked) is Kind.MESSAGE
    assert defaults_of(asking(bytes.upper)) == Defaults("line")
    assert defaults_of(functools.partial(asking(functools.partial(plain)))) == Defaults("line")
    assert defaults_of(Greeting) == Defaults()
    assert defaults_of(marked) == Defaults("line", "serial", b"")
    assert defaults_of(Asking) == Defaults("line", "serial", b"Hello")
    assert defaults_of(Asking()) == Defaults("line", "serial", b"Hello")
    assert defaults_of(Greeting()) == Defaults()
    assert defaults_of(Other) == defaults_of(len) == Defaults()


def test_a_banner_that_is_text_is_refused() -> None:
    class Asking(Handler):
        banner = "Hello"

    marked = message_handler(banner="Hello")(lambda message: message)  # type: ignore[call-overload]
    for target in (Asking, Asking(), marked):
        with pytest.raises(HandlerError, match="its banner 'Hello' is text, and bytes are sent"):
            defaults_of(target)


class Asking(Handler):
    framing = Line()


@message_handler(framing=Line())  # type: ignore[call-overload]
def asks_by_object(message): ...


@message_handler(concurrency=5)  # type: ignore[call-overload]
def asks_for_five(message): ...


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (asks_by_object, r'is the object .Line\(.*write framing="line"$'),
        (asks_for_five, 'write concurrency="defer-to-thread"$'),
        (Asking, 'write framing="line"$'),
        (Asking(), 'write framing="line"$'),
    ],
)
def test_a_handler_asks_for_a_framing_and_a_model_by_name(target: object, why: str) -> None:
    with pytest.raises(HandlerError, match=why):
        defaults_of(target)


@pytest.mark.parametrize("mark", [message_handler, connection_handler, protocol_factory])
def test_only_a_function_is_marked(mark: Any) -> None:
    with pytest.raises(TypeError, match=r"not 'line': .* @message_handler\(framing=\"line\"\)"):
        mark("line")
