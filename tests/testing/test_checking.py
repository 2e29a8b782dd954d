"""The rules that hold for any handler."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import pytest_twisted

from echod import Chunk, Handler, Length, Line, message_handler
from echod.handlers.builtin import Count, Echo, upper
from echod.testing import check
from tests.support.log import Log
from tests.support.serving import in_thread

# Handlers that keep the rules.
GOOD: dict[str, tuple[Any, dict[str, Any]]] = {
    "a function": (upper, {}),
    "a function without annotations": (lambda message: message[::-1], {}),
    "a part of one": (partial(lambda message, times: message * times, times=2), {}),
    "a class": (Count, {}),
    "a class with arguments": (partial(Echo, prefix=b"> "), {}),
    "with a last reply": (Count, {"messages": [b"one", b"quit", b"late"]}),
    "without messages": (upper, {"messages": []}),
    "framed by length": (upper, {"framing": "length", "models": ["reactor"]}),
    "with a framing of its own": (upper, {"framing": Length(bytes=1), "models": ["reactor"]}),
    "with a class of framings": (upper, {"framing": Line, "models": ["reactor"]}),
}


@pytest.mark.parametrize("handler", GOOD)
@pytest_twisted.inlineCallbacks
def test_a_handler_that_keeps_the_rules_passes(handler: str) -> Any:
    target, settings = GOOD[handler]
    yield in_thread(partial(check, target, **settings))


@pytest_twisted.inlineCallbacks
def test_a_coroutine_function_is_checked_in_the_event_loop() -> Any:
    async def double(message: bytes) -> bytes:
        return message * 2

    yield in_thread(partial(check, double))


class Shared(Handler):
    """Breaks a rule: numbers the messages of all clients together."""

    count = 0

    def received(self, message: bytes) -> bytes:
        Shared.count += 1
        return b"%d" % Shared.count


class FailsAtTheEnd(Handler):
    def received(self, message: bytes) -> bytes:
        return message

    def closed(self, reason: str) -> None:
        if reason == "connection lost":
            raise OSError("the client has gone")


def by_thread(message: bytes) -> bytes:
    import threading

    return threading.current_thread().name.partition("-")[0].encode()


@message_handler
def falls_over(message: bytes) -> Any:
    return 1 // len(message.strip(b"t"))


BAD = {
    "shares state": (Shared, "reactor: all at once: expected b'1.n2.n3.n', got b'4"),
    "raises when a client leaves": (FailsAtTheEnd, "a client that leaves: OSError"),
    "depends on its model": (by_thread, "the models give different replies"),
    "raises": (falls_over, "reactor: a message at a time: TypeError"),
}


@pytest.mark.parametrize("handler", BAD)
@pytest_twisted.inlineCallbacks
def test_a_handler_that_breaks_a_rule_is_told_which(handler: str, log: Log) -> Any:
    Shared.count = 0
    target, error = BAD[handler]
    models = {"models": ["reactor"]} if "reactor" in error or "leaves" in error else {}
    if handler == "depends on its model":
        models = {"models": ["reactor", "defer-to-thread"]}
    with pytest.raises(AssertionError, match=error):
        yield in_thread(partial(check, target, **models))
    log.take_errors()


@pytest.mark.parametrize("framing", ["chunk", Chunk, Chunk(max_message=10)], ids=repr)
def test_chunks_are_no_messages(framing: Any) -> None:
    with pytest.raises(ValueError, match="chunk"):
        check(upper, framing=framing)


def test_a_message_that_is_not_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^a message is bytes, not str$"):
        check(upper, ["one"])  # type: ignore[list-item]


def test_a_handler_that_no_model_is_left_for_is_refused() -> None:
    async def double(message: bytes) -> bytes:
        return message * 2

    with pytest.raises(ValueError, match="none of these models"):
        check(double, models=["defer-to-thread"])


def test_a_handler_of_no_messages_is_refused() -> None:
    async def copy(reader: Any, writer: Any) -> None: ...

    with pytest.raises(ValueError, match="check is for handlers of messages"):
        check(copy)


@pytest.mark.parametrize("setting", [{"tls": True}, {"unix": True}, {"listen": "tcp:0"}])
def test_another_way_to_connect_is_refused_at_once(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="check connects by TCP, in clear"):
        check(upper, **setting)
