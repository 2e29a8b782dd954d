"""Workers of pytest side by side, and the tests that run when no other does.

`make test` begins eight workers, with `-n 8`: many tests wait for something, such as a time-out,
and others have the processors meanwhile. Each worker takes a part of the tests, file by file; one
that has done its own takes from another. Without `-n` all tests run in one process. A test that is
marked `alone` waits until no other runs, in any worker or any other pytest of this folder, and
holds up those that come after it. A pytest that a test of this folder starts waits for none: that
test waits for it. A test that is marked `long` is among the first, so that short ones fill up the
end.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

# The folder whose test runs, for the children of that test.
_WITHIN_A_TEST_OF = "ECHOD_WITHIN_A_TEST_OF"


class Workers:
    """The plugin."""

    def __init__(self, config: pytest.Config) -> None:
        self._root = str(config.rootpath)
        self._is_within_a_test = os.environ.get(_WITHIN_A_TEST_OF) == self._root
        # Two folders to lock: the project's, and that of its tests.
        self._door = os.open(config.rootpath, os.O_RDONLY)
        self._room = os.open(config.rootpath / config.getini("testpaths")[0], os.O_RDONLY)
        config.addinivalue_line("markers", "alone: it measures: no other test runs meanwhile")
        config.addinivalue_line("markers", "long: it takes many seconds: it is among the first")
        if config.getoption("numprocesses", None):
            config.option.dist = "worksteal"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = _long_ones_first(items)

    # Outside of the timer of pytest-timeout: to wait is no fault of the test's.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self._is_within_a_test:
            return (yield)
        alone = item.get_closest_marker("alone") is not None
        with self._alone() if alone else self._with_others():
            os.environ[_WITHIN_A_TEST_OF] = self._root
            try:
                return (yield)
            finally:
                os.environ.pop(_WITHIN_A_TEST_OF, None)

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
    return sorted(items, key=lambda item: item.get_closest_marker("long") is None)
