"""The fast path: chunk framing, where what a read gave can be answered without a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.python.failure import Failure

from echod.concurrency.model import Busy
from echod.concurrency.models import InPool, InReactor
from echod.connections.kernel import traffic
from echod.connections.message_protocol import EchoProtocol, ReplyBatch
from echod.connections.owner import Owner
from echod.contexts import context_of
from echod.handlers.contract import reply_from
from echod.messages.session import Session
from echod.reasons import EndReason
from echod.turns import PACE, Share


class DirectProtocol(EchoProtocol):
    """The hot path: chunk framing, and a handler in the event loop.

    While nothing is held or awaited, input needs no framer and no session: it is cut, handled
    and answered on the spot.  `_direct` says how much of it: the longest message, or nothing.  It
    is taken back wherever the state changes, and given again by `_settle` alone, when the session
    is idle.
    """

    __slots__ = ("_direct", "_direct_messages", "_held", "_kernel_counts", "_send")

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._direct = 0
        self._direct_messages = 0
        self._send: Any = self._write
        self._kernel_counts = False

    _held: Session | None

    @property
    def _session(self) -> Session:
        """The session, anew when it is needed again: an idle connection does not keep one."""
        if self._held is None:
            self._held = self._new_session()
        return self._held

    @_session.setter
    def _session(self, session: Session) -> None:
        self._held = session

    def connect_directly(
        self, transport: Any, write: Callable[[bytes], None]
    ) -> Callable[[bytes], None]:
        """From the uvloop reactor: return what is called for each read, instead of `dataReceived`.

        To count bytes costs more than all else here.  The kernel counts those of TCP anyway.

        Args:
            transport: what `makeConnection` will bring.
            write: the quickest way to write, for as long as the connection is open.
        """
        own = type(self).dataReceived is DirectProtocol.dataReceived
        countless = traffic(transport, input_ended=False) is None
        if not own or countless or context_of(transport) is None:
            return self.dataReceived
        self._kernel_counts = True
        self._send = write
        return self._answer

    def dataReceived(self, data: bytes) -> None:
        if self._direct:
            self._bytes_received += len(data)
        if self._context is None:
            self._answer(data)
        else:
            self._inside(self._answer, data)

    def _answer(self, data: bytes) -> None:
        if len(data) <= self._direct:
            # All that most messages cost; hence no call that could be spared, and no attribute
            # that is called as if it were a method, which the interpreter is slower at.
            self._direct_messages += 1
            received = self._received
            try:
                reply = received(data)
            except BaseException:
                self.fail(Failure())
                return
            if type(reply) is bytes:
                send = self._send
                send(reply)
            elif reply is not None:
                self._take_directly(reply)
        elif self._direct:
            self._answer_pieces(data)
        else:
            self._receive(data)

    def _answer_pieces(self, data: bytes) -> None:  # noqa: C901 - calls for each piece would cost
        """Answer a long read; small replies leave together."""
        # What `ReplyBatch` does, in a list: its calls would be a third of what this costs.
        size, received = self._direct, self._received
        replies: list[bytes] = []
        held, answered, failure = 0, 0, None
        look_at = end = len(data)
        if end > PACE * size:
            look_at, share = size, Share(self._owner.turns)
            seconds = self._owner.turns.seconds
        try:
            for start in range(0, end, size):
                if not self._direct:
                    # Something waits, or the handler has closed: the session takes the rest.
                    _send_together(self._send, replies)
                    self._session.receive(data[start:])
                    self._answer_messages()
                    return
                if start >= look_at:
                    look_at += PACE * size
                    if seconds() >= share.until and share.used_up():
                        _send_together(self._send, replies)
                        self._rest_with(data[start:])
                        return
                answered += 1
                reply = received(data[start : start + size])
                if type(reply) is bytes:
                    replies.append(reply)
                    held += len(reply) + ReplyBatch.OVERHEAD
                    if held >= ReplyBatch.MOST:
                        held = _send_together(self._send, replies)
                elif reply is not None:
                    held = _send_together(self._send, replies)
                    self._take_directly(reply)
        except BaseException:
            failure = Failure()
        finally:
            self._direct_messages += answered
        _send_together(self._send, replies)
        if failure:
            self.fail(failure)

    def _rest_with(self, data: bytes) -> None:
        """Leave the rest of a read to the next turn of the loop."""
        self._session.receive(data)
        self._rest()
        self._settle()

    def _take_directly(self, result: object) -> None:
        """Take what is not plain bytes: `Close`, or something to wait for."""
        try:
            settled = cast("InReactor", self._owner.model).settle(self._answered, result)
            if not self._take(settled):
                self._direct = 0
                self._session.in_flight = True
        except BaseException:
            self.fail(Failure())

    def pauseProducing(self) -> None:
        self._direct = 0
        super().pauseProducing()

    def _go_on(self) -> None:
        if self._reason is None and self._session.idle:
            self._settle()
        else:
            super()._go_on()

    def _client_finished(self) -> None:
        if self._direct and not self._busy:
            self.close(EndReason.CLIENT)
        else:
            super()._client_finished()

    def _stop(self) -> None:
        self._direct = 0
        # The quickest way is for open connections, and keeps what it belongs to.
        self._send = self._write
        super()._stop()

    def _cut_input(self) -> None:
        self._direct = 0
        super()._cut_input()

    def _settle(self) -> None:
        super()._settle()
        if self._reason is None and self._session.idle and not self._draining:
            self._direct = self._owner.framing.max_message
            self._direct_messages += self._session.messages
            self._held = None
        else:
            self._direct = 0

    @property
    def _incomplete(self) -> int:
        return 0  # what one read gave is a message: it is never under way

    @property
    def _busy(self) -> bool:
        return self._held is not None and super()._busy

    def _finish(self) -> None:
        _, self._bytes_received, self._bytes_sent = self.figures
        self._kernel_counts = False
        self._send = _discard
        super()._finish()

    @property
    def figures(self) -> tuple[int, int, int]:
        messages = self._held.messages if self._held else 0
        received, sent = self._bytes_received, self._bytes_sent
        if self._kernel_counts:
            counted = traffic(self.transport, input_ended=self._input_ended)
            received, sent = counted or (received, sent)
        return messages + self._direct_messages, received, sent

    @property
    def _activity(self) -> int:
        return self._reads + self._direct_messages


def _discard(data: bytes) -> None:
    """Do nothing: there is nobody any more to send `data` to."""


def _send_together(send: Callable[[bytes], None], replies: list[bytes]) -> int:
    """Send `replies` in one write, and empty them; return how many bytes are left."""
    if replies:
        send(b"".join(replies))
        replies.clear()
    return 0


class PooledProtocol(DirectProtocol):
    """Chunk framing, and a handler in a pool thread: a read that comes alone goes straight there.

    `_direct` stays while its answer is awaited, unless something happens meanwhile.
    """

    __slots__ = ()

    def connect_directly(
        self, transport: Any, write: Callable[[bytes], None]
    ) -> Callable[[bytes], None]:
        """As in `DirectProtocol`; beside the hand-over to a thread, to count costs little."""
        return self.dataReceived

    def dataReceived(self, data: bytes) -> None:
        session = self._session
        if len(data) <= self._direct and not session.in_flight:
            session.in_flight = True
            self._bytes_received += len(data)
            try:
                assert self._context is not None
                submit, run = cast("InPool", self._owner.model).submit, self._context.run
                arguments = (reply_from, self._received, data)
                self._pending = submit(self._answered_directly, run, arguments)
                self._direct_messages += 1
            except Busy as busy:
                session.in_flight = False
                self._turn_away(busy)
        else:
            self._receive(data)

    def _answered_directly(self, result: object) -> None:
        if self._direct and isinstance(result, bytes):
            self._pending = None
            self._session.in_flight = False
            self._bytes_sent += len(result)
            self.transport.write(result)
        else:
            self._answered(result)
