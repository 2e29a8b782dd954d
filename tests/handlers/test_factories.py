"""The Twisted factory of a handler: from a class, a function or a factory."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols import wire

from echod.handlers import factories
from echod.handlers.contract import ConcurrencyModel, HandlerError
from echod.handlers.kinds import Kind, protocol_factory
from echod.handlers.lookup import adopt

REACTOR = ConcurrencyModel.REACTOR


class Named(Protocol):
    def __init__(self, name: str = "nobody") -> None:
        self.name = name


class NamedFactory(Factory):
    protocol = Named

    def __init__(self, *, size: int = 1) -> None:
        if size < 1:
            raise ValueError("size\nmust be positive")
        self.size = size


def makes_a_protocol() -> Named:
    return Named("made")


def makes_a_factory() -> NamedFactory:
    return NamedFactory(size=3)


@protocol_factory
def makes_nothing() -> Named | None:
    return None


def build(target: object, **arguments: str) -> Any:
    handler = adopt(target, REACTOR, "mine", arguments)
    assert handler.kind is Kind.TWISTED_PROTOCOL
    factory: Any = handler.target
    protocol = factory.buildProtocol(None)
    assert protocol.factory is factory
    return protocol


def test_a_protocol_class_is_made_for_each_connection_with_its_arguments() -> None:
    assert build(Named, name="happy").name == "happy"
    assert isinstance(build(wire.Echo), wire.Echo)


def test_a_function_may_make_each_protocol() -> None:
    assert build(makes_a_protocol).name == "made"


def test_a_factory_and_its_class_and_a_function_that_makes_it_are_one_factory() -> None:
    mine = NamedFactory(size=5)
    assert build(mine).factory is mine
    assert build(NamedFactory, size="7").factory.size == 7
    assert build(makes_a_factory).factory.size == 3


@pytest.mark.parametrize(
    ("target", "arguments", "why"),
    [
        (NamedFactory, {"size": "0"}, r"mine cannot be made: ValueError: size\\nmust be positive"),
        (Named("one"), {}, "serves one connection only: name the class"),
        (NamedFactory, {"size": "a"}, "mine: size=a is not of type int"),
        (Named, {"nam": "a"}, "mine takes no argument 'nam'"),
    ],
)
def test_a_mistake_is_one_line_at_the_start(
    target: object, arguments: dict[str, str], why: str
) -> None:
    with pytest.raises(HandlerError, match=why) as caught:
        adopt(target, REACTOR, "mine", arguments)
    assert "\n" not in str(caught.value)


def test_a_function_that_makes_something_else_is_refused() -> None:
    makes_nothing.__echod_kind__ = Kind.TWISTED_PROTOCOL  # type: ignore[attr-defined]
    with pytest.raises(HandlerError, match="mine makes a NoneType, which is no protocol"):
        adopt(makes_nothing, REACTOR, "mine")


@pytest.mark.parametrize("model", [one for one in ConcurrencyModel if one is not REACTOR])
def test_a_twisted_protocol_runs_in_the_reactors_model_only(model: ConcurrencyModel) -> None:
    with pytest.raises(
        HandlerError, match=f"a Twisted protocol: it runs with .* reactor, not {model}"
    ):
        adopt(wire.Echo, model)


class Late(Factory):
    noisy = False

    def startFactory(self) -> None:
        self.protocol = Protocol


class Built(Factory):
    noisy = False

    def buildProtocol(self, addr: object) -> Protocol:
        return Protocol()


def test_a_factory_without_a_protocol_fails_when_it_starts() -> None:
    bare = Factory()
    bare.noisy = False
    with pytest.raises(HandlerError, match="mine is a factory without a protocol: set its `pro"):
        factories.start("mine", bare)
    for whole in (Late(), Built(), Factory.forProtocol(Protocol)):
        whole.noisy = False
        factories.start("mine", whole)
        factories.stop(whole)
