"""How settings are written: as flags, as keys of a file, as lines of `--help`.

A setting is a field of a frozen dataclass, made by `setting`, which gives the field its `Text`.
From the field's name, type, default and text everything else follows: `describe` puts them
together as a `Setting`.  Which settings there are is the business of `echod.settings`.

Pure: text in, values out, and back.  Whatever is wrong is a `SettingError` of one line.
"""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from echod.text import clipped, escape, quoted, unescape, unescaped

# What `tomllib` says, and what that means to who wrote the file.
PLAIN_WORDS = {
    "Cannot overwrite a value": "a key is given twice",
    r"Illegal character '\n'": "a text has no closing quotation mark",
    "Unterminated string": "a text has no closing quotation mark",
    'Expected "\'"': "a text has no closing quotation mark",
}


class SettingError(ValueError):
    """A setting cannot be used; the text says which one, and what is accepted."""


@dataclass(frozen=True)
class Text:
    """How a setting is written.

    Attributes:
        help: what it does, in a sentence or two.
        parse: from a flag's text to the value; raises ValueError with what the text is not, or
            SettingError with the whole sentence.
        unset: what stands for the default where that is not a plain value.
        repeats: whether the flag may be given several times; then the value is a tuple.
        unit: what a number counts: "seconds", "bytes"; "" where that is plain.
        section: the heading it opens in `--help` and elsewhere; without one it belongs to the
            section of the setting before it.
        example: a value for the annotated file, where the default is None or empty.
        reload: whether a running daemon can take a new value, at SIGHUP.
        replaces: another setting, by name, that says otherwise about the same: given as a flag,
            this one sets aside what a file says of that.
    """

    help: str
    parse: Callable[[str], Any] = str
    unset: str = ""
    repeats: bool = False
    unit: str = ""
    section: str = ""
    example: Any = None
    reload: bool = False
    replaces: str = ""


def setting(default: Any, text: Text) -> Any:
    """Return a dataclass field that carries its `text`."""
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True)
class Setting:
    """One setting, with all that is known of it.

    Attributes:
        name: as a field of the settings: `max_message`.
        default: its value where nothing else is said.
        native: the type of its value, or of each of its values, in a file: bool, int, float
            or str.
        section: the heading it belongs to.
        text: the rest.
    """

    name: str
    default: Any
    native: type
    section: str
    text: Text

    @property
    def key(self) -> str:
        """Its name in a file: `max-message`."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """Its name on a command line: `--max-message`."""
        return f"--{self.key}"

    @property
    def shown_default(self) -> str:
        """The default, for people."""
        if self.text.unset or self.native is bool or self.default in (None, ()):
            return self.text.unset
        return f"{self.default:g}" if self.native is float else str(self.default)

    @property
    def sentence(self) -> str:
        """What it does, and its default."""
        default = f" [default: {self.shown_default}]" if self.shown_default else ""
        return f"{self.text.help}{default}"

    @property
    def placeholder(self) -> str:
        """What stands for the value behind the flag; "" where the flag takes none."""
        if self.native is bool:
            return ""
        return self.text.unit.upper() or {int: "N", float: "N"}.get(self.native, "TEXT")

    def from_flag(self, text: str) -> Any:
        """Return the value, or one of the values, that a flag's text stands for.

        Raises:
            SettingError: it stands for none.
        """
        try:
            return self.text.parse(text)
        except SettingError:
            raise
        except ValueError as error:
            raise SettingError(f"{quoted(text)} is not {error}") from None

    def from_file(self, value: object) -> Any:
        """Return the value that a TOML value stands for.

        Raises:
            SettingError: it stands for none.
        """
        if not self.text.repeats:
            return self._from_native(value)
        items = value if isinstance(value, list) else [value]
        return tuple(self._from_native(item) for item in items)

    def _from_native(self, value: object) -> Any:
        if type(value) not in _ACCEPTED[self.native]:
            wanted, given = _KINDS[self.native], _KINDS.get(type(value), "something else")
            raise SettingError(f"{quoted(value)} is {given}, but this takes {wanted}")
        if self.native is bool:
            return value
        try:
            text = str(value)
        except ValueError:  # of more digits than Python writes
            text = quoted(value)  # for the error
        return self.from_flag(text)

    def in_file(self, value: Any) -> str:
        """Return `value` as it is written in a file: what `from_file` reads.

        Raises:
            SettingError: no file can hold it.
        """
        if self.text.repeats:
            return f"[{', '.join(self._as_toml(item) for item in value)}]"
        return self._as_toml(value)

    def _as_toml(self, value: Any) -> str:
        if self.native is bool:
            return str(value).lower()
        if self.native in (int, float):
            return repr(int(value) if value == int(value) else value)
        text = unescaped(value) if isinstance(value, bytes) else str(value)
        # JSON's strings are TOML's but for two things: TOML has no raw DEL, and no surrogates.
        quoted = json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")
        if not text.isascii() and re.search("[\ud800-\udfff]", text):
            raise SettingError(f"{self.flag}: {escape(text)!r} is not UTF-8: no file can hold it")
        return quoted


_ACCEPTED: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "a table",
}


def describe(settings: type) -> tuple[Setting, ...]:
    """Return the settings that the fields of a dataclass are, in their order."""
    hints = typing.get_type_hints(settings)
    described: list[Setting] = []
    section = ""
    for one in fields(settings):
        text: Text = one.metadata["text"]
        section = text.section or section
        described.append(Setting(one.name, one.default, _native(hints[one.name]), section, text))
    return tuple(described)


def _native(hint: Any) -> type:
    """Return what a field of type `hint` is in TOML: `tuple[int, ...]` holds an int."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return hint if hint in (bool, int, float) else str


def by_section(settings: Iterable[Setting]) -> dict[str, list[Setting]]:
    """Return the settings under their headings, both in their order."""
    sections: dict[str, list[Setting]] = {}
    for one in settings:
        sections.setdefault(one.section, []).append(one)
    return sections


def read_file(settings: Sequence[Setting], text: str, file: str) -> dict[str, Any]:
    """Return the values that a TOML file gives, by name.

    Args:
        settings: what may be in it.
        text: what is in it.
        file: what errors call it.

    Raises:
        SettingError: it is no TOML, has a key that is unknown, or a value that is not accepted.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{file}: {_plainly(str(error))}") from None
    except ValueError:
        raise SettingError(f"{file}: a number in it has thousands of digits") from None
    except RecursionError:
        raise SettingError(f"{file}: too many brackets within each other") from None
    known = {one.key: one for one in settings}
    values: dict[str, Any] = {}
    for key, value in table.items():
        try:
            if key not in known:
                raise SettingError(_unknown(key, value, known))
            values[known[key].name] = known[key].from_file(value)
        except SettingError as error:
            raise SettingError(f"{file}{_line_of(key, text)}: {clipped(key)}: {error}") from None
    return values


def set_aside(
    settings: Iterable[Setting], written: Mapping[str, Any], flags: Collection[str]
) -> dict[str, Any]:
    """Return what is `written` in a file but for what flags say otherwise; both by name."""
    spoken_for = {*flags, *(one.text.replaces for one in settings if one.name in flags)}
    return {name: value for name, value in written.items() if name not in spoken_for}


def placed(error: str, flags: Collection[str], written: Collection[str], file: str) -> str:
    """Return an error that names settings, as flags, with the place where each was said.

    Args:
        error: the error, one line.
        flags: the names of the settings that are given as flags.
        written: the names of those that are taken from the file.
        file: what the file is called.
    """
    first, *others = re.findall("--([a-z-]+)", error) or [""]
    stands_in_file = _name(first) in written
    elsewhere = flags if stands_in_file else written
    place = "is given as a flag" if stands_in_file else f"stands in {file}"
    notes = "".join(f" (--{key} {place})" for key in others if _name(key) in elsewhere)
    return f"{file}: {error}{notes}" if stands_in_file else f"{error}{notes}"


def _plainly(error: str) -> str:
    """Return what is wrong with a file, in the words of who wrote it."""
    for said, meant in PLAIN_WORDS.items():
        error = error.replace(said, meant)
    return error


def _name(key: str) -> str:
    return key.replace("-", "_")


def _unknown(key: str, value: object, known: Mapping[str, Setting]) -> str:
    if isinstance(value, dict):
        return "there are no tables: every key stands at the top"
    if close := get_close_matches(key.replace("_", "-").lower(), known, 1):
        return f"there is no such key; did you mean {close[0]}?"
    return f"there is no such key; there are: {', '.join(known)}"


def _line_of(key: str, text: str) -> str:
    match = re.search(rf"^[ \t]*[\[\"']*{re.escape(key)}\b", text, re.MULTILINE)
    return f":{text.count(chr(10), 0, match.start()) + 1}" if match else ""


def as_file(settings: Iterable[Setting], values: object) -> str:
    """Return a TOML file that says what `values`, an instance of the dataclass, says.

    Raises:
        SettingError: no file can hold it.
    """
    lines: list[str] = []
    for section, members in by_section(settings).items():
        lines += [f"# {section}", ""]
        for one in members:
            value = getattr(values, one.name)
            if value is None:
                lines.append(f"# {one.key} is unset: {escape(one.text.unset)}")
            else:
                lines.append(f"{one.key} = {one.in_file(value)}")
        lines.append("")
    return "\n".join(lines)


# What flags accept.


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `lowest` to `highest`, as TOML writes decimal ones."""

    def parse_number(text: str) -> int:
        # Neither is `int` asked for what it reads beside these, nor for what is too long for it.
        if not re.fullmatch(f"0|[1-9][0-9]{{0,{len(str(highest)) - 1}}}", text) or not (
            lowest <= int(text) <= highest
        ):
            hint = ", without zeros before it" if re.fullmatch("0+[0-9]+", text) else ""
            raise ValueError(f"a whole number from {lowest} to {highest}{hint}")
        return int(text)

    return parse_number


# The longest duration, in seconds: a hundred days and some, which every timer can take.
LONGEST_TIME = 10**7


def seconds_from(least: float) -> Callable[[str], float]:
    """Return a parser of durations in seconds, as TOML writes numbers.

    Args:
        least: the shortest but for 0, which stands for none.
    """

    def parse_seconds(text: str) -> float:
        value = -1.0
        # Of a longer fraction, what is not 0 could become 0, which means something else.
        if re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]{1,30})?", text):
            value = float(text)
        if value != 0 and not least <= value <= LONGEST_TIME:
            raise ValueError(
                f"a number of seconds, 0 or from {least:g} to {LONGEST_TIME}, as in 90 or 0.5"
            )
        return value

    return parse_seconds


seconds = seconds_from(0.001)


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return a parser that accepts only these names."""
    accepted = [str(name) for name in names]

    def parse_name(text: str) -> str:
        if text not in accepted:
            raise ValueError(f"one of: {', '.join(accepted)}")
        return text

    return parse_name


def escaped_bytes(text: str) -> bytes:
    r"""Parse bytes that may be written with escapes, as in `\r\n`."""
    try:
        return unescape(text)
    except ValueError:
        raise ValueError(r"text in which \n, \r, \t, \\ and \x1b are escapes") from None
