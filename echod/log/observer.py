"""Turn events into lines of the log: as text or as JSON, escaped, and limited to a rate.

`LogObserver` takes every event of the process, prints included, and makes a line of it. It
guarantees, for any event:

* A line contains no control character except its own end. In text, the lines of a traceback begin
  with a tab, so that none of them looks like an event.
* Above `rate` events of one kind a second (events with the same logger and the same format),
  events are counted instead of written, and every `WINDOW` seconds a line gives their number, and
  the addresses that most of them were about.
* No caller waits for the line to be written: see `echod.log.writer`.

No text from a client is ever a format: formats are literals, and a test of the sources checks
that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from twisted.logger import ILogObserver, LogEvent, LogLevel
from zope.interface import implementer

from echod.log.lines import json_line, level_of, text_line, unstamped_line
from echod.log.rate import EventKind, Excess, Limiter
from echod.log.sinks import FileSink, Line, Sink
from echod.log.writer import LogWriter
from echod.text import escape, plural

LEVELS: tuple[str, ...] = tuple(level.name for level in LogLevel.iterconstants())
_RANK_BY_NAME = {name: rank for rank, name in enumerate(LEVELS)}
_RANKS = {level: rank for rank, level in enumerate(LogLevel.iterconstants())}


@implementer(ILogObserver)
class LogObserver:
    """Turns events into lines, and passes them to a writer.

    Attributes:
        writer: writes the lines; start it, and close it at the end.
        above: the kinds of which no event is written now: see `Limiter.above`.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        format: str = "text",  # noqa: A002 - the name of the setting
        level: str = "info",
        rate: float = 0,
        clock: Callable[[], float] = time.monotonic,
        worker: int = 0,
    ) -> None:
        """Set up.

        Args:
            sink: the target of the lines.
            format: one of `FORMATS`.
            level: the lowest level that is written, one of `LEVELS`.
            rate: how many events of one kind may be written a second; 0: all.
            clock: the time, in seconds, for `rate`.
            worker: the number of the worker that this process is; 0 if it is none.
        """
        self._render = _renderer(format, stamps=sink.stamps, worker=worker)
        self._lowest = LEVELS.index(level)
        self._limiter = Limiter(rate)
        self.above = self._limiter.above
        self._clock = clock
        self._lock = threading.RLock()
        self._sink = sink
        self.writer = LogWriter(
            sink,
            notice=self._dropped_line,
            trouble=self._no_new_file,
            look_after=self._summarize,
        )

    def reconfigure(self, *, level: str, rate: float, files: int) -> None:
        """Use another level and rate from now on.

        Args:
            level: as for `__init__`.
            rate: as for `__init__`.
            files: how many old files to keep, if the log goes to a file; 0: all.
        """
        self._lowest = LEVELS.index(level)
        with self._lock:
            self._limiter.change(rate)
        if isinstance(self._sink, FileSink):
            self._sink.keep = files

    def __call__(self, event: LogEvent) -> None:
        """Write `event`, unless it is above the rate or below the level."""
        level = event.get("log_level") or LogLevel.info
        if _RANKS.get(level, 0) < self._lowest and not event.get("log_always"):
            return
        if self.writer.in_child:
            self._report()  # there is no other thread to do that
        if not self._admits(_kind(event), str(event.get("peer", ""))):
            return
        if text := self._render(event):
            self.writer.add(Line(text, level.name))

    def wants(self, kind: EventKind, source: str) -> bool:
        """Return whether an event of `kind` about a client of `source` would be written.

        An event above the rate is counted here, and need not be made. While the kind is in
        `above`, it is quicker to note the event there.
        """
        if _RANK_BY_NAME[kind.level] < self._lowest:
            return False
        with self._lock:
            refused = self._limiter.refuses(kind, self._clock, source)
            first = refused and self._limiter.holding == 1
        if first:
            self.writer.wake()  # from now on it has to write the summary in time
        return not refused

    def count(self, kind: EventKind) -> None:
        """Count the events of `kind` that were noted in `above`."""
        with self._lock:
            self._limiter.count(kind, self._clock())

    def _admits(self, kind: EventKind, peer: str) -> bool:
        limiter = self._limiter
        with self._lock:
            admitted = limiter.admits(kind, self._clock(), peer)
            first = not admitted and limiter.holding == 1
        if first:
            self.writer.wake()  # as above
        return admitted

    def _summarize(self) -> float | None:
        """In the writer's thread: report the suppressed events; return when to do so again."""
        if not self._limiter.holding:
            return None
        self._report()
        return 1.0

    def _report(self, *, everything: bool = False) -> None:
        with self._lock:
            reports = self._limiter.report(self._clock(), everything=everything)
        for excess in reports:
            self.writer.add(Line(self._summary(excess), excess.kind.level))

    def write_now(self, event: LogEvent) -> None:
        """Write `event` before returning, because the writer's thread does not run yet."""
        self(event)
        self.writer.flush(0)

    def restart(self) -> None:
        """In a forked child: replace locks that another thread of the parent may have held, and
        leave the events that the parent has counted to the parent.
        """
        self._lock = threading.RLock()
        self.writer.restart()
        if self.writer.in_child:
            self._limiter = Limiter(self._limiter.rate)
            self.above = self._limiter.above

    def finish(self) -> None:
        """After the event loop has ended: report suppressed events, and wait for later lines."""
        self._report(everything=True)
        self.writer.finish()

    def close(self) -> None:
        """Report suppressed events, write the rest, and stop."""
        self._report(everything=True)
        self.writer.close()

    def _summary(self, excess: Excess) -> str:
        kind = excess.kind
        sources = ", ".join(f"{source}: {count}" for source, count in excess.top)
        return self._render(
            _event(
                "… {count} more like this in {seconds} s{_sources}: {like}",
                level=kind.level,
                logger=kind.logger,
                count=excess.events,
                seconds=excess.seconds,
                sources=sources,
                _sources=f" (most from {sources})" if sources else "",
                like=kind.format[:200],
            )
        )

    def _dropped_line(self, count: int) -> Line:
        text = self._render(
            _event(
                plural(
                    count,
                    "{dropped} line of the log was lost",
                    "{dropped} lines of the log were lost",
                ),
                level="warn",
                dropped=count,
            )
        )
        return Line(text, "warn")

    def _no_new_file(self, error: OSError) -> Line:
        text = self._render(
            _event(
                "Cannot begin a new log file, still writing to the old one: {path}: {why}",
                level="error",
                path=escape(str(error.filename)),
                why=escape(error.strerror or str(error)),
            )
        )
        return Line(text, "error")

    @property
    def stamps(self) -> bool:
        """Whether the receiver of the lines adds the time to them."""
        return self._sink.stamps

    @property
    def written(self) -> int:
        """The number of lines written."""
        return self.writer.written

    @property
    def lost(self) -> int:
        """The number of lines that were dropped because there was no room."""
        return self.writer.dropped

    @property
    def suppressed(self) -> int:
        """The number of events that were counted instead of written."""
        with self._lock:
            return self._limiter.suppressed


def _renderer(form: str, *, stamps: bool, worker: int) -> Callable[[LogEvent], str]:
    """Return the function that makes a line of an event."""
    render = json_line if form == "json" else unstamped_line if stamps else text_line
    if not worker:
        return render
    return lambda event: render({**event, "log_worker": worker})


def _kind(event: LogEvent) -> EventKind:
    form = event.get("log_kind", event.get("log_format"))
    return EventKind(
        str(event.get("log_namespace", "-")),
        form if isinstance(form, str) else "",
        level_of(event),
    )


def _event(form: str, *, level: str, logger: str = "echod.log", **values: object) -> LogEvent:
    """Make an event without a publisher, because the log cannot log to itself."""
    return {
        "log_format": form,
        "log_level": LogLevel.lookupByName(level),
        "log_namespace": logger,
        "log_time": time.time(),
        **values,
    }
