from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.dialling import Destination, DestinationError


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("localhost:80", Destination("localhost:80", "localhost", 80)),
        ("192.0.2.1:65535", Destination("192.0.2.1:65535", "192.0.2.1", 65535)),
        ("[::1]:80", Destination("[::1]:80", "::1", 80)),
        ("tls:a.example:443", Destination("tls:a.example:443", "a.example", 443, uses_tls=True)),
        ("unix:/run/a b.sock", Destination("unix:/run/a b.sock", path="/run/a b.sock")),
    ],
)
def test_a_destination_is_a_place_by_tcp_tls_or_a_unix_socket(
    text: str, meant: Destination
) -> None:
    assert Destination.parse(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "localhost",
            ":80",
            "localhost:0",
            "localhost:65536",
            "::1:80",
            "[::g]:80",
            "[1]:80",
        ),
        *("unix:", "unix:a\0b", "tls:localhost", "http://a:80", "a:80/", "a b:80", "localhost:x"),
    ],
)
def test_another_text_is_no_destination(text: str) -> None:
    with pytest.raises(DestinationError):
        Destination.parse(text)


@given(st.text())
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        parsed = Destination.parse(text)
    except DestinationError as error:
        written = str(error)
    else:
        written = parsed.text
    assert written == text or len(written.splitlines()) == 1
