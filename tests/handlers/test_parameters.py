"""Arguments reach the constructor that takes them, and no other."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler
from socketserver import BaseRequestHandler, StreamRequestHandler
from typing import TYPE_CHECKING, Any, Literal

import pytest

from echod import Handler
from echod.handlers.contract import ConcurrencyModel, HandlerError
from echod.handlers.lookup import adopt
from echod.handlers.parameters import described, parameters_of

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]

REACTOR = ConcurrencyModel.REACTOR
THREAD = ConcurrencyModel.THREAD_PER_CONNECTION


def plain(message: bytes, *, times: int = 1) -> bytes:
    return message * times


def free(message: bytes, **options: str) -> bytes:
    return message


def unknown_type(message: bytes, *, times: int = 1, other: Missing | None = None) -> bytes:
    return message


class Base(Handler):
    def __init__(self, *, start: int = 0) -> None:
        self.start = start


class Passing(Base):
    def __init__(self, *, name: str, **others: Any) -> None:
        super().__init__(**others)
        self.name = name


class Giving(Passing):
    """Gives what its base needs."""

    def __init__(self, **others: Any) -> None:
        super().__init__(name="given", **others)


class Keeping(Base):
    def __init__(self, **options: str) -> None:
        super().__init__()
        self.options = options


class New(Base):
    def __new__(cls, *arguments: Any, **options: Any) -> New:  # noqa: ARG004 - `__init__` does
        return super().__new__(cls)


class OnlyNew(Handler):
    options: dict[str, Any]

    def __new__(cls, **options: Any) -> OnlyNew:
        made = super().__new__(cls)
        made.options = options
        return made


class Meta(type):
    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return super().__call__(*arguments, **options)


class Made(Base, metaclass=Meta):
    pass


@dataclass
class Data(Handler):
    count: int = 0


class Options(StreamRequestHandler):
    def __init__(self, *arguments: Any, **options: str) -> None:
        self.options = options
        super().__init__(*arguments)


class Further(SimpleHTTPRequestHandler):
    def __init__(self, request: Any, client_address: Any, server: Any, **others: Any) -> None:
        super().__init__(request, client_address, server, **others)


TAKES: list[tuple[ConcurrencyModel, Any, Mapping[str, str], Mapping[str, object]]] = [
    (REACTOR, plain, {"times": "3"}, {"times": 3}),
    (REACTOR, partial(plain, times=2), {"times": "3"}, {"times": 3}),
    (REACTOR, free, {"colour": "red"}, {"colour": "red"}),
    (REACTOR, unknown_type, {"times": "3", "other": "x"}, {"times": 3, "other": "x"}),
    (REACTOR, Passing, {"name": "n", "start": "3"}, {"name": "n", "start": 3}),
    (REACTOR, Giving, {"start": "3"}, {"start": 3}),
    (REACTOR, Giving, {}, {}),
    (REACTOR, partial(Passing, name="n"), {"start": "3"}, {"start": 3}),
    (REACTOR, Keeping, {"colour": "red"}, {"colour": "red"}),
    (REACTOR, New, {"start": "3"}, {"start": 3}),
    (REACTOR, OnlyNew, {"colour": "red"}, {"colour": "red"}),
    (REACTOR, Made, {"start": "3"}, {"start": 3}),
    (REACTOR, Data, {"count": "3"}, {"count": 3}),
    (THREAD, SimpleHTTPRequestHandler, {"directory": "/srv"}, {"directory": "/srv"}),
    (THREAD, partial(SimpleHTTPRequestHandler), {"directory": "/srv"}, {"directory": "/srv"}),
    (THREAD, Further, {"directory": "/srv"}, {"directory": "/srv"}),
    (THREAD, Options, {"colour": "red"}, {"colour": "red"}),
]


@pytest.mark.parametrize(("model", "target", "texts", "arguments"), TAKES)
def test_what_a_handler_takes_it_is_given(
    model: ConcurrencyModel,
    target: Any,
    texts: Mapping[str, str],
    arguments: Mapping[str, object],
) -> None:
    handler = adopt(target, model, arguments=texts)
    assert handler.arguments == arguments
    if model is REACTOR and texts:
        assert callable(handler.message_handler().received)  # it can be made with them


@pytest.mark.parametrize(
    ("model", "target", "takes"),
    [
        (REACTOR, plain, "times"),
        (REACTOR, Base, "start"),
        (REACTOR, partial(Passing, name="n"), "start, name"),
        (REACTOR, Giving, "start, name"),
        (REACTOR, New, "start"),
        (REACTOR, Made, "start"),
        (REACTOR, Data, "count"),
        (THREAD, SimpleHTTPRequestHandler, "directory"),
        (THREAD, Further, "directory"),
        (THREAD, BaseRequestHandler, "none"),
    ],
)
def test_what_it_does_not_take_is_refused_where_that_can_be_known(
    model: ConcurrencyModel, target: Callable[..., Any], takes: str
) -> None:
    with pytest.raises(HandlerError, match=f"takes no argument 'colour'; it takes: {takes}(;|$)"):
        adopt(target, model, "handler", {"colour": "red"})


def test_what_is_needed_is_asked_for_where_nothing_in_between_gives_it() -> None:
    with pytest.raises(HandlerError, match="needs the argument 'name'"):
        adopt(Passing, REACTOR)
    assert parameters_of(Giving).required == frozenset()


def test_what_is_filled_by_position_cannot_be_given_by_name() -> None:
    def talk(conn: socket.socket, size: int = 1024) -> None:
        """Would serve."""

    assert list(parameters_of(talk).named) == ["size"]
    assert not parameters_of(BaseRequestHandler).named


def chosen(message: bytes, *, level: Literal[1, 2, 9], order: Literal["up", "down"] = "up") -> Any:
    return (message, level, order)


def many(
    message: bytes,
    *,
    times: int = 1,
    gap: bytes = b"\r\n",
    loud: bool = False,
    rate: float | None = None,
    name: str,
    **others: str,
) -> bytes:
    return message


def test_one_of_several_values_is_taken_by_its_text() -> None:
    handler = adopt(chosen, REACTOR, arguments={"level": "9", "order": "down"})
    assert handler.arguments == {"level": 9, "order": "down"}


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        ({"level": "3"}, "chosen: level=3 is not one of: 1, 2, 9"),
        ({"level": "1", "order": "UP"}, "chosen: order=UP is not one of: up, down"),
    ],
)
def test_a_value_that_is_none_of_several_is_refused_with_all(
    texts: Mapping[str, str], why: str
) -> None:
    with pytest.raises(HandlerError) as caught:
        adopt(chosen, REACTOR, arguments=texts)
    assert str(caught.value) == why


def test_each_argument_is_described_with_its_type_and_its_default() -> None:
    assert described(parameters_of(many)) == (
        "times: int = 1",
        r"gap: bytes = \r\n",
        "loud: bool = false",
        "rate: float",
        "name: str, required",
        "any other",
    )
    assert described(parameters_of(chosen)) == ("level: 1|2|9, required", "order: up|down = up")
    assert described(parameters_of(unknown_type)) == ("times: int = 1", "other: str")
