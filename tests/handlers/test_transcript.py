from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.handlers.transcript import (
    MOST,
    End,
    Input,
    Mismatch,
    ScriptError,
    Wait,
    converse,
    parse,
)


def played(text: str, *said: bytes, ends: bool = False) -> list[object]:
    """Return the actions of a conversation with a client that says this, each when it is asked."""
    given_input, pieces, done = Input(), list(said), []
    for action in converse(parse(text), given_input):
        if action is not None:
            done.append(action)
        elif pieces:
            given_input.data += pieces.pop(0)
        elif ends and not given_input.ended:
            given_input.ended = True
        else:
            return [*done, "waits"]
    return [*done, "over"]


def test_the_server_speaks_expects_and_answers_with_groups() -> None:
    text = "> 220 hi\n< (?i)helo (.*) (.*)\n> \\2, \\1 \\x41\\\\\n>- no end\nwait 0.5\nclose"
    assert played(text, b"HELO a b\r\n") == [
        *(b"220 hi\r\n", b"b, a A\\\r\n", b"no end", Wait(0.5), End(resets=False), "over")
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_ends_in_either_way_and_may_come_in_pieces(end: bytes) -> None:
    assert played("< one\n> two", b"o", b"ne" + end) == [b"two\r\n", "over"]
    assert played("< one\n> two", b"one", ends=True) == [b"two\r\n", "over"]
    assert played("< one\n> two", b"on") == ["waits"]


def test_an_expectation_may_be_of_several_lines() -> None:
    text = "< \\*1\\r\\n\\$4\\r\\nPING\n> +PONG"
    assert played(text, b"*1\r\n$4\r\n", b"PING\r\n") == [b"+PONG\r\n", "over"]


def test_steps_are_repeated_so_many_times_or_for_ever() -> None:
    assert played("repeat 3\n> x\nend") == [b"x\r\n"] * 3 + ["over"]
    assert played("repeat\n< (.)\n> \\1\nend", b"a\nb\n", ends=True) == [
        *(b"a\r\n", b"b\r\n", "over")
    ]


ANY = (
    "repeat any\n< GET (.*)\n> got \\1\n< SET\\r\\n(.*)\n> set \\1\n"
    "until \\.\n< BYE\n> bye\nclose\nend"
)


def test_the_first_line_that_matches_says_how_to_go_on() -> None:
    said = b"SET\r\nx\r\nmore\r\n.\r\nGET y\r\nBYE\r\n"
    assert played(ANY, said) == [
        *(b"set x\r\n", b"got y\r\n", b"bye\r\n", End(resets=False), "waits")
    ]
    assert played(ANY, b"GET y\r\n", ends=True) == [b"got y\r\n", "over"]


@pytest.mark.parametrize(
    ("text", "said", "error"),
    [
        ("# why\n\n< (one|two)", b"three\r\n", r"line 3: expected (one|two), got 'three\r\n'"),
        ("< one", b"", "line 1: expected one, got the end of the stream"),
        ("< one", b"\xff\x1b\n", r"line 1: expected one, got '\xff\x1b\n'"),
        ("repeat any\n< a\n< b\nend", b"c\n", r"line 2: expected a or b, got 'c\n'"),
        ("< one\nuntil \\.", b"one\ntwo\n", r"line 2: expected \., got the end of the stream"),
    ],
)
def test_a_mismatch_says_line_expected_and_got(text: str, said: bytes, error: str) -> None:
    with pytest.raises(Mismatch) as caught:
        played(text, *([said] if said else []), ends=True)
    assert str(caught.value) == error


def test_a_line_without_end_is_no_more_held_than_it_may_be() -> None:
    with pytest.raises(Mismatch, match="line 1: expected one, got 'xxx"):
        played("< one", b"x" * (MOST + 1))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "1: the script is empty"),
        ("# nothing\n", "1: the script is empty"),
        (
            "> a\nhello",
            "2: a line begins with >, >-, <, until, wait, close, reset, repeat, end or #",
        ),
        (">a", "1: a space follows >: write > TEXT"),
        ("  <a", "1: a space follows <: write < TEXT"),
        ("> a\nuntil", "2: until takes a regular expression"),
        ("close now", "1: close stands alone"),
        ("< (", "1: not a regular expression"),
        ("> \\1", "1: the last match has no group 1"),
        ("< (.)\n> \\2", "2: the last match has no group 2"),
        ("> \\q", r"1: \q is no escape; a backslash is \\"),
        ("> \\", r"1: \ is no escape; a backslash is \\"),
        ("wait soon", "1: wait takes seconds"),
        ("wait 99999999", "1: wait takes seconds"),
        ("> a\nend", "2: end without repeat"),
        ("> a\nrepeat\n> b", "2: repeat without end"),
        ("repeat\nend", "1: there is nothing to repeat"),
        ("repeat 0\n> a\nend", "1: repeat takes a count, any, or nothing"),
        ("repeat any\n> a\nend", "1: after repeat any comes a line that begins with <"),
        ("until a\\nb", "1: until takes one line"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(text: str, error: str) -> None:
    with pytest.raises(ScriptError) as caught:
        parse(text)
    assert str(caught.value).startswith(error)


def test_a_script_may_be_indented() -> None:
    plain = "repeat any\n< a\n> b \nwait 1\nend\n"
    indented = "repeat any\n\t< a\n    > b \n  # more\n  wait 1\n end\n"
    told = [re.sub(r"number=\d+", "", repr(parse(text))) for text in (plain, indented)]
    assert told[0] == told[1]


WORDS = st.sampled_from(
    ["> ", ">- ", "< ", "until ", "wait ", "close", "reset", "repeat", "repeat any", "end", "# "]
)
LINES = st.tuples(WORDS, st.text(max_size=8) | st.sampled_from(["", "1", "\\1", "(.)", "\\x41"]))


@given(st.lists(LINES.map("".join), max_size=12).map("\n".join) | st.text())
def test_any_text_is_a_script_or_an_error_with_a_line_of_it(text: str) -> None:
    try:
        steps = parse(text)
    except ScriptError as error:
        number = int(str(error).partition(":")[0])
    else:
        number = 1
        assert steps
    assert 1 <= number <= text.count("\n") + 1


@given(st.lists(st.binary(min_size=1, max_size=5)), st.booleans())
def test_the_actions_do_not_depend_on_how_the_input_was_cut(cuts: list[bytes], ends: bool) -> None:
    whole = b"GET a\r\nGET b\nBYE\r\n"
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(whole[at : at + len(cut)])
        at += len(cut)
    pieces.append(whole[at:])
    said = [piece for piece in pieces if piece]
    assert played(ANY, *said)[:3] == [b"got a\r\n", b"got b\r\n", b"bye\r\n"]
