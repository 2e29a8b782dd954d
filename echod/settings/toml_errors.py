"""Explain why a text is not TOML: the line, the key, and what to write there.

`tomllib` names a line and a column, or only the end of the document, and no key. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from echod.text import excerpt

# A key and its equals sign, or the head of a table, at the beginning of a line.
_KEY = re.compile(r"^[ \t]*\[*[ \t]*[\"']?([\w.-]+)[\"']?[ \t]*[=\]]", re.MULTILINE)

# The messages of `tomllib` that say all, in the words of the author of a file.
_PLAIN_WORDS = (
    ("Unterminated string", "the text has no closing quotation mark"),
    (r"Illegal character '\n'", "the text has no closing quotation mark"),
    ("Expected \"'", "the text has no closing quotation mark"),
    ("Unclosed array", "the array has no closing bracket: ]"),
    ("Unescaped '\\'", r"\ begins an escape within " + "\"...\": write \\\\, or '...' around"),
)

# The messages about a line that begins with no key.
_NO_KEY = ("Invalid statement", "Invalid initial character for a key part")


def explain(error: str, text: str, unquoted: Mapping[str, Callable[[str], str]]) -> str:
    """Return the line, the key and the mistake, as in `:2: framing: write framing = "line"`.

    Args:
        error: the message of `tomllib`.
        text: the content of the file.
        unquoted: by key, what returns why a text without quotation marks is no value of the
            setting; "" if it only lacks those.
    """
    text = text.replace("\r\n", "\n")  # as `tomllib` does, before it counts
    said, _, place = error.rpartition(" (at ")
    found = re.match(r"line (\d+), column (\d+)", place)
    position = _position(text, *map(int, found.groups())) if found else len(text)
    keys = [each for each in _KEY.finditer(text) if each.start(1) < position]
    # At an end of the document, or of a line, what has begun before is not complete.
    at_the_end = found is None or found[2] == "1"
    line = _line_at(text, keys[-1].start(1) if keys and at_the_end else position)
    if said.startswith("Expected '=' after a key"):
        words = text[_begin_of_line(text, position) :].split("\n", 1)[0].split()
        key = excerpt(words[0].rstrip(":")) if words else ""
        return f":{line}: {key}: no = follows the key; write {key} = VALUE"
    if said.startswith(_NO_KEY):
        return f":{_line_at(text, position)}: this line is no setting: write KEY = VALUE"
    if not keys:
        return f":{line}: {said}"
    key = keys[-1][1]
    return f":{line}: {excerpt(key)}: {_mistake(said, text, position, keys, unquoted)}"


def _mistake(
    said: str,
    text: str,
    position: int,
    keys: list[re.Match[str]],
    unquoted: Mapping[str, Callable[[str], str]],
) -> str:
    key = keys[-1][1]
    if said.startswith("Cannot overwrite"):
        first = next(each for each in keys if each[1] == key)
        earlier = f", first in line {_line_at(text, first.start(1))}" if first != keys[-1] else ""
        return f"is given twice{earlier}"
    for beginning, meant in _PLAIN_WORDS:
        if said.startswith(beginning):
            return meant
    invalid = said.startswith("Invalid value")
    start = position if invalid else keys[-1].end()
    value = re.split(r"\n|\s#", text[start:], maxsplit=1)[0].strip()
    within_array = invalid and text.rfind("[", keys[-1].end(), position) >= 0
    if within_array:
        value = re.split(r"[],]", value, maxsplit=1)[0].strip()
    if invalid and not value:
        return f"has no value; write {key} = VALUE"
    if not invalid and not said.startswith("Expected newline"):
        return said
    if value[:1] in ('"', "'", "[", "{"):
        return f"{excerpt(value)} goes on after its end"
    if key in unquoted and (why := unquoted[key](value)):
        return why
    before = "" if within_array else f"{key} = "
    text = json.dumps(value, ensure_ascii=False)
    return f"a text needs quotation marks: write {excerpt(before + text)}"


def _position(text: str, line: int, column: int) -> int:
    return sum(len(each) + 1 for each in text.split("\n")[: line - 1]) + column - 1


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _begin_of_line(text: str, position: int) -> int:
    return text.rfind("\n", 0, position) + 1
