from __future__ import annotations

import inspect
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from echod.concurrency.thread_socket import ConnectionSocket
from echod.handlers.calling import greeting_of
from echod.handlers.client import Client
from echod.handlers.contract import Close, Handler, checked
from echod.handlers.remedies import add_remedy
from echod.messages.framing import Chunk, Fixed
from echod.messages.prefixed import Length


def notes_of(error: BaseException) -> list[str]:
    add_remedy(error, "served:mine")
    add_remedy(error, "served:mine")
    return getattr(error, "__notes__", [])


@pytest.fixture
def conn() -> Iterator[ConnectionSocket]:
    """A connection, as a thread has it."""
    ours, theirs = socket.socketpair()
    connection = ConnectionSocket(ours.detach(), peer="", local="")
    yield connection
    theirs.close()
    connection.release()


@pytest.mark.parametrize("said", ["await wasn't used with future", "no running event loop"])
def test_an_asyncio_awaitable_without_a_loop_names_the_handler_and_the_remedy(said: str) -> None:
    (note,) = notes_of(RuntimeError(said))
    assert "leave out --reactor" in note
    assert "served:mine awaits an asyncio object" in note


def test_a_message_that_is_used_as_a_socket_names_the_model() -> None:
    with pytest.raises(AttributeError) as raised:
        b"message".recv(10)  # type: ignore[attr-defined]
    (note,) = notes_of(raised.value)
    assert "served:mine" in note
    assert "--concurrency thread-per-connection" in note


def test_a_text_as_reply_says_to_encode_it() -> None:
    with pytest.raises(TypeError) as raised:
        checked("text")
    assert notes_of(raised.value) == [
        "The handler served:mine returned a str: let it return text.encode()"
    ]


def test_a_reply_that_does_not_fit_the_framing_names_the_handler() -> None:
    for framing in (Fixed(size=2), Length(bytes=1)):
        with pytest.raises(ValueError, match="300") as raised:
            framing.encode(b"x" * 300)
        assert notes_of(raised.value) == ["This is a reply of the handler served:mine"]


def test_a_class_as_reply_says_to_make_an_object() -> None:
    with pytest.raises(TypeError) as raised:
        checked(Close)
    (note,) = notes_of(raised.value)
    assert note.endswith("returned a type: make an object of it, as in Close()")


def test_a_class_without_received_is_told_of_it() -> None:
    class Greeting(Handler): ...

    with pytest.raises(NotImplementedError) as raised:
        Greeting().received(b"message")
    assert notes_of(raised.value) == [
        "The handler served:mine has no method `received`: add it, as messages have come"
    ]
    assert notes_of(NotImplementedError()) == []


async def forgotten() -> bytes:
    return b""


@pytest.mark.parametrize(
    ("made", "remedy"),
    [
        (lambda: 1, "an int: a handler returns bytes, None, Close or a generator of these"),
        (lambda: [b"a"], "a list: a handler returns bytes, None, Close or a generator of these"),
        (forgotten, "a coroutine: await it"),
        (Deferred, "a Deferred: only the models reactor and serial wait for it"),
    ],
)
def test_any_other_reply_names_the_handler_and_what_is_a_reply(
    made: Callable[[], object], remedy: str
) -> None:
    reply = made()
    with pytest.raises(TypeError) as raised:
        checked(reply)
    if inspect.iscoroutine(reply):
        reply.close()
    assert notes_of(raised.value) == [f"The handler served:mine returned {remedy}"]


@pytest.mark.parametrize(
    "use",
    [
        lambda message: b"reply " + message,
        lambda message: message + b"reply",
        lambda message: message.upper(),
        lambda message: message[::-1],
        len,
        lambda message: b"".join([message]),
        bytes,
    ],
)
def test_a_connection_that_is_used_as_a_message_names_annotation_and_mark(
    conn: ConnectionSocket, use: Callable[[Any], object]
) -> None:
    with pytest.raises((AttributeError, TypeError)) as raised:
        use(conn)
    (note,) = notes_of(raised.value)
    assert note == (
        "The handler served:mine uses its connection as a message: annotate it as bytes, or mark "
        "the handler with @message_handler"
    )


@pytest.mark.parametrize("use", [lambda conn: conn.recieve(), lambda conn: conn.recv("x")])
def test_another_misuse_of_a_connection_is_left_alone(
    conn: ConnectionSocket, use: Callable[[Any], object]
) -> None:
    with pytest.raises((AttributeError, TypeError)) as raised:
        use(conn)
    assert notes_of(raised.value) == []


def test_other_errors_are_left_alone() -> None:
    assert notes_of(RuntimeError("of the handler itself")) == []
    add_remedy(None, "served:mine")


class Hostile:
    """An object that raises SystemExit instead of giving its text."""

    def __str__(self) -> str:
        raise SystemExit("while it is shown")

    __repr__ = __str__


class HostileError(RuntimeError):
    """An error that raises SystemExit at each look."""

    @property
    def __notes__(self) -> list[str]:
        raise SystemExit("while it is shown")

    __str__ = Hostile.__str__


@pytest.mark.parametrize("error", [HostileError(), RuntimeError(Hostile()), TypeError()])
def test_no_code_of_an_error_is_called(error: BaseException) -> None:
    add_remedy(error, "served:mine")


class Mine(Handler):
    def opened(self, client: Client) -> bytes:
        return checked_greeting("text")

    def received(self, message: bytes) -> bytes:
        return checked("text")


def checked_greeting(result: object) -> bytes:
    return greeting_of(result, Chunk(), None)


def takes(message: bytes, *, times: int = 1) -> bytes:
    return checked("text")


@pytest.mark.parametrize(
    ("target", "call", "defined"),
    [
        (Mine, lambda: Mine().received(b""), Mine.received),
        (Mine(), lambda: Mine().received(b""), Mine.received),
        (Mine, lambda: Mine().opened(Client("peer")), Mine.opened),
        (partial(takes, times=2), lambda: takes(b""), takes),
    ],
)
def test_a_reply_of_a_wrong_type_names_the_line_where_its_method_is_defined(
    target: object, call: Callable[[], object], defined: Callable[..., object]
) -> None:
    with pytest.raises(TypeError) as raised:
        call()
    add_remedy(raised.value, "served:mine", target)
    (note,) = raised.value.__notes__
    line = defined.__code__.co_firstlineno
    assert note.startswith(f"The handler served:mine ({__file__}, line {line}) returned a str: ")
