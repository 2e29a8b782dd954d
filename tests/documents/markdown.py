"""Read the fenced blocks of a page, with the marks before them.

A mark is a comment of HTML before a block, which no reader sees: `<!-- skip: needs a cluster -->`.
A comment that begins with `$ ` is a block itself, one that runs without being shown.
CONTRIBUTING.md lists the marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Each mark, and whether a text follows it.
MARKS = {
    "root": True,
    "skip": True,
    "file": True,
    "in": True,
    "before": True,
    "unit": True,
    "without": True,
    "typed": True,
    "any order": False,
    "eventually": False,
    "log": False,
    "beside": False,
    "executed": False,
    "prints more": False,
}

_FENCE = re.compile(r"(?P<indentation> *)(?P<ticks>`{3,}) *(?P<language>\S*)$")
_MARK = re.compile(rf"(?P<name>{'|'.join(MARKS)})(?:: *(?P<text>.+))?$", re.DOTALL)


class Mistake(ValueError):
    """A page is not written as pages are."""


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        line: the number of its first line within the page.
        language: the word behind the fence, or `console` for commands without one.
        text: the lines between the fences, without the indentation of the fences.
        marks: the text of each mark, by its name.
    """

    line: int
    language: str
    text: str
    marks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A command of a block, and the lines that are shown below it."""

    line: int
    text: str
    shown: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, those in comments too.

    Raises:
        Mistake: a mark is unknown, is before nothing, or lacks its text; or a block does not end.
    """
    lines = enumerate(page.read_text().splitlines(), 1)
    marks: dict[str, str] = {}
    stray = ""  # a comment that is no mark, on the line before
    for number, line in lines:
        if (fence := _FENCE.match(line)) and stray:
            raise Mistake(f"{page.name}:{number}: there is no such mark: {stray}")
        if fence:
            text = _up_to(lines, fence["ticks"])
            block = "\n".join(line.removeprefix(fence["indentation"]) for line in text[:-1])
            # GitHub shows the same for a block of commands, with this word and without it.
            language = fence["language"] or ("console" if block.startswith("$ ") else "")
            yield Block(number, language, block, marks)
            marks = {}
        elif line.startswith("<!--"):
            rest = [] if "-->" in line else _up_to(lines, "-->")
            comment = "\n".join([line, *rest]).removeprefix("<!--").partition("-->")[0].strip()
            if comment.startswith("$ "):
                yield Block(number, "console", comment, marks)
                marks = {}
            elif mark := _MARK.match(comment):
                if MARKS[mark["name"]] != bool(mark["text"]):
                    raise Mistake(f"{page.name}:{number}: {mark['name']}: a text, or none")
                marks[mark["name"]] = mark["text"] or ""
            else:
                stray = comment
                continue
        elif line.strip() and marks:
            raise Mistake(f"{page.name}:{number}: no block follows the mark {', '.join(marks)}")
        stray = ""


def _up_to(lines: Iterator[tuple[int, str]], end: str) -> list[str]:
    """Take lines to the one that ends so."""
    found = []
    for _number, line in lines:
        found.append(line)
        if line.rstrip().endswith(end):
            return found
    raise Mistake(f"the page ends within a block or a comment of {len(found)} lines")


def commands(block: Block) -> list[Command]:
    """Return the commands of a block: `$ ` begins one, a backslash at the end continues it.

    Raises:
        Mistake: the block begins with a line that is no command.
    """
    found: list[Command] = []
    continues = False
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            found.append(Command(number, line[2:], ()))
        elif not found:
            raise Mistake(f"line {number}: this block begins with no command")
        elif continues:
            last = found.pop()
            found.append(Command(last.line, f"{last.text}\n{line}", ()))
        else:
            last = found.pop()
            found.append(Command(last.line, last.text, (*last.shown, line)))
        continues = line.endswith("\\") and not found[-1].shown
    return found
