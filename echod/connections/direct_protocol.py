"""The fast path: with chunk framing, the data of a read can be answered without a session."""

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

    While nothing is held or awaited, input needs no framer and no session: it is cut, handled and
    answered at once. `_direct` is the longest message that may be answered so, or 0. Every change
    of state resets it to 0; only `_settle` sets it again, when the session is idle.
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
        """The session, made when it is needed: an idle connection does not keep one."""
        if self._held is None:
            self._held = self._new_session()
        return self._held

    @_session.setter
    def _session(self, session: Session) -> None:
        self._held = session

    def connect_directly(
        self, transport: Any, write: Callable[[bytes], None]
    ) -> Callable[[bytes], None]:
        """Return the function that the uvloop reactor calls for each read, instead of
        `dataReceived`.

        Counting bytes would cost more than everything else here, and the kernel counts those of
        TCP anyway.

        Args:
            transport: the transport that `makeConnection` will get.
            write: the fastest way to write, as long as the connection is open.
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
            # This is the whole cost of most messages. So there is no avoidable call, and no
            # attribute is called like a method, because the interpreter is slower at that.
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
        # The same as `ReplyBatch`, in a list: its calls would be a third of the cost of this.
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
                    # A result is pending, or the handler has closed: the session takes the rest.
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
        """Process a result that is not plain bytes: `Close`, or a pending result."""
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
        # The fastest way is only for open connections, and keeps the transport alive.
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
        return 0  # the data of one read is a message, so none is ever incomplete

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
    """Do nothing, because the connection is closed."""


def _send_together(send: Callable[[bytes], None], replies: list[bytes]) -> int:
    """Send `replies` in one write, and clear the list; return the bytes left, 0."""
    if replies:
        send(b"".join(replies))
        replies.clear()
    return 0


class PooledProtocol(DirectProtocol):
    """Chunk framing, and a handler in a pool thread: a read that arrives alone goes straight
    there.

    `_direct` keeps its value while the answer is pending, unless something happens meanwhile.
    """

    __slots__ = ()

    def connect_directly(
        self, transport: Any, write: Callable[[bytes], None]
    ) -> Callable[[bytes], None]:
        """As in `DirectProtocol`; compared with the hand-over, counting costs little."""
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
