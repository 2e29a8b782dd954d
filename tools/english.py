"""Find sentences that a native reader stops at, in pages, docstrings, comments and messages.

Two habits are found: a sentence or a clause whose subject is a question word ("What is late is
dropped"), and a person without a name ("nobody", "whoever", "one may"). Write subject, verb,
object instead, and name the actor: the client, the daemon, the handler, you. Questions, quotations
and code are left out.

`python -m tools.english [PATH ...]` prints each find, and exits with 1 where there is one.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = [".ci", "bench", "docs", "echod", "etc", "examples", "newsfragments", "tests", "tools"]
FOLDERS += ["twisted"]
NAMES = re.compile(
    r"(\.(c|cfg|conf|md|py|service|socket|toml|ya?ml)|/Containerfile|/Makefile|/\.ci/run|/echod)$"
)

# The strings of these folders are messages that users read; those of others are mostly data.
MESSAGES = ("echod/", "twisted/")

OPENINGS = re.compile(
    r"(?:what|whatever|who|whom|whoever|whomever|whose|whichever|that which|"
    r"(?:all|those|anything|everything) (?:who|that)|(?:no|any|some|every)body)\b(?!'s)",
    re.IGNORECASE,
)
CLAUSES = re.compile(r"; (?:what|who)\b")
PRONOUNS = re.compile(
    r"\b(?:(?:no|any|some|every)body|who(?:so)?ever|whomever|whatever|those who|that which)\b|"
    r"(?:^|\b(?:if|when|where|as|because|before|until) )"
    r"one (?:may|can|cannot|must|has to|would|should|could|gets|sees|looks|wants|needs|knows)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Text:
    """A paragraph, and the line of its file on which it begins."""

    line: int
    words: str


@dataclass(frozen=True)
class Find:
    """A sentence to rewrite, and the word that gave it away."""

    path: str
    line: int
    word: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word!r}: {self.sentence}"


def paragraphs(text: str, first_line: int = 1) -> Iterator[Text]:
    """Yield the paragraphs, list items, table cells and headings of Markdown or of a docstring."""
    begun, fenced = first_line, False
    lines: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], first_line):
        stripped = line.strip()
        if stripped.startswith("```"):
            fenced, stripped = not fenced, ""
        elif fenced or stripped.startswith((">>> ", "$ ")):
            stripped = ""
        item = re.match(r"(?:[-*+|]|#+|\d+\.)\s", stripped + " ")
        if lines and (not stripped or item):
            yield Text(begun, " ".join(lines))
            lines = []
        if stripped.startswith("|"):
            yield from (Text(number, cell.strip()) for cell in stripped.split("|") if cell.strip())
        elif stripped:
            if not lines:
                begun = number
            lines.append(stripped[item.end() - 1 :].strip() if item else stripped)


def python_texts(source: str, *, messages: bool) -> Iterator[Text]:
    """Yield the docstrings and comments of a Python file, and its `messages`: long strings."""
    tree = ast.parse(source)
    in_strings: set[int] = set()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, documented):
            # A string behind an assignment documents that, so it need not be the first statement.
            docstrings.update(each.value for each in node.body if isinstance(each, ast.Expr))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.end_lineno != node.lineno:
                in_strings.update(range(node.lineno + 1, (node.end_lineno or 0) + 1))
            if node in docstrings:
                yield from paragraphs(node.value, node.lineno)
            elif messages and node.value.count(" ") > 1:
                yield Text(node.lineno, " ".join(node.value.split()))
    yield from comments(source, "#", in_strings)


def comments(source: str, sign: str, left_out: set[int] | None = None) -> Iterator[Text]:
    """Yield each block of comments that begin with `sign`, and each comment behind code."""
    begun = 0
    block: list[str] = []
    whole = re.compile(rf"\s*(?:{sign}+|/\*+|\*)\s?(?!/)(.*?)(?:\*/)?$")
    behind = re.compile(rf"\S.*?(?:  | ){sign}+ (.*)$")
    for number, line in enumerate([*source.splitlines(), ""], 1):
        found = whole.match(line) if number not in (left_out or ()) else None
        if found:
            if not block:
                begun = number
            block.append(found[1])
            continue
        if block:
            yield from paragraphs("\n".join(block), begun)
            block = []
        trailing = behind.search(line) if sign in line and number not in (left_out or ()) else None
        if trailing:
            yield Text(number, trailing[1])


def texts(path: str, source: str) -> Iterator[Text]:
    """Yield the texts of `path` that people read."""
    if path.endswith(".md"):
        yield from paragraphs(re.sub(r"<!--|-->", "", source))
    elif path.endswith(".py"):
        yield from python_texts(source, messages=path.startswith(MESSAGES))
    else:
        yield from comments(source, "//" if path.endswith(".c") else "#")
        for number, line in enumerate(source.splitlines(), 1):
            if found := re.match(r"\s*(?:summary|description): (.*)", line):
                yield Text(number, found[1].strip("\"'"))


def sentences(words: str) -> Iterator[str]:
    """Yield the statements of a paragraph; code becomes `x`, a quotation an ellipsis."""
    words = re.sub(r"`+[^`]*`+", "`x`", words)
    words = re.sub(r"\"[^\"]*\"|“[^”]*”", "“…”", words)
    words = re.sub(r"\[[^\]]*\]\([^)]*/tests/[^)]*\)", "`x`", words)  # the name of a test
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words)
    for sentence in re.split(r"(?<=[.!?])[)*_]*\s+(?=[A-Z`“(\[*_])", words):
        if not sentence.rstrip(")*_ ").endswith("?"):
            yield sentence.strip()


def finds(path: str, source: str) -> Iterator[Find]:
    """Yield the odd sentences of `source`, the text of the file `path`."""
    for text in texts(path, source):
        for sentence in sentences(text.words):
            found = (
                OPENINGS.match(sentence.lstrip("(*_> "))
                or PRONOUNS.search(sentence)
                or CLAUSES.search(sentence)
            )
            if found:
                yield Find(path, text.line, found[0].strip(" ,;:("), sentence)


def files() -> list[Path]:
    """Return the files of the project that people read."""
    named = [ROOT / "Makefile", *ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "setup.cfg"]
    for folder in FOLDERS:
        named += (path for path in (ROOT / folder).rglob("*") if NAMES.search(str(path)))
    return sorted(
        path for path in named if path.is_file() and "build" not in path.relative_to(ROOT).parts
    )


def main(arguments: list[str]) -> int:
    """Print the odd sentences of the named files, or of all; return the exit code."""
    found = [
        find
        for path in ([Path(argument).resolve() for argument in arguments] or files())
        for find in finds(os.path.relpath(path, ROOT), path.read_text())
    ]
    for find in found:
        print(find)
    if found:
        print(f"{len(found)} odd sentences: write subject, verb, object, and name the actor")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
