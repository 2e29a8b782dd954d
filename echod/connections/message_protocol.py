"""The protocol that passes messages to a handler, in the event loop or in the pool.

Its session decides which message comes next and when, the concurrency model where the handler
runs.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.defer import succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.concurrency.model import Abandoned, Busy, Dropped, Pending
from echod.concurrency.models import Awaited, InPool
from echod.connections.clients import shown
from echod.connections.kernel import has_read, is_reset, unread
from echod.connections.lifecycle import ConnectionProtocol
from echod.connections.outbox import Errands, Outbox, emptied, sendable
from echod.connections.owner import Owner
from echod.connections.stream import (
    GOES_ON,
    STREAMS,
    AsyncStream,
    ReplyStream,
    stream_of,
)
from echod.connections.transport_layers import tls_of
from echod.contexts import call_in, context_of, has_context, is_entered
from echod.handlers.calling import close_in_thread, greeting_of, overridden
from echod.handlers.contract import BytesLike, Close, answer_of, reply_from
from echod.log.event import LogLine
from echod.messages.framing import FramingError
from echod.messages.session import CLOSED, Session
from echod.reasons import EndReason
from echod.stacked import shorten_reads
from echod.turns import LONG, PACE, Share

if TYPE_CHECKING:
    from echod.connections.stream import Batch
    from echod.messages.framing import DirectFraming
    from echod.tls import Context as TLSContext

    # The replies that wait in the event loop for those behind them: framed, or with the framing
    # that frames them when they leave, if one still has to.
    Collected = list[bytes] | tuple[list[bytes], DirectFraming | None]

_CLIENT = EndReason.CLIENT  # looked up once: see `lifecycle`
# Two threads must not make two outboxes for one connection.
opening = Lock()

log = Logger("echod.connection")
_dropped = LogLine(
    log,
    "warn",
    "Dropped a message of {peer}, whose connection is lost: too many of these are waiting",
)


# How much a batch of replies holds, in bytes of memory: each reply costs a little more than its
# length. A single one may be longer.
MOST_BATCHED = 16 * 1024
OVERHEAD = 64


# The longest read that is answered without a session: one object for all connections.
LONGEST_DIRECT = LONG - 1

# The end of the error of a handler that asks for TLS where the listener has none.
NO_STARTTLS = (
    "offers no TLS to begin: listen by starttls:, as in "
    "starttls:8888:certificate=cert.pem:key=key.pem"
)


class ReplyBatch:
    """Collects small replies for one write: the transport keeps a list of its writes, and an entry
    there costs more than a small reply.
    """

    __slots__ = ("_size", "_write", "parts")

    def __init__(self, write: Callable[[list[bytes]], None]) -> None:
        self._write = write
        self.parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Keep `data` for the next write."""
        self.parts.append(data)
        self._size += len(data) + OVERHEAD
        if self._size >= MOST_BATCHED:
            self.flush()

    def flush(self) -> None:
        """Write the collected replies."""
        if self.parts:
            self._size = 0
            self._write(self.parts)


@implementer(IPushProducer)
class EchoProtocol(ConnectionProtocol):
    """Passes each message to a handler and sends its reply, in order.

    In the event loop, handler code is called within the conversation's context. The transport
    enters it, or this class does: `_from_transport` for calls of the transport, `_inside` for
    other callers. In the pool the thread enters it.

    A subclass may answer a message without a session while nothing is held or awaited: see
    `_lets_go`.
    """

    # Whether the connection lets go of its session while nothing is held or awaited. Then
    # `_direct` is the length of the longest read that needs none; with a session, it is 0.
    _lets_go: ClassVar[bool] = False

    __slots__ = (
        "_batch",
        "_bytes_received",
        "_bytes_sent",
        "_context",
        "_direct",
        "_direct_messages",
        "_handler",
        "_handler_open",
        "_outbox",
        "_pending",
        "_reading",
        "_received",
        "_session",
    )

    def __init__(self, owner: Owner) -> None:
        """Set up for one connection.

        Args:
            owner: the factory whose handler, framing, model and limits apply. Only the factory
                enforces limits, so `Factory.forProtocol(EchoProtocol)` would have none.
        """
        ConnectionProtocol.__init__(self, owner)
        # The conversation's own context; None if the transport has one.
        self._context: Context | None = None
        # It is made within the context; a Failure, if its constructor has failed: the connection
        # ends as if `opened` had.
        self._handler: Any = None
        self._received: Any = None
        self._pending: Any = None
        # The replies that are not written yet, while a read of several messages is answered.
        self._batch: Collected | None = None
        # It is made when something has to wait.
        self._outbox: Outbox | None = None
        # While it is 0, with no session: the handler is not open yet, and nothing has come.
        self._direct = 0
        # How many messages were passed on without a session, or by one that was let go. A float,
        # because to add to one costs half of what it costs to add to an int above 256.
        self._direct_messages = 0.0
        self._session: Session | None = None
        # Input is kept until the handler is open: after a PROXY header, or after the end of a
        # handshake, a message may arrive before the connection's turn. Where the session is let
        # go, the first input makes one.
        if not self._lets_go:
            self._hold().in_flight = True
        self._reading = True
        self._handler_open = False
        self._bytes_received = 0
        self._bytes_sent = 0

    def _hold(self) -> Session:
        """Return the session, a new one if it was let go."""
        session = self._session
        if session is None:
            owner = self._owner
            session = self._session = Session(
                owner.framing.framer(),
                max_messages=owner.model.max_messages,
                read_ahead=owner.limits.max_pending,
            )
            session.in_flight = self._pending is not None or self._is_opening
            self._direct = 0
        return session

    @property
    def _is_opening(self) -> bool:
        """Whether there is no session because the handler is not open yet."""
        return self._lets_go and not self._direct and self._session is None

    def _let_go(self, session: Session) -> None:
        """Do without the session until there is something to hold or to wait for."""
        self._direct_messages += session.messages
        self._session = None
        self._direct = self._longest_direct()

    def _longest_direct(self) -> int:
        """Return the length of the longest read that is answered without a session."""
        # After a long read another one may follow at once, so its share of the turn is looked at.
        longest = self._owner.framing.max_message
        # Not `min`: each connection comes here, and a call takes longer.
        return longest if longest < LONGEST_DIRECT else LONGEST_DIRECT

    # The conversation's context.

    @property
    def conversation(self) -> Context | None:
        """The context in which the handler runs; None if the transport has none, nor this."""
        return context_of(self.transport) if self._context is None else self._context

    def _from_transport(self, function: Callable[..., None], *arguments: object) -> None:
        """Call `function` for the transport, within the conversation's context."""
        if self._context is None:
            function(*arguments)
        else:
            self._inside(function, *arguments)

    def _inside(self, function: Callable[..., None], *arguments: object) -> None:
        """Call `function` for a caller other than the transport, within the conversation's
        context.
        """
        if isinstance(self._owner.model, InPool):
            function(*arguments)
        else:
            context = self.conversation
            function(*arguments) if context is None else call_in(context, function, *arguments)

    def _is_inside(self) -> bool:
        """Return whether this may be called from within a call of the handler."""
        if isinstance(self._owner.model, InPool):
            return False
        return self.conversation is not None and is_entered(self.conversation)

    def _in_thread(self, function: Callable[..., object]) -> Callable[..., object]:
        """Return a function that calls handler code in the right context: a pool's thread needs
        it.
        """
        if self._context is None or not isinstance(self._owner.model, InPool):
            return function
        return partial(self._context.run, self._reply_from, function)

    def _reply_from(self, function: Callable[..., object], *arguments: object) -> object:
        """In a pool's thread: return the result of handler code; no reply after its `close`."""
        reply = reply_from(function, *arguments)
        outbox = self._outbox
        if outbox is not None and outbox.ending and isinstance(reply, bytes | Close):
            return None
        return reply

    # From Twisted.

    def connectionMade(self) -> None:
        if not isinstance(self._owner.model, InPool) and has_context(self.transport):
            self._make_handler()
            ConnectionProtocol.connectionMade(self)
        else:
            self._context = Context()
            self._context.run(self._make_handler)
            self._inside(super().connectionMade)

    def _make_handler(self) -> None:
        try:
            self._handler = self._owner.handler.message_handler()
            self._received = self._handler.received
        except BaseException:
            self._handler = Failure()

    def handshakeCompleted(self) -> None:
        done = self._encrypted if self._entered else super().handshakeCompleted
        self._from_transport(done)

    # As `_from_transport`, without its call.

    def readConnectionLost(self) -> None:
        if self._context is None:
            super().readConnectionLost()
        else:
            self._inside(super().readConnectionLost)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._context is None:
            ConnectionProtocol.connectionLost(self, reason)
        else:
            self._inside(super().connectionLost, reason)

    def dataReceived(self, data: bytes) -> None:
        if self._context is None:
            self._receive(data)
        else:
            self._inside(self._receive, data)

    def _receive(self, data: bytes) -> None:
        size = len(data)
        self._bytes_received += size
        session = self._session or self._hold()
        session.receive(data)
        if size < LONG:
            self._answer_messages()
        else:
            self._answer_more(after_long_read=True)
        if self._draining and self._reason is None:
            session.unread -= size
            self._cut_input_when_read()

    def pauseProducing(self) -> None:
        """Pause, because the transport's write buffer is full."""
        session = self._hold()
        with opening:  # another thread may be opening it
            session.blocked = True
            if self._outbox is not None:
                self._outbox.blocked = True
        if not self._is_shaking_hands:  # which has a deadline of its own
            self._expect_to_be_read()
        self._update_reading(session)

    def resumeProducing(self) -> None:
        """Resume, because the transport has written everything."""
        session = self._hold()
        with opening:
            session.blocked = False
            if self._outbox is not None:
                self._outbox.blocked = False
        self._deadline = math.inf
        if self._outbox is not None:
            self._outbox.resume()
        if isinstance(self._pending, ReplyStream) and not self.is_blocked:
            self._from_transport(self._pending.resume)
        self._from_transport(self._answer_more)

    def stopProducing(self) -> None:
        """Note that the transport will write no more; `connectionLost` follows."""

    # The conversation.

    def _enter(self) -> None:
        if self._waiting:  # for another connection to leave; this is called in that one's context
            self._inside(super()._enter)
        else:
            ConnectionProtocol._enter(self)

    def _start(self) -> None:
        self.transport.registerProducer(self, True)
        if isinstance(self._handler, Failure):
            self._after_opened(self._handler)
            return
        opened = overridden(self._handler, "opened")
        if opened is None:
            self._after_opened(None)
            return
        done = partial(self._inside, self._after_opened)
        result = self._owner.model.call(done, self._in_thread(opened), self.client)
        if not self._is_pending(result):
            self._after_opened(result)

    def _after_opened(self, greeting: object) -> None:
        """Process the result of the handler's `opened`: a greeting, or a Failure."""
        self._waited()
        self._handler_open = not isinstance(greeting, Failure)
        if self._is_opening and self._handler_open and not self._draining:
            self._direct = self._longest_direct()
            try:
                self._greet(greeting)
            except BaseException:
                self.fail(Failure())
            return
        self._hold().in_flight = False
        try:
            if isinstance(greeting, Failure):
                self._handler_failed(greeting)
            elif self._reason is None:
                self._greet(greeting)
        except BaseException:
            self.fail(Failure())
        self._go_on()

    def _greet(self, greeting: object) -> None:
        owner = self._owner
        if owner.model.greets and (data := greeting_of(greeting, owner.framing, owner.banner)):
            self._write(data)

    def take_turn(self) -> None:
        """Take the connection's turn: continue with its input."""
        self._hold().resting = False
        self._inside(self._answer_in_turn)

    def _answer_in_turn(self) -> None:
        try:
            self._answer_more()
        except BaseException:
            self.fail(Failure())

    def _look_at(self, session: Session, share: Share | None) -> tuple[Share | None, int]:
        """Return the share of this turn, and how many messages to answer before the next check.

        If that number is 0, the connection rests now.
        """
        if not session.holds_more:
            return share, PACE
        if share is None:
            turns, stream = self._owner.turns, self.transport
            share = turns.shares.get(stream)
            if share is None:
                return Share(turns, stream), 1
        if not share.used_up():
            return share, PACE
        self._rest()
        return share, 0

    def _rest(self) -> None:
        """Continue with the held input in the next turn of the loop."""
        self._hold().resting = True
        self._owner.turns.rest(self)

    def _answer_more(self, *, after_long_read: bool = False) -> None:
        """Answer what is held, after anything but a short read, or rest if this connection's share
        of the turn is used up.
        """
        session, share = self._hold(), None
        if not isinstance(self._owner.model, InPool) and session.may_answer:
            turns, stream = self._owner.turns, self.transport
            share = turns.shares.get(stream)
            if share is None:
                share = Share(turns, stream)
            elif share.used_up():
                self._rest()
            if after_long_read:
                turns.keep(share)
        self._answer_messages(share)
        if after_long_read and share is not None:
            self._rest_before_reading(share)

    def _rest_before_reading(self, share: Share) -> None:
        """Read on in the next turn if `share` is used up: do not hold a read that has to wait."""
        if self._reason is None and share.used_up():
            self._rest()
            self._settle(self._hold())

    def _answer_messages(self, share: Share | None = None) -> None:  # noqa: C901 - calls would cost
        """Pass on messages as long as the session allows; then read on, or close.

        Args:
            share: of this turn of the loop; None: make one for the second message, so that a read
                of one message does not pay for it.
        """
        session, call = self._session or self._hold(), self._owner.model.call
        received = self._received
        if self._context is not None:
            received = self._in_thread(received)
        encode = self._owner.framing.encode
        # As in `gather` and `gathered`, without their calls.
        batch = self._outbox or ReplyBatch(self._send_batch)
        outer, self._batch = self._batch, batch.parts
        if outer:
            self._send_batch(outer)
        unseen = 1
        while (message := self._next_message(session, batch)) is not None:
            try:
                result = call(self._answered, received, message)
                if result.__class__ is bytes:
                    batch.add(encode(result))
                elif result is not None:
                    batch.flush()
                    if not self._has_replied(result):
                        break
            except BaseException:
                batch.flush()
                self.fail(Failure())
            session.answered()
            unseen -= 1
            if not unseen:
                share, unseen = self._look_at(session, share)
                if not unseen:
                    break
        batch.flush()
        self._batch = outer
        if share is not None:
            share.used_up()  # which makes it count, should more of this turn follow
        self._settle(session)

    def _next_message(self, session: Session, batch: ReplyBatch | Outbox) -> bytes | None:
        try:
            return session.next_message()
        except FramingError as error:
            batch.flush()
            self.refuse(EndReason.FRAMING_ERROR, str(error))
        except BaseException:  # of a framing that does not come with echod
            batch.flush()
            self.fail(Failure())
        return None

    def _has_replied(self, result: object) -> bool:
        """Send the reply that `result` means; return False if it is pending."""
        if self._is_pending(result):
            return False
        if isinstance(result, STREAMS):
            result = self._begin_stream(result)
            if result is GOES_ON:
                return False
        self._reply(result)
        return True

    def _begin_stream(self, result: object) -> object:
        """Begin to send a stream; return how it has ended, or `GOES_ON`."""
        stream = self._pending = stream_of(self, result)
        self._hold().in_flight = True
        ended: object = None
        try:
            ended = stream.begin()
        finally:
            if ended is not GOES_ON:
                self._pending = None
        return ended

    def _is_pending(self, result: object) -> bool:
        """Return whether `result` is pending; keep its handle, to abandon it."""
        if isinstance(result, Pending):
            self._pending = result.handle
            return True
        return False

    def _waited(self) -> None:
        """Note that the pending result, if there was one, has arrived."""
        pending, self._pending = self._pending, None
        if isinstance(pending, AsyncStream):
            pending = pending.handle
        if isinstance(pending, Awaited):
            pending.take_over()

    def _answered(self, result: object) -> None:
        """Process the pending result of the message in flight: a reply, or a Failure."""
        self._inside(self._process_answer, result)

    def _process_answer(self, result: object) -> None:
        session = self._hold()
        self._waited()
        try:
            if isinstance(result, Failure):
                self._handler_failed(result)
            elif self._reason is None and not self._has_replied(result):
                return  # a stream has begun
        except BaseException:
            self.fail(Failure())
        session.answered()
        self._go_on()

    def _handler_failed(self, failure: Failure) -> None:
        if not failure.check(Abandoned):
            self.fail(failure)
        elif failure.check(Dropped):
            if self._handler_open:
                self._hold().uncount()
            if _dropped.wanted(self.client.peer):
                _dropped.write(peer=shown(self.client), listener=self.client.listener)

    def _turn_away(self, busy: Busy) -> None:
        session = self._session
        if self._handler_open and session is not None and session.in_flight:
            session.uncount()
        super()._turn_away(busy)

    def _reply(self, result: object) -> None:
        reply, is_last = answer_of(result)
        if reply is not None:
            self._write(self._owner.framing.encode(reply))
        if is_last:
            self.close(EndReason.HANDLER)

    def _write(self, data: bytes) -> None:
        if (outbox := self._outbox) is not None and not outbox.is_empty:
            outbox.add(data)
            outbox.flush()
        elif self._reason is None:  # as in `transmit`, without another call
            self._bytes_sent += len(data)
            self.transport.write(data)

    def _send_batch(self, batch: Collected) -> None:
        """Write the collected replies, and forget them."""
        parts: list[bytes] = batch  # type: ignore[assignment] # only a subclass has others
        # Another thread may make the outbox at any moment, which then takes over the list, unless
        # that was just before the list became the batch.
        outbox = self._outbox
        if outbox is not None and outbox.parts is parts:
            outbox.flush()
        elif parts:
            data = parts.pop(0) if len(parts) == 1 else emptied(parts)
            if outbox is not None:
                self._write(data)
            elif self._reason is None:  # as in `transmit`, without another call
                self._bytes_sent += len(data)
                self.transport.write(data)

    # For streams.

    @property
    def owner(self) -> Owner:
        return self._owner

    def inside(self, function: Callable[..., None], *arguments: object) -> None:
        self._inside(function, *arguments)

    def in_thread(self, function: Callable[[], object]) -> Callable[[], object]:
        assert self._context is not None
        return partial(self._context.run, function)

    def gather(self) -> tuple[ReplyBatch | Outbox, Collected | None]:
        batch = self._outbox or ReplyBatch(self._send_batch)
        outer, self._batch = self._batch, batch.parts
        if outer:
            self._send_batch(outer)
        return batch, outer

    def gathered(self, batch: Batch, outer: Collected | None) -> None:
        batch.flush()
        self._batch = outer

    def for_pieces(self) -> Callable[[bytes], None]:
        return self._open_outbox().hand_over

    def pass_on(self) -> None:
        if self._outbox is not None:
            self._outbox.flush()

    def stream_over(self, result: object) -> None:
        self._process_answer(result)

    def stream_failed(self, failure: Failure) -> None:
        self._owner.handler_failed(failure, self.client)
        self.abort(EndReason.HANDLER_ERROR)

    # For pushes, in any thread.

    def push(self, data: BytesLike) -> bool:
        if self._reason is not None or not self._entered:
            return False
        owner = self._owner
        framed = owner.framing.encode(data if type(data) is bytes else sendable(data))
        if get_ident() == owner.errands.thread:
            return self.push_here(framed)
        self._seen_activity = -1
        return (self._outbox or self._open_outbox()).put(framed)

    def push_here(self, framed: bytes) -> bool:
        """In the event loop: send a push, which is framed; see `Client.send`."""
        if self._reason is not None or not self._entered:
            return False
        # The next sweep sees activity: a client that only listens is not idle.
        self._seen_activity = -1
        if self._batch:
            self._send_batch(self._batch)
        # As in `is_blocked` and `transmit`: in a broadcast, calls would cost noticeable time.
        session, outbox = self._session, self._outbox
        if (session is None or not session.blocked) and (outbox is None or outbox.is_empty):
            self._bytes_sent += len(framed)
            self.transport.write(framed)
            if self._session is not None and self._session.blocked:
                self._open_outbox().held = len(framed)
            return True
        return (self._outbox or self._open_outbox()).put(framed, in_loop=True)

    def _open_outbox(self) -> Outbox:
        with opening:
            if self._outbox is None:
                outbox = Outbox(self, self._handed_over(), self._fastest_write())
                if self._reason is not None:
                    outbox.end()  # as `_stop` would have, which has passed already
                self._outbox = outbox
        return self._outbox

    def _handed_over(self) -> list[bytes] | None:
        """Return the replies that wait: an outbox that is opened takes them over."""
        return self._batch  # type: ignore[return-value] # as above

    def _fastest_write(self) -> Callable[[bytes], None] | None:
        """Return a faster `transmit` for as long as the connection is open, if there is one."""
        return None

    def drained(self) -> Awaitable[None]:
        in_loop = get_ident() == self._owner.errands.thread
        if self.is_closing or (in_loop and self._outbox is None and not self.is_blocked):
            return succeed(None)
        return self._open_outbox().drained()

    def close_after(self, data: BytesLike) -> None:
        framed = self._owner.framing.encode(sendable(data)) if data else b""
        self._open_outbox().put_last(framed, partial(self.close, EndReason.HANDLER))

    @property
    def is_closing(self) -> bool:
        outbox = self._outbox
        return self._reason is not None or (outbox is not None and outbox.ending)

    @property
    def is_blocked(self) -> bool:
        session = self._session
        return session is not None and session.blocked

    @property
    def max_unsent(self) -> int:
        return self._owner.limits.max_unsent

    @property
    def errands(self) -> Errands:
        return self._owner.errands

    def transmit(self, data: bytes) -> None:
        if self._reason is not None:
            return  # the handler has closed, and then replied
        self._bytes_sent += len(data)
        self.transport.write(data)

    def close(self, reason: EndReason) -> None:
        if isinstance(self._pending, ReplyStream) and self._reason is None:
            self.abort(reason)  # a stream that is cut off must not look complete
            return
        if self._outbox is not None and self._reason is None:
            self._outbox.end()
            self._outbox.empty()
        super().close(reason)

    def _go_on(self) -> None:
        """Continue after handler code has returned: with the next message, or with `closed`."""
        session = self._hold()
        if self._lost:
            self._close_handler()
        elif session.idle:
            self._settle(session)
        else:
            self._answer_more()

    def _settle(self, session: Session) -> None:
        """With nothing to answer now: close if the conversation is over, otherwise read on."""
        if self._reason is None:
            if session.finished:
                self._session_over(session)
            else:
                if session.wants_input is not self._reading:  # which spares most reads a call
                    self._update_reading(session)
                if self._lets_go and session.idle and not self._draining:
                    self._let_go(session)

    def _session_over(self, session: Session) -> None:
        starts_tls = self._owner.starts_tls
        if starts_tls is None or self not in starts_tls.asked:
            self.close(self._why_finished(session))
        elif session.input_ended or self._draining:
            self.close(_CLIENT if self._input_ended else EndReason.DRAINED)
        else:
            starts_tls.asked.discard(self)
            self._begin_tls(session, starts_tls.context)

    def _why_finished(self, session: Session) -> EndReason:
        if session.closed:
            return EndReason.SERVED
        return _CLIENT if self._input_ended else EndReason.DRAINED

    def _update_reading(self, session: Session) -> None:
        wanted = session.wants_input
        if wanted is not self._reading and self._reason is None and not self._input_ended:
            self._reading = wanted
            if wanted:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()
                self._owner.urgent.add(self)  # a lost client would go unnoticed: see `sweep`
                if session.full:
                    # A client that is ahead of its handler.
                    shorten_reads(self.transport)

    def _client_finished(self) -> None:
        self._owner.urgent.add(self)  # as above
        if self._direct and not self._busy:
            self.close(_CLIENT)
        else:
            self._hold().end_input()
            self._answer_more()

    # TLS that the handler begins: it ends the session, with all that came behind the message, and
    # another one begins. So the last reply in clear goes out first, under every model.

    def start_tls(self) -> None:
        starts_tls = self._owner.starts_tls
        if self.client.tls is not None or tls_of(self.transport) is not None:
            raise RuntimeError("this connection is encrypted already")
        if starts_tls is None:
            raise RuntimeError(f"{self.client.listener or 'this listener'} {NO_STARTTLS}")
        if self in starts_tls.asked:
            raise RuntimeError("this connection begins TLS already")
        if self.is_closing:
            raise RuntimeError("this connection is closing")
        starts_tls.asked.add(self)
        self._hold().close()
        self.in_loop(self._end_session)

    def _end_session(self) -> None:
        """Read no more in clear; begin TLS soon, if no message is being answered then."""
        self._update_reading(self._hold())
        self._owner.turns.rest(self)

    def _begin_tls(self, clear: Session, context: TLSContext) -> None:
        if self._outbox is not None:
            if clear.blocked:  # the reply waits there
                self._outbox.empty()
            self._outbox.held = 0
        self._direct_messages += clear.messages
        with opening:
            self._session = None
            if self._outbox is not None:
                self._outbox.blocked = False
        self._expect_by(self._owner.limits.handshake_timeout)
        self._encrypt(context)
        if not self._reading and self._reason is None:
            self._reading = True
            self.transport.resumeProducing()

    def _encrypted(self) -> None:
        """Go on, now that the handshake is over."""
        if self._reason is None:
            if not self.is_blocked:
                self._deadline = math.inf
            self._idle_since = self._owner.seconds()
            self._note_handshake()
            if self._outbox is not None:
                self._outbox.flush()
            if self._draining:
                self._cut_input()

    # The end.

    def _stop(self) -> None:
        if self._owner.starts_tls is not None:
            self._owner.starts_tls.asked.discard(self)
        if self._session is None and self._direct and self._pending is None:
            self._session, self._direct = CLOSED, 0
        else:
            self._hold().close()
        with opening:  # another thread may be opening it
            outbox = self._outbox
        if outbox is not None:
            outbox.end()
        self._owner.turns.leave(self, self.transport)
        if self._entered:
            self.transport.unregisterProducer()

    def _finish(self) -> None:
        if isinstance(self._pending, ReplyStream):
            if self._pending.cut():
                self._pending = None
                self._hold().in_flight = False
        elif self._pending is not None:
            self._owner.model.abandon(self._pending)
        session = self._session
        if session is None or not session.in_flight:
            self._close_handler()

    def _close_handler(self) -> None:
        """Call the handler's `closed`, where handler code runs."""
        if not self._handler_open or (closed := overridden(self._handler, "closed")) is None:
            return
        self._handler_open = False
        assert self._reason is not None
        if isinstance(self._owner.model, InPool):
            closed = self._in_thread(partial(close_in_thread, closed))
        try:
            self._owner.model.finish(self._closed, closed, self._reason.value)
        except BaseException:
            self.fail(Failure())

    def _closed(self, result: object) -> None:
        if isinstance(result, Failure) and not result.check(Abandoned):
            self._owner.handler_failed(result, self.client)

    # Drain: read the data that the kernel holds at that moment, and no more.

    def drain(self) -> None:
        if self._is_inside():
            # The handler itself has called this: its reply comes first, and those before it.
            self._owner.reactor.callLater(0, self.drain)
        else:
            self._inside(super().drain)

    def _cut_input(self) -> None:
        self._hold().unread = unread(self.transport)
        self._cut_input_when_read()

    def _cut_input_when_read(self) -> None:
        if self._is_shaking_hands:
            self._drain_handshake()
        elif not self._input_ended and has_read(self.transport, self._hold().unread):
            self._hold().end_input(cut_off=True)
            self._answer_more()

    def sweep(self, now: float) -> None:
        super().sweep(now)
        if self._reason is None and self._entered and (self._input_ended or not self._reading):
            if is_reset(self.transport):
                self.abort(EndReason.LOST)
            else:
                self._owner.urgent.add(self)
        if self._draining and self._entered and self._reason is None:
            # The data may contain no message at all, but only part of a TLS record.
            self._inside(self._cut_input_when_read)

    # For the sweep and the metrics.

    @property
    def figures(self) -> tuple[int, int, int]:
        held = 0 if self._session is None else self._session.messages
        return int(self._direct_messages) + held, self._bytes_received, self._bytes_sent

    @property
    def _activity(self) -> int:
        return self._bytes_received + int(self._direct_messages)

    @property
    def _incomplete(self) -> int:
        return 0 if self._session is None else self._session.incomplete

    def progress(self) -> object:
        pending = self._pending
        if self._reason is not None:
            return self.figures[0]  # its handler may still run
        if pending is None or self.is_blocked:
            return None
        if isinstance(pending, ReplyStream):
            pieces = pending.progress()
            return None if pieces is None else (self.figures[0], pieces)
        return (self.figures[0], 0) if self._owner.model.has_begun(pending) else None

    def end_slow_handler(self, allowed: float) -> None:
        if isinstance(self._pending, ReplyStream):
            self.abort(EndReason.HANDLER_TIMEOUT)
        elif self._reason is None:
            super().end_slow_handler(allowed)
            if self._pending is not None:
                self._owner.model.abandon(self._pending)

    def _time_out(self, reason: EndReason) -> None:
        if reason is EndReason.MESSAGE_TIMEOUT:
            allowed = self._owner.limits.message_timeout
            self.refuse(reason, f"Message too slow: the limit is {allowed:g} s")
        else:
            super()._time_out(reason)

    @property
    def _busy(self) -> bool:
        # A client that does not read has a deadline of its own.
        session = self._session
        if session is None:
            return self._pending is not None or self._is_opening
        return session.in_flight or session.resting or session.blocked
