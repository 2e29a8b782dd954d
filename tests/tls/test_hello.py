from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.tls.hello import LARGEST, ClientHello
from tests.support.tls_peer import hello_of as hello
from tests.support.tls_peer import records


def name_in(*parts: bytes) -> str | None:
    parsed = ClientHello()
    for part in parts:
        parsed.feed(part)
    return parsed.server_name


@pytest.mark.parametrize("name", ["example.com", "a.b_c-d.example", None])
def test_the_name_that_a_client_asks_for_is_found(name: str | None) -> None:
    assert name_in(hello(name)) == name


def test_the_name_is_found_however_the_hello_is_cut() -> None:
    whole = hello("example.com")
    for place in range(len(whole)):
        parsed = ClientHello()
        assert not parsed.feed(whole[:place])
        assert parsed.feed(whole[place:])
        assert parsed.server_name == "example.com"


@pytest.mark.parametrize("sizes", [(1,), (3,), (4,), (100,), (1, 60, 7), (0, 50)])
@pytest.mark.parametrize("read", [1, 7, 1 << 20])
def test_the_name_is_found_however_many_records_the_hello_spans(
    sizes: tuple[int, ...], read: int
) -> None:
    stream, parsed = records(hello("example.com"), *sizes), ClientHello()
    reads = [stream[start : start + read] for start in range(0, len(stream), read)]
    assert [parsed.feed(each) for each in reads] == [*[False] * (len(reads) - 1), True]
    assert parsed.server_name == "example.com"


def made(*extensions: tuple[int, bytes]) -> bytes:
    """Return a hello with these extensions, in their order."""
    body = b"".join(_block(data, kind.to_bytes(2, "big")) for kind, data in extensions)
    fields = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + _block(body)
    return records(bytes(5) + b"\x01" + len(fields).to_bytes(3, "big") + fields, 1 << 14)


def _block(data: bytes, before: bytes = b"") -> bytes:
    return before + len(data).to_bytes(2, "big") + data


NAME = (0, _block(b"\0" + _block(b"example.com")))
PADDING = (21, bytes(300))
ALPN = (16, _block(b"\x02h2"))


@pytest.mark.parametrize("others", [*itertools.permutations([NAME, PADDING, ALPN, (0xAAAA, b"")])])
def test_the_name_is_found_in_whatever_order_extensions_come(
    others: tuple[tuple[int, bytes], ...],
) -> None:
    assert name_in(made(*others)) == "example.com"
    assert name_in(made(*(each for each in others if each != NAME))) is None


LONGEST = made(*[PADDING] * 210, (21, bytes(1_500)), NAME)


def test_the_longest_hello_is_read_to_its_end() -> None:
    assert len(LONGEST) > 65_000
    assert name_in(LONGEST) == "example.com"


def test_a_hello_that_openssl_would_not_take_is_not_kept() -> None:
    endless = bytes(5) + b"\x01" + (LARGEST - 3).to_bytes(3, "big") + bytes(1 << 18)
    parsed = ClientHello()
    assert parsed.feed(records(endless, 1 << 14))
    assert parsed.server_name is None
    assert sys.getsizeof(parsed._message) < 1 << 15


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1", b"\x16\x03\x01\xff\xff", b"\x80\x2e\1\0\2"])
def test_a_client_that_is_none_of_tls_is_known_by_its_first_bytes(start: bytes) -> None:
    parsed = ClientHello()
    assert [parsed.feed(start[place : place + 1]) for place in range(5)] == [*[False] * 4, True]


@pytest.mark.parametrize("kind", [20, 21, 23])
def test_what_is_between_its_records_ends_it(kind: int) -> None:
    whole = records(hello("example.com"), 100)
    parsed = ClientHello()
    assert parsed.feed(whole[:105] + bytes([kind]) + b"\x03\x01\0\x01\x01" + whole[105:])
    assert parsed.server_name is None


@pytest.mark.parametrize("name", [b"exampl\x1b.com", b"exampl\xff.com", b"exampl\n.com"])
def test_a_name_that_is_none_is_not_shown(name: bytes) -> None:
    assert name_in(hello("example.com").replace(b"example.com", name)) is None


@given(st.binary(max_size=600))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    name_in(data)
    name_in(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + data)


@given(st.data())
def test_no_change_to_a_hello_makes_it_fail(data: st.DataObject) -> None:
    changed = bytearray(hello("example.com"))
    for place in data.draw(st.lists(st.integers(0, len(changed) - 1), max_size=8)):
        changed[place] = data.draw(st.integers(0, 255))
    name = name_in(bytes(changed[: data.draw(st.integers(0, len(changed)))]))
    assert name is None or name.isascii()
