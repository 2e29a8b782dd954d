"""What the log looks like: as text or as JSON, escaped, and not more than anybody can read.

`LogObserver` takes every event of the process, echod's and everybody else's, prints included,
and makes a line of it.  It promises three things about that line, whatever the event holds:

* No control character but the line's own end gets out.  Within text, the lines of a traceback
  begin with a tab, so that none of them can pass for an event.
* Above `rate` events of one kind a second (events with the same logger and the same format), they
  are counted instead of written, and every `WINDOW` seconds a line says how many there were, and
  which addresses most of them were about.
* Nobody waits for it to be written: see `echod.logwriter`.

A format is never a client's text: formats are literals, which a test of the sources holds.
"""

from __future__ import annotations

import enum
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import IO, Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText
from zope.interface import implementer

from echod.lograte import EventKind, Excess, Limiter
from echod.logsinks import DescriptorSink, FileSink, Line, Sink, SyslogSink
from echod.logwriter import LogWriter
from echod.text import escape, escape_lines, plural, shortened
from echod.tracebacks import traceback_of

FORMATS = ("text", "json")
LEVELS: tuple[str, ...] = tuple(level.name for level in LogLevel.iterconstants())
_RANKS = {level: rank for rank, level in enumerate(LogLevel.iterconstants())}

# What Twisted adds to events for observers of old, and what a record has of its own.
_NOT_FIELDS = frozenset(
    ("message", "time", "system", "format", "isError", "failure", "level", "logger")
)


@implementer(ILogObserver)
class LogObserver:
    """Makes lines of events, and gives them to a writer.

    Attributes:
        writer: writes the lines; to be started, and closed at the end.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        format: str = "text",  # noqa: A002 - as the setting is called
        level: str = "info",
        rate: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up.

        Args:
            sink: where lines go.
            format: one of `FORMATS`.
            level: the lowest level that is written, one of `LEVELS`.
            rate: how many events of one kind may be written a second; 0: all.
            clock: the time, in seconds, for `rate`.
        """
        self._render = json_line if format == "json" else text_line
        if sink.stamps and format == "text":
            self._render = unstamped_line
        self._lowest = LEVELS.index(level)
        self._limiter = Limiter(rate)
        self._clock = clock
        self._lock = threading.RLock()
        self._sink = sink
        self.writer = LogWriter(
            sink,
            notice=self._dropped_line,
            trouble=self._no_new_file,
            look_after=self._summarize,
        )

    def configure(self, *, level: str, rate: float, files: int) -> None:
        """Take another level and rate, as for `__init__`, for the events to come.

        Args:
            level: see there.
            rate: see there.
            files: how many old files to keep, where there are files; 0: all.
        """
        self._lowest = LEVELS.index(level)
        self._limiter.rate = rate
        if isinstance(self._sink, FileSink):
            self._sink.keep = files

    def __call__(self, event: LogEvent) -> None:
        """Write `event`, unless it is too many or too low."""
        level = event.get("log_level") or LogLevel.info
        if _RANKS.get(level, 0) < self._lowest and not event.get("log_always"):
            return
        if not self._ask(self._limiter.admits, _kind(event), str(event.get("peer", ""))):
            return
        if text := self._render(event):
            self.writer.add(Line(text, level.name))

    def wants(self, kind: EventKind, peer: str) -> bool:
        """Return whether an event of `kind` about `peer`, yet to be made, would be written.

        One that would be too many is counted here, and need not be made.
        """
        if LEVELS.index(kind.level) < self._lowest:
            return False
        return not self._ask(self._limiter.refuses, kind, peer)

    def _ask(
        self, question: Callable[[EventKind, float, str], bool], kind: EventKind, peer: str
    ) -> bool:
        with self._lock:
            held = self._limiter.holding
            answer = question(kind, self._clock(), peer)
        if self._limiter.holding and not held:
            self.writer.wake()  # from now on it has to look after the summary
        return answer

    def _summarize(self) -> float | None:
        """In the writer's thread: say what was not written; return when to look again."""
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
        """Write `event`, before the writer's thread runs: nothing may be left when we return."""
        self(event)
        self.writer.flush(0)

    def restart(self) -> None:
        """In a forked child: a lock that another thread of the parent held is free for nobody."""
        self._lock = threading.RLock()
        self.writer.restart()

    def finish(self) -> None:
        """The event loop has ended: say what is left to say, and wait for what comes yet."""
        self._report(everything=True)
        self.writer.finish()

    def close(self) -> None:
        """Write what is left to say, and stop."""
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
                "Cannot begin a new log file, the old one goes on: {path}: {why}",
                level="error",
                path=escape(str(error.filename)),
                why=escape(error.strerror or str(error)),
            )
        )
        return Line(text, "error")

    @property
    def written(self) -> int:
        """How many lines have been written."""
        return self.writer.written

    @property
    def lost(self) -> int:
        """How many lines found no room."""
        return self.writer.dropped

    @property
    def suppressed(self) -> int:
        """How many events were counted instead of written."""
        return self._limiter.suppressed


def _kind(event: LogEvent) -> EventKind:
    form = event.get("log_kind", event.get("log_format"))
    return EventKind(
        str(event.get("log_namespace", "-")), form if isinstance(form, str) else "", _level(event)
    )


def _event(form: str, *, level: str, logger: str = "echod.log", **values: object) -> LogEvent:
    """Return an event of our own, which no publisher has seen: the log cannot log to itself."""
    return {
        "log_format": form,
        "log_level": LogLevel.lookupByName(level),
        "log_namespace": logger,
        "log_time": time.time(),
        **values,
    }


def timestamp(event: LogEvent) -> str:
    """Return when `event` was: ISO 8601, local time with its zone, to the millisecond."""
    when = event.get("log_time") or time.time()
    return datetime.fromtimestamp(when).astimezone().isoformat(timespec="milliseconds")


def text_line(event: LogEvent) -> str:
    """Return `event` as text: `TIME [LOGGER#LEVEL] MESSAGE`; further lines begin with a tab."""
    text = unstamped_line(event)
    return text and f"{timestamp(event)} {text}"


def unstamped_line(event: LogEvent) -> str:
    """Return `event` as text, without the time."""
    text = escape_lines(shortened(_message(event))).rstrip("\n")
    if "log_failure" in event:
        text = f"{text}\n{traceback_of(event['log_failure'])}".lstrip("\n")
    return text and f"[{_system(event)}] {text}".replace("\n", "\n\t")


def json_line(event: LogEvent) -> str:
    """Return `event` as an object of JSON, in one line.

    It has `time`, `level`, `logger` and `message`, `traceback` if there is one, and the values
    that the message was made from, but for those whose names begin with `_`, which only help to
    word it.  All text in it is escaped, decoded too.
    """
    message = _message(event)
    traceback = event.get("traceback", "")
    if "log_failure" in event:
        traceback = traceback_of(event["log_failure"])
    elif traceback:
        # echod's own messages end with it, for observers that know nothing of fields.
        message = message.removesuffix(f"\n{traceback}").removesuffix(":")
    if not (message or traceback):
        return ""
    record: dict[str, Any] = {
        "time": timestamp(event),
        "level": _level(event),
        "logger": escape(str(event.get("log_namespace", "-"))),
        "message": escape_lines(shortened(message)),
    }
    for name, value in event.items():
        if not name.startswith(("log_", "_")) and name not in _NOT_FIELDS:
            shown = _field(value)
            if shown not in (None, ""):
                record[escape(name)] = shown
    if traceback:
        record["traceback"] = escape_lines(shortened(str(traceback))).rstrip("\n")
    return json.dumps(record, ensure_ascii=False)


def _field(value: object) -> object:
    """Return `value` as JSON has it; None for what is no plain value."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return escape(shortened(value)) if isinstance(value, str) else None


def _level(event: LogEvent) -> str:
    name: str = (event.get("log_level") or LogLevel.info).name
    return name


def _system(event: LogEvent) -> str:
    system = event.get("log_system")
    if system is None:
        system = f"{event.get('log_namespace', '-')}#{_level(event)}"
    return escape(str(system))


def _message(event: LogEvent) -> str:
    form = event.get("log_format")
    # Twisted's own way understands more, as `{method()}`, and takes twenty times as long.
    if isinstance(form, str) and "()" not in form:
        try:
            return form.format_map(event)
        except Exception:  # noqa: S110 - Twisted's way says what is wrong with it
            pass
    return eventAsText(event, includeTraceback=False, includeTimestamp=False, includeSystem=False)


def sink_for(twistd: Mapping[str, Any], stdout: IO[str], *, keep: int = 0) -> Sink | None:
    """Return where twistd was asked to log to.

    Args:
        twistd: twistd's own options.
        stdout: standard output.
        keep: how many old files to keep, where it is a file; 0: all.

    Returns:
        None where twistd has to decide: it was given an observer, or refuses to start.

    Raises:
        OSError: the log file cannot be opened.
    """
    path, in_foreground = twistd["logfile"], twistd["nodaemon"] or twistd["debug"]
    if twistd["logger"] or (path == "-" and not in_foreground):
        return None
    if twistd.get("syslog"):
        return SyslogSink(twistd["prefix"])
    if path == "-" or (in_foreground and not path):
        return DescriptorSink(stdout.fileno())
    return FileSink(path or "twistd.log", keep=keep)
