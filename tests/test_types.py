"""The types of echod tell something: `Any`, which tells nothing, is rare."""

from __future__ import annotations

import tokenize
from io import StringIO
from pathlib import Path

import echod

# How often the word may stand in a thousand lines, those that import it included.
MOST = 9


def test_any_is_rare() -> None:
    lines, found = 0, {}
    for path in Path(echod.__file__).parent.rglob("*.py"):
        text = path.read_text()
        lines += text.count("\n")
        if "Any" in text:  # to find the tokens takes long
            words = [token.string for token in tokenize.generate_tokens(StringIO(text).readline)]
            found[path.name] = words.count("Any")
    assert 0 < sum(found.values()) <= MOST * lines / 1000, sorted(
        found.items(), key=lambda x: x[1]
    )
