"""Handle the signals that stop and reload the daemon.

SIGTERM and SIGINT stop the daemon, in three steps, each a fall-back for the one before:

* The first signal drains: the daemon accepts no new connection, answers all that was received, and
  aborts the rest at the drain's deadline.
* The second one aborts at once.
* A thread ends the process if it is still there `GRACE` seconds later: a handler that blocks the
  event loop for ever, or a foreign thread that is joined at exit, cannot keep the process alive.
  If the system allows no more threads, a timer of the kernel does. The thread logs where the event
  loop is, if that does not answer, and again before it ends the process.

Between the reactor's end and the signal that ends the process, the interpreter ends as in any
program: see `ending.py`. The kernel keeps the deadline when the thread no longer can.

SIGHUP reloads; several of them that wait to be handled are one reload. SIGURG does nothing, and so
can interrupt a thread that waits for its client: see `ConnectionSocket.interrupt`.

The handlers are in place before the reactor runs, and they unblock the signals if the parent had
blocked them. A signal that arrives before the reactor runs waits in its queue, and is handled
first. Signals that were ignored when the daemon was started, as under nohup, stay ignored; except
SIGHUP, which nohup ignores and an operator still sends. A process that is forked once the daemon
serves has none of these handlers: `multiprocessing` ends its workers by SIGTERM.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.logger import Logger

from echod.concurrency.thread_socket import INTERRUPT
from echod.daemon import ending
from echod.daemon.stacks import frames_of_thread, in_one_line
from echod.daemon.stalls import without_reactor
from echod.log.event import LogLine

log = Logger("echod")
_unanswered = LogLine(
    log,
    "warn",
    "The event loop does not answer the signal; it is at: {place}; "
    "a second signal ends the process at once",
)
_not_stopped = LogLine(
    log, "warn", "Not stopped in time: ending the process; the event loop is at: {place}"
)

# Signals that other parts handle, or that end the process: the log, Twisted, the kernel's timer.
ALSO_UNBLOCKED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGALRM)

# How long after the drain's deadline the process may take for an orderly end, in seconds.
GRACE = 0.7

# How long the event loop has for its answer to a signal before the log says so, in seconds.
NOTICE = 1.0

# How long the end of the process waits for a line about it, in seconds.
LAST_WORDS = 0.2


class Signals:
    """Handles SIGTERM, SIGINT and SIGHUP.

    Attributes:
        patience: seconds from the first SIGTERM to the end of the process.
        code: the exit code if no signal asked for the end.
        starting: takes the signal that ends a start, in place of the reactor, which does not run.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        abort: Callable[[], None],
        reload: Callable[[], None],
        patience: float,
        pidfile: str = "",
        flush: Callable[[float], object] = lambda _: None,
        supervised: bool = False,
        grace: float = GRACE,
    ) -> None:
        """Set up, without touching signal handlers.

        Args:
            reactor: stopped at the first signal, as if it had handled it itself.
            abort: closes every connection; called in the reactor thread at the second signal.
            reload: reads the settings again; called in the reactor thread.
            patience: see above.
            pidfile: a file to remove if the process cannot end in an orderly way; "" for none.
            flush: writes the log's pending lines, within so many seconds.
            supervised: whether a supervisor says when to hurry. A terminal, or systemd, sends a
                signal to each process of the service: then SIGINT is left to the supervisor, and
                a SIGTERM beside its order does not hurry.
            grace: how long the process may take after a second signal, in seconds.
        """
        self._grace = grace
        self._supervised = supervised
        self.patience = patience
        self.code = 0
        self.starting: Callable[[int], object] | None = None
        self._reactor = reactor
        self._abort = abort
        self._reload = reload
        self._pidfile = pidfile
        self._flush = flush
        self._answered = False
        # Not an Event: its lock fails if a signal arrives while another one is being handled.
        self._hurry: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._previous: dict[int, Any] = {}
        self._stop: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._signalled = False
        self._threadless = False
        self._triggers: list[object] = []
        self._reloading = False
        self._serving = False
        self._deadline = math.inf
        # By thread: the signal mask to restore after a fork.
        self._masks: dict[int, set[int]] = {}

    def reconfigure(self, patience: float) -> None:
        """Use another patience, for a SIGTERM that comes from now on."""
        self.patience = patience

    def install(self) -> None:
        """Install the handlers; the reactor keeps them when it runs."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._stop = {
            signal.SIGTERM: self._reactor.sigTerm,
            signal.SIGINT: self._reactor.sigInt,
        }
        # A reactor that begins to run installs the functions under these names.
        self._reactor.sigTerm = self._on_stop
        self._reactor.sigInt = _do_nothing if self._supervised else self._on_stop
        for number, handler in (
            (signal.SIGTERM, self._reactor.sigTerm),
            (signal.SIGINT, self._reactor.sigInt),
        ):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, handler)
        self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_hangup)
        if signal.getsignal(INTERRUPT) is signal.SIG_DFL:
            self._previous[INTERRUPT] = signal.signal(INTERRUPT, _do_nothing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*self._previous, *ALSO_UNBLOCKED])
        self._triggers = [
            self._reactor.addSystemEventTrigger("before", "shutdown", self._begin_shutdown),
            self._reactor.addSystemEventTrigger("after", "shutdown", self._reactor_ended),
        ]
        atexit.register(self._leave_to_kernel)
        os.register_at_fork(
            before=self._hold, after_in_parent=self._release, after_in_child=self._in_child
        )

    def uninstall(self) -> None:
        """Restore the previous handlers."""
        while self._previous:
            signal.signal(*self._previous.popitem())
        if self._stop:
            self._reactor.sigTerm = self._stop[signal.SIGTERM]
            self._reactor.sigInt = self._stop[signal.SIGINT]
        while self._triggers:
            self._reactor.removeSystemEventTrigger(self._triggers.pop())
        atexit.unregister(self._leave_to_kernel)

    def serve(self) -> None:
        """Note that the process has forked into the background: later children are a handler's."""
        self._serving = True

    def _hold(self) -> None:
        """Before a fork: block signals to the child until it has none of these handlers.

        `multiprocessing` may end a worker that it has just started, and then waits for its end.
        """
        self._masks[threading.get_ident()] = signal.pthread_sigmask(
            signal.SIG_BLOCK, self._previous
        )

    def _release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.pop(threading.get_ident()))

    def _in_child(self) -> None:
        if self._serving:  # otherwise twistd goes into the background
            signal.set_wakeup_fd(-1)  # it belongs to the parent's event loop
            while self._previous:
                signal.signal(self._previous.popitem()[0], signal.SIG_DFL)
            atexit.unregister(self._leave_to_kernel)
            # If the event loop has called the handler, the child must not go on with the loop.
            self._reactor.callLater(0, os._exit, 0)
        self._release()

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        if not self._reloading:
            self._reloading = True
            self._reactor.callFromThread(self._begin_reload)

    def _begin_reload(self) -> None:
        self._reloading = False  # the next reload reads changes from here on
        self._reload()

    def _on_stop(self, number: int, frame: FrameType | None = None) -> None:
        if self._signalled:
            if not self._supervised:
                self.hurry()
            return
        self._signalled = True
        # A shell reports 128 + the signal's number for a process that a signal has ended.
        self.code = 128 + number
        self.insist()
        if self.starting is not None:
            self.starting(number)
        else:
            self._stop[number](number, frame)

    def pass_on(self, number: int) -> None:
        """Let the reactor handle a signal that came in the last turn of a start that succeeded."""
        self._stop[number](number, None)

    def stop(self) -> None:
        """Begin the end as SIGTERM does, unless it has begun; any thread may call this."""
        self.code = self.code or 128 + signal.SIGTERM
        self.insist()
        self._reactor.callFromThread(self._stop_once)

    def _stop_once(self) -> None:
        if not self._signalled:
            self._on_stop(signal.SIGTERM)

    def hurry(self) -> None:
        """End at once, after `stop`; any thread may call this."""
        self._deadline = min(self._deadline, time.monotonic() + self._grace)
        self._hurry.put(None)
        if self._threadless:
            signal.setitimer(signal.ITIMER_REAL, self._grace)
        self._reactor.callFromThread(self._abort)

    def answer(self) -> None:
        """Note that the event loop, or a start, has seen the signal: its end may take time."""
        self._answered = True

    def _begin_shutdown(self) -> None:
        self.answer()
        self.insist()

    def insist(self) -> None:
        """Make the process end within its patience from now on, even if it hangs."""
        if self._deadline < math.inf:
            return
        self._deadline = time.monotonic() + self.patience
        try:
            threading.Thread(target=self._insist, name="echod-stopper", daemon=True).start()
        except RuntimeError:  # no more threads are allowed; raising here could hit any code
            self._insist_without_thread()

    def _insist_without_thread(self) -> None:
        """Let the kernel's timer end the process, with SIGALRM; its pidfile stays."""
        self._threadless = True
        with contextlib.suppress(ValueError):  # only the main thread may; it is the default
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(self.patience, GRACE))

    def _insist(self) -> None:
        """In a thread: end the process if nothing else does."""
        notice = min(NOTICE, self.patience)
        if not (hurried := self._hurried(notice)):
            if not self._answered:
                self._say(_unanswered)
            hurried = self._hurried(self.patience - notice - LAST_WORDS)
        if hurried:
            time.sleep(max(0.0, self._grace - LAST_WORDS))
        self._say(_not_stopped)
        remove_pidfile(self._pidfile)
        os._exit(self.code)

    def _hurried(self, seconds: float) -> bool:
        """Wait for a second signal, for so long; return whether there was one."""
        with contextlib.suppress(queue.Empty):
            self._hurry.get(timeout=max(0.0, seconds))
            return True
        return False

    def _say(self, line: LogLine) -> None:
        """Log where the event loop is. A log that blocks does not keep the process."""

        def tell() -> None:
            main = threading.main_thread().ident or 0
            line.write(place=in_one_line(without_reactor(frames_of_thread(main))))
            self._flush(LAST_WORDS)

        with contextlib.suppress(RuntimeError):  # no more threads are allowed
            speaker = threading.Thread(target=tell, name="echod-last-words", daemon=True)
            speaker.start()
            speaker.join(LAST_WORDS)

    def _reactor_ended(self) -> None:
        """Keep twistd from ending the process with the signal before Python has ended."""
        number, self._reactor._exitSignal = self._reactor._exitSignal, None
        if number is not None:
            ending.end_by_signal(number)

    def _leave_to_kernel(self) -> None:
        """At the interpreter's end, hand the deadline to the kernel: the thread soon stops
        running.
        """
        if self._deadline < math.inf and not self._threadless:
            ending.keep_deadline(self.code, self._deadline)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def remove_pidfile(path: str) -> None:
    """Remove the pidfile at `path`, if it belongs to this process."""
    with contextlib.suppress(OSError, ValueError):
        if path and int(Path(path).read_text()) == os.getpid():
            Path(path).unlink()
