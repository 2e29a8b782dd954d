"""Chunk framing in the pool: a read that comes alone goes straight to a thread."""

from __future__ import annotations

from typing import cast

from echod.concurrency.model import Busy
from echod.concurrency.models import InPool
from echod.connections.message_protocol import EchoProtocol


class PooledProtocol(EchoProtocol):
    """Chunk framing, and a handler in a pool thread.

    While nothing else is held or awaited, a message needs no session, nor does its answer.
    """

    _lets_go = True

    __slots__ = ()

    def dataReceived(self, data: bytes) -> None:
        if len(data) > self._direct or self._pending is not None:
            self._receive(data)
            return
        self._bytes_received += len(data)
        try:
            assert self._context is not None
            submit, run = cast("InPool", self._owner.model).submit, self._context.run
            arguments = (self._reply_from, self._received, data)
            self._pending = submit(self._answered_directly, run, arguments)
            self._direct_messages += 1.0
        except Busy as busy:
            self._turn_away(busy)

    def _answered_directly(self, result: object) -> None:
        outbox = self._outbox
        if self._direct and isinstance(result, bytes) and (outbox is None or outbox.is_empty):
            self._pending = None
            self._bytes_sent += len(result)
            self.transport.write(result)
        else:
            self._answered(result)
