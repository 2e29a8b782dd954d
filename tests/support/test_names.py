"""A name leads to one file."""

from __future__ import annotations

from collections import Counter

from tests.support.paths import ROOT


def test_no_two_files_of_tests_have_one_name() -> None:
    counts = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []
