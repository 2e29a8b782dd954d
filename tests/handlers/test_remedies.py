from __future__ import annotations

import pytest

from echod.handlers.contract import checked
from echod.handlers.remedies import add_remedy


def notes_of(error: BaseException) -> list[str]:
    add_remedy(error, "served:mine")
    add_remedy(error, "served:mine")
    return getattr(error, "__notes__", [])


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
