"""Workers of pytest side by side, and the tests that run when no other does.

`make test` begins eight workers, with `-n 8`: many tests wait for something, such as a time-out,
and others have the processors meanwhile. Each worker takes a part of the tests, file by file; one
that has done its own takes from another. Without `-n` all tests run in one process. A test that is
marked `alone` waits until no other runs, in any worker or any other pytest of this folder, and
holds up those that come after it. A pytest that a test of this folder starts waits for none: that
test waits for it. Each worker begins with some of the files whose tests are marked `long`: short
ones fill up the end. In a fresh clone, one worker compiles the tests before the others collect
them.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import sys
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

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
        self._tests = config.rootpath / config.getini("testpaths")[0]
        self._room = os.open(self._tests, os.O_RDONLY)
        # And the environment: each has another Python, which compiles the tests for itself.
        self._environment = os.open(pytest.__file__, os.O_RDONLY)
        config.addinivalue_line("markers", "alone: it measures: no other test runs meanwhile")
        config.addinivalue_line("markers", "long: it takes many seconds: it is among the first")
        starts_workers = config.getoption("numprocesses", None)
        if starts_workers:
            config.option.dist = "worksteal"
        # pytest marks the files of the tests that it compiles with its own assertions.
        plain = config.getoption("assertmode") == "plain"
        self._rewriter = "" if plain else f"-pytest-{pytest.__version__}"
        self._collects = not starts_workers or hasattr(config, "workerinput")
        self._count: int = getattr(config, "workerinput", {"workercount": 1})["workercount"]

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[object]:
        missing = self._not_compiled()
        while missing:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(_locked(self._environment, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except BlockingIOError:
                    # Another worker compiles these tests, or those of another folder.
                    stack.enter_context(_locked(self._environment, fcntl.LOCK_SH))
                else:
                    return (yield)
            before, missing = missing, self._not_compiled()
            if missing < before:
                break  # these tests: it collects no others, such as those of `--ignore`
        return (yield)

    def _not_compiled(self) -> set[Path]:
        """Return the tests that Python has to compile: each worker would, at the same time.

        That takes longer than all else until the first test.
        """
        if self._is_within_a_test or not self._collects or sys.dont_write_bytecode:
            return set()
        tail = f"{sys.implementation.cache_tag}{self._rewriter}.pyc"
        return {
            path
            for path in self._tests.rglob("test_*.py")
            if not path.with_name("__pycache__").joinpath(f"{path.stem}.{tail}").exists()
        }

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = long_ones_first(items, self._count)

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


class Marked(Protocol):
    """A test, as far as its order depends on it."""

    @property
    def path(self) -> Hashable: ...

    def get_closest_marker(self, name: str) -> object: ...


_Item = TypeVar("_Item", bound=Marked)


def long_ones_first(items: Iterable[_Item], workers: int) -> list[_Item]:
    """Order tests so that each worker begins with some of the files whose tests are long.

    xdist gives each worker as many tests as any other, in this order.
    """
    others: deque[_Item] = deque()
    files: dict[Hashable, list[_Item]] = {}
    for item in items:
        is_long = item.get_closest_marker("long") is not None
        (files.setdefault(item.path, []) if is_long else others).append(item)
    shares: list[list[_Item]] = [[] for _ in range(workers)]
    for share, of_file in zip(itertools.cycle(shares), files.values(), strict=False):
        share += of_file
    left = len(others) + sum(map(len, shares))
    for number, share in enumerate(shares):
        while others and len(share) < left // (workers - number):
            share.append(others.popleft())
        left -= len(share)
    return [*itertools.chain(*shares)]
