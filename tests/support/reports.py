"""Workers of pytest-xdist tell the main process only what it prints or counts.

By itself, a worker sends six messages for each test: its start, a report of the set-up, one of the
test and one of what follows it, and two for the end. Each is written in Python and read in Python,
which for thousands of tests takes a quarter of a minute. For a test that passes, pytest prints a
dot: two of the messages are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_Send = Callable[..., None]


class Reports:
    """The plugin."""

    def __init__(self, config: pytest.Config) -> None:
        """Set up.

        Args:
            config: of pytest; the other plugins of this suite take it, too.
        """
        option = config.option
        # `--verbose` prints each start; the others have the times of each part.
        self._needs_all = option.verbose > 0 or option.durations is not None or option.xmlpath
        self._is_worker = hasattr(config, "workerinput")

    @pytest.hookimpl
    def pytest_plugin_registered(self, plugin: Any) -> None:
        if type(plugin).__name__ == "WorkerInteractor" and not self._needs_all:
            plugin.sendevent = _without_what_is_not_printed(plugin.sendevent)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_to_serializable(self, report: pytest.TestReport) -> dict[str, Any] | None:
        """Return what is quick to make for a report that is not sent."""
        if not self._is_worker or self._needs_all or report.when == "call":
            return None
        return {"passed": True} if report.passed and not report.sections else None


def _without_what_is_not_printed(send: _Send) -> _Send:
    def send_what_counts(name: str, **event: Any) -> None:
        if name in ("logstart", "logfinish") or "passed" in event.get("data", ()):
            return
        send(name, **event)

    return send_what_counts
