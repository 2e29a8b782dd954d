"""Workers of pytest side by side, and the tests that run when no other does.

`make test` begins two workers, with `-n 2`; each takes a file at a time. Without `-n` all tests
run in one process. A test that is marked `alone` waits until no other runs, in any worker or any
other pytest of this folder, and holds up those that come after it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Folders whose files take longest: they begin, so that short files fill up the end.
_LONG = ("documents", "faults", "system")


class Workers:
    """The plugin."""

    def __init__(self, config: pytest.Config) -> None:
        # Two folders to lock: the project's, and that of its tests.
        self._door = os.open(config.rootpath, os.O_RDONLY)
        self._room = os.open(config.rootpath / config.getini("testpaths")[0], os.O_RDONLY)
        config.addinivalue_line("markers", "alone: it measures: no other test runs meanwhile")
        if config.getoption("numprocesses", None):
            config.option.dist = "loadfile"
            config.option.loadscopereorder = False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = _long_ones_first(items)

    # Outside of the timer of pytest-timeout: to wait is no fault of the test's.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        alone = item.get_closest_marker("alone") is not None
        with self._alone() if alone else self._with_others():
            return (yield)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with _locked(self._door, fcntl.LOCK_EX), _locked(self._room, fcntl.LOCK_EX):
            yield

    @contextmanager
    def _with_others(self) -> Iterator[None]:
        with _locked(self._door, fcntl.LOCK_EX):
            pass  # a test that waits to be alone goes first
        with _locked(self._room, fcntl.LOCK_SH):
            yield


@contextmanager
def _locked(descriptor: int, how: int) -> Iterator[None]:
    fcntl.flock(descriptor, how)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _long_ones_first(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    return sorted(items, key=lambda item: Path(item.path).parent.name not in _LONG)
