from __future__ import annotations

import threading
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

import echod
from echod import Chunk, Line
from echod.handlers.contract import ConcurrencyModel
from echod.messages.framing import Framing
from tests.support.reactor import reactor
from tests.support.serving import eventually, serving


def name_of(client: echod.Client) -> bytes:
    return client.peer.encode() + b"\n"


def whose(message: bytes) -> bytes:
    return name_of(echod.client())


async def whose_after_a_wait(message: bytes) -> bytes:
    before = echod.client()
    await deferLater(reactor, 0)
    assert echod.client() is before
    return name_of(before)


class Whose(echod.Handler):
    """Asks in every method."""

    closed_for: list[echod.Client] = []  # noqa: RUF012 - one for all

    def opened(self, client: echod.Client) -> None:
        assert echod.client() is client
        self.client = client

    def received(self, message: bytes) -> bytes:
        assert echod.client() is self.client
        return whose(message)

    def closed(self, reason: str) -> None:
        assert echod.client() is self.client
        self.closed_for.append(self.client)


async def ask(server: Any, message: bytes = b"?\n") -> None:
    clients = [await server.connect() for _ in range(2)]
    for client in clients * 2:
        client.send(message)
        host = client.transport.getHost()
        await client.receive(f"{host.host}:{host.port}\n".encode())


@pytest.mark.parametrize("framing", [Chunk(), Line()], ids=["chunk", "line"])
@pytest.mark.parametrize("model", list(ConcurrencyModel)[:3])
@pytest_twisted.ensureDeferred
async def test_a_handler_can_ask_whose_message_it_answers(
    model: ConcurrencyModel, framing: Framing
) -> None:
    Whose.closed_for.clear()
    handlers: list[Any] = [echod.message_handler(whose), Whose]
    for handler in handlers:
        async with serving(model, handler=handler, framing=framing, banner=b"") as server:
            await ask(server)
            # Before the model's stop, which drops the calls of `closed` that wait for a thread.
            server.factory.abort()
            closed = 2 if handler is Whose else 0
            await eventually(lambda closed=closed: len(Whose.closed_for) == closed)


@pytest_twisted.ensureDeferred
async def test_a_coroutine_can_ask_after_it_has_waited() -> None:
    async with serving(handler=whose_after_a_wait, banner=b"") as server:
        await ask(server)


def test_elsewhere_the_question_is_an_error_in_one_line() -> None:
    with pytest.raises(RuntimeError, match="works only while a handler is called"):
        echod.client()
    failed: list[str] = []

    def elsewhere() -> None:
        try:
            echod.client()
        except RuntimeError as error:
            failed.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(failed) == 1
