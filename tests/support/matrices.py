"""Tests of several parameters: some of the combinations, chosen so that every pair is among them.

A fault hardly ever needs three parameters at a time to show: two do, such as one concurrency model
over TLS. So of a test with three parameters or more, the combinations run in which each pair of
values occurs at least once. `MATRIX` in the environment says otherwise:

- `all`: every combination.
- `pairs`: the default.
- `values`: each value occurs at least once, with others that differ.
- `one`: one combination of each test; which one differs from test to test.

A test that is marked `whole` runs one step more thoroughly; a test in a folder or file that is in
`FEWER` in the environment, where spaces stand between them, one step less. `.ci/run` uses both
variables where it runs the tests again, on another version of Python or another reactor. The
parameters of one `parametrize` stay together: they are cases, not a product.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pytest

# The place of each is the size of the groups of values that all occur.
STEPS = ("one", "values", "pairs", "all")

_T = TypeVar("_T")


class Matrices:
    """The plugin."""

    def __init__(self, config: pytest.Config) -> None:
        asked = os.environ.get("MATRIX", "pairs")
        if asked not in STEPS:
            raise pytest.UsageError(f"MATRIX={asked}: it is one of {', '.join(STEPS)}")
        self._step = STEPS.index(asked)
        self._fewer = [config.rootpath / path for path in os.environ.get("FEWER", "").split()]
        config.addinivalue_line("markers", "whole: every combination of its parameters runs")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> Iterator[None]:
        yield
        # Before pytest makes a test of each combination, which costs more than the choice.
        # All remain where the command names this very test.
        if not any("::" in argument for argument in metafunc.config.args):
            metafunc._calls[:] = self._chosen(metafunc.definition, metafunc._calls)

    def _chosen(self, test: pytest.Item, combinations: Sequence[Any]) -> Sequence[Any]:
        step = self._step + (test.get_closest_marker("whole") is not None)
        step -= any(path == test.path or path in test.path.parents for path in self._fewer)
        if step >= STEPS.index("all") or len(combinations) < 2:
            return combinations
        if step <= 0:
            by_name = sorted(combinations, key=lambda each: each.id)  # sets have no order
            return [by_name[zlib.crc32(test.nodeid.encode()) % len(by_name)]]
        groups = [
            [name.strip() for name in names.split(",")] if isinstance(names, str) else names
            for names in (mark.args[0] for mark in test.iter_markers("parametrize"))
        ]
        rows = [
            (_values(dict(combination.params), groups), number)
            for number, combination in enumerate(combinations)
        ]
        return [combinations[number] for number in sorted(covering(rows, step))]


def _values(params: dict[str, object], groups: Sequence[Sequence[str]]) -> tuple[Hashable, ...]:
    """Return what tells a value of each parameter, or of those given together, from its others."""
    # The same objects are in every combination.
    together = [
        tuple(id(params.pop(name)) for name in names if name in params) for names in groups
    ]
    return (*together, *map(id, params.values()))


def covering(rows: Sequence[tuple[Sequence[Hashable], _T]], size: int) -> Iterable[_T]:
    """Choose rows so that all groups of `size` values are there that stand together in a row.

    Args:
        rows: the values of each row, and what it stands for.
        size: how many values make a group.
    """
    groups = [
        (set(itertools.combinations(enumerate(values), min(size, len(values)))), row)
        for values, row in rows
    ]
    missing = set[tuple[tuple[int, Hashable], ...]]().union(*(found for found, _ in groups))
    if not missing:
        yield from (row for _, row in groups)
    while missing:
        found, row = max(groups, key=lambda group: len(group[0] & missing))
        missing -= found
        yield row
