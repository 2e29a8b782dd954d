"""The events that a test has logged."""

from __future__ import annotations

from itertools import dropwhile

from twisted.logger import LogEvent, LogLevel, eventAsText


class Log:
    """The events that were logged since the test began."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        self._looked_at = 0  # the events before this one are no errors

    @property
    def text(self) -> str:
        """The events as twistd would write them, without times."""
        return "\n".join(
            eventAsText(event, includeTimestamp=False, includeSystem=False)
            for event in self.events
        )

    def count(self, beginning: str, since: str = "") -> int:
        """Return how many events begin with this, from the first one on that begins with `since`.

        To wait for an event, ask this: on a busy machine `text` may have the stack of a stall,
        and there the very line of the test that looks for the event.
        """
        lines = [
            eventAsText(event, includeTimestamp=False, includeSystem=False)
            for event in self.events
        ]
        rest = dropwhile(lambda line: not line.startswith(since), lines)
        return sum(line.startswith(beginning) for line in rest)

    def has(self, beginning: str) -> bool:
        """Return whether an event begins with this: see `count`."""
        return self.count(beginning) > 0

    @property
    def errors(self) -> list[str]:
        """The events that are errors, as text."""
        latest = self.events[self._looked_at :]
        return [eventAsText(event) for event in latest if _is_error(event)]

    def take_errors(self) -> list[str]:
        """Return the errors, which the test has expected, and forget them."""
        errors = self.errors
        if errors:
            latest = self.events[self._looked_at :]
            self.events[self._looked_at :] = [event for event in latest if not _is_error(event)]
        self._looked_at = len(self.events)
        return errors


def _is_error(event: LogEvent) -> bool:
    return event.get("log_level", LogLevel.info) >= LogLevel.error or bool(event.get("isError"))
