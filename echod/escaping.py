"""Bytes and text on their way to a log, a terminal or an error message, and back.

Whatever a client sent may hold control characters: a carriage return forges a log line, an
escape sequence drives a terminal.  Everything that came from outside passes through `escape`
(or `escape_lines`) before it is shown; `unescape` reads the same notation in a setting's value.
"""

from __future__ import annotations

import re

_CONTROL_EXCEPT_LAYOUT = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CONTROL = re.compile(f"{_CONTROL_EXCEPT_LAYOUT.pattern}|[\t\n]")
_NAMED = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}

_WRITTEN = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.?)", re.DOTALL)
_MEANT = dict(zip(b"abfnrtv\\'\"", b"\a\b\f\n\r\t\v\\'\"", strict=True))


def escape(value: bytes | str) -> str:
    r"""Return `value` as one printable line.

    Control characters (C0, DEL, C1, line separators, direction overrides) and bytes that are not
    UTF-8 come back as ``\n``, ``\x1b``, ``\u2028`` and the like; all else is left as it is.
    """
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return _CONTROL.sub(_escape_one, text)


def escape_lines(text: str) -> str:
    """Escape `text` as `escape` does, but leave its newlines and tabs: for tracebacks."""
    return _CONTROL_EXCEPT_LAYOUT.sub(_escape_one, text)


def unescape(text: str) -> bytes:
    r"""Return the bytes that a setting's `text` stands for: ``\r\n`` is two of them.

    Python's escapes for bytes are read (``\n``, ``\t``, ``\x1b``, ``\0``, ``\\``); other
    characters are encoded as UTF-8.

    Raises:
        ValueError: an escape is not complete, or not known, as in ``\x1`` and ``\d``.
    """
    return _WRITTEN.sub(_unescape_one, text.encode("utf-8", "surrogateescape"))


def unescaped(value: bytes) -> str:
    """Return a text that `unescape` reads as `value`; what can be printed stands for itself."""
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


def _escape_one(match: re.Match[str]) -> str:
    character = match[0]
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
