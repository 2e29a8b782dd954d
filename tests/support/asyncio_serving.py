"""Servers of handlers that are asyncio's, in the test's own reactor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from echod.awaiting import loop_of
from echod.connections.factory import EchoFactory
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.serving import Server, make_model, server_by

# By which a client may reach a handler of asyncio's.
WAYS = ["clear", "TLS", "PROXY"]


@pytest.fixture(scope="module")
def on_a_loop() -> None:
    """Skip the test on a reactor that has no asyncio loop."""
    if loop_of(reactor) is None:
        not_here("this reactor has no asyncio loop, so such a handler is refused at the start")


@asynccontextmanager
async def serving(
    handler: Callable[..., object], way: str, certificate: Path, **options: Any
) -> AsyncIterator[Server]:
    """Serve with `handler`, by one of `WAYS`."""
    factory = EchoFactory(reactor, model=make_model("reactor"), handler=handler, **options)
    server = server_by(way, factory, certificate)
    try:
        yield server
    finally:
        await server.stop()


def ended(server: Server) -> dict[str, int]:
    """Return how many connections have ended, by their reasons."""
    return dict(server.factory.metrics.ended)
