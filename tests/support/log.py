"""The events that a test has logged."""

from __future__ import annotations

from twisted.logger import LogEvent, LogLevel, eventAsText


class Log:
    """The events that were logged since the test began."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    @property
    def text(self) -> str:
        """The events as twistd would write them, without times."""
        return "\n".join(
            eventAsText(event, includeTimestamp=False, includeSystem=False)
            for event in self.events
        )

    @property
    def errors(self) -> list[str]:
        """The events that are errors, as text."""
        return [eventAsText(event) for event in self.events if _is_error(event)]

    def take_errors(self) -> list[str]:
        """Return the errors, which the test has expected, and forget them."""
        errors = self.errors
        self.events[:] = [event for event in self.events if not _is_error(event)]
        return errors


def _is_error(event: LogEvent) -> bool:
    return event.get("log_level", LogLevel.info) >= LogLevel.error or bool(event.get("isError"))
