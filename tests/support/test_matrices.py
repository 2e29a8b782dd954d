"""Of a test with many parameters, some combinations run, and none that matters is left out."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.matrices import Matrices, covering
from tests.support.own_pytest import own_pytest
from tests.support.waiting import PATIENCE


@given(st.lists(st.integers(1, 4), max_size=4), st.integers(1, 3))
def test_every_group_of_values_is_in_a_chosen_row(sizes: list[int], size: int) -> None:
    rows = [(row, row) for row in itertools.product(*map(range, sizes))]
    chosen = list(covering(rows, size))
    assert len(set(chosen)) == len(chosen)

    def groups(some: list[tuple[int, ...]]) -> set[object]:
        return {
            group
            for row in some
            for group in itertools.combinations(enumerate(row), min(size, len(row)))
        }

    assert groups(chosen) == groups([row for row, _ in rows])


# Several pytests start on a busy machine.
pytestmark = pytest.mark.timeout(300)
MINUTES = 6 * PATIENCE

TESTS = """
import pytest

DIGITS = pytest.mark.parametrize("digit", range(3))
LETTERS = pytest.mark.parametrize("letter", "abc")
SIGNS = pytest.mark.parametrize("sign", "+-*")


@DIGITS
@LETTERS
@SIGNS
def test_three(digit, letter, sign): pass


@pytest.mark.whole
@DIGITS
@LETTERS
@SIGNS
def test_whole(digit, letter, sign): pass


@DIGITS
@LETTERS
def test_two(digit, letter): pass


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_cases(first, second): pass


def test_alone(): pass
"""


@pytest.mark.parametrize(
    ("asked", "fewer", "three", "whole", "two", "cases"),
    [
        ("all", "", 27, 27, 9, 4),
        ("pairs", "", 9, 27, 9, 4),
        ("values", "", 3, 9, 3, 4),
        ("values", "elsewhere tests/test_numbers.py", 1, 3, 1, 1),
    ],
)
def test_the_tests_that_run_are_those_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    fewer: str,
    three: int,
    whole: int,
    two: int,
    cases: int,
) -> None:
    monkeypatch.setenv("MATRIX", asked)
    monkeypatch.setenv("FEWER", fewer)
    process = own_pytest(tmp_path, {"numbers": TESTS}, "--collect-only", "-q", only=Matrices)
    said, _ = process.communicate(timeout=MINUTES)
    names = [line.split("::")[1].split("[")[0] for line in said.splitlines() if "::" in line]
    counts = {name: names.count(name) for name in names}
    assert counts.pop("test_three") - three in range(3)  # the choice is good, not the best
    assert counts.pop("test_whole") - whole in range(3)
    assert counts == {"test_two": two, "test_cases": cases, "test_alone": 1}, said
