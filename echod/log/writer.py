"""A thread that writes log lines, so that nobody else waits for whoever reads them.

Standard output may be a pipe that is full, the disk may be, the reader may be dead: whatever it
is, `LogWriter.add` returns at once.  Guarantees:

* `add` may be called from any thread, from a signal handler and while an object is deleted; it
  never waits for the sink.
* What waits to be written, and what is being written, is bounded by `MOST_PENDING`.  What finds no
  room there, and what the sink would not take, is counted as dropped, and the number is written
  as soon as something is.
* Lines are written in the order they were added, many at a time: a line wakes the thread, which
  gathers for `GATHER` seconds what others add.
* The thread is a daemon and nobody joins it without a time-out: a reader that reads no more
  cannot keep the process alive.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

from echod.log.sinks import Line, Sink

# How much may wait to be written, in characters: some 8,000 lines, or a few seconds of a flood.
MOST_PENDING = 1024 * 1024

# For how long lines are gathered for one write, in seconds: nobody who watches the log sees it,
# and a flood costs fifty wake-ups a second instead of one for each line.
GATHER = 0.02

# How long the end of the process may wait for the last lines, in seconds.
LAST_WAIT = 0.5


class LogWriter:
    """Takes lines at any time, and writes them when the sink can take them.

    Attributes:
        written: how many lines the sink has taken.
        dropped: how many lines were lost.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        notice: Callable[[int], Line],
        trouble: Callable[[OSError], Line],
        look_after: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Set up, without the thread: see `start`.

        Args:
            sink: where lines go.
            notice: makes the line that says how many were dropped.
            trouble: makes the line that says why there is no new file.
            look_after: called in the writer's thread whenever that has been woken; may add
                lines.  Returns in how many seconds to call it again whatever happens, or None.
        """
        self.written = 0
        self.dropped = 0
        self._sink = sink
        self._notice = notice
        self._trouble = trouble
        self._look_after = look_after
        self._reported = 0
        self._running = False
        self._finishing = False
        self._in_child = False
        self._reset()

    def _reset(self) -> None:
        # Reentrant: a line may be added while another one is, in the same thread, by a signal
        # handler or by the deletion of an object.
        self._lock = threading.RLock()
        self._pending: list[Line] = []
        self._size = 0
        self._waking = False
        # What to do once the pending lines are written; None is nothing but a wake-up.
        self._wake: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start writing.  Not before the process has forked for good: threads do not survive."""
        self._running = True
        self._launch()

    def restart(self) -> None:
        """In a forked child: leave to the parent what is the parent's.

        Before `start` nothing is: twistd forks to go into the background, and goes on as the
        child.  After it, the child writes each line when it is added: it may end, as one of
        `multiprocessing` does, without a word to any thread.
        """
        pending = [] if self._running else self._pending
        if self._running:
            self._running = False
            self._in_child = True
            self._sink = self._sink.in_child()
        self._reset()
        for line in pending:
            self.add(line)

    def _launch(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="echod-log", daemon=True)
                self._thread.start()
                self.wake()

    def add(self, line: Line) -> None:
        """Write `line` soon, or count it as dropped."""
        with self._lock:
            if self._size + len(line.text) > MOST_PENDING:
                self.dropped += 1
                return
            self._pending.append(line)
            self._size += len(line.text)
        if self._in_child:
            self._write_pending()
            return
        if self._running and self._thread is None:
            self._launch()
        if self._finishing and threading.current_thread() is not self._thread:
            self._finishing = self.flush(LAST_WAIT)
        elif not self._waking:
            self.wake()

    def wake(self) -> None:
        """Let the thread see what there is to do."""
        self._waking = True
        self._wake.put(None)

    def rotate(self) -> None:
        """Write what is pending, then begin a new file.  A signal handler may call this."""
        self._wake.put(self._begin_anew)

    def _begin_anew(self) -> None:
        try:
            self._sink.begin_anew()
        except OSError as error:
            self.add(self._trouble(error))

    def flush(self, timeout: float) -> bool:
        """Wait until what is pending is written.

        Args:
            timeout: how long to wait at most, in seconds.

        Returns:
            Whether it is; with the thread not running, it is at once.
        """
        if self._thread is None:
            self._write_pending()
            return True
        done = threading.Event()
        self._wake.put(done.set)
        return done.wait(timeout)

    def finish(self) -> None:
        """The event loop has ended: from now on `add` waits for its line, within reason."""
        self._finishing = self.flush(LAST_WAIT)

    def close(self) -> None:
        """Write what is pending, within reason, and stop."""
        self._finishing = False
        self.flush(LAST_WAIT)
        self._running = False
        thread, self._thread = self._thread, None
        if thread is not None:
            self.wake()
            thread.join(LAST_WAIT)

    def _work(self) -> None:
        """Live as the writer's thread."""
        patience: float | None = None
        while self._running:
            asked = None
            with contextlib.suppress(queue.Empty):
                asked = self._wake.get(timeout=patience)
            if asked is None:
                time.sleep(GATHER)
            # The flag goes down before the reading: it may cost a wake-up too many, no line.
            self._waking = False
            patience = self._look_after()
            self._write_pending()
            if asked is not None:
                asked()

    def _write_pending(self) -> None:
        with self._lock:
            lines, self._pending = self._pending, []
            size, dropped = self._size, self.dropped
        if not lines:
            return
        unreported = dropped - self._reported
        noticed = [self._notice(unreported)] if unreported else []
        written = self._sink.write(noticed + lines)
        if noticed and written:
            self._reported = dropped
            written -= 1
        with self._lock:
            self._size -= size  # only now: what the sink has in hand takes room, too
            self.written += written
            self.dropped += len(lines) - written
