"""The base of protocols that are not echod's own: those of asyncio and of Twisted.

echod's protocol stays the transport's, and calls the user's. A subclass says how: see the methods
"of each kind" below. This class keeps, for all of them, the promises of `lifecycle`:

* **The direct path.** On plain TCP and uvloop, the event loop calls the user's own method for each
  read, and a write is uvloop's: the kernel counts the bytes, and a message costs what it costs
  without echod. `_take_back` ends that when something begins for which echod has to see the
  input: a close, the end of the input, another protocol, TLS. Elsewhere (TLS, UNIX sockets,
  Twisted's reactors) reads and writes go through this class, which counts.
* **Errors.** An exception in any callback is logged once, with its traceback, and ends the
  connection; uvloop reports those of the direct path to `failed_directly`. As on uvloop, a reply
  that was written in the same call may then be lost on the direct path.
* **One context.** All calls of a connection's protocol run in one `contextvars.Context`.
* **Unsent bytes are bounded.** A protocol writes without looking, so the sweep does: it aborts a
  connection whose unsent bytes exceed `--max-unsent`, and have grown since the last look, although
  the protocol was told to pause. One large write, or many before an `await writer.drain()`, are
  legitimate.
* **Drain.** The end of the input may make a protocol drop its work, so it is told of a drain only
  when it is the client's turn: nothing is unread, nothing is unsent, and the client spoke before
  the server did. If both spoke in the same tick of the kernel's clock, that takes a second without
  a byte. Otherwise the conversation goes on until then, or until the drain's deadline. A protocol
  that goes on at the end of its input has until the deadline, too.
* **The end.** The protocol is told that its connection is lost as soon as the kernel has all that
  it wrote, and FIN; echod then waits for the client.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.connections.kernel import (
    counts_traffic,
    has_answered,
    is_reset,
    queued,
    unread,
    unsent,
)
from echod.connections.lifecycle import ConnectionProtocol
from echod.connections.transport_layers import tls_of
from echod.contexts import call_in, context_of, has_context
from echod.messages.closing import Event
from echod.reasons import EndReason

if TYPE_CHECKING:
    from echod.connections.owner import Owner
    from echod.interfaces import Stream, Writer
    from echod.tls import Context as TLSContext

T = TypeVar("T")

# How long neither side may have spoken for an unclear turn to be the client's, in seconds.
QUIET = 1.0


@implementer(IPushProducer)
class ForeignProtocol(ConnectionProtocol):
    """Serves a connection by a protocol of the user's."""

    counts_messages: ClassVar[bool] = False

    __slots__ = (
        "_blocked",
        "_bytes_received",
        "_bytes_sent",
        "_connected",
        "_context",
        "_error",
        "_fin_sent",
        "_half_closed",
        "_handshaking",
        "_is_direct",
        "_kernel_counts",
        "_owes",
        "_queued",
        "_told_end",
        "_told_lost",
        "_told_why",
        "_user",
        "_write_directly",
    )

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        # The user's protocol; a Failure if it could not be made.
        self._user: Any = None
        # The conversation's own context; None if the transport has one.
        self._context: Context | None = None
        # uvloop calls the user's protocol; its `write`, as long as the connection is open.
        self._is_direct = False
        self._write_directly: Callable[[bytes], None] | None = None
        self._kernel_counts = False
        self._bytes_received = 0
        self._bytes_sent = 0
        # Where the kernel does not count: whether the client spoke last.
        self._owes = False
        # The transport takes no more; how many bytes waited in it at the last look.
        self._blocked = False
        self._queued = -1
        # The user's protocol knows that it is connected; that its input has ended; that its
        # connection is lost, and the error which has caused that.
        self._connected = False
        self._told_end = False
        self._told_why: EndReason | None = None
        self._told_lost = False
        self._error: BaseException | None = None
        # TLS has begun within the conversation, and its handshake is not over.
        self._handshaking = False
        # The user's protocol has ended its own stream, and the kernel has sent that.
        self._half_closed = False
        self._fin_sent = False

    # The methods of each kind.

    def _make(self) -> object:
        """Return the user's protocol for this connection."""
        return self._owner.handler.converse()

    def _receiver(self) -> Callable[[bytes], object]:
        """Return the user's function that takes what is read."""
        raise NotImplementedError

    def _connect(self) -> None:
        """Tell the user's protocol that it is connected."""
        raise NotImplementedError

    def _end_input(self) -> object:
        """Tell the user's protocol that its input has ended; return whether it goes on."""
        raise NotImplementedError

    def _end_output(self) -> None:
        """Note that the end of output which the user's protocol asked for is sent."""

    def _pause(self) -> None:
        """Ask the user's protocol to write no more."""
        raise NotImplementedError

    def _resume(self) -> None:
        """Let the user's protocol write again."""
        raise NotImplementedError

    def _encrypted(self) -> None:
        """Note that the handshake which `serve_tls` began is over."""

    def _lose(self, error: BaseException | None) -> None:
        """Tell the user's protocol that its connection is lost; `error` is None after a close."""
        raise NotImplementedError

    def _mute(self) -> None:
        """Drop what the user's protocol writes from now on."""

    # The context, and errors, of the user's code.

    def _inside(self, function: Callable[..., T], *arguments: object) -> T:
        """Call `function` for a caller other than the transport, in the conversation's context."""
        context = context_of(self.transport) if self._context is None else self._context
        return function(*arguments) if context is None else call_in(context, function, *arguments)

    def _from_transport(self, function: Callable[..., T], *arguments: object) -> T:
        """Call `function` for the transport, in the conversation's context."""
        if self._context is None:
            return function(*arguments)
        return call_in(self._context, function, *arguments)

    def _call(self, function: Callable[..., T], *arguments: object) -> T | None:
        """Call the user's code; an exception ends the connection."""
        try:
            return function(*arguments)
        except BaseException:
            self._fail_by_user(Failure())
            return None

    def _fail_by_user(self, failure: Failure) -> None:
        self._error = failure.value
        self.fail(failure)

    def failed_directly(self, failure: Failure) -> None:
        """Note an exception of the user's code that uvloop has caught, and ends the stream for."""
        self._error = failure.value
        self._owner.handler_failed(failure, self.client)
        if self._step(Event.ABORT) is not None and self._reason is None:
            self._reason = EndReason.HANDLER_ERROR
            self._stop()

    # The direct path.

    def connect_directly(self, transport: Stream, writer: Writer) -> Callable[[bytes], object]:
        """Return the function that the uvloop reactor calls for each read.

        Args:
            transport: the transport that `makeConnection` will get.
            writer: the fastest way to write, as long as the connection is open.
        """
        if not counts_traffic(transport) or not has_context(transport):
            return self.dataReceived
        self._kernel_counts = True
        self._write_directly = writer.write
        try:
            self._user = self._make()
            receiver = self._receiver()
        except BaseException:
            self._user = Failure()
            return self.dataReceived
        self._is_direct = True
        return receiver

    def _take_back(self) -> None:
        """From now on, let reads go through this class."""
        if self._is_direct:
            self._is_direct = False
            stream: Any = self.transport
            stream.receiveBy(self.dataReceived)

    def _count(self) -> None:
        """From now on, count the bytes here."""
        _, self._bytes_received, self._bytes_sent = self.figures
        self._kernel_counts = False

    # From Twisted.

    def connectionMade(self) -> None:
        if not has_context(self.transport):
            self._context = Context()
        self._from_transport(super().connectionMade)

    def handshakeCompleted(self) -> None:
        if self._handshaking:
            self._handshaking = False
            self._deadline = math.inf
            self._note_handshake()
            self._from_transport(self._call, self._encrypted)
        else:
            self._from_transport(super().handshakeCompleted)

    def _enter(self) -> None:
        self._inside(super()._enter) if self._waiting else super()._enter()

    def _start(self) -> None:
        self.transport.registerProducer(self, True)
        if self._user is None:
            self._user = self._make()
        elif isinstance(self._user, Failure):
            self.fail(self._user)
            return
        self._connected = True
        self._call(self._connect)

    def dataReceived(self, data: bytes) -> None:
        self._bytes_received += len(data)
        self._owes = True
        if self._reason is None and not self._told_end:
            self._from_transport(self._call, self._receiver(), data)

    def readConnectionLost(self) -> None:
        self._from_transport(super().readConnectionLost)

    def _client_finished(self) -> None:
        self.watch_for_reset()
        self._tell_end(EndReason.CLIENT)

    def writeConnectionLost(self) -> None:
        self._from_transport(self._output_ended)

    def _output_ended(self) -> None:
        self._fin_sent = True
        if self._reason is None:
            self._call(self._end_output)
        else:
            super().writeConnectionLost()
            self._tell_lost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        error = reason.value
        if self._error is None and not reason.check(ConnectionDone, ConnectionAborted):
            # The classes of this error that asyncio's code, and the standard library's, expect.
            self._error = error if isinstance(error, OSError) else ConnectionResetError(str(error))
        self._from_transport(super().connectionLost, reason)

    # Towards the client.

    def _write(self, data: bytes) -> None:
        self.transport.write(data)
        self._bytes_sent += len(data)
        self._owes = False

    def pauseProducing(self) -> None:
        """Pause, because the transport's write buffer is full."""
        if self._blocked:  # Twisted's own transports say it again for each write
            return
        self._blocked = True
        self._queued = -1
        self._expect_to_be_read()
        self._from_transport(self._call, self._pause)

    def resumeProducing(self) -> None:
        """Resume, because the transport has written enough."""
        self._unblock()
        self._from_transport(self._call, self._resume)

    def _unblock(self) -> None:
        self._blocked = False
        self._deadline = math.inf

    def stopProducing(self) -> None:
        """Note that the transport will write no more; `connectionLost` follows."""

    def serve_tls(self, context: TLSContext) -> None:
        """Begin TLS, as the server; `_encrypted` follows.

        Raises:
            RuntimeError: the connection is encrypted already, or is closing.
        """
        stream: Any = self.transport
        if tls_of(stream) is not None:
            raise RuntimeError("this connection is encrypted already")
        if self._reason is not None or self._half_closed:
            raise RuntimeError("this connection is closing")
        self._take_back()
        self._count()
        self._write_directly = None
        self._handshaking = True
        self._expect_by(self._owner.limits.handshake_timeout)
        self._encrypt(context)

    # The ends.

    def end_output(self) -> None:
        """End our stream, after all that was written; the user's protocol reads on."""
        if self._half_closed or self._reason is not None:
            return
        self._half_closed = True
        self._mute()
        self.transport.unregisterProducer()
        if self._blocked:
            self._unblock()
        self.transport.loseWriteConnection()

    def _tell_end(self, reason: EndReason) -> None:
        """Tell the user's protocol that its input has ended; close unless it goes on."""
        if self._told_end or self._reason is not None:
            return
        self._told_end = True
        self._told_why = reason
        self._take_back()
        goes_on = self._call(self._end_input)
        if not goes_on and self._reason is None:
            self.close(reason)

    def _why_closed(self) -> EndReason:
        """Return why the user's protocol closes: its input has ended, or it has its own reason."""
        return self._told_why or EndReason.HANDLER

    def _end_writing(self) -> None:
        if not self._half_closed:
            super()._end_writing()
        elif self._fin_sent:
            self._output_ended()

    def _stop(self) -> None:
        self._take_back()
        if self._entered:
            self._mute()
            if not self._half_closed:
                self.transport.unregisterProducer()

    def _tell_lost(self) -> None:
        """Tell the user's protocol, once, that its connection is lost."""
        if self._connected and not self._told_lost:
            self._told_lost = True
            self._mute()
            self._call(self._lose, self._error)
            self._error = None  # the frames of its traceback have this connection

    def _finish(self) -> None:
        self._count()
        self._is_direct = False
        self._write_directly = None
        self._tell_lost()

    # Drain.

    def drain(self) -> None:
        self._inside(super().drain)

    def _cut_input(self) -> None:
        self._drain_on()

    def _drain_on(self) -> None:
        """While the daemon drains: tell the user's protocol so, if it is the client's turn.

        One that goes on then, or had gone on when the client ended its stream, ends by itself.
        """
        if not self._told_end and self._is_clients_turn():
            self._tell_end(EndReason.DRAINED)

    def _is_clients_turn(self) -> bool:
        if unread(self.transport) or queued(self.transport) or unsent(self.transport):
            return False
        if self._kernel_counts:
            return has_answered(self.transport, self.figures, QUIET)
        return not self._owes

    # For the sweep and the metrics.

    def sweep(self, now: float) -> None:
        super().sweep(now)
        if self._reason is not None or not self._entered:
            return
        if self._blocked:
            self._look_at_queue()
        if self._reason is None and (self._input_ended or self._has_paused):
            self._look_for_reset()
        if self._reason is None and self._draining:
            self._inside(self._drain_on)

    def _look_at_queue(self) -> None:
        """Abort if the user's protocol goes on writing what the client does not read."""
        self._owner.urgent.add(self)
        before, self._queued = self._queued, queued(self.transport)
        most = self._owner.limits.max_unsent
        if most and 0 <= before < self._queued and self._queued > most:
            self.abort(EndReason.MAX_UNSENT)

    def _look_for_reset(self) -> None:
        """Abort if the client has reset the connection, which is not read from."""
        self.watch_for_reset()
        if is_reset(self.transport):
            self._note_reset()
            self.abort(EndReason.LOST)

    def watch_for_reset(self) -> None:
        """Check soon, and twice a second, because the transport would not notice a reset."""
        self._owner.urgent.add(self)

    def _note_reset(self) -> None:
        """Note that the abort which follows is the client's doing."""
        if self._error is None:
            self._error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    @property
    def _has_paused(self) -> bool:
        """Whether the user's protocol has paused reading."""
        return False

    @property
    def figures(self) -> tuple[int, int, int]:
        if self._kernel_counts and (counted := self._counted_by_kernel()):
            return 0, *counted
        return 0, self._bytes_received, self._bytes_sent

    @property
    def _activity(self) -> int:
        _, received, sent = self.figures
        return received + sent

    @property
    def is_blocked(self) -> bool:
        return self._blocked

    @property
    def _busy(self) -> bool:
        return self._blocked  # which has a deadline of its own


def drop(data: object) -> None:
    """Take the place of a `write`: nothing can be written any more."""
