"""How settings are written: as flags, as keys of a file, as lines of `--help`.

A setting is a field of a frozen dataclass, made by `setting`, which gives the field its `Text`.
`describe` combines the field's name, type, default and text into a `Setting`; everything else
follows from that. `echod.settings` defines the settings themselves.

Pure: text in, values out, and back. Every error is a `SettingError` of one line.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field, fields
from typing import Any, NamedTuple, TypeVar

from echod.errors import UserError
from echod.text import clipped, did_you_mean, escape, quoted, unescape, unescaped

T = TypeVar("T")


class SettingError(UserError):
    """A setting cannot be used; the text says which one, and what is accepted."""


class Need(NamedTuple):
    """The choice of another setting, without which a setting has no effect.

    Attributes:
        words: the choice, as a flag.
        met: returns whether the settings have it.
    """

    words: str
    met: Callable[[Any], bool]


class Text(NamedTuple):
    """How a setting is written.

    Attributes:
        help: the setting's effect, in a sentence or two.
        parse: converts a flag's text to the value; raises ValueError with a description of the
            accepted values, or UserError with the whole sentence.
        unset: describes the default if that is not a plain value.
        repeats: whether the flag may be given several times; then the value is a tuple.
        unit: the unit of a number: "seconds", "bytes"; "" if it needs none.
        section: the heading that it begins in `--help` and elsewhere; without one it belongs to
            the section of the setting before it.
        example: a value for the annotated file, if the default is None or empty.
        reload: whether a running daemon can apply a new value, at SIGHUP.
        replaces: the name of another setting that contradicts this one: if this one is given as a
            flag, a file's value of the other is ignored.
        needs: the choice without which this setting has no effect; None if it always has one.
        words: what a number may be instead, in words.
    """

    help: str
    parse: Callable[[str], object] = str
    unset: str = ""
    repeats: bool = False
    unit: str = ""
    section: str = ""
    example: object = None
    reload: bool = False
    replaces: str = ""
    needs: Need | None = None
    words: tuple[str, ...] = ()


def setting(default: T, text: Text) -> T:
    """Return a dataclass field that carries its `text`."""
    return field(default=default, metadata={"text": text})


class Setting(NamedTuple):
    """One setting, completely described.

    Attributes:
        name: the name of its field: `max_message`.
        default: its value if none is given.
        native: the type of its value, or of each of its values, in a file: bool, int,
            float or str.
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
        """The help, with the default."""
        default = f" [default: {self.shown_default}]" if self.shown_default else ""
        return f"{self.text.help}{default}"

    @property
    def placeholder(self) -> str:
        """The name for the value after the flag in `--help`; "" if the flag takes none."""
        if self.native is bool:
            return ""
        return self.text.unit.upper() or {int: "N", float: "N"}.get(self.native, "TEXT")

    def from_flag(self, text: str) -> object:
        """Parse a flag's text into the value, or into one of the values.

        Raises:
            SettingError: the text is not valid.
        """
        try:
            return self.text.parse(text)
        except UserError as error:
            raise SettingError(str(error)) from None
        except ValueError as error:
            hint = ""
            if plain := in_plain_numbers(text, self.text.unit):
                with contextlib.suppress(ValueError):  # it is out of range
                    self.text.parse(plain)
                    hint = f"; write {plain}"
            raise SettingError(f"{quoted(text)} is not {error}{hint}") from None

    def from_file(self, value: object) -> object:
        """Convert a TOML value into the setting's value.

        Raises:
            SettingError: the TOML value is not valid.
        """
        if not self.text.repeats:
            return self._from_native(value)
        items = value if isinstance(value, list) else [value]
        return tuple(self._from_native(item) for item in items)

    def _from_native(self, value: object) -> object:
        if type(value) not in _ACCEPTED[self.native] and value not in self.text.words:
            raise SettingError(self._wrong_kind(value))
        if self.native is bool:
            return value
        try:
            text = str(value)
        except ValueError:  # it has more digits than Python prints
            text = quoted(value)  # for the error
        return self.from_flag(text)

    def _wrong_kind(self, value: object) -> str:
        """Return why a TOML value of this type is refused.

        Raises:
            SettingError: it is a string, and not the number that it should be.
        """
        shown = str(value).lower() if isinstance(value, bool) else quoted(value)
        if isinstance(value, str):
            if self.native is not bool:
                self.from_flag(value)
            elif value not in ("true", "false"):
                return f"{shown} is neither true nor false"
            return f"{shown} is a string: write {value}, without quotation marks"
        wanted = _KINDS[self.native] + (self.text.unit and f" of {self.text.unit}")
        kind = _KINDS.get(type(value), "a date or a time")
        remedy = f': write "{shown}"' if self.native is str and type(value) in (int, float) else ""
        return f"{shown} is {kind}, but this takes {wanted}{remedy}"

    def unquoted(self, text: str) -> str:
        """Return why this text without quotation marks is no value; "" if it only lacks those."""
        if self.native is str:
            return ""
        try:
            self._from_native(text)
        except SettingError as error:
            return str(error)
        return ""

    def in_file(self, value: Any) -> str:
        """Format `value` for a file; `from_file` reads it back.

        Raises:
            SettingError: no file can hold it.
        """
        if self.text.repeats:
            return f"[{', '.join(self._as_toml(item) for item in value)}]"
        return self._as_toml(value)

    def _as_toml(self, value: Any) -> str:
        if self.native is bool:
            return str(value).lower()
        if self.native in (int, float) and value not in self.text.words:
            return repr(int(value) if value == int(value) else value)
        text = unescaped(value) if isinstance(value, bytes) else str(value)
        # JSON's strings are valid in TOML with two exceptions: a raw DEL, and surrogates.
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
    dict: "a table",  # in an array
}


def describe(settings: type) -> tuple[Setting, ...]:
    """Describe the fields of a dataclass as settings, in their order.

    Their annotations are texts, as by `from __future__ import annotations`.
    """
    described: list[Setting] = []
    section = ""
    for one in fields(settings):
        if "text" not in one.metadata:  # no setting
            continue
        text: Text = one.metadata["text"]
        section = text.section or section
        described.append(Setting(one.name, one.default, _native(str(one.type)), section, text))
    return tuple(described)


def _native(annotation: str) -> type:
    """Return the TOML type of a field with this annotation: `tuple[int, ...]` gives int."""
    name = re.split("[^A-Za-z]", annotation.removeprefix("tuple["), maxsplit=1)[0]
    return {"bool": bool, "int": int, "float": float}.get(name, str)


def by_section(settings: Iterable[Setting]) -> dict[str, list[Setting]]:
    """Group the settings by their headings, and keep the order of both."""
    sections: dict[str, list[Setting]] = {}
    for one in settings:
        sections.setdefault(one.section, []).append(one)
    return sections


def read_file(
    settings: Sequence[Setting], text: str, file: str, elsewhere: Mapping[str, str]
) -> dict[str, Any]:
    """Return the values in a TOML file, by name.

    Args:
        settings: the settings that the file may contain.
        text: the content of the file.
        file: the file's name in errors.
        elsewhere: the flags to use instead of keys that do not exist.

    Raises:
        SettingError: it is not TOML, or has an unknown key or a value that is not valid.
    """
    if not text:
        return {}
    import tomllib  # only with --config

    from echod.settings import toml_errors

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        unquoted = {one.key: one.unquoted for one in settings}
        raise SettingError(f"{file}{toml_errors.explain(str(error), text, unquoted)}") from None
    except ValueError:
        raise SettingError(f"{file}: a number in it has thousands of digits") from None
    except RecursionError:
        raise SettingError(f"{file}: too many brackets within each other") from None
    known = {one.key: one for one in settings}
    values: dict[str, Any] = {}
    for key, value in table.items():
        try:
            if key not in known or isinstance(value, dict):
                raise SettingError(_unknown(key, value, known, elsewhere))
            values[known[key].name] = known[key].from_file(value)
        except SettingError as error:
            raise SettingError(f"{file}{_line_of(key, text)}: {clipped(key)}: {error}") from None
    return values


def set_aside(
    settings: Iterable[Setting], written: Mapping[str, Any], flags: Collection[str]
) -> dict[str, Any]:
    """Return the values `written` in a file, without those that flags replace; both by name."""
    spoken_for = {*flags, *(one.text.replaces for one in settings if one.name in flags)}
    return {name: value for name, value in written.items() if name not in spoken_for}


def placed(error: str, flags: Collection[str], written: Collection[str], file: str) -> str:
    """Add to an error where each setting it names was given.

    Args:
        error: one line, which names settings as flags.
        flags: the names of the settings that are given as flags.
        written: the names of those that come from the file.
        file: the name of the file.
    """
    first, *others = re.findall("--([a-z-]+)", error) or [""]
    stands_in_file = _name(first) in written
    elsewhere = flags if stands_in_file else written
    place = "is given as a flag" if stands_in_file else f"is set in {file}"
    notes = "".join(f" (--{key} {place})" for key in others if _name(key) in elsewhere)
    return f"{file}: {error}{notes}" if stands_in_file else f"{error}{notes}"


def _name(key: str) -> str:
    return key.replace("-", "_")


def _unknown(
    key: str, value: object, known: Mapping[str, Setting], elsewhere: Mapping[str, str]
) -> str:
    if isinstance(value, dict):
        return "there are no tables: put every key at the top level"
    if flag := elsewhere.get(key):
        return f"there is no such key; as a flag, it is {flag}"
    meant = did_you_mean(key, known) or f"there are: {', '.join(known)}"
    return f"there is no such key; {meant}"


def _line_of(key: str, text: str) -> str:
    match = re.search(rf"^[ \t]*[\[\"']*{re.escape(key)}\b", text, re.MULTILINE)
    return f":{text.count(chr(10), 0, match.start()) + 1}" if match else ""


def without_effect(settings: Iterable[Setting], values: object) -> list[str]:
    """Return a line for each setting that was given, but changes nothing beside the others.

    Args:
        settings: the settings.
        values: an instance of their dataclass.
    """
    return [
        f"{one.flag} has no effect: it needs {one.text.needs.words}"
        for one in settings
        if one.text.needs is not None
        and getattr(values, one.name) != one.default
        and not one.text.needs.met(values)
    ]


def as_file(settings: Iterable[Setting], values: object) -> str:
    """Return `values`, an instance of the dataclass, as a TOML file.

    Raises:
        SettingError: no file can hold it.
    """
    lines: list[str] = []
    for section, members in by_section(settings).items():
        lines += [f"# {section}", ""]
        for one in members:
            value = getattr(values, one.name)
            if value in (None, (), "") and value == one.default:
                lines.append(f"# {one.key} is unset: {escape(one.text.unset)}")
            else:
                lines.append(f"{one.key} = {one.in_file(value)}")
        lines.append("")
    return "\n".join(lines)


# Parsers of flags.


def whole_number(lowest: int, highest: int, unit: str = "") -> Callable[[str], int]:
    """Return a parser of whole numbers from `lowest` to `highest`, as TOML writes decimal ones.

    Args:
        lowest: the least one.
        highest: the greatest one.
        unit: what is counted, for the error: "bytes".
    """
    wanted = f"a whole number{unit and ' of '}{unit} from {lowest} to {highest}"

    def parse_number(text: str) -> int:
        # `int` accepts other notations too, and raises for numbers that are too long.
        if not re.fullmatch(f"0|[1-9][0-9]{{0,{len(str(highest)) - 1}}}", text) or not (
            lowest <= int(text) <= highest
        ):
            hint = ", without zeros before it" if re.fullmatch("0+[0-9]+", text) else ""
            raise ValueError(f"{wanted}{hint}")
        return int(text)

    return parse_number


# The longest duration, in seconds: more than a hundred days; every timer accepts it.
LONGEST_TIME = 10**7


def seconds_from(least: float) -> Callable[[str], float]:
    """Return a parser of durations in seconds, as TOML writes numbers.

    Args:
        least: the shortest duration, apart from 0, which means none.
    """

    def parse_seconds(text: str) -> float:
        value = -1.0
        # A number with a longer fraction could be rounded to 0, which has another meaning.
        if re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]{1,30})?", text):
            value = float(text)
        if value != 0 and not least <= value <= LONGEST_TIME:
            raise ValueError(
                f"a number of seconds, 0 or from {least:g} to {LONGEST_TIME}, as in 90 or 0.5"
            )
        return value

    return parse_seconds


seconds = seconds_from(0.001)

_UNITS: dict[str, dict[str, float]] = {
    "seconds": {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400},
    "bytes": {
        f"{prefix}{end}": 1024.0**power
        for power, prefix in enumerate("kmg", 1)
        for end in ("", "b", "ib")
    },
}


def in_plain_numbers(text: str, unit: str) -> str:
    """Return what to write for a quantity in another unit, as in `10m` or `64k`; "" for others."""
    match = re.fullmatch("([0-9]{1,9}(?:[.][0-9]{1,9})?) ?([a-z]{1,3})", text.lower())
    factor = _UNITS.get(unit, {}).get(match[2]) if match else None
    return f"{round(float(match[1]) * factor, 3):.15g}" if match and factor else ""


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return a parser that accepts only these names."""
    accepted = [str(name) for name in names]

    def parse_name(text: str) -> str:
        if text not in accepted:
            meant = did_you_mean(text, accepted)
            raise ValueError(f"one of: {', '.join(accepted)}{meant and '; '}{meant}")
        return text

    return parse_name


def escaped_bytes(text: str) -> bytes:
    r"""Parse bytes that may be written with escapes, as in `\r\n`."""
    try:
        return unescape(text)
    except ValueError:
        raise ValueError(r"text in which \n, \r, \t, \\ and \x1b are escapes") from None
