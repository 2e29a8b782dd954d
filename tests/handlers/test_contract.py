from __future__ import annotations

import array
from typing import Any

import pytest

from echod.handlers.client import Client
from echod.handlers.contract import (
    Close,
    Handler,
    checked,
)


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


class Stateful(Handler):
    def received(self, message: bytes) -> bytes:
        return message


def test_a_handler_greets_nobody_unless_it_says_so() -> None:
    handler = Stateful()
    assert handler.opened(Client("127.0.0.1:1")) is None
    handler.closed("client closed")
