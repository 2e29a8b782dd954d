"""thread-per-connection: a connection goes to a thread as a blocking socket, and comes back.

Over plain TCP and UNIX sockets the thread gets the accepted socket itself (a duplicate of its
descriptor), and the transport is idle meanwhile: no byte passes through the reactor. Otherwise
(TLS, a PROXY header before the data) it gets one end of a socket pair, and the reactor relays.

Guarantees, in both cases:

* While the thread owns the socket, the reactor neither reads from it nor writes to it; at a
  deadline it shuts the socket down, which wakes a thread that is blocked in it.
* When the daemon drains, the thread reads the data received so far, then sees the end of the
  stream (see `ConnectionSocket.drain`); a thread that waits for a silent client is interrupted.
  The connection stays open for reading, so a client may go on sending: its data is read and
  discarded, and harms no reply. If a thread cannot be interrupted, because it waits in `select` or
  in a child process, its socket is shut down for reading, once the client's machine has all that
  was sent.
* A client is silent if nothing it sent is unread, nothing sent to it is on its way, no byte has
  moved, and the handler waits for it: in one of the socket's own calls, or, once it has asked for
  the descriptor, in any way that the kernel knows of (`echod.connections.waiting`). If it does not
  wait, the handler is at work. If that is unknown, or both may be true (the client spoke last, and
  an event loop waits for it while it computes), the handler only sees the end of the stream: one
  that waits notices it, and one at work can still answer.
* When the handler has returned, the reactor closes the connection gently, and the thread is free.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorSocket
from twisted.internet.protocol import ServerFactory
from twisted.python.failure import Failure

from echod.awaiting import fire
from echod.concurrency.conversation import Conversation
from echod.concurrency.model import Busy
from echod.concurrency.socket_outbox import SocketOutbox, end_outbox, outbox_of
from echod.concurrency.thread_socket import TLS_ENDED, ConnectionSocket, RelayedSocket
from echod.connections.channels import DirectChannel, RelayChannel, plain_socket
from echod.connections.kernel import (
    hung_up,
    taken,
)
from echod.connections.lifecycle import ConnectionProtocol
from echod.connections.outbox import sendable
from echod.connections.room import Room
from echod.connections.waiting import Task, is_awaited, running_time, tasks
from echod.handlers.kinds import Kind
from echod.reasons import EndReason, Refusal

if TYPE_CHECKING:
    from echod.connections.owner import Owner
    from echod.handlers.contract import BytesLike

# A handler that waits in many short calls (`select` of some milliseconds, in a loop) may be
# checked between two of them. So if it is not waiting when its client's time is over, it is
# checked again, this many times, after this many seconds each.
MORE_LOOKS = 5
SECONDS_BETWEEN_LOOKS = 0.007


class SocketProtocol(ConnectionProtocol):
    """Hands the connection to a thread, and closes it afterwards."""

    __slots__ = (
        "_channel",
        "_conn",
        "_early_end_sent",
        "_ended_early",
        "_gently",
        "_has_thread",
        "_next_look",
        "_room",
        "_told",
        "_verdict",
    )

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._conn: ConnectionSocket | None = None
        self._channel: DirectChannel | RelayChannel | None = None
        self._verdict: EndReason | None = None
        self._has_thread = False
        # The handler has ended the stream before it returned; over a relay, the reactor passes
        # this on.
        self._ended_early = False
        self._early_end_sent = False
        self._told = 0  # how many bytes the protocol itself has sent, without a thread
        # The handler has been shown the end of the stream, and may still answer.
        self._gently = False
        self._next_look: IDelayedCall | None = None
        # Waits until the kernel has room for what others have sent.
        self._room: Room | None = None

    def _start(self) -> None:
        # The peer of a socket that a proxy opened is the proxy.
        relayed = self.client.proxy is not None or self.sees_input
        handle = None if relayed else plain_socket(self.transport)
        watch = self._owner.traffic_watch
        channel = DirectChannel(self.transport, handle, watch) if handle else RelayChannel(self)
        try:
            conn = channel.connect()
        except OSError as error:  # no descriptor is left for the thread
            self._turn_away(Busy(f"{error.strerror}, try again later", Refusal.DESCRIPTORS))
            return
        self._channel, self._conn = channel, conn
        owner = self._owner
        conversation = Conversation(
            owner.handler, owner.framing, self.client, owner.banner, owner.stand_in
        )
        whole = owner.handler.kind is Kind.CONNECTION
        talk = conversation.own_socket if whole else conversation.answer_messages
        self._owner.model.call(self._returned, Context().run, _converse, talk, conn)
        self._has_thread = True

    def _leave(self) -> None:
        if not self._has_thread:  # the thread is the place, even if it outlives the client
            super()._leave()

    def _returned(self, result: object) -> None:
        """Close after the handler has returned: `result` is the reason, or a Failure."""
        assert self._channel is not None and self._conn is not None
        self._has_thread = False
        self._leave()
        if isinstance(result, Failure) and isinstance(result.value, Busy):
            # No thread has had the socket.
            self._conn.release()
            if not self._lost:
                self._channel.returned()
                self.fail(result)
            result = EndReason.REFUSED
        elif isinstance(result, Failure):
            failure, result = result, self._reason_for(result.value)
            if result is EndReason.HANDLER_ERROR:
                self._owner.handler_failed(failure, self.client)
        assert isinstance(result, EndReason)
        self._channel.traffic(input_ended=self._input_ended)  # while the kernel can still be asked
        self._verdict = self._verdict or result
        if self._conn.cut_off and not self._lost:
            self.abort(self._verdict)  # a stream that is cut off must not look complete
        elif not self._lost and self._channel.returned():
            self.close(self._verdict)

    def _reason_for(self, error: BaseException | None) -> EndReason:
        """Return why the handler ended with `error`: the connection's end, or its own error."""
        conn, channel = self._conn, self._channel
        assert conn is not None and channel is not None and error is not None
        if conn.caused(error):
            return EndReason.LOST
        # A library that uses the descriptor raises its own errors.
        if conn.exposed and conn.may_cause(error):
            if self._lost or self._verdict is not None or hung_up(self.transport):
                return EndReason.LOST
            # TLS around the socket reports an end of the stream as an error, from either side.
            if conn.detached and isinstance(error, TLS_ENDED) and channel.input_ended():
                return EndReason.DRAINED if conn.draining else EndReason.CLIENT
        return EndReason.HANDLER_ERROR

    def adopt(self, ours: socket.socket, factory: ServerFactory) -> None:
        """Give the reactor's end of the socket pair to the reactor."""
        IReactorSocket(self._owner.reactor).adoptStreamConnection(
            ours.fileno(), socket.AF_UNIX, factory
        )

    def _close_at_once(self) -> bool:
        return False  # the handler may have kept a duplicate of the descriptor

    def _end_writing(self) -> None:
        if self._is_end_sent():
            # Twisted would try a write, and take EPIPE for a lost client.
            self.writeConnectionLost()
        elif not self._ended_early:  # otherwise `writeConnectionLost` follows
            super()._end_writing()

    def _is_end_sent(self) -> bool:
        """Return whether the handler has ended our stream, and the kernel has the FIN."""
        conn, channel = self._conn, self._channel
        if conn is None or not isinstance(channel, DirectChannel):
            return self._early_end_sent
        return conn.writing_ended or (conn.exposed and channel.output_ended())

    def writeConnectionLost(self) -> None:
        if self._reason is None:  # the handler has ended the stream, and goes on
            self._early_end_sent = True
        else:
            super().writeConnectionLost()

    def relay_ended(self) -> None:
        """Note that the handler writes no more, and everything it wrote is relayed."""
        if self._verdict is not None:
            self.close(self._verdict)
        elif not self._lost:  # the handler may read on
            self._ended_early = True
            self.transport.unregisterProducer()
            super()._end_writing()

    # For pushes, in any thread.

    def push(self, data: BytesLike) -> bool:
        if self._owner.handler.kind is Kind.CONNECTION:
            return super().push(data)
        framed = self._owner.framing.encode(sendable(data))
        outbox = self._open_outbox()
        return outbox is not None and outbox.put(framed)

    def _open_outbox(self) -> SocketOutbox | None:
        if self._conn is None or self.is_closing:
            return None
        return outbox_of(self._conn, self._most_unsent, self._ask_for_room)

    def _most_unsent(self) -> int:
        return self._owner.limits.max_unsent

    @property
    def is_closing(self) -> bool:
        outbox = None if self._conn is None else self._conn.outbox
        over = self._reason is not None or self._verdict is not None
        return over or (outbox is not None and outbox.ending)

    def drained(self) -> Awaitable[None]:
        if self._owner.handler.kind is Kind.CONNECTION:
            return super().drained()
        outbox = self._open_outbox()
        if outbox is None:
            return succeed(None)
        if get_ident() == self._owner.errands.thread:
            deferred: Deferred[None] = Deferred()
            outbox.when_clear(partial(self.in_loop, fire, deferred))
            return deferred
        event = threading.Event()
        outbox.when_clear(event.set)
        event.wait()
        return succeed(None)

    def close_after(self, data: BytesLike) -> None:
        if self._owner.handler.kind is not Kind.CONNECTION:
            framed = self._owner.framing.encode(sendable(data)) if data else b""
            if (outbox := self._open_outbox()) is not None:
                outbox.put_last(framed)
        self.in_loop(self._end_soon)

    def _end_soon(self) -> None:
        """Let the thread see the end of the stream, because the handler has closed it."""
        if self._conn is None:
            self.close(EndReason.HANDLER)
        elif self._verdict is None and self._reason is None:
            self._verdict = EndReason.HANDLER
            self._owner.urgent.add(self)
            self._conn.drain(0)
            self._end_silence()

    def _ask_for_room(self) -> None:
        """In any thread: let the event loop send what waits, once there is room."""
        self.in_loop(self._wait_for_room)

    def _wait_for_room(self) -> None:
        conn, channel = self._conn, self._channel
        if self._room is not None or self._lost or conn is None or channel is None:
            return
        outbox = conn.outbox
        if outbox is not None and outbox.waits and not conn.ended:
            if outbox.is_unknown:  # room is not what is missing
                self._owner.reactor.callLater(SECONDS_BETWEEN_LOOKS, outbox.flush)
            elif (descriptor := channel.duplicate()) is not None:
                self._room = Room(self._owner.reactor, descriptor, self._has_room)

    def _has_room(self) -> None:
        self._room = None
        if self._conn is not None and self._conn.outbox is not None:
            self._conn.outbox.flush()

    def _forget_pushes(self) -> None:
        if self._room is not None:
            room, self._room = self._room, None
            room.stop()
        if self._conn is not None and self._conn.outbox is not None:
            self._conn.outbox.lose()

    @property
    def _pushes_wait(self) -> bool:
        conn = self._conn
        return conn is not None and conn.outbox is not None and conn.outbox.waits

    def _stop(self) -> None:
        self._forget_pushes()
        if isinstance(self._channel, RelayChannel):
            self.transport.unregisterProducer()
        elif self._channel is not None:
            self._channel.forget()

    # The client's side.

    def dataReceived(self, data: bytes) -> None:
        if isinstance(self._channel, RelayChannel) and self._reason is None:
            self._channel.forward(data)
            if self._draining:
                self._end_silence()

    def _client_finished(self) -> None:
        assert self._channel is not None
        self._channel.end_input()

    def _cut_input(self) -> None:
        assert self._channel is not None and self._conn is not None
        self._conn.drain(self._channel.begin_drain())
        self._end_silence()

    def _end_silence(self) -> None:
        """While the daemon drains: wake a thread that waits for a silent client."""
        assert self._channel is not None and self._conn is not None
        if self._conn.receiving or (self._conn.exposed and self._is_awaited() is not False):
            self._channel.end_silence(self._conn)

    def sweep(self, now: float) -> None:
        super().sweep(now)
        ends = self._draining or self._verdict is EndReason.HANDLER
        if ends and self._has_thread and self._entered and self._reason is None:
            # A thread may have begun to wait since the drain began.
            self._end_silence()

    def _look_at_silence(self, now: float, silence: float) -> None:
        assert self._conn is not None and self._channel is not None
        conn, limits = self._conn, self._owner.limits
        if conn.sending or self._pushes_wait or (conn.exposed and self._channel.unsent()):
            # A single call of the thread may send so much that it takes longer.
            if limits.write_timeout and silence >= limits.write_timeout:
                if self._has_read():
                    self._idle_since = now
                else:
                    self._time_out(EndReason.WRITE_TIMEOUT)
        elif not self._patience_ends(silence):
            return
        elif (conn.receiving and self._is_unmoved()) or self._is_idle():
            super()._look_at_silence(now, silence)
        else:
            self._idle_since = now
            if conn.exposed:
                self._look_again(silence, MORE_LOOKS)

    def _look_again(self, silence: float, looks: int) -> None:
        """Check again soon whether the handler, apparently at work, waits for its client."""
        self._stop_looking()
        self._next_look = self._owner.reactor.callLater(
            SECONDS_BETWEEN_LOOKS, self._next_look_at, silence, looks
        )

    def _next_look_at(self, silence: float, looks: int) -> None:
        self._next_look = None
        ends = self._reason or self._verdict or self._draining or not self._has_thread
        if ends or self._activity != self._seen_activity:
            return
        if self._is_idle():
            super()._look_at_silence(self._owner.seconds(), silence)
        elif looks > 1:
            self._look_again(silence, looks - 1)

    def _stop_looking(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _patience_ends(self, silence: float) -> bool:
        """Return whether a client may not be silent for so long, unless its handler is at work."""
        first, idle = self._owner.limits.first_byte_timeout, self._owner.limits.idle_timeout
        if idle and silence >= idle:
            return True
        return bool(first and silence >= first and not self._has_spoken)

    def _is_idle(self) -> bool:
        """Return whether the handler, which is not in a call of its socket, has nothing to do."""
        assert self._conn is not None and self._channel is not None
        if self._channel.unread():
            return False
        if not self._conn.exposed:
            return self._conn.polled
        awaited = self._is_awaited()
        # If that is unknown: the side that spoke last waits for no answer.
        idle = not self._channel.spoke_last() if awaited is None else awaited
        # The handler may have answered during this look: then the client has all its time again.
        return idle and self._is_unmoved() and not self._channel.unsent()

    def _is_unmoved(self) -> bool:
        """Return whether no byte has moved since this look began."""
        return self._activity == self._seen_activity

    def _is_awaited(self) -> bool | None:
        """Return whether one of the handler's tasks waits for the client; None: it is unknown."""
        assert self._conn is not None and self._channel is not None
        if of_its_thread := is_awaited(self._channel.inode, self._tasks()):
            return True
        of_others = self._owner.others.wait_for(self._channel.inode)
        return None if of_its_thread is None else of_others

    def _tasks(self) -> list[Task]:
        """Return the handler's thread, and the child processes that it has started."""
        assert self._conn is not None
        return tasks(() if self._conn.task is None else (self._conn.task,))

    def _time_out(self, reason: EndReason) -> None:
        assert self._channel is not None and self._conn is not None
        if self._verdict is None:  # otherwise the daemon already waits for the handler
            self._verdict = reason
            self._taken = taken(self.transport)
            self._expect_by(self._owner.limits.linger)
            self._gently = (
                self._conn.exposed
                and reason is not EndReason.WRITE_TIMEOUT
                and (self._channel.spoke_last() or self._is_awaited() is None)
            )
            if self._gently:
                self._channel.end_input()
            elif self._conn.cut_off:
                self._channel.reset()
            else:
                self._channel.wake()

    def end_slow_handler(self, allowed: float) -> None:
        # Only the thread may write; it keeps its place until it returns.
        self._verdict = self._verdict or EndReason.HANDLER_TIMEOUT
        if self._conn is not None and self._conn.cut_off:
            self.abort(EndReason.HANDLER_TIMEOUT)
        else:
            self.close(EndReason.HANDLER_TIMEOUT)

    def _deadline_passed(self) -> None:
        if not self._gently or self._reason is not None or self._is_awaited():
            super()._deadline_passed()
        elif self._channel is not None and self._channel.unsent():
            self._gently = False  # it has answered
            self._expect_to_be_read()
        else:
            self._expect_by(self._owner.limits.linger)

    def abort(self, reason: EndReason) -> None:
        self._forget_pushes()
        if self._channel is not None:
            self._channel.reset()
        super().abort(self._verdict or reason)

    def _finish(self) -> None:
        self._stop_looking()
        if self._channel is not None:
            # While the kernel can still be asked.
            self._channel.traffic(input_ended=self._input_ended)
            self._channel.wake()

    # For the sweep, the metrics, and the check for slow handlers.

    def progress(self) -> object:
        """Return a value that changes whenever the handler makes progress.

        None if the thread waits for its client, or a connection handler has nothing to read.
        """
        conn, channel = self._conn, self._channel
        if conn is None or channel is None or not self._has_thread:
            return None
        if conn.receiving or conn.sending or self._pushes_wait or self._lost:
            return None
        if conn.exposed and channel.unsent():  # it may send by the bare descriptor
            return None
        left = channel.unread() if self._owner.handler.kind is Kind.CONNECTION else 1
        return (conn.messages, conn.received_bytes, conn.sent_bytes, left) if left else None

    @property
    def figures(self) -> tuple[int, int, int]:
        if (conn := self._conn) is None:
            return 0, 0, self._told
        received, sent = self._bytes_moved()
        return conn.messages, received, sent + self._told

    def _bytes_moved(self) -> tuple[int, int]:
        """Return how many bytes the handler has received and sent, in any way."""
        assert self._conn is not None and self._channel is not None
        by_itself = self._conn.received_bytes, self._conn.sent_bytes
        if not self._conn.exposed:
            return by_itself
        return self._channel.traffic(input_ended=self._input_ended) or by_itself

    @property
    def _has_spoken(self) -> bool:
        conn, channel = self._conn, self._channel
        if super()._has_spoken or conn is None or channel is None:
            return super()._has_spoken
        # If no bytes are counted, and the handler has sent none, the traffic is the client's.
        return conn.exposed and not conn.sent_bytes and channel.traffic_seen() > 0

    def _write(self, data: bytes) -> None:
        self._told += len(data)
        self.transport.write(data)

    @property
    def _incomplete(self) -> int:
        return self._conn.incomplete if self._conn else 0

    @property
    def _activity(self) -> int:
        if (conn := self._conn) is None or self._channel is None:
            return 0
        if not conn.exposed:
            return conn.received_bytes + conn.sent_bytes
        if (moved := self._channel.traffic(input_ended=self._input_ended)) is not None:
            return sum(moved) + self._channel.taken().mark
        # The kernel does not count the bytes of a UNIX socket.
        counted = conn.received_bytes + conn.sent_bytes + self._channel.taken().mark
        if self._channel.sees_all_traffic():
            return counted + self._channel.traffic_seen()
        # The handler's tasks run, at least, when they move bytes.
        return counted + running_time(self._tasks()) + self._owner.others.running_time()

    @property
    def _busy(self) -> bool:
        conn = self._conn
        if conn is None or conn.receiving or conn.sending or self._pushes_wait:
            return False
        return not (conn.exposed or conn.polled)  # otherwise the kernel has to be asked

    @property
    def has_answered(self) -> bool:
        conn, channel = self._conn, self._channel
        if conn is None or not self._has_thread:
            return self._entered
        if conn.exposed or not isinstance(conn, RelayedSocket):
            return True  # as far as is known
        return isinstance(channel, RelayChannel) and channel.is_answered(conn)


def _converse(talk: Callable[[ConnectionSocket], EndReason], conn: ConnectionSocket) -> EndReason:
    """In the thread: hold the conversation, then release the socket in any case."""
    conn.thread, conn.task = threading.get_ident(), threading.get_native_id()
    try:
        return talk(conn)
    finally:
        end_outbox(conn)
        conn.thread = conn.task = None  # from here on the thread may do other work, or be gone
        conn.release()
