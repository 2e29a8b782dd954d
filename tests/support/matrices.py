"""Tests of several parameters: some of the combinations, chosen so that every pair is among them.

A fault hardly ever needs three parameters at a time to show: two do, such as one concurrency model
over TLS. So of a test with three parameters or more, the combinations run in which each pair of
values occurs at least once. `MATRIX` in the environment says otherwise:

- `all`: every combination.
- `pairs`: the default.
- `values`: each value occurs at least once, with others that differ. `.ci/run` asks for this where
  it runs the tests again, on another version of Python or another reactor.

A test that is marked `whole` runs one step more thoroughly: every combination, unless `MATRIX` is
`values`, and then every pair. The parameters of one `parametrize` stay together: they are cases,
not a product.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import pytest

STEPS = ("values", "pairs", "all")

_T = TypeVar("_T")


class Matrices:
    """The plugin."""

    def __init__(self, config: pytest.Config) -> None:
        asked = os.environ.get("MATRIX", "pairs")
        if asked not in STEPS:
            raise pytest.UsageError(f"MATRIX={asked}: it is one of {', '.join(STEPS)}")
        self._step = STEPS.index(asked)
        config.addinivalue_line("markers", "whole: every combination of its parameters runs")

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if any("::" in argument for argument in config.args):
            return  # the command names this very test
        left_out = set(items) - set(self._chosen(items))
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]

    def _chosen(self, items: Sequence[pytest.Item]) -> Iterable[pytest.Item]:
        tests = defaultdict[str, list[pytest.Item]](list)
        # Sorted: their order may be another in each run, and the choice is to be the same.
        for item in sorted(items, key=lambda item: item.nodeid):
            tests[item.nodeid.split("[")[0]].append(item)
        for combinations in tests.values():
            step = self._step + (combinations[0].get_closest_marker("whole") is not None)
            if step >= STEPS.index("all"):
                yield from combinations
            else:
                yield from covering([(_values(item), item) for item in combinations], step + 1)


def _values(item: pytest.Item) -> tuple[Hashable, ...]:
    """Return what tells a value of each parameter from its others."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return ()
    params = dict(item.callspec.params)
    found: list[Hashable] = []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        # The same objects are in every combination.
        found.append(tuple(id(params.pop(name)) for name in names if name in params))
    return (*found, *map(id, params.values()))


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
