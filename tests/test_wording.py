from __future__ import annotations

import pytest

from echod.text import plural


@pytest.mark.parametrize(
    ("count", "words"), [(0, "messages are"), (1, "message is"), (2, "messages are")]
)
def test_words_go_with_their_number(count: int, words: str) -> None:
    assert plural(count, "message is", "messages are") == words
