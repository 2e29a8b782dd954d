"""Detect when the event loop is blocked, and log the code that blocks it.

The loop beats: it calls itself twice in each `threshold`, and notes when such a beat was late. A
thread watches. It wakes up when the beat that it waits for is late, or would be; mostly the loop
has gone on by then, and the thread waits for a later beat. If it has not, a handler blocks the
loop, and the log shows the current stack of the reactor's thread; it is logged again each time the
duration has doubled.

The thread alone could not tell. It needs the interpreter, and a busy loop, which lends it out for
a moment only, may keep it from the thread for a second without being blocked at all. Each attempt
to get it disturbs such a loop, so the thread wakes up seldom.

Similar cases are told apart. If the process was stopped (SIGSTOP, a suspended machine) or got no
processor time, there is no stack to blame. C code that holds the interpreter, such as a regular
expression, stops the watching thread too; it is named if that thread gets the interpreter before
the loop goes on, and it is counted in any case.

Stalls are measured to a quarter of the threshold: a stall that lasts 1.25 times the threshold is
always seen, and none is reported that was shorter than 0.75 times.

`_due` and `_late` are shared by both threads. Each use of them is one operation, so they need no
lock: the loop notes that a beat was late before it plans the next one.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from echod.daemon.stacks import Frames, frames_under, from_handler, module_of, shown
from echod.metrics import Metrics
from echod.text import plural
from echod.timers import cancel_timer

log = Logger("echod.stalls")

# If the innermost frame is in one of these, the event loop waits, and no handler is at work.
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


class _Stopped(Exception):
    """The watch is over."""


class StallWatch:
    """Watches the event loop from a thread of its own.

    Attributes:
        threshold: how long the loop may be blocked, in seconds.
    """

    def __init__(
        self,
        clock: IReactorTime,
        threshold: float,
        metrics: Metrics,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            clock: the reactor, for the beats.
            threshold: how long the loop may be blocked, in seconds.
            metrics: the watching thread counts stalls there.
            seconds: a monotonic clock, in seconds.
        """
        self._clock = clock
        self.threshold = threshold
        # On average, a stall begins half a period before the beat that it delays was due.
        self._period = threshold / 2
        self._metrics = metrics
        self._seconds = seconds
        # When the next beat is due; and of each beat that was late, when it was due, and came.
        self._due = 0.0
        self._late: deque[tuple[float, float]] = deque()
        self._beating: IDelayedCall | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Lock()  # released when the watch is over
        self._over.acquire()
        self._watched = 0
        self._processor_clock = time.CLOCK_MONOTONIC
        self._silent_until = 0.0
        self._untold = 0

    def start(self) -> None:
        """Watch the calling thread, which runs the reactor."""
        self._watched = threading.get_ident()
        if hasattr(time, "pthread_getcpuclockid"):  # not on macOS
            self._processor_clock = time.pthread_getcpuclockid(self._watched)
        self._plan_beat()
        thread = threading.Thread(target=self._watch, name="echod-stalls", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads are allowed: serve nevertheless
            cancel_timer(self._beating)
            log.warn("Stall detection is off: {why}", why=str(error))
        else:
            self._thread = thread

    def stop(self) -> None:
        """Stop watching. Calling it again is harmless."""
        thread, self._thread = self._thread, None
        if thread is not None:
            cancel_timer(self._beating)
            self._over.release()
            thread.join()

    # In the reactor's thread.

    def _plan_beat(self) -> None:
        self._due = self._seconds() + self._period
        self._beating = self._clock.callLater(self._period, self._beat)

    def _beat(self) -> None:
        came = self._seconds()
        if self._length(self._due, came) >= self.threshold:
            self._late.append((self._due, came))
        self._plan_beat()

    # In the thread.

    def _watch(self) -> None:
        with contextlib.suppress(_Stopped):
            while True:
                self._await_beat(self._due)

    def _await_beat(self, due: float) -> None:
        """Wait for a beat, and show where the loop is if it is late.

        Args:
            due: when the beat is due.
        """
        shown, show_at, paused = False, self.threshold, 0.0
        patience = self.threshold - self._length(due, self._seconds())
        while True:
            paused += self._wait(max(patience, 0.0))
            if self._due != due:
                break
            frame, lasted = self._frame(), self._length(due, self._seconds()) - paused
            if lasted >= show_at and frame is not None:
                # At each doubling, so that a call that never returns is named again and again.
                again = show_at > self.threshold
                shown = self._show(lasted, frame, again=again) or shown
                show_at = 2 * lasted
            patience = self.threshold
        self._count_stalls(paused, shown=shown)

    def _length(self, due: float, until: float) -> float:
        """Return how long a stall has lasted, in seconds.

        Args:
            due: when the beat was due that it delays.
            until: its end, or now.
        """
        return until - due + self._period / 2

    def _count_stalls(self, paused: float, *, shown: bool) -> None:
        """Count the stalls that have ended.

        Args:
            paused: for how long the process did not run meanwhile, in seconds.
            shown: whether the log has shown the stack of the first one.
        """
        while self._late:
            lasted = self._length(*self._late.popleft()) - paused
            if lasted >= self.threshold:
                self._metrics.stalls += 1
                self._metrics.stalled += lasted
                if shown:
                    log.warn("The event loop continues after {seconds:.2f} s", seconds=lasted)
            shown = False

    def _wait(self, patience: float) -> float:
        """Wait for `patience` seconds.

        Returns:
            For how long the process did not run meanwhile, at most, in seconds.

        Raises:
            _Stopped: the watch is over.
        """
        due, used = self._seconds() + patience, self._used()
        if self._over.acquire(timeout=patience):
            raise _Stopped
        late = self._seconds() - due
        if late < self.threshold or self._used() - used >= self.threshold:
            return 0.0
        if late >= WORTH_MENTIONING:
            log.warn(
                "The process did not run for {seconds:.1f} s: it was stopped, or got no CPU time",
                seconds=late,
            )
        return patience + late

    def _used(self) -> float:
        """Processor time that the reactor's thread has used, in seconds."""
        return time.clock_gettime(self._processor_clock)

    def _frame(self) -> FrameType | None:
        """Return the innermost frame of the reactor's thread; None while it waits for events."""
        frame = sys._current_frames().get(self._watched)
        waits = frame is None or frame.f_globals.get("__name__") in WAITS_IN
        return None if waits else frame

    def _show(self, seconds: float, frame: FrameType, *, again: bool) -> bool:
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
