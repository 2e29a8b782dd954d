"""Detect when the event loop is blocked, and log the code that blocks it.

A thread watches. While the loop waits for events this costs nothing: the thread wakes up a few
times in each `threshold`, sees that the reactor's thread has used no processor time since, and
goes back to sleep. When the reactor's thread is at work, the watching thread sends it a call. If
the call is not answered in time, a handler blocks the loop, and the log shows the current stack of
the reactor's thread; it is logged again each time the duration has doubled.

Similar cases are told apart. If the process was stopped (SIGSTOP, a suspended machine) or got no
processor time, there is no stack to blame. C code that holds the interpreter, such as a regular
expression, stops the watching thread too: that thread then wakes up late, and finds that the
reactor's thread has worked in the meantime.

Stalls are measured to a quarter of the threshold: a stall that lasts 1.25 times the threshold is
always seen, and none is reported that was shorter than 0.75 times.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from echod.daemon.stacks import Frames, frames_under, from_handler, module_of, shown
from echod.metrics import Metrics
from echod.text import plural

log = Logger("echod.stalls")

# If the innermost frame is in one of these, the event loop waits, and no handler is at work. With
# a reactor that is not listed, the thread asks more often than it needs to.
WAITS_IN = frozenset(
    {
        "echod.reactor.reactor",
        "selectors",
        "twisted.internet.asyncioreactor",
        "twisted.internet.epollreactor",
        "twisted.internet.pollreactor",
        "twisted.internet.selectreactor",
    }
)

# The reactor's own frames are the same in each stall, and not shown: those that start in `RUNS`,
# as in all reactors, and continue in these.
RUNS = "twisted.internet.base"
CALLS = ("twisted.", "echod.reactor.", "asyncio.")

# Seconds between two stacks in the log: a handler that is slow each time would fill it.
LOG_INTERVAL = 10.0

# How long the process has to be kept from running before the log says so, in seconds: short delays
# are usual on a busy machine. A stall this long is logged in spite of `LOG_INTERVAL`.
WORTH_MENTIONING = 1.0


class _Waited(NamedTuple):
    """The result of a wait; times in seconds.

    Attributes:
        answered: when the reactor answered; None if it did not.
        held: how long C code in the reactor's thread kept this thread from waking up.
        paused: how long the process as a whole was kept from running.
    """

    answered: float | None
    held: float
    paused: float


class _Stopped(Exception):
    """The watch is over."""


class StallWatch:
    """Watches the event loop from a thread of its own.

    Attributes:
        threshold: how long the loop may be blocked, in seconds.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        threshold: float,
        metrics: Metrics,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            reactor: answers through its `callFromThread`.
            threshold: how long the loop may be blocked, in seconds.
            metrics: the watching thread counts stalls there.
            seconds: a monotonic clock, in seconds.
        """
        self._reactor = reactor
        self.threshold = threshold
        # On average, a stall is noticed half a period after it began.
        self._period = threshold / 2
        self._metrics = metrics
        self._seconds = seconds
        self._answers: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._watched = 0
        self._clock = time.CLOCK_MONOTONIC
        self._silent_until = 0.0
        self._untold = 0

    def start(self) -> None:
        """Watch the calling thread, which runs the reactor."""
        self._watched = threading.get_ident()
        if hasattr(time, "pthread_getcpuclockid"):  # not on macOS
            self._clock = time.pthread_getcpuclockid(self._watched)
        thread = threading.Thread(target=self._watch, name="echod-stalls", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads are allowed: serve nevertheless
            log.warn("Stall detection is off: {why}", why=str(error))
        else:
            self._thread = thread

    def stop(self) -> None:
        """Stop watching. Calling it again is harmless."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._answers.put(None)
            thread.join()

    # In the thread.

    def _watch(self) -> None:
        idle_at = -1.0
        with contextlib.suppress(_Stopped):
            while True:
                waited = self._wait(self._period)
                if waited.held:
                    self._show(waited.held, self._frame())
                    self._count(waited.held)
                # Read this before the frame: work that begins in between changes it.
                used = self._used()
                if used != idle_at:
                    if self._frame() is not None:
                        self._ask()
                        used = -1.0
                    idle_at = used

    def _used(self) -> float:
        """Processor time that the reactor's thread has used, in seconds."""
        return time.clock_gettime(self._clock)

    def _wait(self, patience: float) -> _Waited:
        """Wait for an answer of the reactor's thread, for `patience` seconds.

        Raises:
            _Stopped: the watch is over.
        """
        due, used = self._seconds() + patience, self._used()
        answered = None
        with contextlib.suppress(queue.Empty):
            answered = self._answers.get(timeout=patience)
            if answered is None:
                raise _Stopped
        late = self._seconds() - due
        if late < self.threshold:
            return _Waited(answered, 0.0, 0.0)
        worked = self._used() - used
        if worked >= self.threshold:
            return _Waited(answered, worked, 0.0)
        if late >= WORTH_MENTIONING:
            log.warn(
                "The process did not run for {seconds:.1f} s: it was stopped, or got no CPU time",
                seconds=late,
            )
        return _Waited(answered, 0.0, late)

    def _ask(self) -> None:
        """Measure how long the current work of the reactor's thread takes."""
        asked = self._seconds() - self._period / 2
        self._reactor.callFromThread(self._answer)
        shown, show_at = False, 0.0
        waited = self._wait(self.threshold - self._period / 2)
        while waited.answered is None:
            asked += waited.paused
            frame, lasted = self._frame(), self._seconds() - asked
            if lasted >= show_at and not waited.paused and frame is not None:
                # At each doubling, so that a call that never returns is named again and again.
                shown = self._show(lasted, frame, again=show_at > 0) or shown
                show_at = 2 * lasted
            waited = self._wait(self.threshold)
        lag = waited.answered - asked - waited.paused
        if lag >= self.threshold:
            self._count(lag)
            if shown:
                log.warn("The event loop continues after {seconds:.2f} s", seconds=lag)

    def _answer(self) -> None:
        """Answer, in the reactor's thread."""
        self._answers.put(self._seconds())

    def _frame(self) -> FrameType | None:
        """Return the innermost frame of the reactor's thread; None while it waits for events."""
        frame = sys._current_frames().get(self._watched)
        waits = frame is None or frame.f_globals.get("__name__") in WAITS_IN
        return None if waits else frame

    def _count(self, seconds: float) -> None:
        self._metrics.stalls += 1
        self._metrics.stalled += seconds

    def _show(self, seconds: float, frame: FrameType | None, *, again: bool = False) -> bool:
        """Log the stack that blocks the loop, unless a short stall follows another.

        Args:
            seconds: how long the loop has been blocked.
            frame: the innermost frame.
            again: whether this stall was counted, or shown, before.
        """
        now = self._seconds()
        if now < self._silent_until and not (again and seconds >= WORTH_MENTIONING):
            self._untold += not again
            return False
        self._silent_until = now + LOG_INTERVAL
        untold, self._untold = self._untold, 0
        log.warn(
            "The event loop has been blocked for {seconds:.2f} s{others}; it is at:\n{stack}",
            seconds=seconds,
            others=f" ({untold} more {plural(untold, 'was', 'were')} not shown)" if untold else "",
            stack=shown(from_handler(without_reactor(frames_under(frame)))),
        )
        return True


def without_reactor(frames: Frames) -> Frames:
    """Leave out the frames of the running reactor."""
    return frames[_beginning([module_of(one) for one in frames]) :]


def _beginning(names: list[str]) -> int:
    """Return the index of the first frame that does not belong to the running reactor.

    Args:
        names: the frames' modules, the outermost first.
    """
    if RUNS in names:
        for index in range(names.index(RUNS), len(names)):
            if not names[index].startswith(CALLS):
                return index
    return 0
