from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from echod.connections.factory import EchoFactory
from echod.handlers.calling import call_closed, call_opened
from echod.handlers.client import Client
from echod.handlers.contract import ConcurrencyModel, Handler
from echod.handlers.lookup import adopt
from echod.status.timing import EVERY, HandlerTimer
from tests.support.reactor import reactor
from tests.support.serving import Server


class Ticking:
    """A clock on which each look takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def timer(**options: Any) -> HandlerTimer:
    return HandlerTimer(**{"in_threads": False, "clock": Ticking(), **options})


def received(handler: Any, made: HandlerTimer, model: str = "reactor") -> Any:
    resolved = adopt(handler, ConcurrencyModel(model))
    return made.timed(resolved).message_handler().received


def test_in_threads_every_message_is_timed_the_failing_too() -> None:
    def handle(message: bytes) -> bytes:
        return b"%d" % int(message)

    made = timer(in_threads=True)
    call = received(handle, made, "defer-to-thread")
    for number in range(5):
        assert call(b"%d" % number) == b"%d" % number
    with pytest.raises(ValueError, match="x"):
        call(b"x")
    assert sum(made.histogram.counts) == 6
    assert made.histogram.total == 6.0


def test_in_the_event_loop_one_message_in_many_is_timed_the_first_included() -> None:
    made = timer()
    calls = [received(bytes.upper, made), received(bytes.lower, made)]  # two connections
    assert calls[0](b"a") == b"A"
    assert sum(made.histogram.counts) == 1
    for number in range(EVERY * 2 - 1):
        calls[number % 2](b"a")
    assert sum(made.histogram.counts) == 2
    with pytest.raises(TypeError):
        calls[0](None)
    assert sum(made.histogram.counts) == 3


@pytest_twisted.ensureDeferred
async def test_what_is_awaited_is_timed_to_its_end() -> None:
    made = timer()
    waiting: Deferred[bytes] = Deferred()

    async def handle(message: bytes) -> bytes:
        return await waiting

    result = Deferred.fromCoroutine(received(handle, made)(b"a"))
    assert sum(made.histogram.counts) == 0
    waiting.callback(b"b")
    assert await result == b"b"
    assert sum(made.histogram.counts) == 1


def test_a_deferred_is_timed_to_its_end() -> None:
    made = timer()
    waiting: Deferred[bytes] = Deferred()
    result = received(lambda message: waiting, made)(b"a")
    assert result is waiting
    assert sum(made.histogram.counts) == 0
    waiting.callback(b"b")
    assert sum(made.histogram.counts) == 1
    assert result.result == b"b"


def test_the_other_hooks_are_the_handlers_own() -> None:
    class Greeter(Handler):
        def opened(self, client: Client) -> bytes:
            return b"hello"

        def received(self, message: bytes) -> bytes:
            return message

    class Bare:
        def received(self, message: bytes) -> bytes:
            return message

    made = timer()
    greeter = made.timed(adopt(Greeter, ConcurrencyModel.REACTOR)).message_handler()
    assert call_opened(greeter, Client("")) == b"hello"
    call_closed(greeter, None)  # it has none
    bare = made.timed(adopt(Bare, ConcurrencyModel.REACTOR)).message_handler()
    assert call_opened(bare, Client("")) is None


def test_of_a_connection_handler_each_conversation_is_timed() -> None:
    made = timer(in_threads=True)
    handler = made.timed(adopt(lambda conn: conn(), ConcurrencyModel.THREAD_PER_CONNECTION))
    assert handler.converse(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        handler.converse(lambda: 1 // 0)
    assert sum(made.histogram.counts) == 2


@pytest_twisted.ensureDeferred
async def test_a_timed_handler_serves() -> None:
    made = timer()
    handler = made.timed(adopt(bytes.upper, ConcurrencyModel.REACTOR))
    server = Server(EchoFactory(reactor, handler=handler))
    client = await server.connect()
    client.send(b"happy")
    await client.receive(b"HAPPY")
    await server.stop()
    assert sum(made.histogram.counts) == 1
