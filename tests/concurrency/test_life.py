"""Services in a program of one's own: opened, served, closed."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

import echod
from echod.concurrency.life import ServiceError, opened
from echod.connections.factory import EchoFactory
from echod.errors import UserError
from echod.handlers.contract import HandlerError
from echod.handlers.service import Service, SettingError, service
from tests.support.reactor import reactor
from tests.support.serving import eventually, make_model, serving

steps: list[object] = []


@service
async def counting(service: Service, *, start: int = 1) -> AsyncIterator[Any]:
    steps.append("opening")
    await deferLater(reactor, 0)
    numbers = iter(range(start, 100))
    try:
        yield lambda message: b"%d" % next(numbers)
        steps.append("closing")
        await deferLater(reactor, 0)
    finally:
        steps.append("closed")


@counting.check
def _(*, start: int) -> None:
    if start < 0:
        raise SettingError("start", "must not be negative")


@service
def plain(service: Service) -> Iterator[Any]:
    thread = threading.get_ident()
    yield lambda message: message
    steps.append(thread == threading.get_ident())


@pytest.fixture(autouse=True)
def _no_steps() -> None:
    steps.clear()


@pytest_twisted.ensureDeferred
async def test_a_program_of_ones_own_opens_a_service_and_closes_it() -> None:
    """Fault 132: In a program of one's own, a service is open from the beginning of a block to its
    end.
    """
    async with opened(counting, start=7) as handler:
        assert steps == ["opening"]
        async with serving(handler=handler, banner=b"") as server:
            client = await server.connect()
            client.send(b"x")
            await client.receive(b"7")
            assert handler.service is not None
            (known,) = handler.service.clients
            assert known.peer.startswith("127.0.0.1:")
    assert steps == ["opening", "closing", "closed"]


@pytest.mark.parametrize("model", ["reactor", "serial", "defer-to-thread"])
@pytest_twisted.ensureDeferred
async def test_both_parts_of_a_plain_service_run_in_one_thread(model: str) -> None:
    used = make_model(model)
    async with opened(plain, used) as handler:
        assert handler.service is not None
    assert steps == [True]
    used.stop()
    await eventually(lambda: "echod-service" not in {t.name for t in threading.enumerate()})


@pytest_twisted.ensureDeferred
async def test_arguments_are_checked_before_anything_is_opened() -> None:
    with pytest.raises(SettingError, match="start must not be negative"):
        async with opened(counting, start=-1):
            pass
    assert not steps


@pytest.mark.parametrize("model", ["reactor", "defer-to-thread"])
@pytest_twisted.ensureDeferred
async def test_a_service_yields_one_handler(model: str) -> None:
    @service
    def twice(service: Service) -> Iterator[Any]:
        yield lambda message: message
        yield lambda message: message

    @service
    def another(service: Service) -> Iterator[Any]:
        yield plain

    used = make_model(model)
    with pytest.raises(HandlerError, match="it has yielded twice"):
        async with opened(twice, used):
            pass
    with pytest.raises(ServiceError, match="another: it has yielded another service"):
        async with opened(another, used):
            pass
    used.stop()


@pytest_twisted.ensureDeferred
async def test_an_async_service_needs_the_event_loop() -> None:
    model = make_model("defer-to-thread")
    with pytest.raises(HandlerError, match="counting is an async service"):
        async with opened(counting, model):
            pass
    model.stop()


def test_a_service_that_is_not_open_is_no_handler() -> None:
    with pytest.raises(HandlerError, match=r"open it first, as in async with echod\.opened"):
        EchoFactory(handler=counting)


def test_a_function_without_yield_is_no_service() -> None:
    with pytest.raises(UserError, match="the service upper has no `yield`"):

        @service
        def upper(service: Service) -> bytes:
            return b""


def test_the_names_are_public() -> None:
    assert echod.service is service
    assert echod.opened is opened
    assert echod.SettingError is SettingError
