"""`exec`: a connection whose handler is a program, in a process of its own.

The reactor relays between the client and the program's pipes. Guarantees, besides those of
`echod.concurrency.process`:

* The program sees the end of its input after all that its client has sent; at a drain, after all
  that had come. The client sees the end of the stream after all that the program has written.
* Each side pauses the other when it does not keep up, so a connection holds a read of either.
* The connection ends when the program has exited and its output has ended, which another process
  may keep open; or, once both streams have ended, `linger` seconds later at the latest. With the
  connection ends the program, and all that is left of its process group.
* A client is silent while its program has read all that it has sent, and writes nothing.
"""

from __future__ import annotations

import math
import signal
from typing import TYPE_CHECKING, ClassVar

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.concurrency.process import Process
from echod.concurrency.processes import Processes
from echod.connections.clients import addresses_of, is_twisted_tls, shown
from echod.connections.kernel import has_read, is_reset, taken, unread
from echod.connections.lifecycle import ConnectionProtocol
from echod.handlers.command import Command
from echod.log.event import LogLine
from echod.reasons import EndReason
from echod.stacked import shorten_reads
from echod.text import escape

if TYPE_CHECKING:
    from echod.connections.owner import Owner

_complained = LogLine(Logger("echod.program"), "info", "The program for {peer} says: {text}")
_not_run = LogLine(Logger("echod.program"), "error", "Cannot serve {peer}: {why}")


@implementer(IPushProducer)
class ProgramProtocol(ConnectionProtocol):
    """Relays between a client and a program."""

    counts_messages: ClassVar[bool] = False

    __slots__ = (
        "_blocked",
        "_drain_left",
        "_fin_sent",
        "_has_place",
        "_input_cut",
        "_output_ended",
        "_process",
        "_program_is_behind",
        "_received",
        "_sent",
        "_status",
        "_why",
    )

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._process: Process | None = None
        self._has_place = False  # until the process is gone, which gives the place back
        self._received = 0
        self._sent = 0
        self._drain_left = 0
        self._input_cut = False  # the program is told of no more input, because the daemon drains
        self._blocked = False  # the client does not read
        self._program_is_behind = False
        self._output_ended = False
        self._fin_sent = False
        self._status = 0
        # Why the conversation ends, once one of the streams has ended.
        self._why: EndReason | None = None

    def _start(self) -> None:
        command, model = self._owner.handler.target, self._owner.model
        assert isinstance(command, Command) and isinstance(model, Processes)
        try:
            self._process = model.start(command, self._environment(), self)
        except OSError as error:
            self._not_run(command, error)
            return
        self._has_place = True
        self.transport.registerProducer(self, True)

    def _not_run(self, command: Command, error: OSError) -> None:
        """Close: the program, which could be run at the start, cannot be run any more."""
        if _not_run.wanted(self.client.peer):
            _not_run.write(peer=shown(self.client), why=command.why_not_run(error))
        self.close(EndReason.HANDLER_ERROR)

    def _environment(self) -> dict[str, str]:
        """Return what the program is told about its client, as UCSPI-TCP does."""
        remote, local = addresses_of(self.client, self.transport)
        internet = IPv4Address, IPv6Address
        if not isinstance(remote, internet) or not isinstance(local, internet):
            return {"PROTO": "UNIX"}
        return {
            "PROTO": "TCP",
            "TCPREMOTEIP": remote.host,
            "TCPREMOTEPORT": str(remote.port),
            "TCPLOCALIP": local.host,
            "TCPLOCALPORT": str(local.port),
        }

    def _leave(self) -> None:
        if not self._has_place:
            super()._leave()

    # From the client to the program.

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        if self._process is None or self._reason is not None or self._input_cut:
            return
        self._process.write(data)
        if self._draining:
            self._drain_left -= len(data)
            self._cut_input_when_read()

    def program_is_behind(self) -> None:
        self._program_is_behind = True
        if self._reason is None and not self._input_ended:
            shorten_reads(self.transport)
            self.transport.pauseProducing()
            self._owner.urgent.add(self)  # a lost client would go unnoticed: see `sweep`

    def program_caught_up(self) -> None:
        self._program_is_behind = False
        if self._reason is None and not self._input_ended:
            self.transport.resumeProducing()

    def _client_finished(self) -> None:
        if self._process is not None:
            self._process.end_input()
        self._why = self._why or EndReason.CLIENT
        self._owner.urgent.add(self)  # as above
        self._expect_exit()

    # From the program to the client.

    def program_wrote(self, data: bytes) -> None:
        if self._reason is None:
            self._write(data)

    def _write(self, data: bytes) -> None:
        self._sent += len(data)
        self.transport.write(data)

    def pauseProducing(self) -> None:
        self._blocked = True
        if self._process is not None:
            self._process.pause()
        self._expect_to_be_read()

    def resumeProducing(self) -> None:
        self._blocked = False
        self._deadline = math.inf
        if self._process is not None:
            self._process.resume()

    def stopProducing(self) -> None:
        """Do nothing: the connection is lost, and `connectionLost` follows."""

    def program_output_ended(self) -> None:
        if self._reason is not None:
            return
        self._output_ended, self._blocked = True, False
        self._why = self._why or EndReason.HANDLER
        self.transport.unregisterProducer()
        if is_twisted_tls(self.transport):  # which has no half-close
            self.writeConnectionLost()
        else:
            self._expect_to_be_read()
            super()._end_writing()

    def _end_writing(self) -> None:
        if not self._output_ended or is_twisted_tls(self.transport):
            super()._end_writing()
        elif self._fin_sent:
            super().writeConnectionLost()
        # Otherwise `writeConnectionLost` follows.

    def writeConnectionLost(self) -> None:
        if self._reason is not None:
            super().writeConnectionLost()
        else:
            self._fin_sent = True
            self._deadline = math.inf
            self._expect_exit()

    def program_complained(self, line: bytes) -> None:
        if _complained.wanted(self.client.peer):
            _complained.write(
                peer=shown(self.client), text=escape(line), listener=self.client.listener
            )

    # The end.

    def _expect_exit(self) -> None:
        """Wait not much longer for a program that can neither read nor write any more."""
        if self._fin_sent and (self._input_ended or self._input_cut) and self._reason is None:
            self._expect_by(self._owner.limits.linger)

    def program_exited(self, status: int) -> None:
        self._status = status
        if self._reason is None:
            self.close(EndReason.HANDLER_ERROR if status else self._why or EndReason.HANDLER)
        elif self._process is not None:
            self._process.end(self._owner.limits.linger)

    def _note_of_end(self, lost: Failure) -> str | None:
        if not self._status:
            return super()._note_of_end(lost)
        if self._status > 0:
            return f"exit status {self._status}"
        try:
            return f"ended by {signal.Signals(-self._status).name}"
        except ValueError:  # a real-time signal
            return f"ended by signal {-self._status}"

    def _deadline_passed(self) -> None:
        if self._fin_sent and self._reason is None and self._entered:
            self.close(self._why or EndReason.HANDLER)
        else:
            super()._deadline_passed()

    def _stop(self) -> None:
        if self._process is None:
            return
        if not self._output_ended:
            self.transport.unregisterProducer()
        self._process.end(self._owner.limits.linger)

    def _finish(self) -> None:
        self._stop()

    # Drain: the program gets what the kernel holds at that moment, and no more.

    def _cut_input(self) -> None:
        self._drain_left = unread(self.transport)
        self._cut_input_when_read()

    def _cut_input_when_read(self) -> None:
        if self._input_ended or self._input_cut or self._process is None:
            return
        if has_read(self.transport, self._drain_left):
            self._input_cut = True
            self._why = self._why or EndReason.DRAINED
            self._process.end_input()
            self._expect_exit()

    def sweep(self, now: float) -> None:
        super().sweep(now)
        unseen = self._input_ended or self._program_is_behind  # then no read tells of a reset
        if unseen and self._reason is None and self._entered:
            if is_reset(self.transport):
                self.abort(EndReason.LOST)
            else:
                self._owner.urgent.add(self)
        if self._draining and self._entered and self._reason is None:
            # The data may be only part of a TLS record.
            self._cut_input_when_read()

    # For the sweep, the log and the metrics.

    @property
    def figures(self) -> tuple[int, int, int]:
        return 0, self._received, self._sent

    @property
    def _activity(self) -> int:
        return self._received + self._sent + taken(self.transport).mark

    @property
    def _busy(self) -> bool:
        # A client that does not read has a deadline of its own.
        return self._blocked or (self._process is not None and self._process.unread > 0)

    @property
    def waits_for(self) -> str:
        if self._process is None or self._reason is not None:
            return super().waits_for
        if self._process.has_exited:
            return "its program has ended, but another process holds its standard output"
        return f"its program, process {self._process.pid}, has not ended"
