from __future__ import annotations

import array
import socket
import socketserver
from typing import Any

import pytest

from echod.handlers.contract import (
    Client,
    Close,
    ConcurrencyModel,
    Handler,
    HandlerError,
    Kind,
    checked,
    connection_handler,
    kind_of,
    message_handler,
    models_for,
)

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
    async def opened(self, client: Client) -> bytes:  # type: ignore[override]
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


def test_bytes_are_a_reply_as_they_are_and_any_other_buffer_is_copied() -> None:
    data, buffer = b"happy", bytearray(b"happy")
    assert checked(data) is data
    assert Close(data).reply is data
    copied, last = checked(buffer), Close(buffer)
    view = checked(memoryview(buffer)[::-2])
    buffer[:] = b"-----"
    assert (copied, last.reply, view) == (b"happy", b"happy", b"yph")
    assert checked(memoryview(b"days").cast("I")) == checked(array.array("b", b"days")) == b"days"
    assert Close(None) == Close()  # type: ignore[arg-type]


@pytest.mark.parametrize("reply", ["text", 7, None, [b"x"], Close(b"x")])
def test_what_holds_no_bytes_is_no_reply(reply: Any) -> None:
    with pytest.raises(TypeError, match="a handler returns bytes, None or Close, not "):
        checked(reply)
    with pytest.raises(TypeError, match="a handler returns bytes, None or Close, not "):
        Close([reply])  # type: ignore[arg-type]


def test_a_handler_greets_nobody_unless_it_says_so() -> None:
    handler = Stateful()
    assert handler.opened(Client("127.0.0.1:1")) is None
    handler.closed("client closed")
