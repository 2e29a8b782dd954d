"""The blocks of a page are found, with their marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.markdown import Block, Command, Mistake, blocks, commands


def read(directory: Path, text: str) -> list[Block]:
    page = directory / "page.md"
    page.write_text(text)
    return list(blocks(page))


def test_a_block_has_its_line_its_language_and_its_marks(tmp_path: Path) -> None:
    marked = "<!-- file: a.py -->\n<!-- any order -->\n```python\na\n\n  b\n```"
    assert read(tmp_path, f"Text.\n\n{marked}\n\n```\nc\n```\n") == [
        Block(5, "python", "a\n\n  b", {"file": "a.py", "any order": ""}),
        Block(11, "", "c", {}),
    ]


def test_a_block_within_a_list_loses_its_indentation(tmp_path: Path) -> None:
    assert read(tmp_path, "- A:\n\n  ```sh\n  a\n    b\n  ```\n") == [Block(3, "sh", "a\n  b")]


@pytest.mark.parametrize("comment", ["<!-- $ a -->", "<!--\n$ a\n-->"])
def test_a_comment_of_commands_is_a_block_that_is_not_shown(tmp_path: Path, comment: str) -> None:
    assert read(tmp_path, f"<!-- made by hand -->\n{comment}\n") == [Block(2, "console", "$ a")]


@pytest.mark.parametrize(
    ("page", "mistake"),
    [
        ("<!-- skip: it is slow -->\nText.\n", "page.md:2: no block follows the mark skip"),
        ("<!-- skips: it is slow -->\n```\na\n```\n", "page.md:2: there is no such mark: skips"),
        ("<!-- skip -->\n```\na\n```\n", "page.md:1: skip: a text, or none"),
        ("<!-- log: a -->\n```\na\n```\n", "page.md:1: log: a text, or none"),
        ("```\na\n", "the page ends within"),
        ("<!--\n$ a\n", "the page ends within"),
    ],
)
def test_a_mistake_of_a_page_is_found(tmp_path: Path, page: str, mistake: str) -> None:
    with pytest.raises(Mistake, match=mistake):
        read(tmp_path, page)


def test_below_a_command_is_what_it_shows() -> None:
    assert commands(Block(10, "console", "$ a \\\n  -b\nc\nd \\\ne\n$ f")) == [
        Command(11, "a \\\n  -b", ("c", "d \\", "e")),
        Command(16, "f", ()),
    ]


def test_a_block_of_commands_begins_with_one() -> None:
    with pytest.raises(Mistake, match="line 11: this block begins with no command"):
        commands(Block(10, "console", "a\n$ b"))
