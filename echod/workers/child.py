"""A worker's process as its supervisor sees it: its orders, its news, its lines for the log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from echod.log.sinks import Line
from echod.text import LONGEST, escape
from echod.timers import cancel_timer
from echod.workers.link import (
    FIRST_SOCKET,
    LIMITS,
    LOG,
    NEWS,
    ORDERS,
    STDERR,
    STDOUT,
    LogLines,
    Message,
    Messages,
    encode,
)

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

# The child runs this: it imports what this process would, and nothing from the current folder.
_PROGRAM = (
    "import os, sys; sys.path[:] = os.environ.pop('ECHOD_WORKER_PATH').split(os.pathsep); "
    "from echod.workers.process import main; main()"
)

# How many reads of its log's pipe, of 8 KiB each, come before the news that a worker is ready.
MOST_READS = 32

# How long the last lines of a process that has ended may take, in seconds.
LAST_LINES = 0.5


class Owner(Protocol):
    """Takes the news of a child."""

    def child_told(self, child: Child, news: Message) -> None:
        """Take news."""

    def child_printed(self, child: Child, text: str) -> None:
        """Take a line from its standard output or error."""

    def child_logged(self, line: Line) -> None:
        """Take a line of its log."""

    def child_exited(self, child: Child) -> None:
        """Take note that the process has ended, and all its news has come."""

    def child_is_over(self, child: Child) -> None:
        """Take note that its last lines have come."""


class Child(ProcessProtocol):
    """One process.

    Attributes:
        number: the worker's.
        pid: the process id.
        text: the content of the file of settings that it uses.
        state: "starting", "ready", "draining" or "ended".
        told: whether it was told to stop.
        block: the number of its block in the table of the limits.
        why: why it could not start; "" if it did not say.
        traceback: that of the user's error, for that; "" if there was none.
        has_refused: whether it has said itself that it cannot start.
        ending: how it ended, in words.
        heard: when it told something last, in seconds.
        since: when it became ready.
        began: when it was started, by the clock of files, in seconds.
    """

    def __init__(self, owner: Owner, reactor: Any, number: int, text: str) -> None:
        """Set up, without starting it.

        Args:
            owner: is told.
            reactor: starts it.
            number: see above.
            text: see above.
        """
        self.number = number
        self.pid = 0
        self.text = text
        self.state = "starting"
        self.told = False
        self.block = 0
        self.why = ""
        self.traceback = ""
        self.has_refused = False
        self.ending = ""
        self.heard = self.since = reactor.seconds()
        self.began = time.time()
        self.warned = 0.0
        self._owner = owner
        self._reactor = reactor
        self._news = Messages()
        self._log = LogLines()
        self._log_size = 0
        self._printed = {STDOUT: b"", STDERR: b""}
        # Its descriptors that have been closed, or that no open end is left of.
        self._closed: set[int] = set()
        self._over = False
        self._last_lines: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"worker {self.number} (process {self.pid})"

    def start(
        self, order: Mapping[str, object], sockets: Sequence[Sequence[int]], limits: int
    ) -> None:
        """Start the process.

        Args:
            order: its first order.
            limits: the descriptor of the table of the limits.
            sockets: the descriptors to listen on, for each listener.

        Raises:
            OSError: the system has no room for it.
        """
        numbered, next_one = [], FIRST_SOCKET
        descriptors: dict[int, int | str] = {STDOUT: "r", STDERR: "r"}
        descriptors |= {LOG: "r", ORDERS: "w", NEWS: "r", LIMITS: limits}
        for each in sockets:
            numbered.append(list(range(next_one, next_one + len(each))))
            descriptors.update(zip(numbered[-1], each, strict=True))
            next_one += len(each)
        folders = [one for one in sys.path if type(one) is str and os.pathsep not in one]
        environment = {**os.environ, "ECHOD_WORKER_PATH": os.pathsep.join(folders)}
        command = [sys.executable, *subprocess._args_from_interpreter_flags(), "-P"]  # type: ignore[attr-defined]
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._reactor.spawnProcess(
                self,
                sys.executable,
                [*command, "-c", _PROGRAM, f"worker {self.number}"],
                env=environment,
                childFDs={0: nothing, **descriptors},
            )
        finally:
            os.close(nothing)
        self.order(**order, number=self.number, text=self.text, sockets=numbered)

    def makeConnection(self, process: Any) -> None:
        self.pid = process.pid
        super().makeConnection(process)

    def order(self, **message: object) -> None:
        """Send it an order."""
        if ORDERS not in self._closed and self.transport is not None:
            self.transport.writeToChild(ORDERS, encode(message))

    def stop(self, *, whole: bool) -> None:
        """Tell it to drain, once.

        Args:
            whole: whether the service ends. Otherwise it leaves the clients that wait to its
                successor, which has the same sockets.
        """
        if not self.told:
            self.told = True
            self.order(do="stop", whole=whole)

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.transport is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self.transport.signalProcess(number)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == NEWS:
            for news in self._news.feed(data):
                self.heard = self._reactor.seconds()
                self._take(news)
        elif childFD == LOG:
            self._log_size += len(data)
            for line in self._log.feed(data):
                self._owner.child_logged(line)
        else:
            self._print(childFD, data)

    def _take(self, news: Message) -> None:
        match news["news"]:
            case "ready" if self.state == "starting":
                self._read_log()
                self.state = "ready"
                self.since = self._reactor.seconds()
            case "draining":
                self.state = "draining"
            case "failed":
                self.why = str(news["why"])
                self.traceback = str(news.get("traceback", ""))
                self.has_refused = True
        self._owner.child_told(self, news)

    def _read_log(self) -> None:
        """Take the lines that were written before the news: they come by another pipe."""
        pipe = getattr(self.transport, "pipes", {}).get(LOG)
        for _ in range(MOST_READS):
            before = self._log_size
            if pipe is None or pipe.doRead() is not None or self._log_size == before:
                return  # all has been read; or its end, which the reactor notices, too

    def _print(self, descriptor: int, data: bytes) -> None:
        *lines, rest = (self._printed[descriptor] + data).split(b"\n")
        if len(rest) > LONGEST:
            lines.append(rest)
            rest = b""
        self._printed[descriptor] = rest
        for line in lines:
            self._owner.child_printed(self, line.decode("utf-8", "backslashreplace"))

    # The end. Its last news may come after the kernel has told of it, in another pipe.

    def processExited(self, reason: Failure) -> None:
        self.ending = _in_words(reason.value)
        # A program that the worker has started may hold the pipes.
        self._last_lines = self._reactor.callLater(LAST_LINES, self._is_over)
        self._look_for_end()

    def childConnectionLost(self, childFD: int) -> None:
        self._closed.add(childFD)
        self._look_for_end()

    def processEnded(self, reason: Failure) -> None:
        self._is_over()

    def _look_for_end(self) -> None:
        if self.ending and NEWS in self._closed:
            self._has_ended()
            if LOG in self._closed:
                self._is_over()

    def _has_ended(self) -> None:
        """Tell the owner, once, that the process has ended and no more news is expected."""
        if self.state != "ended":
            self.state = "ended"
            self._owner.child_exited(self)

    def _is_over(self) -> None:
        """Tell the owner, once, that no more lines are expected either."""
        if self._over:
            return
        self._over = True
        self._has_ended()
        cancel_timer(self._last_lines)
        for descriptor, rest in self._printed.items():
            if rest:
                self._print(descriptor, b"\n")
        self._owner.child_is_over(self)


def _in_words(end: Any) -> str:
    number = getattr(end, "signal", None)
    if number is not None:
        return f"ended by {signal.Signals(number).name}"
    return f"ended with exit code {escape(str(getattr(end, 'exitCode', 0)))}"


def backoff(failures: int) -> float:
    """Return how long the next start waits after so many failures in a row, in seconds."""
    return 0.0 if failures <= 1 else min(30.0, 0.1 * 2 ** min(failures - 2, 10))
