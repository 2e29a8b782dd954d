"""The Twisted glue: one protocol for each connection, one factory for each listener.

`EchoFactory` picks a connection's protocol once, when it is accepted: `EchoProtocol` gives
messages to a handler, in the event loop or the pool (its session says which and when, the
concurrency model where); `echod.handover.SocketProtocol` gives the socket to a thread.

Both work in any Twisted program::

    endpoints.serverFromString(reactor, "tcp:8888").listen(EchoFactory(reactor))
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.addresses import network_at, shown_address
from echod.admission import Admission
from echod.concurrency.forking import end_child
from echod.concurrency.model import Abandoned, Busy, Dropped, Model, Pending
from echod.concurrency.models import Awaited, InPool, InReactor
from echod.contexts import call_in, context_of, is_entered, take_over
from echod.handlers import (
    Client,
    Close,
    ConcurrencyModel,
    Echo,
    ResolvedHandler,
    StandInServer,
    adopt,
    checked,
    reply_from,
)
from echod.handlers.calling import close_in_thread, overridden
from echod.handover import SocketProtocol, threads_of_handlers
from echod.lifecycle import (
    ConnectionProtocol,
    RefusedProtocol,
    is_reset,
    log_failure,
    shorten_reads,
    shown,
    traffic,
    unread,
)
from echod.limits import Limits
from echod.log.event import LogLine
from echod.messages.framing import Chunk, Framing, FramingError, encode_greeting
from echod.messages.session import Session
from echod.metrics import Metrics
from echod.proxied import HeaderProtocol, ProxiedAddress
from echod.reasons import REFUSED_BY, EndReason, Refusal
from echod.sweeping import Sweeper, interval_for
from echod.turns import PACE, Share, Turns
from echod.waiting import Others

log = Logger("echod.connection")
_refused = LogLine(log, "warn", "Refused {peer}: {why}")
_dropped = LogLine(
    log, "warn", "Dropped the work of {peer}, which is lost: too much such work is waiting"
)


class ReplyBatch:
    """Small replies on their way to one write: the transport keeps a list of what it is given,
    and an entry there costs more than a small reply does.
    """

    __slots__ = ("_parts", "_size", "_write")

    # In bytes of memory: each reply costs a little more than what is in it.  One may be longer.
    MOST = 16 * 1024
    OVERHEAD = 64

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Keep `data` to be written soon."""
        self._parts.append(data)
        self._size += len(data) + self.OVERHEAD
        if self._size >= self.MOST:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            self._write(b"".join(parts))


@implementer(IPushProducer)
class EchoProtocol(ConnectionProtocol):
    """Gives each message to a handler and sends its reply, in order.

    In the event loop, handler code is called from where the conversation's context has been
    entered: by the transport, or by us where something comes in (`_from_transport`, for what the
    transport calls; `_inside`, for what others do).  In the pool the thread enters it.
    """

    __slots__ = (
        "_bytes_received",
        "_bytes_sent",
        "_context",
        "_drain_left",
        "_handler",
        "_handler_open",
        "_pending",
        "_reading",
        "_reads",
        "_received",
        "_session",
    )

    def __init__(self, home: EchoFactory) -> None:
        """Set up for one connection.

        Args:
            home: the factory whose handler, framing, model and limits apply.  Only that lets
                clients in, so `Factory.forProtocol(EchoProtocol)` would hold no limit.
        """
        super().__init__(home)
        # The conversation's own; None where the transport has one.
        self._context: Context | None = Context()
        # A Failure, if the constructor has failed: the connection ends as if `opened` had.
        self._handler: Any
        self._received: Any = None
        try:
            self._handler = self._context.run(home.handler.message_handler)
            self._received = self._handler.received
        except BaseException:
            self._handler = Failure()
        self._session = self._new_session()
        # Until the handler is open, what comes is kept: behind a PROXY header, or behind the end
        # of a handshake, a message may be here before the connection's turn is.
        self._session.in_flight = True
        self._pending: Any = None
        self._reading = True
        self._handler_open = False
        self._reads = 0
        self._bytes_received = 0
        self._bytes_sent = 0
        self._drain_left = 0

    def _new_session(self) -> Session:
        home = self._home
        return Session(
            home.framing.framer(),
            max_messages=home.model.max_messages,
            read_ahead=home.limits.max_pending,
        )

    # The conversation's context.

    def _from_transport(self, function: Callable[..., None], *arguments: Any) -> None:
        """Do what the transport has called for."""
        if self._context is None:
            function(*arguments)
        else:
            self._inside(function, *arguments)

    def _inside(self, function: Callable[..., None], *arguments: Any) -> None:
        """Do what somebody else than the transport has called for."""
        if isinstance(self._home.model, InPool):
            function(*arguments)
        else:
            context = context_of(self.transport) if self._context is None else self._context
            function(*arguments) if context is None else call_in(context, function, *arguments)

    def _is_inside(self) -> bool:
        """Return whether this is called from within a call of the handler, maybe."""
        if isinstance(self._home.model, InPool):
            return False
        context = context_of(self.transport) if self._context is None else self._context
        return context is not None and is_entered(context)

    def _in_thread(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what calls handler code where it runs: a pool's thread has to be told."""
        if self._context is None or not isinstance(self._home.model, InPool):
            return function
        return partial(self._context.run, reply_from, function)

    # From Twisted.

    def connectionMade(self) -> None:
        if not isinstance(self._home.model, InPool) and context_of(self.transport) is not None:
            constructors, self._context = self._context, None
            assert constructors is not None
            take_over(constructors)
        self._from_transport(super().connectionMade)

    def handshakeCompleted(self) -> None:
        self._from_transport(super().handshakeCompleted)

    def readConnectionLost(self) -> None:
        self._from_transport(super().readConnectionLost)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._from_transport(super().connectionLost, reason)

    def dataReceived(self, data: bytes) -> None:
        if self._context is None:
            self._receive(data)
        else:
            self._inside(self._receive, data)

    def _receive(self, data: bytes) -> None:
        self._reads += 1
        self._bytes_received += len(data)
        self._session.receive(data)
        self._answer_messages()
        if self._draining and self._reason is None:
            self._drain_left -= len(data)
            self._cut_input_when_read()

    def pauseProducing(self) -> None:
        """The transport has more to write than it likes to hold."""
        self._session.blocked = True
        self._expect_to_be_read()
        self._update_reading()

    def resumeProducing(self) -> None:
        """The transport has written everything."""
        self._session.blocked = False
        self._deadline = math.inf
        self._from_transport(self._answer_messages)

    def stopProducing(self) -> None:
        """The transport will write no more; `connectionLost` follows."""

    # The conversation.

    def _enter(self) -> None:
        if self._waiting:  # for another connection to leave, in whose context this is called
            self._inside(super()._enter)
        else:
            super()._enter()

    def _start(self) -> None:
        self.transport.registerProducer(self, True)
        if isinstance(self._handler, Failure):
            self._opened(self._handler)
            return
        opened = overridden(self._handler, "opened")
        if opened is None:
            self._opened(None)
            return
        done = partial(self._inside, self._opened)
        result = self._home.model.call(done, self._in_thread(opened), self.client)
        if not self._is_pending(result):
            self._opened(result)

    def _opened(self, greeting: object) -> None:
        """The handler's `opened` has returned `greeting`, or failed with it."""
        self._waited()
        self._session.in_flight = False
        self._handler_open = not isinstance(greeting, Failure)
        try:
            if isinstance(greeting, Failure):
                self._handler_failed(greeting)
            elif self._reason is None:
                self._greet(greeting)
        except BaseException:
            self.fail(Failure())
        self._go_on()

    def _greet(self, greeting: object) -> None:
        if self._home.model.greets:
            banner = self._home.banner
            if banner is not None:
                self._write(banner)
            elif greeting:
                self._write(encode_greeting(self._home.framing, checked(greeting)))

    def take_turn(self) -> None:
        """It is this connection's turn again: go on with what it has sent."""
        self._session.resting = False
        self._inside(self._answer_in_turn)

    def _answer_in_turn(self) -> None:
        try:
            self._answer_messages(Share(self._home.turns))
        except BaseException:
            self.fail(Failure())

    def _look_at(self, share: Share | None) -> tuple[Share | None, int]:
        """Return a share of this turn, and how many messages to answer before the next look.

        Where that is none, the connection rests now.
        """
        if not self._session.holds_more:
            return share, PACE
        if share is None:
            return Share(self._home.turns), 1
        if not share.used_up():
            return share, PACE
        self._rest()
        return share, 0

    def _rest(self) -> None:
        """Go on with what is held in the next turn of the loop."""
        self._session.resting = True
        self._home.turns.rest(self)

    def _answer_messages(self, share: Share | None = None) -> None:
        """Hand out messages for as long as the session allows; then read on, or close.

        Args:
            share: of this turn of the loop; None for one that begins with the second message, as
                a read of one message need not pay for it.
        """
        session, call = self._session, self._home.model.call
        received = self._in_thread(self._received)
        encode, batch = self._home.framing.encode, ReplyBatch(self._write)
        unseen = 1
        while (message := self._next_message(batch)) is not None:
            try:
                result = call(self._answered, received, message)
                if result.__class__ is bytes:
                    batch.add(encode(result))
                elif result is not None:
                    batch.flush()
                    if not self._take(result):
                        break
            except BaseException:
                batch.flush()
                self.fail(Failure())
            session.answered()
            unseen -= 1
            if not unseen:
                share, unseen = self._look_at(share)
                if not unseen:
                    break
        batch.flush()
        self._settle()

    def _next_message(self, batch: ReplyBatch) -> bytes | None:
        try:
            return self._session.next_message()
        except FramingError as error:
            batch.flush()
            self.refuse(EndReason.FRAMING_ERROR, str(error))
            return None

    def _take(self, result: Any) -> bool:
        """Send a reply; return False if it is yet to come."""
        if result.__class__ is bytes:
            self._write(self._home.framing.encode(result))
        elif result is not None:
            if self._is_pending(result):
                return False
            self._reply(result)
        return True

    def _is_pending(self, result: object) -> bool:
        """Return whether `result` is yet to come; keep what could be abandoned."""
        if isinstance(result, Pending):
            self._pending = result.handle
            return True
        return False

    def _waited(self) -> None:
        """What was waited for, if anything was, has a result."""
        pending, self._pending = self._pending, None
        if isinstance(pending, Awaited) and pending.followed is not None:
            pending.followed.take_over()

    def _answered(self, result: object) -> None:
        """The message in flight has its result at last: a reply, or a Failure."""
        self._inside(self._take_answer, result)

    def _take_answer(self, result: object) -> None:
        self._waited()
        try:
            if isinstance(result, Failure):
                self._handler_failed(result)
            elif result is not None and self._reason is None:
                self._reply(result)
        except BaseException:
            self.fail(Failure())
        self._session.answered()
        self._go_on()

    def _handler_failed(self, failure: Failure) -> None:
        if not failure.check(Abandoned):
            self.fail(failure)
        elif failure.check(Dropped):
            if self._handler_open:
                self._session.take_back()
            if _dropped.wanted(self.client.peer):
                _dropped.write(peer=shown(self.client), listener=self.client.listener)

    def _turn_away(self, busy: Busy) -> None:
        if self._handler_open and self._session.in_flight:
            self._session.take_back()
        super()._turn_away(busy)

    def _reply(self, result: object) -> None:
        if isinstance(result, Close):
            if result.reply:
                self._write(self._home.framing.encode(checked(result.reply)))
            self.close(EndReason.HANDLER)
        else:
            self._write(self._home.framing.encode(checked(result)))

    def _write(self, data: bytes) -> None:
        self._bytes_sent += len(data)
        self.transport.write(data)

    def _go_on(self) -> None:
        """Handler code has returned: the next message is due, or its `closed`."""
        if self._lost:
            self._close_handler()
        else:
            self._answer_messages()

    def _settle(self) -> None:
        """Nothing can be answered now: close if that is for good, else read if that helps."""
        if self._reason is None:
            if self._session.finished:
                self.close(self._why_finished())
            else:
                self._update_reading()

    def _why_finished(self) -> EndReason:
        if self._session.closed:
            return EndReason.SERVED
        return EndReason.CLIENT if self._input_ended else EndReason.DRAINED

    def _update_reading(self) -> None:
        wanted = self._session.wants_input
        if wanted is not self._reading and self._reason is None and not self._input_ended:
            self._reading = wanted
            if wanted:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()
                self._home.urgent.add(self)  # who is not read from can vanish unseen: see `sweep`
                if self._session.full:
                    # A client that is ahead of its handler.
                    shorten_reads(self.transport)

    def _client_finished(self) -> None:
        self._home.urgent.add(self)  # as above
        self._session.end_input()
        self._answer_messages()

    # The end.

    def _stop(self) -> None:
        self._session.close()
        self._home.turns.leave(self)
        if self._entered:
            self.transport.unregisterProducer()

    def _finish(self) -> None:
        if self._pending is not None:
            self._home.model.abandon(self._pending)
        if not self._session.in_flight:
            self._close_handler()

    def _close_handler(self) -> None:
        """Tell the handler, where handler code runs, that its connection is gone."""
        closed = overridden(self._handler, "closed")
        if closed is None or not self._handler_open:
            return
        self._handler_open = False
        assert self._reason is not None
        if isinstance(self._home.model, InPool):
            closed = self._in_thread(partial(close_in_thread, closed))
        try:
            self._home.model.finish(self._closed, closed, self._reason.value)
        except BaseException:
            self.fail(Failure())

    def _closed(self, result: object) -> None:
        if isinstance(result, Failure) and not result.check(Abandoned):
            self._home.handler_failed(result, self.client)

    # Drain: take what the kernel holds for us at that moment, and no more.

    def drain(self) -> None:
        if self._is_inside():
            # The handler itself has asked for it: its reply comes first, and those before it.
            self._home.reactor.callLater(0, self.drain)
        else:
            self._inside(super().drain)

    def _cut_input(self) -> None:
        self._drain_left = unread(self.transport)
        self._cut_input_when_read()

    def _cut_input_when_read(self) -> None:
        if not self._input_ended and (self._drain_left <= 0 or not unread(self.transport)):
            self._session.end_input(cut_off=True)
            self._answer_messages()

    def sweep(self, now: float) -> None:
        super().sweep(now)
        if self._reason is None and self._entered and (self._input_ended or not self._reading):
            if is_reset(self.transport):
                self.abort(EndReason.LOST)
            else:
                self._home.urgent.add(self)
        if self._draining and self._entered and self._reason is None:
            # What had come may be no message at all: a part of a TLS record.
            self._inside(self._cut_input_when_read)

    # For the sweep and the metrics.

    @property
    def figures(self) -> tuple[int, int, int]:
        return self._session.messages, self._bytes_received, self._bytes_sent

    @property
    def _activity(self) -> int:
        return self._reads

    @property
    def _incomplete(self) -> int:
        return self._session.incomplete

    def _time_out(self, reason: EndReason) -> None:
        if reason is EndReason.SLOW:
            allowed = self._home.limits.message_timeout
            self.refuse(reason, f"Message too slow: the limit is {allowed:g} s")
        else:
            super()._time_out(reason)

    @property
    def _busy(self) -> bool:
        # A client that does not read has a deadline of its own.
        session = self._session
        return session.in_flight or session.resting or session.blocked


class DirectProtocol(EchoProtocol):
    """The hot path: chunk framing, and a handler in the event loop.

    While nothing is held or awaited, input needs no framer and no session: it is cut, handled
    and answered on the spot.  `_direct` says how much of it: the longest message, or nothing.  It
    is taken back wherever the state changes, and given again by `_settle` alone, when the session
    is idle.
    """

    __slots__ = ("_direct", "_direct_messages", "_held", "_kernel_counts", "_send")

    def __init__(self, home: EchoFactory) -> None:
        super().__init__(home)
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
            look_at, share = size, Share(self._home.turns)
            seconds = self._home.turns.seconds
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
            settled = cast("InReactor", self._home.model).settle(self._answered, result)
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
            self._direct = self._home.framing.max_message
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
                submit, run = cast("InPool", self._home.model).submit, self._context.run
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


class EchoFactory(Factory):
    """Makes a protocol for each accepted connection, and knows those that are open.

    Attributes:
        connections: the protocols of the connections that are open.
        urgent: those of them that have a deadline: `echod.sweeping` looks at them more often.
        metrics: what has been counted.
        stand_in: what a `socketserver` request handler finds as its server.
        others: what threads wait for that handlers have started.
        protocol: the class of the protocols that it makes; may be replaced by a subclass.
    """

    noisy = False
    protocol: type[ConnectionProtocol]

    def __init__(
        self,
        reactor: Any = None,
        *,
        handler: ResolvedHandler | Callable[..., Any] = Echo,
        framing: Framing | None = None,
        model: Model | None = None,
        limits: Limits | None = None,
        banner: bytes | None = None,
        metrics: Metrics | None = None,
        admission: Admission | None = None,
        turns: Turns | None = None,
        listener: str = "",
    ) -> None:
        """Set up a factory; everything may be left out.

        Args:
            reactor: the reactor, for its clock and timers; None for Twisted's global one.
            handler: a function or class by the handler contract, or one looked up already.
            framing: how input is cut into messages; `Chunk()` unless given.
            model: where the handler runs; in the event loop unless given.  A pool that it uses
                is the caller's to stop.
            limits: what a client may take.
            banner: what to greet with, as it goes on the wire, b"" for nothing; None leaves the
                greeting to the handler.
            metrics: where to count; several factories may share one.
            admission: who is let in; several factories may share one.
            turns: shares the turns of the event loop; factories that run in the same one should
                share one.
            listener: the endpoint string, for `Client.listener`.

        Raises:
            HandlerError: `handler` cannot run in `model`.
        """
        self._reactor = reactor
        self.model = InReactor() if model is None else model
        if not isinstance(handler, ResolvedHandler):
            handler = adopt(handler, self.model.name)
        self.handler = handler
        self.stand_in = StandInServer(handler.target)
        self.framing = Chunk() if framing is None else framing
        self.banner = banner
        self.metrics = Metrics() if metrics is None else metrics
        self.listener = listener
        self._admission = admission
        self._turns = turns
        self._sweeper = Sweeper(lambda: self.reactor, 0)
        self.connections: set[ConnectionProtocol | HeaderProtocol] = self._sweeper.members
        self.urgent: set[ConnectionProtocol | HeaderProtocol] = self._sweeper.urgent
        self.limits = Limits() if limits is None else limits
        self.others = Others(threads_of_handlers)
        self._drained: Deferred[None] | None = None
        # The process that listens: another one is a child that a handler has forked.
        self._process: int | None = None
        self.protocol = self._choose_protocol()

    def _choose_protocol(self) -> type[ConnectionProtocol]:
        if self.model.name is ConcurrencyModel.THREAD_PER_CONNECTION:
            return SocketProtocol
        if isinstance(self.framing, Chunk):
            if self.model.name is ConcurrencyModel.REACTOR:
                return DirectProtocol
            if self.model.name is ConcurrencyModel.DEFER_TO_THREAD:
                return PooledProtocol
        return EchoProtocol

    @property
    def limits(self) -> Limits:
        """What a client may take; new limits hold for the open connections too."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        timeouts = [limits.idle_timeout, limits.first_byte_timeout]
        if not isinstance(self.framing, Chunk):
            timeouts.append(limits.message_timeout)
        if self.model.name is ConcurrencyModel.SERIAL:
            timeouts.append(limits.serial_timeout)
        if self.model.name is ConcurrencyModel.THREAD_PER_CONNECTION:
            timeouts.append(limits.write_timeout)
        self._sweeper.look_every(interval_for(timeouts))

    @property
    def admission(self) -> Admission:
        """Who is let in."""
        if self._admission is None:
            self._admission = Admission(self.limits, self.seconds)
        return self._admission

    @property
    def turns(self) -> Turns:
        """How the turns of the event loop are shared."""
        if self._turns is None:
            self._turns = Turns(self.reactor)
        return self._turns

    @property
    def reactor(self) -> Any:
        """The reactor; looked up when first needed, so that importing echod installs none."""
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        return self._reactor

    def seconds(self) -> float:
        """Return the reactor's time, in seconds."""
        now: float = self.reactor.seconds()
        return now

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        # An exception would leave the accepted socket open; None closes it.
        peer = addr.peer if isinstance(addr, ProxiedAddress) else addr
        try:
            # Behind a proxy, that was done before the header was read.
            refusal = None if peer is not addr else self.admission.accept()
            return self.refused(addr, refusal) if refusal else self._accepted(addr, peer)
        except BaseException:
            self.handler_failed(Failure(), Client(shown_address(peer)))
            self.metrics.accepted += 1
            self.metrics.end(EndReason.HANDLER_ERROR.value, messages=0, received=0, sent=0)
            return None

    def _accepted(self, addr: IAddress | None, peer: IAddress | None) -> Protocol:
        """Return the protocol of a connection that `admission` has accepted."""
        network = network_at(peer)
        if network and (refusal := self.admission.identify(network)):
            self.admission.release()
            return self.refused(peer, refusal)
        try:
            protocol = self.protocol(self)
        except BaseException:
            self.admission.release(network)
            raise
        protocol.factory = self
        protocol.network = network
        if isinstance(addr, ProxiedAddress):
            protocol.client = addr.client(self.listener)
        return protocol

    def refused(self, addr: IAddress | None, refusal: Refusal) -> Protocol:
        """Count and log a refusal; return the protocol that tells the client."""
        self.note_refusal(refusal.value, Client(shown_address(addr)), refusal.value)
        return RefusedProtocol(self.framing.encode_line(refusal.text.encode()))

    def connection_turned_away(self) -> None:
        """Count a client for whom there was no descriptor; the port has logged and closed it."""
        self.metrics.refused["descriptors"] += 1

    def note_refusal(self, limit: str, client: Client, why: str) -> None:
        """Count and log that a client is turned away; telling it is the caller's."""
        assert limit in REFUSED_BY
        self.metrics.refused[limit] += 1
        if _refused.wanted(client.peer):
            _refused.write(peer=shown(client), why=why, limit=limit, listener=self.listener)

    def handler_failed(self, failure: Failure, client: Client) -> None:
        """Count and log what the handler of `client` has raised."""
        if self._process not in (None, os.getpid()):
            end_child(failure)
        self.metrics.handler_errors += 1
        log_failure(failure, client)

    def doStart(self) -> None:
        self._process = os.getpid()
        super().doStart()

    def opened(self, connection: ConnectionProtocol) -> None:
        """Register a connection: it is counted from here to `forget`."""
        self.metrics.accepted += 1
        self.watch(connection)

    def watch(self, connection: ConnectionProtocol | HeaderProtocol) -> None:
        """Sweep, drain and abort a connection with the others, from here to `unwatch`."""
        self._sweeper.add(connection)

    def forget(self, connection: ConnectionProtocol, reason: EndReason) -> None:
        """Count a connection out."""
        messages, received, sent = connection.figures
        self.metrics.end(reason.value, messages=messages, received=received, sent=sent)
        self.admission.release(connection.network)
        self.unwatch(connection)

    def unwatch(self, connection: ConnectionProtocol | HeaderProtocol) -> None:
        """Forget a connection; the last one takes the sweep's timer with it."""
        self._sweeper.discard(connection)
        if not self.connections and self._drained is not None:
            drained, self._drained = self._drained, None
            self._handlers_done().addCallback(drained.callback)

    def drain(self) -> Deferred[None]:
        """Answer what has been received on every connection, and close it.

        Returns:
            Fires when there is none left, and nothing of the handler's in the event loop waits, as
            an `async def closed` may; it has no deadline (see `abort`, and the model's `stop`).
        """
        for connection in list(self.connections):
            connection.drain()
        if not self.connections:
            return self._handlers_done()
        if self._drained is None:
            self._drained = Deferred()
        return self._drained

    def _handlers_done(self) -> Deferred[None]:
        # The threads of a pool are its owner's to wait for.
        return succeed(None) if isinstance(self.model, InPool) else self.model.drain()

    def abort(self) -> None:
        """Close every connection at once."""
        for connection in list(self.connections):
            connection.abort(EndReason.ABORTED)
