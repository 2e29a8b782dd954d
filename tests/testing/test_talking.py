"""Conversations without a network."""

from __future__ import annotations

import asyncio
import sys
import threading
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from echod import Client, Close, Handler, Limits, connection_handler, message_handler
from echod.handlers.builtin import Count, Echo
from echod.testing import TalkError, talk
from tests.support.reactor import reactor


class Recorder(Handler):
    """Keeps its calls, and obeys the message."""

    calls: list[object]

    def __init__(self, *, calls: list[object]) -> None:
        self.calls = calls

    def opened(self, client: Any) -> bytes:
        self.calls.append(client.peer)
        return b"hello"

    def received(self, message: bytes) -> Any:
        self.calls.append(message)
        return {b"close": Close(b"bye"), b"nothing": None}.get(message, message * 2)

    def closed(self, reason: str) -> None:
        self.calls.append(reason)


@pytest.fixture
def calls() -> list[object]:
    return []


@pytest.fixture
def recorder(calls: list[object]) -> partial[Recorder]:
    return partial(Recorder, calls=calls)


@given(st.lists(st.binary(max_size=3000), max_size=20))
def test_the_handler_gets_each_message_as_it_was_sent_and_each_reply_stands_alone(
    messages: list[bytes],
) -> None:
    got: list[bytes] = []

    @message_handler
    def keep(message: bytes) -> bytes:
        got.append(message)
        return message[::-1]

    assert talk(keep, messages).replies == [one[::-1] for one in messages]
    assert got == messages


def test_a_greeting_is_no_reply(recorder: partial[Recorder], calls: list[object]) -> None:
    conversation = talk(recorder, [b"one", b"nothing", b"two"])
    assert conversation.greeting == [b"hello"]
    assert conversation.replies == [b"oneone", b"twotwo"]
    assert calls == ["127.0.0.1:50000", b"one", b"nothing", b"two"]
    assert conversation.client.peer == "127.0.0.1:50000"


def test_asking_returns_the_reply_to_this_message(recorder: partial[Recorder]) -> None:
    conversation = talk(recorder)
    assert conversation.ask(b"x") == b"xx"
    assert conversation.ask(b"nothing") is None


def test_a_last_reply_closes_the_conversation(
    recorder: partial[Recorder], calls: list[object]
) -> None:
    conversation = talk(recorder, [b"close", b"too late"])
    assert conversation.replies == [b"bye"]
    assert conversation.closed == "handler closed"
    assert not conversation.aborted
    assert calls[-1] == "handler closed"
    assert b"too late" not in calls


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda one: one.finish(), "client closed"),
        (lambda one: one.leave(), "connection lost"),
        (lambda one: one.drain(), "drained"),
    ],
)
def test_the_end_of_a_conversation_has_its_reason(
    recorder: partial[Recorder], calls: list[object], end: Any, reason: str
) -> None:
    conversation = talk(recorder, [b"x"])
    assert not conversation.closed
    end(conversation)
    assert conversation.closed == calls[-1] == reason


def test_an_hour_of_silence_takes_no_time() -> None:
    conversation = talk(Echo, limits=Limits(idle_timeout=3600, first_byte_timeout=0))
    conversation.advance(3590)
    assert conversation.closed is None
    conversation.advance(30)
    assert conversation.closed == "idle-timeout"


def test_an_exception_ends_its_conversation_and_is_kept() -> None:
    @message_handler
    def fail(message: bytes) -> bytes:
        return message if message != b"0" else b"%d" % (1 // 0)

    conversation = talk(fail, [b"1", b"0", b"2"])
    assert [type(error) for error in conversation.errors] == [ZeroDivisionError]
    assert conversation.replies == [b"1"]
    assert conversation.closed == "handler error"


def test_an_exception_of_the_constructor_is_kept_too() -> None:
    class Broken(Handler):
        def __init__(self) -> None:
            raise OSError("no file")

    assert [str(error) for error in talk(Broken).errors] == ["no file"]


def test_conversations_do_not_see_each_other() -> None:
    one, two = talk(Count), talk(Count)
    one.send(b"a")
    two.send(b"b")
    one.send(b"c")
    assert (one.replies, two.replies) == ([b"1: a", b"2: c"], [b"1: b"])


def test_a_reply_may_come_later_when_the_test_says_so() -> None:
    later: list[Deferred[bytes]] = []

    @message_handler
    def wait(message: bytes) -> Deferred[bytes]:
        later.append(Deferred())
        return later[-1]

    conversation = talk(wait, [b"one", b"two"])
    assert conversation.replies == []
    assert len(later) == 1
    later[0].callback(b"first")
    later[1].callback(b"second")
    assert conversation.replies == [b"first", b"second"]


def test_a_timer_of_the_global_reactor_is_refused_in_one_line() -> None:
    @message_handler
    def wait(message: bytes) -> Deferred[bytes]:
        return deferLater(reactor, 1, lambda: message)

    with pytest.raises(TalkError, match=r"^the handler has called reactor\.callLater: .*serving$"):
        talk(wait, [b"x"])
    assert "callLater" not in vars(reactor)


def test_another_thread_may_use_the_global_reactor_meanwhile() -> None:
    set_by_another: list[Any] = []

    @message_handler
    def ask_another(message: bytes) -> bytes:
        thread = threading.Thread(target=lambda: set_by_another.append(reactor.callLater(60, int)))
        thread.start()
        thread.join()
        return message

    assert talk(ask_another, [b"x"]).replies == [b"x"]
    set_by_another[0].cancel()


def test_a_wait_for_asyncio_is_refused_in_one_line() -> None:
    async def wait(message: bytes) -> bytes:
        await asyncio.sleep(1)
        return message

    with pytest.raises(TalkError, match="waits for asyncio"):
        talk(wait, [b"x"])


def test_a_handler_that_needs_a_real_connection_is_refused_in_one_line() -> None:
    @connection_handler
    def talk_by_socket(conn: Any) -> None: ...

    async def talk_by_streams(reader: Any, writer: Any) -> None: ...

    for handler in (talk_by_socket, talk_by_streams):
        with pytest.raises(TalkError, match=r"needs a real connection: use .*serving"):
            talk(handler)
    with pytest.raises(TalkError, match="not its name 'echo'"):
        talk("echo")


class Chat(Handler):
    """Passes each message on to all others; of each test, a class of its own."""

    room: ClassVar[set[Client]]

    def opened(self, client: Client) -> None:
        self.client = client
        self.room.add(client)

    def received(self, message: bytes) -> None:
        for other in self.room - {self.client}:
            other.send(message)

    def closed(self, reason: str) -> None:
        self.room.discard(self.client)


def test_conversations_with_one_class_share_it_so_a_chat_can_be_tested() -> None:
    class Room(Chat):
        room: ClassVar[set[Client]] = set()

    one, two = talk(Room), talk(Room)
    one.send(b"hello")
    assert (one.replies, two.replies) == ([], [b"hello"])
    two.leave()
    one.send(b"anyone?")
    assert two.replies == [b"hello"]
    assert Room.room == {one.client}


def test_a_timer_of_a_reactor_that_the_handler_itself_installs_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = Clock()
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor")

    @message_handler
    def install(message: bytes) -> bytes:
        monkeypatch.setitem(sys.modules, "twisted.internet.reactor", installed)
        installed.callLater(1, int)
        return message

    with pytest.raises(TalkError, match=r"has called reactor\.callLater"):
        talk(install, [b"x"])
    assert installed.getDelayedCalls() == []


def test_a_client_of_a_conversation_may_be_cut_off() -> None:
    class Aborts(Handler):
        def opened(self, client: Client) -> None:
            self.client = client

        def received(self, message: bytes) -> None:
            self.client.abort()

    conversation = talk(Aborts, [b"x"])
    assert conversation.aborted


class BeginsTLS(Handler):
    def opened(self, client: Client) -> None:
        self.client = client

    def received(self, message: bytes) -> bytes:
        self.client.start_tls()
        return b"begin"


def test_a_handler_that_begins_tls_needs_a_network() -> None:
    conversation = talk(BeginsTLS)
    with pytest.raises(TalkError, match=r"begins TLS.*serving\(handler, listen=\"starttls:0"):
        conversation.send(b"STARTTLS")
    assert conversation.errors == []


def test_a_message_that_is_not_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^a message is bytes, not str$"):
        talk(Count, ["one"])  # type: ignore[list-item]
