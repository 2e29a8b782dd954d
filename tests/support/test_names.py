"""A name leads to one file."""

from __future__ import annotations

from collections import Counter

from tests.support.paths import ROOT

# Python, or pytest, demands these names.
DEMANDED = {"__init__.py", "__main__.py", "conftest.py"}


def test_no_two_files_of_tests_have_one_name() -> None:
    names = (path.name for path in (ROOT / "tests").rglob("*.py"))
    counts = Counter(name for name in names if name not in DEMANDED)
    assert [name for name, count in counts.items() if count > 1] == []
