"""Connections in memory, without a reactor: the test says what happens, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from echod import EchoFactory, EchoProtocol


class Transport(StringTransport):
    """A transport in memory that can half-close, and says when it was aborted."""

    half_closed = False
    aborting = False
    getHandle: Callable[[], Any]  # for a test that has a socket to give

    def abortConnection(self) -> None:
        self.aborting = True

    def loseWriteConnection(self) -> None:
        self.half_closed = True


def connect(
    factory: EchoFactory, transport: Transport | None = None
) -> tuple[EchoProtocol, Transport]:
    """Connect a protocol of `factory`'s."""
    protocol = factory.buildProtocol(None)
    transport = transport or Transport()
    assert isinstance(protocol, EchoProtocol)
    protocol.makeConnection(transport)
    return protocol, transport


def lose(protocol: EchoProtocol) -> None:
    """Let the connection be lost."""
    protocol.connectionLost(Failure(ConnectionLost()))
