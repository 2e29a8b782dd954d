"""The fast paths: a read that holds whole messages can be answered without a session."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from operator import length_hint
from threading import get_ident
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.python.failure import Failure

from echod.concurrency.lending import LentTask, Returned
from echod.concurrency.models import InReactor
from echod.connections.kernel import counted, counts_bytes
from echod.connections.lifecycle import UNSEEN
from echod.connections.message_protocol import EchoProtocol, opening
from echod.connections.outbox import Outbox, emptied
from echod.connections.owner import Owner
from echod.handlers.calling import greeting_of, overridden
from echod.handlers.contract import BytesLike
from echod.messages.closing import State
from echod.messages.framing import MOST_WHOLE, framed_together
from echod.messages.session import CLOSED
from echod.reasons import EndReason
from echod.turns import FREE, LONG, PACE, Share

if TYPE_CHECKING:
    from echod.connections.message_protocol import Collected
    from echod.interfaces import Stream, Writer
    from echod.messages.framing import DirectFraming
    from echod.tls import TLSConnection

# Looked up once: see `lifecycle`.
_BOTH_ENDED, _CLIENT = State.BOTH_ENDED, EndReason.CLIENT

# The most replies that leave together, but for those between two looks at the clock, and the
# longest one that waits for others, in bytes.
MOST_TOGETHER = 32
LONGEST_TOGETHER = 2048

# Stands for the replies of a read that an outbox has taken over: this object, not its value.
_TAKEN_OVER = bytes(bytearray(b"taken over"))


class DirectProtocol(EchoProtocol):
    """The hot path: chunk framing, and a handler in the event loop.

    While nothing is held or awaited, input needs no framer and no session: it is cut, handled and
    answered at once.
    """

    _lets_go = True
    # Whether the framing leaves replies as they are.
    _replies_are_plain: ClassVar[bool] = True

    __slots__ = ("_count_below", "_respond", "_writer")

    def __init__(self, owner: Owner) -> None:
        EchoProtocol.__init__(self, owner)
        # Replies are written to uvloop's transport or to TLS, which count the bytes below, to this
        # object, or to nothing. Its method is not kept, which would be one more object.
        self._writer: Writer = self
        self._count_below: Callable[[DirectProtocol], tuple[int, int]] | None = None
        # The handler's `received`. From the first coroutine on it lends a task, too: since then
        # the context of the conversation knows its client, and the loop's lender is known.
        self._respond: Callable[[bytes], object]

    def _make_handler(self) -> None:
        EchoProtocol._make_handler(self)
        self._respond = self._received

    def connect_directly(self, transport: Stream, writer: Writer) -> Callable[[bytes], None]:
        """Return the function that the uvloop reactor calls for each read, instead of
        `dataReceived`.

        Counting bytes would cost more than everything else here, and the kernel counts those of
        TCP anyway.

        Args:
            transport: the transport that `makeConnection` will get.
            writer: the fastest way to write, as long as the connection is open.
        """
        own = type(self).dataReceived is DirectProtocol.dataReceived
        handle: Any = transport.getHandle()
        if not own or not counts_bytes(handle):
            return self.dataReceived
        self._count_below = _kernel_count
        self._writer = writer
        return self._answer_first

    def connect_over_tls(self, tls: TLSConnection) -> Callable[[bytes], None]:
        """Return the function that TLS calls for each record, instead of `dataReceived`.

        TLS counts the bytes then.

        Args:
            tls: the transport that `makeConnection` will get.
        """
        own = type(self).dataReceived is DirectProtocol.dataReceived
        if not own or not tls.has_context:
            return self.dataReceived
        self._count_below = _tls_count
        self._writer = tls
        return self._answer

    write = EchoProtocol._write  # as its own writer

    def dataReceived(self, data: bytes) -> None:
        if self._direct:
            self._bytes_received += len(data)
        if self._context is None:
            self._answer(data)
        else:
            self._inside(self._answer, data)

    def _answer_first(self, data: bytes) -> None:
        """Answer the first read; uvloop resumes the generator for each that follows.

        It is made only now, because an idle connection needs none.
        """
        answering = self._answering(data)
        stream: Any = self.transport
        stream.receiveBy(answering.send)
        next(answering)

    def _answering(self, data: bytes) -> Generator[None, bytes, None]:
        """Answer each read that is sent: to go on takes less time than to be called.

        This is the whole cost of most messages, so there is no avoidable call or look-up.
        """
        respond = self._respond
        while True:
            if len(data) <= self._direct:
                self._direct_messages += 1.0
                try:
                    reply = respond(data)
                except BaseException:
                    self.fail(Failure())
                else:
                    if type(reply) is bytes:
                        self._writer.write(reply)
                    elif reply is not None:
                        self._process_directly(reply)
                        respond = self._respond  # the first coroutine replaces it
                    del reply
            else:
                self._answer(data)
                respond = self._respond
            del data  # an idle connection keeps neither
            data = yield

    def _answer(self, data: bytes) -> None:
        if len(data) <= self._direct:
            # As in `_answering`; to make a generator for a single read would cost more. The
            # function in `_respond` is not called like a method, which is slower.
            self._direct_messages += 1.0
            respond = self._respond
            try:
                reply = respond(data)
            except BaseException:
                self.fail(Failure())
                return
            if type(reply) is bytes:
                self._writer.write(reply)
            elif reply is not None:
                self._process_directly(reply)
        elif self._direct:
            owner, size, length = self._owner, self._direct, len(data)
            if length <= 2 * size and length < LONG and not owner.turns.shares:
                self._answer_two(data[:size], data[size:])
            else:
                self._answer_all(data, _cut(data, owner.framing.max_message))
        else:
            self._receive(data)

    def _answer_two(self, first: bytes, second: bytes) -> None:  # noqa: C901 - as below
        """As `_answer_all`, for a short read of two messages, which needs no share of the turn."""
        respond = self._respond
        self._direct_messages += 1.0
        try:
            reply = respond(first)
        except BaseException:
            self.fail(Failure())
            return
        if (
            type(reply) is not bytes
            or self._outbox is not None
            or self._batch is not None
            or not self._direct
        ):
            if reply is not None:
                self._process_directly(reply)
            self._answer_the_last(second)
            return
        replies, failure = [reply], None
        self._batch = (replies, None)
        self._direct_messages += 1.0
        try:
            reply = respond(second)
            if type(reply) is bytes:
                replies.append(reply)
                reply = None
        except BaseException:
            reply, failure = None, Failure()
        # As `_send_last`, whose calls would make this read take 7 % more instructions, and the
        # bound method of the writer 1.5 %.
        fixed = self._count_below is not None or self._outbox is not None
        writer = self._writer if fixed else None
        self._batch = None
        if opening.locked():
            with opening:
                pass
        if replies:
            if replies[0] is _TAKEN_OVER:
                self._send_behind(replies, None)
            elif writer is not None:
                writer.write(b"".join(replies))
            else:
                self.transmit(b"".join(replies))
        if reply is not None:
            self._process_directly(reply)
        elif failure is not None:
            self.fail(failure)

    def _answer_the_last(self, message: bytes) -> None:
        """Answer the second message of a read, if the first one has not left together with it."""
        if self._direct:
            self._answer(message)
        else:
            self._hold().receive(message)
            self._answer_more()

    def _answer_all(  # noqa: C901 - see below
        self, data: bytes, messages: Sequence[bytes], framing: DirectFraming | None = None
    ) -> None:
        """Answer the messages of a read; small replies leave together, and are framed then.

        Calls for each message would cost, and so does a look at the length of each. Once another
        thread has opened an outbox, which takes over the replies so far, the session goes on.

        Args:
            data: the read.
            messages: its messages.
            framing: of the replies; None if it leaves them as they are.
        """
        if self._outbox is not None:
            self._hold().receive(data)
            self._answer_more(after_long_read=len(data) >= LONG)
            return
        respond, turns = self._respond, self._owner.turns
        encode = None
        if framing is not None and framing.tail is None:  # it cannot frame every reply
            encode, framing = framing.encode, None
        replies: list[bytes] = []
        outer, self._batch = self._batch, (replies, framing)
        left, answered, length = iter(messages), len(messages), len(data)
        unseen, failure = answered, None
        # A few messages are answered at once, without a share. Of more, only the beginning is
        # noted until `FREE` is used up, which is later than the end of most reads.
        share, begun, seconds = None, None, turns.seconds
        if turns.shares and (share := turns.shares.get(self.transport)) is not None:
            begun, until, unseen = share.begun, share.until, 0
        elif answered > PACE or length >= LONG:
            begun, unseen = seconds(), 1
            until = begun + FREE
            if length >= LONG:
                share = Share(turns, self.transport, begun)
                turns.keep(share)
        try:
            for message in left:
                if unseen:
                    unseen -= 1
                else:
                    unseen = PACE - 1
                    if len(replies) > MOST_TOGETHER:
                        self._send_replies(replies, framing)
                    if seconds() >= until:
                        share = share or Share(turns, self.transport, begun)
                        if share.used_up():
                            rest = [message, *left]
                            answered -= len(rest)
                            self._send_replies(replies, framing)
                            self._rest_with(self._framed(rest))
                            return
                        until = share.until
                reply = respond(message)
                if type(reply) is bytes:
                    replies.append(reply if encode is None else encode(reply))
                    if len(reply) > LONGEST_TOGETHER:
                        self._send_replies(replies, framing)
                elif reply is not None:
                    self._send_replies(replies, framing)
                    self._process_directly(reply)
                if (not self._direct or self._outbox is not None) and (rest := [*left]):
                    # A result is pending, the handler has closed, or another thread has pushed:
                    # the session takes the rest.
                    answered -= len(rest)
                    self._send_replies(replies, framing)
                    if begun is not None:  # it counts, if the result comes in this turn
                        (share or Share(turns, self.transport, begun)).used_up()
                    self._hold().receive(self._framed(rest))
                    self._answer_more()
                    return
        except BaseException:
            answered -= length_hint(left)
            failure = Failure()
        finally:
            self._direct_messages += answered
            self._send_last(replies, framing, outer)
        if failure:
            self.fail(failure)
        elif share is not None and length >= LONG:
            self._rest_before_reading(share)

    def _framed(self, messages: list[bytes]) -> bytes:
        """Return the part of a read that these messages were."""
        plain = self._replies_are_plain
        return b"".join(messages if plain else map(self._owner.framing.encode, messages))

    def _rest_with(self, data: bytes) -> None:
        """Leave the rest of a read to the next turn of the loop."""
        session = self._hold()
        session.receive(data)
        self._rest()
        self._settle(session)

    def _process_directly(self, result: object) -> None:
        """Process a result that is not plain bytes: a coroutine, a Deferred, `Close`."""
        try:
            model: InReactor = self._owner.model  # type: ignore[assignment] # this class is for it
            if type(result) is Returned:
                settled = result.value
            elif type(result) is LentTask:
                settled = model.wait_for(self._answered, result)
            else:
                settled = model.settle(self._answered, result)
                if type(result) is CoroutineType and self._count_below and model.lender:
                    self._respond = model.lender.lending(self._received)
                if type(settled) is bytes:
                    plain = self._replies_are_plain
                    self._writer.write(settled if plain else self._owner.framing.encode(settled))
                    return
            if not self._has_replied(settled):
                self._hold().in_flight = True
            elif (session := self._session) is not None and session.in_flight:
                session.answered()  # a stream that is over already
                self._settle(session)
        except BaseException:
            self.fail(Failure())

    def _send_replies(self, replies: list[bytes], framing: DirectFraming | None) -> None:
        """Send, and forget, the replies of a read so far."""
        batch = self._batch
        self._send_last(replies, framing, None)
        replies.clear()
        self._batch = batch

    def _send_last(
        self, replies: list[bytes], framing: DirectFraming | None, outer: Collected | None
    ) -> None:
        """Send the last replies of a read, of which none may be left; the batch is `outer` now."""
        # In this order: an outbox that another thread opens from here on takes over no reply; one
        # that is being opened is waited for.
        send = self._write_of_replies()
        self._batch = outer
        if opening.locked():
            with opening:
                pass
        if replies:
            if replies[0] is _TAKEN_OVER:
                self._send_behind(replies, framing)
            else:
                send(framed_together(replies, framing) if framing else b"".join(replies))

    def _send_behind(self, replies: list[bytes], framing: DirectFraming | None) -> None:
        """Send those behind the earlier ones that a new outbox has taken over, and these, too."""
        if len(replies) > 1:
            self._write(framed_together(replies[1:], framing))
        if self._outbox is not None:
            self._outbox.flush()

    def _write_of_replies(self) -> Callable[[bytes], None]:
        """Return what writes behind an outbox that is open, and past one that is opened later."""
        # An outbox has made `_writer` be this object, which looks for one at each call.
        fixed = self._count_below is not None or self._outbox is not None
        return self._writer.write if fixed else self.transmit

    def _send_batch(self, batch: Collected) -> None:
        if isinstance(batch, tuple):
            self._send_replies(*batch)
            return
        send = self._write_of_replies()  # before the look at the outbox
        if batch and self._outbox is None:
            send(batch.pop(0) if len(batch) == 1 else emptied(batch))
        else:
            super()._send_batch(batch)

    def _handed_over(self) -> list[bytes] | None:
        batch = self._batch
        if not isinstance(batch, tuple):
            return batch
        replies, framing = batch
        taken = replies[:]
        replies[: len(taken)] = [_TAKEN_OVER]  # not one that the loop adds meanwhile
        return [framed_together(taken, framing)] if taken else []

    def push(self, data: BytesLike) -> bool:
        # With `_direct`, the connection is open and nothing waits; the framing changes nothing.
        # Here and below, each call, and each object that is looked at, costs noticeable time.
        if not self._direct or type(data) is not bytes:
            return super().push(data)
        if get_ident() == self._owner.errands.thread:
            return self.push_here(data)
        self._seen_activity = -1  # as in `EchoProtocol.push`
        return (self._outbox or self._open_outbox()).put(data)

    def push_here(self, framed: bytes) -> bool:
        outbox = self._outbox
        if (
            not self._direct
            or self._batch
            or (outbox is not None and (outbox.parts or outbox.ending))
        ):
            return super().push_here(framed)
        self._seen_activity = -1
        if outbox is None:
            self._writer.write(framed)
        else:
            outbox.transmit(framed)
        if not self._direct and self.is_blocked:
            self._open_outbox().held = len(framed)
        return True

    def _open_outbox(self) -> Outbox:
        outbox = super()._open_outbox()
        if self._writer is not _CLOSED:
            self._writer = self
        return outbox

    def _fastest_write(self) -> Callable[[bytes], None] | None:
        writer = self._writer
        # In this order: with a reason, `_stop` may have replaced it.
        return writer.write if self._count_below and self._reason is None else None

    # As in `EchoProtocol`, without the calls that are for a result to wait for, or for a closing
    # in several turns: most connections begin and end like this.

    def _start(self) -> None:
        handler, owner = self._handler, self._owner
        opened = None if isinstance(handler, Failure) else overridden(handler, "opened")
        if opened is None or self._context is not None or self._draining:
            super()._start()
            return
        self.transport.registerProducer(self, True)
        model: InReactor = owner.model  # type: ignore[assignment] # this class is for it
        greeting = opened(self.client)
        if type(greeting) is not bytes or self._session is not None:
            done = partial(self._inside, self._after_opened)
            greeting = model.settle(done, greeting)
            if not self._is_pending(greeting):
                self._after_opened(greeting)
            return
        self._handler_open = True
        self._direct = self._longest_direct()
        if model.greets and (data := greeting_of(greeting, owner.framing, owner.banner)):
            self._writer.write(data)
            if self._count_below is _kernel_count:  # otherwise the writer has counted it
                self._bytes_sent += len(data)

    def readConnectionLost(self) -> None:
        # With `_direct`, no result and no input waits. The transport forgets its producer, and
        # the model the connection, when it is lost, which is next.
        if self._direct and self._outbox is None and self._close_at_once():
            self._input_ended = True
            self._state, self._reason = _BOTH_ENDED, _CLIENT
            self._session, self._direct, self._writer = CLOSED, 0, _CLOSED
            self._owner.turns.leave(self, self.transport)
            if not self._direct_messages and self._seen_activity == UNSEEN:
                # No message and no push: the kernel has counted no more than is counted here.
                self._count_below = None
        else:
            super().readConnectionLost()

    def _stop(self) -> None:
        # The fastest way is only for open connections, and keeps the transport alive.
        self._writer = self
        super()._stop()

    def _finish(self) -> None:
        if self._count_below is not None:
            self._bytes_received, self._bytes_sent = self._count_below(self)
            self._count_below = None
        self._writer = _CLOSED
        EchoProtocol._finish(self)

    @property
    def figures(self) -> tuple[int, int, int]:
        messages = int(self._direct_messages)
        if self._session is not None:
            messages += self._session.messages
        if self._count_below is not None:
            return messages, *self._count_below(self)
        return messages, self._bytes_received, self._bytes_sent

    def _begins_with_tls(self) -> bool:
        # The look at the interface takes noticeable time, and here no layer is above the socket.
        by_kernel = self._count_below is _kernel_count
        return not by_kernel and EchoProtocol._begins_with_tls(self)


class DirectFramedProtocol(DirectProtocol):
    """The fast path of the framings that take the messages from a read at once.

    Input needs a framer and a session only if a read does not end with a message, or is long.
    """

    _replies_are_plain = False

    __slots__ = ()

    def _longest_direct(self) -> int:
        return MOST_WHOLE

    def _answer(self, data: bytes) -> None:
        if len(data) > self._direct:
            if self._direct:
                self._hold().receive(data)
                self._answer_more(after_long_read=len(data) >= LONG)
            else:
                self._receive(data)
            return
        framing: DirectFraming = self._owner.framing  # type: ignore[assignment] # by the factory
        messages = framing.whole(data)
        if messages is None:
            self._hold().receive(data)
            self._answer_messages()
        elif len(messages) == 1:
            self._direct_messages += 1.0
            respond = self._respond
            try:
                reply = respond(messages[0])
                framed = framing.encode(reply) if type(reply) is bytes else None
            except BaseException:
                self.fail(Failure())
                return
            if framed is not None:
                self._writer.write(framed)
            elif reply is not None:
                self._process_directly(reply)
        else:
            self._answer_all(data, messages, framing)

    # A call is a small part of what these reads take.
    _answer_first = _answer

    # The direct one of chunk framing sends what is pushed as it is.
    push = EchoProtocol.push


# A function of its own: in `_answer`, the comprehension would make `data` a variable that two
# functions share, which costs each message as much as a call.
def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


class _Closed:
    """The writer of a connection that is closed."""

    def write(self, data: bytes, /) -> None:
        """Do nothing."""


_CLOSED = _Closed()


# Each returns the bytes received, without a PROXY header, and sent.


def _kernel_count(connection: DirectProtocol) -> tuple[int, int]:
    # Here no layer is above the socket: see `connect_directly`.
    handle: Any = connection.transport.getHandle()
    return connection._without_header(counted(handle, input_ended=connection._input_ended))


def _tls_count(connection: DirectProtocol) -> tuple[int, int]:
    tls: TLSConnection = connection.transport  # type: ignore[assignment]
    return tls.received, tls.sent
