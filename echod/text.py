"""Escape bytes and text for a log, a terminal or an error message, and read escapes back.

Text from a client may contain control characters: a carriage return forges a log line, an escape
sequence controls a terminal. All text from outside passes through `escape` (or `escape_lines`)
before it is shown; `unescape` reads the same notation in a setting's value.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache

# The longest text in a line, in characters; a handler may print a whole message.
LONGEST = 32 * 1024

_NAMED = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def _escaped(code: int) -> str:
    return _NAMED.get(chr(code)) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


# C0, DEL and C1; marks and overrides of direction; separators of lines and paragraphs; surrogates.
_RANGES = (
    (0x00, 0x1F),
    (0x7F, 0x9F),
    (0x200E, 0x200F),
    (0x2028, 0x202E),
    (0x2066, 0x2069),
    (0xD800, 0xDFFF),
)
_CONTROL = "[" + "".join(rf"\u{a:04x}-\u{z:04x}" for a, z in _RANGES) + "]"


def _has_control(text: str) -> bool:
    # Most text has none, and these find that faster.
    return not (text.isascii() and text.isprintable()) and bool(re.search(_CONTROL, text))


@cache  # made for the first such text: it would take a hundredth of the start
def _controls(left: str = "") -> dict[int, str]:
    """Return the escapes of all controls but those in `left`.

    A table, because a call for each character would make hostile text ten times as expensive.
    """
    codes = (code for start, end in _RANGES for code in range(start, end + 1))
    return {code: _escaped(code) for code in codes if chr(code) not in left}


_WRITTEN = rb"(?s)\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.?)"
_MEANT = dict(zip(b"abfnrtv\\'\"", b"\a\b\f\n\r\t\v\\'\"", strict=True))


def escape(value: bytes | str) -> str:
    r"""Return `value` as one printable line.

    Control characters (C0, DEL, C1, line separators, direction overrides) and bytes that are not
    UTF-8 come back as ``\n``, ``\x1b``, ``\u2028`` and the like; all else is left as it is.
    """
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return text.translate(_controls()) if _has_control(text) else text


def escape_lines(text: str) -> str:
    """Escape `text` as `escape` does, but leave its newlines and tabs: for tracebacks."""
    return text.translate(_controls("\t\n")) if _has_control(text) else text


def shortened(text: str) -> str:
    """Cut out the middle of `text` if it is too long: the end of a traceback says most."""
    left_out = len(text) - LONGEST
    if left_out <= 0:
        return text
    half = LONGEST // 2
    return f"{text[:half]}… ({left_out} characters left out) …{text[-half:]}"


def unescape(text: str) -> bytes:
    r"""Convert a setting's `text` to bytes: ``\r\n`` becomes two bytes.

    Python's escapes for bytes are decoded (``\n``, ``\t``, ``\x1b``, ``\0``, ``\\``); other
    characters are encoded as UTF-8.

    Raises:
        ValueError: an escape is incomplete or unknown, as in ``\x1`` and ``\d``.
    """
    return re.sub(_WRITTEN, _unescape_one, text.encode("utf-8", "surrogateescape"))


def unescaped(value: bytes) -> str:
    """Return a text that `unescape` reads as `value`; printable characters stay as they are."""
    text = value.decode("utf-8", "surrogateescape")
    return "".join(_writable(character) for character in text)


def _writable(character: str) -> str:
    if character == "\\":
        return r"\\"
    if character in _NAMED or character.isprintable():
        return _NAMED.get(character, character)
    raw = character.encode("utf-8", "surrogateescape")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _unescape_one(match: re.Match[bytes]) -> bytes:
    escaped = match[1]
    if len(escaped) == 1 and escaped[0] in _MEANT:
        return bytes([_MEANT[escaped[0]]])
    if escaped[:1] == b"x" and len(escaped) == 3:
        return bytes([int(escaped[1:], 16)])
    if escaped[:1] in b"01234567" and escaped and int(escaped, 8) < 256:
        return bytes([int(escaped, 8)])
    raise ValueError(f"no escape: {escape(match[0])}")


class _Quoted(reprlib.Repr):
    """Python's notation, which is printable, shortened if it is long."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python prints no number of more than 4300 digits
            digits = hex(x)
            return f"{digits[:18]}...{digits[-18:]}"


def quoted(value: object) -> str:
    """Format a value for an error: escaped, and without its middle if it is long."""
    return _QUOTED.repr(value)


_QUOTED = _Quoted()


def clipped(text: str, longest: int = 60) -> str:
    """Replace the end of `text` by dots if it is too long for an error."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def excerpt(text: str, longest: int = 60) -> str:
    """Return `text` for an error: as one printable line, and not too long."""
    return escape(clipped(text, longest))


def told(error: BaseException) -> str:
    """Return an error of a user's code in one line: its class, and its text, escaped."""
    said = excerpt(str(error), 300)
    return f"{type(error).__name__}{said and ': '}{said}"


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the question which of `names` was meant by `word`; "" if none resembles it.

    Args:
        word: a name that does not exist.
        names: those that do.
        prefix: stands before each name in the question.
    """
    known = list(names)
    close = get_close_matches(word.lower().replace("_", "-"), known, 1)
    if not close and len(word) > 2:
        close = [name for name in known if word.lower() in name]
    meant = " or ".join(f"{prefix}{name}" for name in close)
    return f"did you mean {meant}?" if 0 < len(close) <= 3 else ""


def plural(count: int, one: str, many: str) -> str:
    """Return the words for a number: `one` if `count` is 1, else `many`."""
    return one if count == 1 else many
