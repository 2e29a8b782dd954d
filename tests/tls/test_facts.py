from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.tls import Certificate
from echod.tls.facts import ClientHello


def hello(server_name: str | None) -> bytes:
    """Return what a client of Python's `ssl` begins with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


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


def test_a_certificate_has_a_common_name() -> None:
    subject = (("organizationName", "x"), ("commonName", "client"))
    assert Certificate(subject, b"").common_name == "client"
    assert Certificate((), b"").common_name == ""
