"""`script`: the handler that holds a conversation by a script; see `echod.handlers.transcript`.

A Twisted factory, as `forward` is. The client is read only while the script expects something, and
a script pauses while its client does not read, so both are bounded.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.addresses import shown_address
from echod.handlers.contract import HandlerError
from echod.handlers.factories import IClosedByDrain
from echod.handlers.transcript import (
    Action,
    End,
    Input,
    Mismatch,
    ScriptError,
    Wait,
    converse,
    parse,
)
from echod.log.event import LogLine
from echod.named_files import read_text
from echod.text import escape, excerpt
from echod.timers import cancel_timer

_mismatch = LogLine(
    Logger("echod.script"), "warn", "{peer} has left the script {file}, {mismatch}"
)

# How many actions a conversation takes in one turn of the event loop.
SHARE = 100


class Script(Factory):
    """Holds a conversation by a script: a text that reads like a transcript."""

    noisy = False
    # The arguments that name files which are its code.
    named_files = ("file",)

    def __init__(self, *, file: str) -> None:
        """Read the script.

        Args:
            file: its path.

        Raises:
            HandlerError: it cannot be read, or a line is wrong.
        """
        self.file = excerpt(file, 200)
        try:
            self.steps = parse(read_text(file, "utf-8"))
        except ScriptError as error:
            raise HandlerError(f"script: {self.file}:{escape(str(error))}") from None
        except UnicodeDecodeError:
            raise HandlerError(f"script: {self.file} is not UTF-8") from None
        except (OSError, ValueError) as error:  # a path cannot contain NUL
            why = getattr(error, "strerror", None) or str(error)
            raise HandlerError(f"script: {self.file}: {why}") from None

    def buildProtocol(self, addr: IAddress | None) -> ScriptProtocol:
        return ScriptProtocol(self)


@implementer(IHalfCloseableProtocol, IPushProducer, IClosedByDrain)
class ScriptProtocol(Protocol):
    """One conversation."""

    transport: Any  # Twisted's face of echod's connection

    def __init__(self, script: Script) -> None:
        self._script = script
        self._input = Input()
        self._actions: Generator[Action, None, None] = converse(script.steps, self._input)
        # It waits for time, for a turn, or for the client to read.
        self._timer: IDelayedCall | None = None
        self._blocked = False
        self._over = False

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        self._go_on()

    def dataReceived(self, data: bytes) -> None:
        self._input.data += data
        self._go_on()

    def readConnectionLost(self) -> None:
        self._input.ended = True
        self._go_on()

    def writeConnectionLost(self) -> None:
        """Do nothing: the connection closes."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end()

    # A producer, of what the script sends.

    def pauseProducing(self) -> None:
        self._blocked = True

    def resumeProducing(self) -> None:
        self._blocked = False
        self._go_on()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""

    # The conversation.

    def _go_on(self) -> None:
        """Take the next actions, until one waits."""
        for _ in range(SHARE):
            if self._over or self._blocked or self._timer is not None:
                return
            try:
                action = next(self._actions)
            except StopIteration:
                self._close()
                return
            except Mismatch as mismatch:
                self._log(str(mismatch))
                self.transport.note_mismatch(mismatch.line, mismatch.expected, mismatch.got)
                self._close()
                return
            if action is None:
                self._read()
                return
            self._take(action)
        self._later(0)

    def _take(self, action: bytes | Wait | End) -> None:
        if isinstance(action, bytes):
            self.transport.write(action)
        elif isinstance(action, Wait):
            self._later(action.seconds)
        elif action.resets:
            self._end()
            self.transport.abortConnection()
        else:
            self._close()

    def _read(self) -> None:
        if not self._input.ended:
            self.transport.resumeProducing()

    def _later(self, seconds: float) -> None:
        """Go on later; meanwhile the client is not read."""
        if not self._input.ended:
            self.transport.pauseProducing()
        self._timer = self.transport.reactor.callLater(seconds, self._timer_over)

    def _timer_over(self) -> None:
        self._timer = None
        self._read()
        self._go_on()

    def _log(self, mismatch: str) -> None:
        peer = shown_address(self.transport.getPeer())
        if _mismatch.wanted(peer):
            _mismatch.write(
                peer=peer or "A client without an address",
                file=self._script.file,
                mismatch=escape(mismatch),
            )

    def _close(self) -> None:
        self._end()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _end(self) -> None:
        self._over = True
        self._actions.close()
        cancel_timer(self._timer)
        self._timer = None
