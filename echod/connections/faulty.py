"""A connection with faults on purpose: a protocol towards the client, a transport inwards.

It stands between the transport (of TCP, of a UNIX socket, or TLS) and the connection's protocol,
and only for a connection that `echod.faults` has chosen, or may choose later. That module
decides; this class waits, writes, reads and ends.

Guarantees:

* Held bytes leave in order, and never before they are due. The end of a stream, and a close, come
  after them.
* Memory is bounded: above `MOST` held bytes the source pauses, the client's or the handler's. So
  does the handler's when the client does not read.
* A reset waits until the client's machine has every byte before it, so the client gets exactly
  those, then the error. (A UNIX socket has no reset: its client sees the end.)
* After `connectionLost` nothing is left: no timer, no held byte.
* Its faults may change, if the service was set up for that: then each connection has this layer,
  also without a fault. An end that has begun goes on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    ILoggingContext,
    INegotiated,
    IProducer,
    IPushProducer,
    ISSLTransport,
    ISystemHandle,
    ITransport,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from echod.connections.kernel import client_ended, queued, unsent
from echod.connections.meddling import Meddling
from echod.connections.transport_layers import Layer, tls_of
from echod.faults import (
    Act,
    Armed,
    Chosen,
    Course,
    Cutter,
    Direction,
    Item,
    Pick,
    Reads,
    Stage,
)
from echod.handlers.kinds import Kind
from echod.messages.cutting import Cutter as MessageCutter
from echod.reasons import EndReason
from echod.stacked import StackedTransport, shorten_reads
from echod.timers import cancel_timer
from echod.tls import TLSConnection

if TYPE_CHECKING:
    from echod.connections.lifecycle import ConnectionProtocol
    from echod.connections.owner import Owner

# How many bytes are held in a direction before its source pauses.
MOST = 64 * 1024
# How often a reset looks whether the client has what comes before it, in seconds.
LOOK = 0.002


@implementer(IPushProducer)
class _Output:
    """The producer that the transport below pauses when it can send no more."""

    def __init__(self, connection: FaultyConnection) -> None:
        self._connection = connection

    def pauseProducing(self) -> None:
        self._connection.block(blocked=True)

    def resumeProducing(self) -> None:
        self._connection.block(blocked=False)

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""


class _Stream:
    """One direction: its course, the items that are not due yet, and one timer."""

    def __init__(self, course: Course, owner: Owner, pump: Callable[[], None]) -> None:
        self.course = course
        self.items: deque[Item] = deque()
        self.held = 0
        # When the last item left.
        self._left = -math.inf
        self._owner = owner
        self._pump = pump
        self._timer: IDelayedCall | None = None

    def add(self, items: Iterable[Item]) -> None:
        for item in items:
            self.items.append(item)
            self.held += len(item.data)

    def next_due(self, now: float) -> Item | None:
        """Remove and return the next item, if it is due."""
        if self.course.wake_at <= now:
            self.add(self.course.wake(now))
        if self.due > now:
            return None
        item = self.items.popleft()
        self.held -= len(item.data)
        self._left = now
        return item

    @property
    def due(self) -> float:
        """When the next item is due, in seconds; inf: there is none."""
        return max(self.items[0].due, self._left + self.items[0].gap) if self.items else math.inf

    def set_timer(self, latest: float = math.inf) -> None:
        """Wait for the next item, for the next fault that begins by time, or until `latest`."""
        self._wait_until(min(latest, self.course.wake_at, self.due))

    def wait_for_reset(self) -> None:
        """Wait for a reset that waits for no byte, while the other side takes nothing."""
        resets = [item.due for item in self.items if item.act is Act.RESET_NOW]
        self._wait_until(min([self.course.wake_at, *resets]))

    def _wait_until(self, due: float) -> None:
        self.stop()
        if due < math.inf:
            wait = max(0.0, due - self._owner.seconds())
            self._timer = self._owner.reactor.callLater(wait, self._fired)

    def is_reset(self, now: float) -> bool:
        """Return whether such a reset is due."""
        if self.course.wake_at <= now:
            self.add(self.course.wake(now))
        return any(item.act is Act.RESET_NOW and item.due <= now for item in self.items)

    def _fired(self) -> None:
        self._timer = None
        self._pump()

    def stop(self) -> None:
        cancel_timer(self._timer)
        self._timer = None

    def change(self, course: Course, now: float) -> None:
        """Use this course from now on; items that only a former stage has held are due now."""
        before, self.course = self.course, course
        if before.stages.keys() - course.stages.keys():
            items = course.release(self.items, now)
            self.clear()
            self.add(items)
        self.add(course.start(now))

    def clear(self) -> None:
        self.stop()
        self.items.clear()
        self.held = 0


class _Gate:
    """Holds back the client's messages while a fault of the other direction waits for one.

    Attributes:
        cutter: finds the messages.
        pieces: the client's bytes that are not passed on yet; None is the end of the stream.
        opens: when to look again, in seconds.
    """

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.pieces: deque[tuple[bytes, bytes | None] | None] = deque()
        self.opens = 0.0

    @property
    def held(self) -> int:
        """How many bytes wait, without those of an incomplete message."""
        return sum(len(piece[0]) for piece in self.pieces if piece is not None)

    def is_quiet(self, connection: ConnectionProtocol, now: float) -> bool:
        """Return whether all messages are answered, or call for another look."""
        if now < self.opens:
            return False
        quiet = connection.has_answered
        self.opens = 0.0 if quiet else now + LOOK
        return quiet


@implementer(IHalfCloseableProtocol, IHandshakeListener, ILoggingContext)
@implementer(ITransport, IConsumer, IPushProducer, ISystemHandle)
class FaultyConnection(StackedTransport, Layer):
    """One connection that faults have chosen.

    Attributes:
        protocol: gets the client's bytes: the connection's protocol, or TLS that it has begun.
        transport: the transport below.
    """

    def __init__(self, protocol: ConnectionProtocol, chosen: Chosen, owner: Owner) -> None:
        """Set up, unconnected.

        Args:
            protocol: the connection's protocol.
            chosen: its faults.
            owner: the factory; its clock and limits apply, and it counts what happens.
        """
        self.protocol: Any = protocol
        self._connection = protocol
        self._chosen = chosen
        self._owner = owner
        # The names of all that it has had, in their order, and whether they have happened.
        self._names: dict[str, bool] = dict.fromkeys(chosen.names, False)
        self.meddler = Meddling(self, owner)
        # The host that the client asks for, once it has, and the faults that depend on it.
        self._server_name: str | None = None
        self._has_asked = False
        self._by_name: dict[Armed, bool] = {}
        # Bytes pass: it is connected, and the handshake is over.
        self._ready = False
        self._over = False
        # By the protocol, by the transport below, by a fault.
        self._paused = False
        self._blocked = False
        self._deaf = False
        self._reading = True
        self._in_turn = False
        self._out_turn = False
        self._spoken = False
        self._producer: Any = None
        self._producer_paused = False
        self._registered = False
        # The protocol has ended its stream, or the connection; FIN is sent.
        self._ending = False
        self._closing = False
        self._fin_asked = False
        self._fin_sent = False
        self._told_fin = False
        self._input_over = False
        # A fault ends the connection: nothing passes any more. While the protocol is told to
        # close, an abort of its own would turn that into a reset.
        self._dropping = False
        self._is_closing = False
        # The end of the stream has been given to the transport below; a fault withholds it.
        self._fin_given = False
        self._withheld = False
        self._gate: _Gate | None = None
        self._in_vain = False
        self._timer: IDelayedCall | None = None
        self._held = 0.0
        self._held_since: float | None = None

    # From the network.

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        now = self._owner.seconds()
        chosen, owner = self._applicable(self._chosen), self._owner
        incoming = chosen.course(Direction.IN, now, cutter=self._cutter_maker())
        self._in = _Stream(incoming, owner, self._pump_in)
        self._out = _Stream(chosen.course(Direction.OUT, now), owner, self._pump_out)
        if self._out.course.awaits_message:
            self._gate = _Gate(self._cutter_maker()())
        for stream in (self._in, self._out):
            stream.add(stream.course.start(now))
        encrypted = ISSLTransport.providedBy(transport)
        if encrypted:
            alsoProvides(self, ISSLTransport, INegotiated)
        if chosen.faults.changeable:
            chosen.faults.open[self] = self._chosen
        self._registered = True
        transport.registerProducer(_Output(self), True)
        self.protocol.makeConnection(self)
        if not encrypted:
            self._begin()

    def handshakeCompleted(self) -> None:
        """Begin: the layer of TLS below is ready."""
        self.handshaken()  # before the protocol greets
        if IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        self._begin()

    def change(self, chosen: Chosen) -> None:
        """Use these faults from now on."""
        if self._over or self._dropping:
            return
        self._note()
        now, self._chosen = self._owner.seconds(), chosen
        self._names = dict.fromkeys([*self._names, *chosen.names], False) | self._names
        chosen = self._applicable(chosen)
        for stream, direction in ((self._in, Direction.IN), (self._out, Direction.OUT)):
            course = chosen.course(direction, now, stream.course, self._cutter_maker())
            stream.change(course, now)
            if self._spoken:
                stream.course.client_spoke()
            if self._ready and self.is_encrypted:
                stream.add(course.handshaken(now))
        if not self._out.course.awaits_message:
            self._open_gate()
        elif self._gate is None and not self._input_over:
            self._gate = _Gate(self._cutter_maker()())
        if self._deaf:
            left = self._in.course.stages.values()
            self._deaf = any(one.act is Act.STOP_READING and one.happened for one in left)
        if self._withheld:
            self._ask_to_end()
        self.meddler.changed()
        self._pump_out()
        self._pump_in()
        self._settle()

    def _applicable(self, chosen: Chosen) -> Chosen:
        """Leave out faults for clients that ask for another host than this one."""
        if not any(pick.armed.rule.selection.sni for pick in chosen.picks):
            return chosen
        return replace(chosen, picks=tuple(filter(self._applies, chosen.picks)))

    def _applies(self, pick: Pick) -> bool:
        armed = pick.armed
        if not armed.rule.selection.sni:
            return True
        if not self._has_asked:
            return False
        if armed not in self._by_name:
            self._by_name[armed] = armed.hit(self._server_name)
        return self._by_name[armed]

    def asked_for(self, server_name: str | None) -> None:
        self._server_name, self._has_asked = server_name, True
        if self._applicable(self._chosen) is not self._chosen:
            self.change(self._chosen)

    @property
    def stages(self) -> list[Stage]:
        """The stages of the course out, the client's nearest first."""
        return list(self._out.course.stages.values())[::-1]

    def reset(self) -> None:
        self._drop_all()
        # Not in this turn: TLS may not have encrypted yet what comes before.
        begun = self._owner.seconds()
        self._set_timer(self._owner.reactor.callLater(LOOK, self._reset_when_sent, begun))

    def note_faults(self) -> None:
        self._note()
        self._settle()

    def _begin(self) -> None:
        self._ready = True
        if not self._over:
            self._pump_out()
            self._pump_in()

    def handshaken(self) -> None:
        """Note the end of the handshake of TLS: below, or above after STARTTLS."""
        now = self._owner.seconds()
        for stream in (self._in, self._out):
            stream.add(stream.course.handshaken(now))
        if not self._over:
            self._settle()

    def _cutter_maker(self) -> Callable[[], Cutter]:
        """Return what makes the parts that find messages in the client's stream."""
        owner = self._owner
        if self._connection.counts_messages and owner.handler.kind is not Kind.CONNECTION:
            return partial(MessageCutter, owner.framing)
        return Reads

    def dataReceived(self, data: bytes) -> None:
        if self._over or self._dropping:
            return
        if self._is_clear(self._in) and not (self._paused or self._in_turn):
            self._pass_on(data)
        else:
            self._in.add(self._in.course.take(data, self._owner.seconds()))
            self._pump_in()

    def _is_clear(self, stream: _Stream) -> bool:
        """Return whether there is no fault in a direction, and nothing held: bytes just pass.

        Faults that may come later cost a connection little until they do.
        """
        return self._ready and self._gate is None and not (stream.items or stream.course.stages)

    def _pass_on(self, data: bytes) -> None:
        self._in_turn = True
        try:
            self._tell(data)
        except BaseException:
            self.abortConnection()
            raise
        finally:
            self._in_turn = False
        if self._in.items:  # more has come, or a fault, meanwhile
            self._pump_in()

    def readConnectionLost(self) -> None:
        self._input_over = True
        if not self._over:
            self._in.add(self._in.course.end(self._owner.seconds()))
            if self._fin_given and self._dropping:
                self.transport.loseConnection()
            else:
                self._pump_in()

    def writeConnectionLost(self) -> None:
        self._fin_sent = True
        self._tell_fin()

    def _tell_fin(self) -> None:
        """Tell the protocol that FIN is sent, once it has asked for it."""
        if self._fin_sent and self._fin_asked and not self._told_fin:
            self._told_fin = True
            IHalfCloseableProtocol(self.protocol).writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._chosen.faults.open.pop(self, None)
        self._stop()
        self.protocol.connectionLost(reason)

    def _stop(self) -> None:
        self._over = True
        self._set_timer(None)
        self.meddler.stop()
        for stream in (self._in, self._out):
            stream.clear()
        self._gate = None
        self._producer = None
        self._note()

    def _set_timer(self, timer: IDelayedCall | None) -> None:
        cancel_timer(self._timer)
        self._timer = timer

    # From the client to the protocol.

    def _pump_in(self) -> None:
        """Pass on what is due."""
        if self._in_turn or not self._ready:
            return
        self._in_turn = True
        try:
            if self._paused and self._in.is_reset(self._owner.seconds()):
                self._act(Act.RESET_NOW, self._in.course)
            while not self._over and not self._paused and not self._dropping:
                if self._gate is not None and self._gate.pieces:
                    if not self._pass_gate(self._gate):
                        break
                    continue
                item = self._in.next_due(self._owner.seconds())
                if item is None:
                    break
                if item.data:
                    self._hear(item.data)
                elif item.act is not None:
                    self._act(item.act, self._in.course)
                else:
                    self._hear_end()
        except BaseException:
            self.abortConnection()
            raise
        finally:
            self._in_turn = False
            self._settle()

    def _hear(self, data: bytes) -> None:
        if self._gate is None:
            self._tell(data)
        elif self.protocol is self._connection:
            self._gate.pieces.extend(self._gate.cutter.take(data))
        else:  # the handler has begun TLS; bytes in clear that are held are not for it
            self._gate = None
            self._tell(data)

    def _tell(self, data: bytes) -> None:
        if not self._spoken:
            self._spoken = True
            self._out.course.client_spoke()
        self.protocol.dataReceived(data)

    def _hear_end(self) -> None:
        if self._gate is not None:
            self._gate.pieces += [*self._gate.cutter.end(), None]
        else:
            IHalfCloseableProtocol(self.protocol).readConnectionLost()

    def _pass_gate(self, gate: _Gate) -> bool:
        """Pass on the next piece; return whether that may be done now.

        A message with which a fault begins waits until those before it are answered: the fault
        hits no other answer.
        """
        piece = gate.pieces[0]
        if piece is None:
            gate.pieces.popleft()
            self._gate = None
            IHalfCloseableProtocol(self.protocol).readConnectionLost()
            return True
        data, message = piece
        now, course = self._owner.seconds(), self._out.course
        if message is not None and self.protocol is self._connection:
            if course.begins_with(message, now) and not gate.is_quiet(self._connection, now):
                return False
            self._out.add(course.heard(message, now))
            self._pump_out()
        gate.pieces.popleft()
        if not (self._over or self._dropping):
            self._tell(data)
        if not course.awaits_message:
            self._open_gate()
        return True

    def _open_gate(self) -> None:
        """Hold back no more messages, once all are passed on."""
        gate = self._gate
        if gate is not None and not (gate.pieces or self._over or self._dropping):
            self._gate = None
            for rest in gate.cutter.rest():
                self._tell(rest)

    # From the protocol to the client.

    def write(self, data: bytes) -> None:
        if data and not (self._over or self._ending or self._closing or self._dropping):
            if self._is_clear(self._out) and not (self._blocked or self._out_turn):
                self.transport.write(bytes(data))
            else:
                self._out.add(self._out.course.take(bytes(data), self._owner.seconds()))
                self._pump_out()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def _pump_out(self) -> None:
        """Write what is due."""
        if self._out_turn or not self._ready:
            return
        self._out_turn = True
        try:
            if self._blocked and self._out.is_reset(self._owner.seconds()):
                self._act(Act.RESET_NOW, self._out.course)
            generated = 0
            while not (self._over or self._blocked or self._dropping):
                item = self._out.next_due(self._owner.seconds())
                if item is None:
                    if not self._generates or generated >= MOST:
                        break
                    generated += self._generate()
                    continue
                if item.data:
                    self.transport.write(item.data)
                elif item.act is not None:
                    self._act(item.act, self._out.course)
                else:
                    self._end_output()
        finally:
            self._out_turn = False
            self._settle()

    @property
    def _generates(self) -> bool:
        """Whether a fault has more to send at once."""
        return self._out.course.generates and not (self._out.items or self._in_vain)

    def _generate(self) -> int:
        """Let a fault send data of its own; return how many bytes it is."""
        now, course = self._owner.seconds(), self._out.course
        if self._connection.is_draining:
            items = course.stop_generating(now)
            self._withheld = self._withheld and not items
        else:
            items = course.generate(now)
            self._in_vain = not items  # another fault swallows it
        self._out.add(items)
        return sum(len(item.data) for item in items)

    def block(self, *, blocked: bool) -> None:
        """Note whether the transport below takes more."""
        self._blocked = blocked
        if not blocked:
            self._pump_out()
        elif not self._over:
            self._settle()

    def _end_output(self) -> None:
        """End the stream, or the connection, as the protocol has asked: all before it is out."""
        self._let_end()
        if self._closing:
            self.transport.loseConnection()
        elif not self._fin_given:
            self._give_fin()

    def _let_end(self) -> None:
        """Unregister at the transport below, which would wait for a paused producer."""
        if self._registered:
            self._registered = False
            self.transport.unregisterProducer()

    # Acts.

    def _act(self, act: Act, course: Course) -> None:
        if act is Act.ALERT:
            self._alert()
            return
        course.acted(act)
        self._note()
        match act:
            case Act.RESET:
                self.reset()
            case Act.RESET_NOW:
                self._drop_all()
                self._set_timer(self._owner.reactor.callLater(0, self._reset_now))
            case Act.CLOSE:
                self._close()
            case Act.HALF_CLOSE:
                self._give_fin()
            case Act.STOP_READING:
                self._deaf = True

    def _alert(self) -> None:
        """Let TLS end by an alert; in clear there is none."""
        above = isinstance(self.protocol, TLSConnection)
        tls = self.protocol if above else tls_of(self)
        if tls is not None:
            self.meddler.alert(tls)

    def _drop_all(self) -> None:
        self._dropping = self.ended = True
        self._gate = None
        self._in.clear()
        self._out.clear()

    def _reset_when_sent(self, begun: float) -> None:
        """Reset once the client's machine has all that came before, or does not take it."""
        self._timer = None
        timeout = self._owner.limits.write_timeout or math.inf
        waits = queued(self.transport) or unsent(self.transport)
        if waits and self._owner.seconds() - begun < timeout:
            self._set_timer(self._owner.reactor.callLater(LOOK, self._reset_when_sent, begun))
        else:
            self._reset_now()

    def _reset_now(self) -> None:
        self._timer = None
        self._connection.abort(EndReason.FAULT)
        self.abortConnection()  # the protocol may be closing already

    def _close(self) -> None:
        """Send FIN after what is written; the client has `linger` seconds for its own."""
        self._drop_all()
        self._is_closing = True
        self._connection.close(EndReason.FAULT)
        self._is_closing = False
        if not self._over:
            self._fin_asked = True
            self._give_fin()
            # A client that has sent FIN already gets ours; one that has not has this time for it.
            linger = self._owner.limits.linger
            self._set_timer(self._owner.reactor.callLater(linger, self._give_up))
            if self._input_over:
                self.transport.loseConnection()

    def _give_fin(self) -> None:
        """End the stream to the client, after all that is written."""
        self._let_end()
        self._fin_given = True
        if self.is_encrypted and tls_of(self.transport) is None:
            self.transport.loseConnection()  # Twisted's TLS has no half-close
        else:
            self.transport.loseWriteConnection()

    def _give_up(self) -> None:
        """Close at once, unless the client still reads: then it is the sweep that gives up."""
        self._timer = None
        if unsent(self.transport) or queued(self.transport):
            self._set_timer(self._owner.reactor.callLater(LOOK * 50, self._give_up))
        else:
            self.abortConnection()

    @property
    def is_encrypted(self) -> bool:
        """Whether the transport below is TLS."""
        return bool(ISSLTransport.providedBy(self.transport))

    def _note(self) -> None:
        """Count what has happened for the first time."""
        for stream in (self._in, self._out):
            for name in stream.course.fresh():
                if not self._names[name]:
                    self._names[name] = True
                    self._owner.note_fault(name)

    # Pauses, timers, and the time for which a fault holds something.

    def _settle(self) -> None:
        """Pause or resume both sources, set the timers, and see whether something is held."""
        if self._over:
            return
        self._note()
        self._set_timers()
        reads = self._dropping or not (self._paused or self._deaf or self.held_in >= MOST)
        if reads is not self._reading:
            self._reading = reads
            if reads:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()
        self._pause_producer(paused=self._blocked or self._out.held >= MOST)
        now = self._owner.seconds()
        holds = (
            self._deaf
            or self.meddler.holds
            or (self._out.course.generates and not self._blocked)
            or (self._withheld and not self._out.course.generates)
            or any(stream.items and stream.due > now for stream in (self._in, self._out))
        )
        if holds is not (self._held_since is not None):
            if self._held_since is not None:
                self._held += now - self._held_since
            self._held_since = now if holds else None

    def _set_timers(self) -> None:
        if self._dropping:
            self._in.stop()
            self._out.stop()
            return
        if self._paused:
            self._in.wait_for_reset()
        else:
            self._in.set_timer(self._gate_opens)
        if self._blocked:
            self._out.wait_for_reset()
        else:
            self._out.set_timer(-math.inf if self._generates else math.inf)

    @property
    def _gate_opens(self) -> float:
        """When to look at the next piece that waits, in seconds; inf: there is none."""
        return self._gate.opens if self._gate is not None and self._gate.pieces else math.inf

    def _pause_producer(self, *, paused: bool) -> None:
        producer = self._producer
        if producer is not None and paused is not self._producer_paused:
            self._producer_paused = paused
            if paused:
                producer.pauseProducing()
            else:
                producer.resumeProducing()

    # For the sweep, the log and the kernel's figures.

    def held_for(self) -> float:
        held, self._held = self._held, 0.0
        if self._held_since is not None:
            now = self._owner.seconds()
            if not self._is_forsaken:
                held += now - self._held_since
            self._held_since = now
        return held

    @property
    def _is_forsaken(self) -> bool:
        """Whether something is held for ever, and the client, as far as can be seen, is gone."""
        forever = (
            self._deaf
            or self.meddler.holds_for_ever
            or self._withheld
            or any(
                stream.items and stream.items[0].due == math.inf
                for stream in (self._in, self._out)
            )
        )
        return forever and (self._input_over or client_ended(self.transport))

    @property
    def holds(self) -> bool:
        return self._held_since is not None

    @property
    def held_in(self) -> int:
        return self._in.held + (self._gate.held if self._gate is not None else 0)

    @property
    def held_out(self) -> int:
        return self._out.held

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(name for name, happened in self._names.items() if happened)

    # The protocol's transport: closing.

    def loseWriteConnection(self) -> None:
        self._fin_asked = True
        if not (self._ending or self._closing or self._over):
            self._ending = True
            self._ask_to_end()
        self._tell_fin()

    def loseConnection(self) -> None:
        if self._closing or self._over:
            return
        self._closing = True
        if self._dropping:
            return
        if self._fin_sent or not self._ready:
            self._end_output()
        elif not self._ending:
            self._ask_to_end()
        elif not self._out.items:
            self.transport.loseConnection()

    def _ask_to_end(self) -> None:
        if not self._dropping:
            now, course = self._owner.seconds(), self._out.course
            if self._connection.is_draining:
                self._out.add(course.stop_generating(now))
            items = course.end(now)
            self._withheld = not items and not self._fin_given
            self._out.add(items)
            self._pump_out()

    def abortConnection(self) -> None:
        if self._is_closing:
            return  # `_close` ends it
        self._stop()
        self.transport.abortConnection()

    @property
    def disconnecting(self) -> bool:
        """Whether the protocol wants the connection closed."""
        return self._closing

    # The protocol's transport: producers, both ways.

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._refuse_second(producer)
        if self._over:
            producer.stopProducing()
            return
        self._producer, self._producer_paused = producer, False
        self._settle()

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self._paused = True
        self._settle()

    def resumeProducing(self) -> None:
        if self._over or not self._paused:
            return
        self._paused = False
        self._settle()  # the timer passes the input on, not this call

    def stopProducing(self) -> None:
        self.loseConnection()

    def shortenReads(self) -> None:
        """Make the transport below read in smaller pieces, if it can."""
        shorten_reads(self.transport)

    # The protocol's transport: the rest.

    def getPeerCertificate(self) -> Any:
        """Return the client's certificate."""
        return self.transport.getPeerCertificate()

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The application protocol that TLS has chosen."""
        chosen: bytes | None = self.transport.negotiatedProtocol
        return chosen

    def logPrefix(self) -> str:
        return type(self.protocol).__name__
