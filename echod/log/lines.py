"""Format a line of the log: as text or as JSON, escaped.

A line contains no control character except its own end. In text, the lines of a traceback begin
with a tab, so that none of them looks like an event.
"""

from __future__ import annotations

import enum
import json
import math
import time
from datetime import datetime

from twisted.logger import LogEvent, LogLevel, eventAsText

from echod.log.tracebacks import traceback_of
from echod.text import escape, escape_lines, shortened

FORMATS = ("text", "json")

# Keys that Twisted adds to events for old observers, and keys of a record itself.
_NOT_FIELDS = frozenset(
    ("message", "time", "system", "format", "isError", "failure", "level", "logger")
)


def timestamp(event: LogEvent) -> str:
    """Return the time of `event`: ISO 8601, local time with its zone, in milliseconds."""
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

    It has `time`, `level`, `logger` and `message`, `worker` in a worker, `traceback` if there is
    one, and the values of the message, except those whose names begin with `_`, which are only
    parts of its wording. All text in it is escaped, also after decoding.
    """
    message = _message(event)
    traceback = event.get("traceback", "")
    if "log_failure" in event:
        traceback = traceback_of(event["log_failure"])
    elif traceback:
        # echod's own messages end with it, for observers that do not know fields.
        message = message.removesuffix(f"\n{traceback}").removesuffix(":")
    if not (message or traceback):
        return ""
    record: dict[str, object] = {
        "time": timestamp(event),
        "level": level_of(event),
        "logger": escape(str(event.get("log_namespace", "-"))),
        "message": escape_lines(shortened(message)),
    }
    if "log_worker" in event:
        record["worker"] = event["log_worker"]
    for name, value in event.items():
        if not name.startswith(("log_", "_")) and name not in _NOT_FIELDS:
            shown = _field(value)
            if shown not in (None, ""):
                record[escape(name)] = shown
    if traceback:
        record["traceback"] = escape_lines(shortened(str(traceback))).rstrip("\n")
    return json.dumps(record, ensure_ascii=False)


def _field(value: object) -> object:
    """Return `value` for JSON; None if it is not a plain value."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return escape(shortened(value)) if isinstance(value, str) else None


def level_of(event: LogEvent) -> str:
    """Return the name of the level of `event`."""
    name: str = (event.get("log_level") or LogLevel.info).name
    return name


def _system(event: LogEvent) -> str:
    system = event.get("log_system")
    if system is None:
        system = f"{event.get('log_namespace', '-')}#{level_of(event)}"
    worker = f", worker {event['log_worker']}" if "log_worker" in event else ""
    return escape(f"{system}{worker}")


def _message(event: LogEvent) -> str:
    form = event.get("log_format")
    # Twisted's own formatting understands more, such as `{method()}`, and takes twenty times as
    # long.
    if isinstance(form, str) and "()" not in form:
        try:
            return form.format_map(event)
        except Exception:  # noqa: S110 - Twisted's formatting reports the error
            pass
    return eventAsText(event, includeTraceback=False, includeTimestamp=False, includeSystem=False)
