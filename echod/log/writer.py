"""A thread that writes log lines, so that no other thread waits for the log's reader.

Standard output may be a full pipe, the disk may be full, the reader may be dead: in each case
`LogWriter.add` returns at once. Guarantees:

* `add` may be called from any thread, from a signal handler and while an object is deleted; it
  never waits for the sink.
* The lines that wait, and those that are being written, are bounded by `MOST_PENDING`. Lines that
  find no room there, or that the sink did not accept, are counted as dropped; their number is
  written with the next lines.
* Lines are written in the order they were added, many at a time: a line wakes the thread, which
  gathers further lines for `GATHER` seconds.
* No error ends the thread: the lines that it was writing count as dropped.
* The thread is a daemon and is never joined without a time-out: a reader that has stopped reading
  cannot keep the process alive.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

from echod.log.sinks import Line, Sink
from echod.threads import NoThreadError, start_thread

# How many characters may wait to be written: some 8,000 lines, or a few seconds of a flood.
MOST_PENDING = 1024 * 1024

# How long lines are gathered for one write, in seconds: a person who watches the log does not
# notice it, and a flood costs fifty wake-ups a second instead of one for each line.
GATHER = 0.02

# How long the thread waits after an error before it tries again, in seconds.
AGAIN = 1.0

# How long the end of the process may wait for the last lines, in seconds.
LAST_WAIT = 0.5


class LogWriter:
    """Accepts lines at any time, and writes them when the sink can accept them.

    Attributes:
        written: how many lines the sink has accepted.
        dropped: how many lines were lost.
        in_child: whether this is a forked child, which has no thread: `add` writes.
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
            sink: the target of the lines.
            notice: makes the line with the number of dropped lines.
            trouble: makes the line that says why there is no new file.
            look_after: called in the writer's thread whenever that has been woken; may add lines.
                Returns the number of seconds after which to call it again, or None.
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
        self.in_child = False
        self._reset()

    def _reset(self) -> None:
        # Reentrant: a line may be added while another one is, in the same thread, by a signal
        # handler or by the deletion of an object.
        self._lock = threading.RLock()
        self._pending: list[Line] = []
        self._size = 0
        self._waking = False
        # Functions to call once the pending lines are written; None is only a wake-up.
        self._wake: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start writing. Call it after the process has forked: threads do not survive a fork.

        Raises:
            NoThreadError: the system allows no further thread.
        """
        self._running = True
        self._launch()

    def restart(self) -> None:
        """In a forked child: leave the parent's lines to the parent.

        Before `start` there are none: twistd forks to go into the background, and goes on as the
        child. After `start`, the child writes each line when it is added, because it may end
        without notice to any thread, as processes of `multiprocessing` do.
        """
        pending = [] if self._running else self._pending
        if self._running:
            self._running = False
            self.in_child = True
            self._sink = self._sink.in_child()
        self._reset()
        for line in pending:
            self.add(line)

    def _launch(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = start_thread(self._work, "echod-log", "the log")
                self.wake()

    def add(self, line: Line) -> None:
        """Write `line` soon, or count it as dropped."""
        with self._lock:
            if self._size + len(line.text) > MOST_PENDING:
                self.dropped += 1
                return
            self._pending.append(line)
            self._size += len(line.text)
        if self.in_child:
            self._write_pending()
            return
        if self._running and self._thread is None:
            with contextlib.suppress(NoThreadError):  # the next line tries again
                self._launch()
        if self._finishing and threading.current_thread() is not self._thread:
            self._finishing = self.flush(LAST_WAIT)
        elif not self._waking:
            self.wake()

    def wake(self) -> None:
        """Wake the thread."""
        self._waking = True
        self._wake.put(None)

    def rotate(self) -> None:
        """Write the pending lines, then begin a new file. A signal handler may call this."""
        self._wake.put(self._begin_anew)

    def _begin_anew(self) -> None:
        try:
            self._sink.begin_anew()
        except OSError as error:
            self.add(self._trouble(error))

    def when_written(self, call: Callable[[], object]) -> None:
        """Call a function once the lines that are pending now are written.

        Args:
            call: is called in the writer's thread; at once, if that does not run.
        """
        if self._thread is None:
            self._write_pending()
            call()
        else:
            self._wake.put(call)

    def flush(self, timeout: float) -> bool:
        """Wait until the pending lines are written.

        Args:
            timeout: how long to wait at most, in seconds.

        Returns:
            Whether they are; if the thread does not run, they are written at once.
        """
        done = threading.Event()
        self.when_written(done.set)
        return done.wait(timeout)

    def finish(self) -> None:
        """After the event loop has ended: let `add` wait until its line is written, for a limited
        time.
        """
        self._finishing = self.flush(LAST_WAIT)

    def close(self) -> None:
        """Write the pending lines, for a limited time, and stop."""
        self._finishing = False
        self.flush(LAST_WAIT)
        self._running = False
        thread, self._thread = self._thread, None
        if thread is not None:
            self.wake()
            thread.join(LAST_WAIT)

    def _work(self) -> None:
        """Run the writer's thread."""
        patience: float | None = None
        while self._running:
            asked = None
            with contextlib.suppress(queue.Empty):
                asked = self._wake.get(timeout=patience)
            try:
                patience = self._take_turn(asked)
            except Exception:  # memory is short, for example: the log goes on
                self._waking = False
                patience = AGAIN

    def _take_turn(self, asked: Callable[[], object] | None) -> float | None:
        """Write the pending lines, then do what was asked; return when to look again."""
        if asked is None:
            time.sleep(GATHER)
        # Clear the flag before reading: that may cost an extra wake-up, but never a line.
        self._waking = False
        try:
            patience = self._look_after()
            self._write_pending()
        finally:
            if asked is not None:
                asked()
        return patience

    def _write_pending(self) -> None:
        with self._lock:
            lines, self._pending = self._pending, []
            size, dropped = self._size, self.dropped
        if not lines:
            return
        unreported = dropped - self._reported
        written = 0
        try:
            noticed = [self._notice(unreported)] if unreported else []
            written = self._sink.write(noticed + lines)
            if noticed and written:
                self._reported = dropped
                written -= 1
        finally:
            with self._lock:
                # Only now, because lines that the sink is writing take room, too.
                self._size -= size
                self.written += written
                self.dropped += len(lines) - written
