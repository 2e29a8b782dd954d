from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.text import (
    clipped,
    did_you_mean,
    escape,
    escape_lines,
    plural,
    quoted,
    unescape,
    unescaped,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"happy\r\n", r"happy\r\n"),
        (b"\x1b[2Jgone\x00", r"\x1b[2Jgone\x00"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("caf\u00e9", "caf\u00e9"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u2028b\u202ec", r"a\u2028b\u202ec"),
        ("{peer} %s", "{peer} %s"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_could_harm_a_terminal_or_a_log_is_escaped(value: bytes | str, shown: str) -> None:
    assert escape(value) == shown


@given(st.one_of(st.binary(), st.text()))
def test_what_is_escaped_is_one_printable_line(value: bytes | str) -> None:
    shown = escape(value)
    assert len(shown.splitlines()) <= 1
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    shown.encode()


def test_a_traceback_keeps_its_lines() -> None:
    assert escape_lines("one\n\ttwo\r\x1b[0m\u2028") == "one\n\ttwo" + r"\r\x1b[0m\u2028"


@pytest.mark.parametrize(
    ("text", "value"),
    [(r"\r\n", b"\r\n"), (r"\x00", b"\0"), (r"a\\n", rb"a\n"), ("é", "é".encode()), ("", b"")],
)
def test_settings_may_be_written_with_escapes(text: str, value: bytes) -> None:
    assert unescape(text) == value


@pytest.mark.parametrize("text", [r"\x1", r"\x", "\\", r"\d", r"\8", r"\400", "\\\0"])
def test_an_escape_that_is_cut_short_or_unknown_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no escape"):
        unescape(text)


@given(st.binary())
def test_pythons_own_escapes_are_read(value: bytes) -> None:
    assert unescape(repr(value)[2:-1]) == value
    assert unescape("".join(f"\\{byte:03o}" for byte in value)) == value


@given(st.binary() | st.text(st.characters(codec="utf-8")).map(str.encode))
def test_what_is_written_with_escapes_is_one_line_and_read_again(value: bytes) -> None:
    written = unescaped(value)
    assert unescape(written) == value
    assert written == escape(written)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\x1bb\u202e", r"'a\x1bb\u202e'"),
        ("x" * 100, f"'{'x' * 27}...{'x' * 28}'"),
        ([1 << 20_000], "[0x1000000000000000...000000000000000000]"),
        ([1, [2]], "[1, [2]]"),
    ],
)
def test_a_value_is_quoted_in_little_room(value: object, shown: str) -> None:
    assert quoted(value) == shown


def test_a_text_is_clipped() -> None:
    assert clipped("x" * 60) == "x" * 60
    assert clipped("x" * 61) == "x" * 57 + "..."


@pytest.mark.parametrize(
    ("count", "words"), [(0, "messages are"), (1, "message is"), (2, "messages are")]
)
def test_words_go_with_their_number(count: int, words: str) -> None:
    assert plural(count, "message is", "messages are") == words


@pytest.mark.parametrize(
    ("word", "question"),
    [
        ("lines", "did you mean line?"),
        ("Line", "did you mean line?"),
        ("max_line", "did you mean max-line?"),
        ("thread", "did you mean defer-to-thread or thread-per-client?"),
        ("xml", ""),
        ("x", ""),
    ],
)
def test_a_name_that_does_not_exist_is_answered_by_what_may_be_meant(
    word: str, question: str
) -> None:
    names = ["chunk", "line", "max-line", "defer-to-thread", "thread-per-client"]
    assert did_you_mean(word, names) == question
