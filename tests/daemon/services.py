"""Services for the tests of this folder."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import clientFromString, connectProtocol

from echod.daemon.service import EchoService
from echod.settings.definitions import Settings
from tests.support.reactor import reactor
from tests.support.serving import LOOPBACK, Talker


def settings(**values: Any) -> Settings:
    """Return settings that listen on one port of the loopback, where `values` say nothing else."""
    return Settings(**{"listen": (LOOPBACK,), **values})


async def connect(service: EchoService, listener: int = 0) -> Talker:
    """Connect a client to a service."""
    address = service.listeners[listener].address
    endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{address.port}")
    return await connectProtocol(endpoint, Talker())
