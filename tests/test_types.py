"""The types of echod tell something: `Any`, which tells nothing, is rare."""

from __future__ import annotations

import tokenize
from pathlib import Path

import echod

# How often the word may stand in a thousand lines, those that import it included.
MOST = 9


def test_any_is_rare() -> None:
    lines, found = 0, {}
    for path in Path(echod.__file__).parent.rglob("*.py"):
        with path.open("rb") as source:
            words = [token.string for token in tokenize.tokenize(source.readline)]
        lines += path.read_text().count("\n")
        found[path.name] = words.count("Any")
    assert 0 < sum(found.values()) <= MOST * lines / 1000, sorted(
        found.items(), key=lambda x: x[1]
    )
