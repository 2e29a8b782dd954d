"""The base of every connection's protocol: admission, deadlines, drain, and the one way to close.

`ConnectionProtocol` is the base of all kinds: `message_protocol` passes messages to a handler,
`socket_protocol` passes the socket to a thread, `program_protocol` relays to a program, and
`foreign_protocol` calls protocols of asyncio and Twisted. It guarantees:

* there is one way to close, `close` (gently) or `abort` (at once); the first reason given counts;
  a table in `echod.messages.closing` has the order of the steps;
* there is one last callback, `connectionLost`, after which the factory has forgotten the
  connection;
* deadlines are numbers that the factory's sweep checks; no connection has a timer.

A gentle close writes the remaining data, sends FIN, then reads and discards until the client's FIN
or a deadline. A socket that is closed with unread input sends RST instead, and RST destroys the
reply on its way. Over `echod.tls` it is the same, with close_notify before FIN. Twisted's own TLS
has no half-close: there, close_notify is sent and the deadline does the rest
(https://github.com/twisted/twisted/issues/7926).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    ISSLTransport,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.addresses import shown_address
from echod.concurrency.forking import forks
from echod.concurrency.model import Busy
from echod.connections.clients import NOBODY, client_of, is_twisted_tls, shown, tls_facts
from echod.connections.kernel import NOTHING_TAKEN, Taken, is_reset, taken, traffic, unread, unsent
from echod.connections.transport_layers import faults_before, layer_of, tls_of
from echod.handlers.client import encrypt, link
from echod.log.event import LogLine
from echod.messages.closing import TRANSITIONS, Event, State
from echod.reasons import EndReason
from echod.stacked import write_now
from echod.text import escape
from echod.tls.base import TLSError

if TYPE_CHECKING:
    from echod.concurrency.model import UnderWay
    from echod.connections.owner import Owner
    from echod.handlers.contract import BytesLike
    from echod.interfaces import Stream
    from echod.tls import Context

# Python 3.11 looks a member of an enum up in Python code, every time; the members that each
# connection meets are looked up once.
_OPEN, _INPUT_ENDED, _ENDING = State.OPEN, State.INPUT_ENDED, State.ENDING
_FIN_SENT, _BOTH_ENDED, _LOST = State.FIN_SENT, State.BOTH_ENDED, State.LOST
_INPUT_ENDS, _CLOSE, _OUTPUT_ENDS = Event.INPUT_ENDS, Event.CLOSE, Event.OUTPUT_ENDS
_CLIENT = EndReason.CLIENT

# Of `_seen_activity`: there was no sweep so far, and no push, after which it is -1.
UNSEEN = -2

log = Logger("echod.connection")
_connected = LogLine(log, "info", "Connected with {peer}")
_disconnected = LogLine(
    log,
    "info",
    "Disconnected from {peer}: {reason}{_error} "
    "({duration:.3f} s, messages: {messages}, bytes in: {received}, out: {sent}{_facts})",
)
# Where echod sees no messages.
_disconnected_unseen = LogLine(
    log,
    "info",
    "Disconnected from {peer}: {reason}{_error} "
    "({duration:.3f} s, bytes in: {received}, out: {sent}{_facts})",
)


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class ConnectionProtocol(Protocol):
    """The life of one connection, with any kind of handler."""

    # Ten thousand idle connections have ten thousand of these: without a dictionary each is less
    # than half the size. Therefore Twisted's own attributes are slots too.
    __slots__ = (
        "_began",
        "_deadline",
        "_draining",
        "_entered",
        "_idle_since",
        "_input_ended",
        "_owner",
        "_reason",
        "_same_since",
        "_seen_activity",
        "_state",
        "_taken",
        "_waiting",
        "client",
        "network",
        "transport",
    )

    # Whether echod cuts the input into messages.
    counts_messages: ClassVar[bool] = True
    # Whether the input has to pass through `dataReceived`, and no thread gets the socket itself.
    sees_input: ClassVar[bool] = False
    # Whether it is a load balancer's own: see `health_check`.
    is_check: ClassVar[bool] = False

    transport: Stream

    def __init__(self, owner: Owner) -> None:
        """Set up for one connection.

        Args:
            owner: the factory; the connection is registered there from its beginning to its end.
        """
        self.transport = None  # type: ignore[assignment] # until makeConnection, as in Twisted
        self._owner = owner
        self._waiting = False
        self._entered = False
        self._draining = False
        self._state = _OPEN
        # Whether the client's stream has ended, kept in the last states too: the kernel's count of
        # received bytes depends on it.
        self._input_ended = False
        # Set by the event that ends OPEN or INPUT_ENDED.
        self._reason: EndReason | None = None
        # The progress of the client at the last check; after our FIN, the number of bytes that had
        # not reached its machine, as held.
        self._taken = NOTHING_TAKEN
        self._deadline = math.inf
        self._began = 0.0
        self._idle_since = 0.0
        # An incomplete message, or the work of the handler, as it was at the last sweep, and since
        # when.
        self._same_since: tuple[object, float] | None = None
        # `_activity` at the last sweep. A push changes it, so that the next sweep sees activity.
        self._seen_activity = UNSEEN
        self.client = NOBODY
        # The network that it is counted under, once it is admitted: see `addresses.network_of`.
        self.network = ""

    @property
    def factory(self) -> Any:
        """The owner, by the name that Twisted's protocols have for it."""
        return self._owner

    @factory.setter
    def factory(self, owner: Any) -> None:
        self._owner = owner

    @property
    def connected(self) -> int:
        """Whether there is a transport, as Twisted's protocols have it."""
        return int(self.transport is not None)

    @connected.setter
    def connected(self, connected: int) -> None:
        """Take Twisted's word for it: `makeConnection` sets the transport, too."""

    # The methods of each kind of connection.

    def _start(self) -> None:
        """Begin the conversation, now that the concurrency model lets the connection in."""
        raise NotImplementedError

    def _client_finished(self) -> None:
        """Note that the client has sent its last byte; replies may still go out."""
        raise NotImplementedError

    def _cut_input(self) -> None:
        """Answer all that was received, and no more, then close: the daemon drains."""
        raise NotImplementedError

    def _write(self, data: bytes) -> None:
        """Send `data`, and count it."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Pass on no more work: the connection begins to close."""

    def _leave(self) -> None:
        """Release the connection's place in the model. Calling it again is harmless."""
        self._owner.model.leave(self)

    def _finish(self) -> None:
        """Clean up after the connection is lost."""

    @property
    def figures(self) -> tuple[int, int, int]:
        """Messages passed to the handler, bytes received, bytes sent."""
        raise NotImplementedError

    def _counted_by_kernel(self) -> tuple[int, int] | None:
        """Return the bytes received, without a PROXY header, and sent; None: it does not count."""
        counted = traffic(self.transport, input_ended=self._input_ended)
        return None if counted is None else self._without_header(counted)

    def _without_header(self, counted: tuple[int, int]) -> tuple[int, int]:
        """Return the bytes received, without a PROXY header, and sent, of those on the wire."""
        proxy = self.client.proxy
        return counted if proxy is None else (max(0, counted[0] - proxy.size), counted[1])

    @property
    def faults(self) -> tuple[str, ...]:
        """The names of the faults on purpose that have happened."""
        layer = layer_of(self.transport)
        return (*faults_before(self.transport), *(layer.faults if layer is not None else ()))

    @property
    def _has_spoken(self) -> bool:
        """Whether the client has sent anything."""
        return bool(self.figures[1])

    @property
    def _activity(self) -> int:
        """A number that changes whenever the client does something."""
        raise NotImplementedError

    @property
    def _incomplete(self) -> int:
        """How many bytes of an incomplete message have been received."""
        return 0

    @property
    def _busy(self) -> bool:
        """Whether a handler is at work, so that a silence is not the client's."""
        raise NotImplementedError

    @property
    def has_answered(self) -> bool:
        """Whether all that was received is answered, as far as echod can know."""
        return not self._busy

    @property
    def is_blocked(self) -> bool:
        """Whether the client does not read what was sent to it."""
        return False

    @property
    def is_draining(self) -> bool:
        """Whether the daemon drains."""
        return self._draining

    @property
    def is_served(self) -> bool:
        """Whether the conversation has begun, and the connection does not close yet."""
        return self._entered and self._reason is None

    @property
    def waits_for(self) -> str:
        """The reason why an open connection waits, for the log, if not for its handler."""
        if self._is_shaking_hands:
            return "it is shaking hands"
        if not self._entered:
            return "it waits for its turn"
        if self._reason is not None:
            return "the client has not read everything, or has not closed"
        if self.is_blocked:
            return "the client has not read everything"
        return "its message waits for a thread" if self._busy else "it is open"

    # From Twisted.

    def makeConnection(self, transport: ITransport) -> None:
        try:
            # As in Twisted, without two calls.
            self.transport = transport  # type: ignore[assignment]
            self.connectionMade()
        except Exception:  # otherwise the socket would stay open, without an owner
            self._owner.handler_failed(Failure(), self.client)
            self.abort(EndReason.HANDLER_ERROR)

    def connectionMade(self) -> None:
        owner = self._owner
        owner.register(self)  # first, so that its end is counted if something fails
        self._began = self._idle_since = owner.seconds()
        client = self.client
        if client is NOBODY:
            self.client = client = client_of(self, self.transport, owner.places)
        else:  # the proxy's header has named it already
            link(client, self)
        if not self.is_check and _connected.wanted(client.peer, self.network):
            _connected.write(peer=shown(client), listener=client.listener)
        if self._begins_with_tls():
            # Until its handshake is over, a client occupies none of the model's places.
            self._expect_by(owner.limits.handshake_timeout)
        else:
            self._admit()
        if owner.draining:  # it was accepted as the drain began
            self.drain()

    def handshakeCompleted(self) -> None:
        """Note that the stream is ready; the TLS layer calls this."""
        if self._reason is None:
            self._deadline = math.inf
            encrypt(self.client, tls_facts(self.transport))
            self._admit()

    def _note_handshake(self) -> None:
        """Note the end of a handshake that the handler has begun."""
        encrypt(self.client, tls_facts(self.transport))
        if (layer := layer_of(self.transport)) is not None:
            layer.handshaken()

    def _begins_with_tls(self) -> bool:
        return ISSLTransport.providedBy(self.transport)

    @property
    def _is_shaking_hands(self) -> bool:
        """Whether the handshake of TLS, at the beginning or within, is not over."""
        if not self._entered:
            return not self._waiting
        tls = tls_of(self.transport)
        return tls is not None and tls.is_shaking_hands

    def _admit(self) -> None:
        try:
            self._owner.model.enter(self, self._enter)
        except Busy as busy:
            self._turn_away(busy)
        if not self._entered and self._reason is None:
            self._waiting = True
            self.transport.pauseProducing()

    def _turn_away(self, busy: Busy) -> None:
        """Refuse this client: count it, tell it, and close."""
        self._owner.note_refusal(busy.refusal, self.client, str(busy))
        self.refuse(EndReason.REFUSED, str(busy))

    def _enter(self) -> None:
        self._entered = True
        if self._waiting:
            self.transport.resumeProducing()
        if self._waiting or self.client.tls is not None:  # otherwise it has begun in this moment
            self._idle_since = self._owner.seconds()
        try:
            self._start()
        except BaseException:
            self.fail(Failure())
        if self._draining and self._reason is None:
            self._cut_input()

    def readConnectionLost(self) -> None:
        self._input_ended = True
        state = self._step(_INPUT_ENDS)
        if state is _INPUT_ENDED:
            self._client_finished()
        elif state is _ENDING:
            self.transport.loseConnection()
        elif state is _BOTH_ENDED:
            self._close_transport()

    def writeConnectionLost(self) -> None:
        state = self._step(_OUTPUT_ENDS)
        if state is _FIN_SENT:
            # The kernel has our FIN, after everything written: now wait for the client's.
            self._taken = Taken(held=unsent(self.transport))
            self._idle_since = self._owner.seconds()
        elif state is _BOTH_ENDED:
            self._close_transport()

    def _close_transport(self) -> None:
        """Close after both streams have ended; the kernel still delivers its data."""
        self._expect_by(self._owner.limits.write_timeout)
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._state is _LOST:
            return
        self._state = _LOST  # which LOSE leads to from each other state
        if self._reason is None:
            self._reason = self._why_lost(reason)
            self._stop()
        if (layer := layer_of(self.transport)) is not None and layer.ended:
            self._reason = EndReason.FAULT  # also if the conversation had ended before
        self._leave()
        self._finish()
        client = self.client
        link(client, None)
        line = _disconnected if self.counts_messages else _disconnected_unseen
        if not self.is_check and line.wanted(client.peer, self.network):
            self._log_end(line, self._reason, reason)
        self._forget()

    def _forget(self) -> None:
        """Let the owner count the connection out."""
        assert self._reason is not None
        self._owner.forget(self, self._reason)

    def _log_end(self, line: LogLine, reason: EndReason, lost: Failure) -> None:
        """Log the summary line of a connection."""
        messages, received, sent = self.figures
        tls = self.client.tls.version if self.client.tls else None
        proxy = shown_address(self.transport.getPeer()) if self.client.proxy else None
        error = None if reason is EndReason.FAULT else self._note_of_end(lost)
        facts = [*([tls] if tls else []), *([f"through {proxy}"] if proxy else [])]
        faults = ", ".join(self.faults)
        if faults:
            facts.append(f"faults: {faults}")
        line.write(
            peer=shown(self.client),
            reason=reason.value,
            duration=round(self._owner.seconds() - self._began, 3),
            **({"messages": messages} if self.counts_messages else {}),
            received=received,
            sent=sent,
            listener=self.client.listener,
            tls=tls,
            proxy=proxy,
            error=error,
            **({"faults": faults} if faults else {}),
            _error=f": {error}" if error else "",
            _facts="".join(f", {fact}" for fact in facts),
        )

    def _note_of_end(self, lost: Failure) -> str | None:
        """Return the details of the reason for the end, for the log."""
        return escape(str(lost.value)) if lost.check(TLSError) else None

    def _why_lost(self, reason: Failure) -> EndReason:
        if reason.check(TLSError) and self._is_shaking_hands:
            return EndReason.HANDSHAKE_ERROR
        return _CLIENT if reason.check(ConnectionDone) else EndReason.LOST

    # TLS that begins within the conversation.

    def _encrypt(self, context: Context) -> None:
        """Begin TLS, as the server: from here on, no byte in clear is read or written."""
        from echod.tls import TLSConnection  # the listener's TLS has imported it

        stream: Any = self.transport
        stream.unregisterProducer()
        meddler = getattr(stream, "meddler", None)
        tls = TLSConnection(self, context, self._owner.reactor, self._owner.turns, meddler)
        stream.protocol = self.transport = tls  # type: ignore[assignment]
        if hasattr(stream, "receiveBy"):
            stream.receiveBy(tls.dataReceived)
        tls.registerProducer(self, True)  # type: ignore[arg-type] # a subclass is one
        tls.take_over(stream)

    # The one way to close.

    def _step(self, event: Event) -> State | None:
        """Enter the state that follows by `event`, and return it; None: the event is refused."""
        state = TRANSITIONS.get((self._state, event))
        if state is not None:
            self._state = state
        return state

    @property
    def _lost(self) -> bool:
        return self._state is _LOST

    def close(self, reason: EndReason) -> None:
        """Send everything written, then close gently. Calling it again is harmless."""
        if self._step(_CLOSE) is None:
            return
        self._reason = reason
        self._stop()
        self._leave()
        if self._input_ended and self._close_at_once():
            self._step(_OUTPUT_ENDS)
            return
        self._expect_to_be_read()
        # A close alone sends no FIN while a child that a handler has forked has the descriptor.
        self._end_writing()
        if not self._input_ended:
            self.transport.resumeProducing()

    def _close_at_once(self) -> bool:
        """Close the transport now, if the kernel has all that was written; return whether."""
        # A child that this process has forked may keep the descriptor open: then only shutdown(2)
        # ends the stream. A wrapper passes on the attributes of what it wraps, but not those of
        # its class.
        stream: Any = self.transport
        return not forks.seen and hasattr(type(stream), "closeIfSent") and stream.closeIfSent()

    def _end_writing(self) -> None:
        """Let the client see the end of our stream, after all that was written."""
        if is_twisted_tls(self.transport):
            self.transport.loseConnection()
            self.writeConnectionLost()
        elif self._is_shaking_hands and self._entered:
            self.transport.loseConnection()  # a half-close would wait for the handshake
        else:
            self.transport.loseWriteConnection()

    def abort(self, reason: EndReason) -> None:
        """Close at once, and drop what the socket does not take. Calling it again is harmless."""
        if self._step(Event.ABORT) is None:
            return
        if self._reason is None:
            self._reason = reason
            self._stop()
        write_now(self.transport)
        self.transport.abortConnection()

    def let_go(self) -> None:
        """Wait no longer for a handler that goes on although its connection is lost."""

    def refuse(self, reason: EndReason, why: str) -> None:
        """Tell the client `why`, in one line, and close."""
        if self._reason is None:
            self._write(self._owner.framing.encode_line(why.encode()))
            self.close(reason)

    def fail(self, failure: Failure) -> None:
        """Log a handler's error with its traceback, and close; a `Busy` is a refusal instead."""
        if isinstance(failure.value, Busy):  # the handler was not called
            self._turn_away(failure.value)
        else:
            self._owner.handler_failed(failure, self.client)
            self.close(EndReason.HANDLER_ERROR)

    # For the handler, in any thread: see `echod.handlers.client.Client`.

    @property
    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._reason is not None

    def push(self, data: BytesLike) -> bool:
        """Send a message that is no reply; see `Client.send`."""
        raise RuntimeError(
            "client.send is for handlers of messages: this one has the connection itself"
        )

    def drained(self) -> Awaitable[None]:
        """Wait until nothing waits to be sent; see `Client.drained`."""
        raise RuntimeError(
            "client.drained is for handlers of messages: this one has the connection itself"
        )

    def close_after(self, data: BytesLike) -> None:
        """Send `data`, and close; see `Client.close`."""
        if data:
            self.push(data)
        self.in_loop(self.close, EndReason.HANDLER)

    def start_tls(self) -> None:
        """Begin TLS; see `Client.start_tls`."""
        raise RuntimeError(
            "client.start_tls is for handlers of messages under reactor, serial or "
            "defer-to-thread: this one has the connection itself, or a thread has it"
        )

    def abort_soon(self) -> None:
        """Close at once; see `Client.abort`."""
        self.in_loop(self.abort, EndReason.HANDLER)

    def in_loop(self, function: Callable[..., object], *arguments: object) -> None:
        """Call `function` in the event loop: now, if this is its thread, otherwise soon."""
        errands = self._owner.errands
        if get_ident() == errands.thread:
            function(*arguments)
        else:
            errands.ask(partial(function, *arguments))

    # Deadlines and drain.

    def sweep(self, now: float) -> None:
        """Close if a deadline has passed.

        Args:
            now: the reactor's time, in seconds.
        """
        if (layer := layer_of(self.transport)) is not None:
            self._put_off(layer.held_for())
        if self._state is _FIN_SENT:
            self._look_after_fin(now)
        elif now >= self._deadline:
            self._deadline_passed()
        elif self._reason is None and self._entered:
            self._sweep_silence(now)
            if self._deadline == math.inf and not self._draining:
                self._owner.urgent.discard(self)
        elif self._waiting and self._reason is None and self._is_gone:
            self.abort(EndReason.LOST)
        elif self._draining and self._reason is None:
            self._drain_handshake()

    def _put_off(self, seconds: float) -> None:
        """Let all deadlines come later: for so long a fault has held what the client waits for."""
        if seconds:
            self._owner.model.put_off(self, seconds)
            self._deadline += seconds
            self._idle_since += seconds
            if self._same_since is not None:
                progress, since = self._same_since
                self._same_since = progress, since + seconds

    @property
    def _is_gone(self) -> bool:
        """Whether a waiting client has reset the connection, with nothing left to handle."""
        return is_reset(self.transport) and not unread(self.transport)

    def _expect_by(self, seconds: float) -> None:
        """Set the deadline, to `seconds` from now; 0 is never."""
        self._deadline = self._owner.seconds() + (seconds or math.inf)
        self._owner.urgent.add(self)

    def _expect_to_be_read(self) -> None:
        """Start the time-out within which the client has to read something."""
        self._taken = taken(self.transport)
        self._expect_by(self._owner.limits.write_timeout)

    def _deadline_passed(self) -> None:
        if self._is_shaking_hands and self._reason is None:
            self._close_handshake(EndReason.HANDSHAKE_TIMEOUT)
            return
        if self._has_read():
            # The client reads the data in the kernel slowly, but it does read.
            self._expect_by(self._owner.limits.write_timeout)
        else:
            self.abort(EndReason.WRITE_TIMEOUT)

    def _has_read(self) -> bool:
        """Return whether the client has read enough since the last call."""
        before, self._taken = self._taken, taken(self.transport)
        return self._taken.has_grown(before, self._least_read())

    def _least_read(self) -> float:
        """How many bytes a client has to read within the write time-out: at least one."""
        limits = self._owner.limits
        return max(1.0, limits.min_rate * limits.write_timeout)

    def _look_after_fin(self, now: float) -> None:
        """After our FIN: allow the client `linger` for its own, once it has read everything."""
        unsent_now, limits = unsent(self.transport), self._owner.limits
        if not unsent_now and self._taken.held:
            self._taken = NOTHING_TAKEN
            self._idle_since = now
        allowed = limits.write_timeout if unsent_now else limits.linger
        if allowed and now - self._idle_since >= allowed:
            if unsent_now and self._taken.held - unsent_now >= self._least_read():
                self._taken, self._idle_since = Taken(held=unsent_now), now
            else:
                self.abort(EndReason.WRITE_TIMEOUT)

    def _sweep_silence(self, now: float) -> None:
        late = self._too_slow(now)
        if late is EndReason.HANDLER_TIMEOUT:
            self.end_slow_handler(self._owner.limits.handler_timeout)
        elif late is not None:
            self._time_out(late)
        elif self._busy:
            self._idle_since = now
        elif self._owner.model.overdue(self, now):
            self._time_out(EndReason.SERIAL_TIMEOUT)
        elif self._activity != self._seen_activity:
            self._seen_activity = self._activity
            self._idle_since = now
        else:
            self._look_at_silence(now, now - self._idle_since)

    def _too_slow(self, now: float) -> EndReason | None:
        """Return the time-out of a message, or of the handler's work, that has taken too long."""
        limits, incomplete = self._owner.limits, self._incomplete
        if incomplete and not self._busy:
            reason, allowed = EndReason.MESSAGE_TIMEOUT, limits.message_time(incomplete)
            progress: object = self.figures[0]
        else:
            reason, allowed = EndReason.HANDLER_TIMEOUT, limits.handler_timeout
            progress = self.progress() if allowed else None
            if progress is None:
                self._same_since = None
                return None
        before, since = self._same_since or (None, 0.0)
        if before == (reason, progress):
            return reason if now - since >= allowed else None
        self._same_since = (reason, progress), now
        return None

    def progress(self) -> object:
        """Return a value that changes whenever the handler makes progress with its work.

        None if it does not work: it has nothing to do, or waits for its client.
        """
        return None

    def _look_at_silence(self, now: float, silence: float) -> None:
        """Close if the client may not be silent for `silence` seconds."""
        first, idle = self._owner.limits.first_byte_timeout, self._owner.limits.idle_timeout
        # In this order, because the figures may need a system call.
        if first and silence >= first and not self._has_spoken:
            self._time_out(EndReason.FIRST_BYTE_TIMEOUT)
        elif idle and silence >= idle:
            self._time_out(EndReason.IDLE_TIMEOUT)

    def _time_out(self, reason: EndReason) -> None:
        self.close(reason)

    @property
    def call(self) -> UnderWay | None:
        """The call of a handler that no model runs, but its connection; None without one."""
        return None

    def end_slow_handler(self, allowed: float) -> None:
        """Close, because the handler has made no progress for `allowed` seconds."""
        self.refuse(EndReason.HANDLER_TIMEOUT, f"Handler too slow: the limit is {allowed:g} s")

    def drain(self) -> None:
        """Answer all that was received, and close; now, or when the connection's turn comes."""
        if not self._draining and not self._lost:
            self._draining = True
            self._owner.urgent.add(self)
            if self._reason is not None:
                return  # it is closing
            if self._entered:
                self._cut_input()
            else:
                self._drain_handshake()

    def _drain_handshake(self) -> None:
        """End a connection in its handshake, unless the handshake's end, and a message, are
        unread.
        """
        if self._is_shaking_hands and not unread(self.transport):
            self._close_handshake(EndReason.DRAINED)

    def _close_handshake(self, reason: EndReason) -> None:
        """Send FIN alone: OpenSSL sends no alert within a handshake that has not failed."""
        tls = tls_of(self.transport)
        if tls is None:  # Twisted's own, which has no gentle end before that of a handshake
            self.abort(reason)
        else:
            tls.abandon()
            self.close(reason)
