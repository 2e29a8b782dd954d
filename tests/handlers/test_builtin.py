from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.handlers.builtin import Count, Echo, discard, pattern, plain_echo, reverse, upper
from echod.handlers.client import Client
from echod.handlers.contract import Close

CLIENT = Client("127.0.0.1:60225")


def test_echo_greets_and_answers_behind_ok() -> None:
    echo = Echo()
    assert echo.opened(CLIENT) == b"Welcome to the server. Type something and hit enter\n"
    assert echo.received(b"happy\n") == b"OK...happy\n"


def test_echos_banner_and_prefix_are_settings() -> None:
    echo = Echo(banner=b"", prefix=b">")
    assert not echo.opened(CLIENT)
    assert echo.received(b"\x00\xff\r\n") == b">\x00\xff\r\n"


def test_upper_answers_in_capitals() -> None:
    assert upper(b"happy\n") == b"HAPPY\n"


@pytest.mark.parametrize(
    ("message", "reply"),
    [(b"happy\n", b"yppah\n"), (b"happy\r\n", b"yppah\r\n"), (b"ab", b"ba"), (b"\n", b"\n")],
)
def test_reverse_leaves_the_line_ending_where_it_is(message: bytes, reply: bytes) -> None:
    assert reverse(message) == reply


@given(st.binary())
def test_reverse_is_its_own_inverse(message: bytes) -> None:
    assert reverse(reverse(message)) == message or message.rstrip(b"\r\n")[:1] in (b"\r", b"\n")


def test_count_numbers_each_clients_messages_until_quit() -> None:
    count = Count()
    assert [count.received(b"a\n"), count.received(b"b\n")] == [b"1: a\n", b"2: b\n"]
    assert count.received(b"quit\n") == Close(b"2 messages\n")
    alone = Count()
    alone.received(b"happy\n")
    assert alone.received(b"quit\n") == Close(b"1 message\n")
    assert Count(start=7).received(b"a") == b"7: a"


def test_the_lines_of_chargen_are_those_of_the_rfc() -> None:
    lines = pattern().split(b"\r\n")
    assert lines.pop() == b""
    printing = "".join(map(chr, range(0x20, 0x7F)))
    assert lines[0].decode() == printing[:72]
    assert lines[1].decode() == printing[1:73]
    assert lines[94].decode() == "~" + printing[:71]
    assert len(lines) == 95
    assert {len(line) for line in lines} == {72}


@given(st.binary())
def test_plain_echo_adds_nothing_and_discard_answers_nothing(message: bytes) -> None:
    assert plain_echo(message) == message
    assert discard(message) is None
