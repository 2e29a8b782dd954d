"""One thread ends the process of a test that takes too long.

By itself, pytest-timeout starts a thread for each test, and waits for its end. For thousands of
tests that takes seconds of processor time.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import pytest_timeout

# How often the thread looks, in seconds: a limit is so much longer at most.
INTERVAL = 1.0


class TimeLimit:
    """The plugin; pytest-timeout calls it."""

    def __init__(self, config: pytest.Config) -> None:
        """Set up.

        Args:
            config: of pytest; the other plugins of this suite take it, too.
        """
        # When the test that runs has to be over, the test, and pytest-timeout's settings for it.
        self._limit: tuple[float, pytest.Item, Any] | None = None
        self._thread: threading.Thread | None = None

    @pytest.hookimpl
    def pytest_runtestloop(self) -> None:
        """Start before the first test: none has to wonder where this thread comes from."""
        self._thread = threading.Thread(target=self._watch, daemon=True, name="time limit")
        self._thread.start()

    @pytest.hookimpl
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool | None:
        if settings.method != "thread" or self._thread is None:
            return None  # pytest-timeout does it
        self._limit = time.monotonic() + settings.timeout, item, settings
        return True

    @pytest.hookimpl
    def pytest_timeout_cancel_timer(self) -> None:
        self._limit = None

    def _watch(self) -> None:
        while True:
            time.sleep(INTERVAL)
            limit = self._limit
            if limit is not None and time.monotonic() > limit[0]:
                self._limit = None
                pytest_timeout.timeout_timer(*limit[1:])  # it returns while a debugger is at work
