"""Tests run in several workers, and those that measure run when no other does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.own_pytest import own_pytest
from tests.support.waiting import PATIENCE
from tests.support.workers import Workers, long_ones_first

# Several pytests start on a busy machine.
pytestmark = pytest.mark.timeout(300)
MINUTES = 6 * PATIENCE

TESTS = """
import json
import os
import time
from pathlib import Path

import pytest


def note(name, began):
    with Path("spans").open("a") as spans:
        spans.write(json.dumps([name, os.getpid(), began, time.monotonic()]) + "\\n")


began = time.monotonic()
time.sleep(0.05)
note("import", began)


@pytest.fixture(autouse=True)
def span(request):
    began = time.monotonic()
    yield
    note(request.node.name, began)


@pytest.mark.alone
@pytest.mark.parametrize("number", range(2))
def test_measuring(number):
    time.sleep(0.1)


@pytest.mark.parametrize("number", range(3))
def test_other(number):
    time.sleep(0.05 * (1 + number))
"""


def test_one_worker_compiles_and_a_test_that_is_alone_runs_while_no_other_does(
    tmp_path: Path,
) -> None:
    process = own_pytest(tmp_path, dict.fromkeys("abc", TESTS), "-n", "2", only=Workers)
    said, _ = process.communicate(timeout=MINUTES)
    assert "15 passed" in said
    everything = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    imports = [span for span in everything if span[0] == "import"]
    assert len(imports) == 6
    assert len({worker for _, worker, _, _ in imports[:3]}) == 1
    # The last one is compiled before it runs, and from then on the other worker may begin.
    assert imports[1][3] <= min(began for _, _, began, _ in imports[3:])
    spans = [span for span in everything if span not in imports]
    assert len({worker for _, worker, _, _ in spans}) == 2
    alone = [span for span in spans if span[0].startswith("test_measuring")]
    assert len(alone) == 6
    for name, worker, began, ended in alone:
        beside = [other for other in spans if other[2] < ended and other[3] > began]
        assert beside == [[name, worker, began, ended]]


NESTED = """
import subprocess
import sys

import pytest


@pytest.mark.alone
def test_that_starts_a_pytest():
    subprocess.run([*sys.orig_argv, "-k", "test_within"], check=True)


def test_within():
    pass
"""


def test_a_pytest_that_a_test_starts_in_the_same_folder_does_not_wait_for_it(
    tmp_path: Path,
) -> None:
    process = own_pytest(tmp_path, {"nested": NESTED}, only=Workers)
    said, _ = process.communicate(timeout=MINUTES)
    assert "2 passed" in said, said


@dataclass(frozen=True)
class Item:
    path: str
    number: int
    is_long: bool

    def get_closest_marker(self, name: str) -> object:
        return True if self.is_long else None


@given(
    items=st.lists(st.builds(Item, st.sampled_from("abcdef"), st.integers(), st.booleans())),
    workers=st.integers(1, 4),
)
def test_all_tests_run_and_a_file_of_long_ones_stays_together(
    items: list[Item], workers: int
) -> None:
    ordered = long_ones_first(items, workers)
    assert sorted(map(repr, ordered)) == sorted(map(repr, items))
    for path in "abcdef":
        places = [at for at, item in enumerate(ordered) if item.path == path and item.is_long]
        assert places == [place for place, _ in enumerate(places, places[0] if places else 0)]


def test_each_worker_begins_with_a_file_of_long_ones() -> None:
    long_ones = [Item(path, number, True) for path in "xyz" for number in range(2)]
    others = [Item(path, number, False) for path in "abc" for number in range(5)]
    ordered = long_ones_first([*others, *long_ones], 3)
    # xdist gives each of the three workers seven.
    for worker, path in enumerate("xyz"):
        share = ordered[7 * worker : 7 * worker + 7]
        assert [item.path for item in share if item.is_long] == [path, path]
        assert [item.is_long for item in share] == [True] * 2 + [False] * 5
    assert [item for item in ordered if not item.is_long] == others
