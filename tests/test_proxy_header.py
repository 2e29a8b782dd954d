from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod import proxy_header
from echod.proxy_header import (
    MAX_HEADER,
    MAX_LINE,
    Address,
    Command,
    Fields,
    FieldType,
    HeaderParser,
    ProxiedTLS,
    ProxyError,
    ProxyHeader,
    crc32c,
)
from tests.support.proxy_headers import DESTINATION, SIGNATURE, SOURCE, binary, line, tls_field


def parse(data: bytes, *, step: int = 1 << 20) -> tuple[ProxyHeader | None, bytes]:
    """Feed `data` in pieces of `step`; return the header, and all bytes after it."""
    parser = HeaderParser()
    for at in range(0, len(data), step):
        header = parser.feed(data[at : at + step])
        if header is not None:
            return header, parser.rest + data[at + step :]
    return None, b""


def refused(data: bytes) -> str:
    """Return why `data` is refused: whole, and a byte at a time; early, or at its last byte."""
    texts = []
    for step in (1 << 20, 1):
        with pytest.raises(ProxyError) as caught:
            parse(data, step=step)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    return texts[0]


ports = st.integers(0, 65535)
ipv4 = st.tuples(st.ip_addresses(v=4).map(str), ports)
ipv6 = st.tuples(st.ip_addresses(v=6).filter(lambda ip: not ip.ipv4_mapped).map(str), ports)
names = st.binary(max_size=107).map(lambda name: name.replace(b"\0", b"/"))
pairs = st.one_of(st.tuples(ipv4, ipv4), st.tuples(ipv6, ipv6))
other_fields = st.lists(
    st.tuples(st.integers(0x30, 0xFF), st.binary(max_size=300)), max_size=8
).map(tuple)


@given(pairs, st.binary(max_size=40))
def test_a_line_says_who_the_client_is(pair: tuple[Address, Address], rest: bytes) -> None:
    assert parse(line(*pair) + rest) == (
        ProxyHeader(1, source=pair[0], destination=pair[1]),
        rest,
    )


@given(
    st.one_of(pairs, st.tuples(names, names)), other_fields, st.booleans(), st.binary(max_size=40)
)
def test_a_binary_header_says_who_the_client_is_and_more(
    pair: tuple[Address, Address], fields: Fields, checksum: bool, rest: bytes
) -> None:
    header, behind = parse(binary(*pair, *fields, checksum=checksum) + rest)
    assert header is not None
    assert (header.version, header.command) == (2, Command.PROXY)
    assert (header.source, header.destination) == pair
    assert header.fields[: len(fields)] == fields
    assert behind == rest


@pytest.mark.parametrize(
    "data",
    [
        line(),
        line(("2001:db8::1", 1), ("2001:db8::2", 65535)),
        b"PROXY UNKNOWN\r\n",
        binary(),
        binary(None),
        binary(
            b"/run/a",
            b"/run/b",
            (FieldType.ALPN, b"h2"),
            (0xE0, bytes(range(256)) * 3),
            checksum=True,
        ),
    ],
)
def test_a_header_may_be_split_at_every_byte(data: bytes) -> None:
    whole, _ = parse(data)
    assert whole is not None
    for place in range(1, len(data)):
        parser = HeaderParser()
        assert parser.feed(data[:place]) is None
        assert parser.feed(data[place:] + b"hello") == whole
        assert parser.rest == b"hello"
    assert parse(data + b"hello", step=1) == (whole, b"hello")


@given(st.binary(max_size=200), st.integers(1, 7))
def test_junk_is_refused_or_waited_for(junk: bytes, step: int) -> None:
    for start in (b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"):
        with contextlib.suppress(ProxyError):
            parse(start + junk, step=step)


@given(st.data(), st.sampled_from([line(), binary(SOURCE, DESTINATION, (1, b"h2"), (4, b"..."))]))
def test_a_changed_header_is_read_or_refused(data: st.DataObject, header: bytes) -> None:
    place = data.draw(st.integers(0, len(header) - 1))
    changed = header[:place] + data.draw(st.binary(max_size=3)) + header[place + 1 :]
    try:
        found, _ = parse(changed)
    except ProxyError:
        return
    if found is not None and isinstance(found.source, tuple):
        assert 0 <= found.source[1] <= 65535


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
        b"PROXY UNKNOWN whatever it is\r\n",
        binary(None),
        binary(command=0),
        binary(None, kind=0x77),
        binary(None, None, (0xE0, b"more")),
        SIGNATURE + b"\x20\x00\x00\x01\xff",
        binary(kind=0x00),
        binary(kind=0x10),
        binary(kind=0x01),
    ],
)
def test_a_header_that_names_no_client_is_valid(data: bytes) -> None:
    header, rest = parse(data + b"hello")
    assert header is not None
    assert (header.source, header.destination, header.fields) == (None, None, ())
    assert rest == b"hello"


def test_a_health_check_is_told_from_a_client_that_is_unknown() -> None:
    assert parse(binary(None)) == (ProxyHeader(2, Command.LOCAL), b"")
    assert parse(binary(kind=0)) == (ProxyHeader(2, Command.PROXY), b"")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("TCP4 1.2.3.4 1.2.3.4 -1 1", "an invalid port"),
        ("TCP4 1.2.3.4 1.2.3.4 99999999 1", "an invalid port"),
        ("TCP4 1.2.3.4 1.2.3.4 65536 1", "an invalid port"),
        ("TCP4 1.2.3.4 1.2.3.4 01 1", "an invalid port"),
        ("TCP4 1.2.3.4 1.2.3.4 +1 1", "an invalid port"),
        ("TCP4 1.2.3.4 1.2.3.4 1_0 1", "an invalid port"),
        ("TCP4 1.2.3.4 1.2.3.4  1", "an invalid port"),
        ("TCP4 01.2.3.4 1.2.3.4 1 1", "an invalid IPv4 address"),
        ("TCP4 1.2.3 1.2.3.4 1 1", "an invalid IPv4 address"),
        ("TCP4 1.2.3.256 1.2.3.4 1 1", "an invalid IPv4 address"),
        ("TCP4 1.2.3.4/32 1.2.3.4 1 1", "an invalid IPv4 address"),
        ("TCP4 ::1 ::1 1 1", "an invalid IPv4 address"),
        ("TCP4 localhost 1.2.3.4 1 1", "an invalid IPv4 address"),
        ("TCP6 1.2.3.4 1.2.3.4 1 1", "an invalid IPv6 address"),
        ("TCP6 fe80::1%eth0 ::1 1 1", "an invalid IPv6 address"),
        ("TCP6 ::1::1 ::1 1 1", "an invalid IPv6 address"),
        ("TCP6 [::1] ::1 1 1", "an invalid IPv6 address"),
        ("TCP4 1.2.3.4 1.2.3.4 1", "not two addresses and two ports"),
        ("TCP4 1.2.3.4 1.2.3.4 1 1 ", "not two addresses and two ports"),
        ("TCP4  1.2.3.4 1.2.3.4 1 1", "not two addresses and two ports"),
        ("TCP4", "not two addresses and two ports"),
        ("TCP5 1.2.3.4 1.2.3.4 1 1", "neither TCP4, TCP6 nor UNKNOWN"),
        ("tcp4 1.2.3.4 1.2.3.4 1 1", "neither TCP4, TCP6 nor UNKNOWN"),
        ("UNKNOWNS", "neither TCP4, TCP6 nor UNKNOWN"),
        ("", "neither TCP4, TCP6 nor UNKNOWN"),
        ("TCP4 1.2.3.4\x1b[2J 1.2.3.4 1 1", "control characters in the line"),
        ("UNKNOWN \t", "control characters in the line"),
        ("UNKNOWN \x7f", "control characters in the line"),
        ("TCP4 1.2.3.\u0664 1.2.3.4 1 1", "control characters in the line"),
        ("TCP4 1.2.3.4 1.2.3.4 1 1\n", "control characters in the line"),
        ("TCP4 1.2.3.4 1.2.3.4 1 1\rX", "control characters in the line"),
        ("UNKNOWN" + "x" * MAX_LINE, f"more than {MAX_LINE} bytes without CRLF"),
    ],
)
def test_a_line_that_is_not_exactly_right_is_refused(words: str, why: str) -> None:
    assert why in refused(f"PROXY {words}\r\n".encode())


def test_the_longest_line_is_taken_and_no_longer_one() -> None:
    longest = b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 16) + b"\r\n"
    assert len(longest) == 107
    assert parse(longest)[0] == ProxyHeader(1)
    assert "more than 107 bytes" in refused(longest[:-2] + b"x\r\n")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "no PROXY header"),
        (b"\x16\x03\x01", "no PROXY header"),
        (b"PROXYTCP4", "no PROXY header"),
        (b"proxy ", "no PROXY header"),
        (SIGNATURE[:-1] + b"\r", "no PROXY header"),
        (binary(version=1), "a version that is neither 1 nor 2"),
        (binary(version=3), "a version that is neither 1 nor 2"),
        (binary(command=2), "neither LOCAL nor PROXY"),
        (binary(kind=0x41), "an unknown kind of address"),
        (binary(kind=0x13), "an unknown kind of address"),
        (binary(kind=0x12), "it is for datagrams"),
        (binary(kind=0x21), "too short for its addresses"),
        (binary(kind=0x31), "too short for its addresses"),
        (SIGNATURE + b"\x21\x11" + struct.pack("!H", MAX_HEADER - 15), "longer than 4096 bytes"),
        (SIGNATURE + b"\x20\x00\xff\xff", "longer than 4096 bytes"),
        (binary(SOURCE, DESTINATION, (3, b"1234")), "the checksum is wrong"),
        (binary(SOURCE, DESTINATION, (3, b"123")), "not one checksum of 4 bytes"),
        (binary(SOURCE, DESTINATION, (3, bytes(4)), checksum=True), "not one checksum of 4"),
        (binary(SOURCE, DESTINATION, (5, bytes(129))), "a unique ID of more than 128 bytes"),
        (binary(SOURCE, DESTINATION, (0x20, b"1234")), "a TLS field that is too short"),
        (binary(SOURCE, DESTINATION, (0x20, bytes(5) + b"\x22\x00\x01")), "goes beyond the end"),
    ],
)
def test_a_broken_header_is_refused(data: bytes, why: str) -> None:
    assert why in refused(data)


@pytest.mark.parametrize(
    "behind", [b"\x01", b"\x01\x00", b"\x01\x00\x01", b"\x04\x00\x00\x01\x00"]
)
def test_a_field_that_is_cut_short_is_refused(behind: bytes) -> None:
    whole = binary()
    length = struct.pack("!H", len(whole) - 16 + len(behind))
    assert "goes beyond the end" in refused(whole[:14] + length + whole[16:] + behind)


def test_the_longest_binary_header_is_taken() -> None:
    whole = binary(SOURCE, DESTINATION, (4, bytes(MAX_HEADER - 16 - 12 - 3)))
    assert len(whole) == MAX_HEADER
    assert parse(whole)[0] is not None


def test_the_longest_unique_id_is_taken() -> None:
    header, _ = parse(binary(SOURCE, DESTINATION, (5, bytes(128))))
    assert header is not None and header.unique_id == bytes(128)


def test_the_checksum_covers_every_byte() -> None:
    whole = binary(SOURCE, DESTINATION, (1, b"h2"), (0xE1, b"other"), checksum=True)
    assert parse(whole)[0] is not None
    its_type = len(whole) - 7  # changed, it is another field, and nothing is left to compare
    for place in {*range(16, len(whole))} - {its_type}:
        changed = bytearray(whole)
        changed[place] ^= 1
        with pytest.raises(ProxyError):
            parse(bytes(changed))


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_known_fields_have_names() -> None:
    header, _ = parse(
        binary(
            SOURCE,
            DESTINATION,
            (FieldType.ALPN, b"h2"),
            (FieldType.AUTHORITY, "bücher.example".encode()),
            (FieldType.NOOP, b"\0\0"),
            (FieldType.UNIQUE_ID, b"\x01\x02"),
            (FieldType.NETNS, b"blue"),
            (0xEA, b"vpce-1234"),
        )
    )
    assert header is not None
    assert header.alpn == b"h2"
    assert header.authority == "bücher.example"
    assert header.unique_id == b"\x01\x02"
    assert header.network_namespace == "blue"
    assert header.field(0xEA) == b"vpce-1234"
    assert header.field(0xEB) is None
    assert header.tls is None
    assert len(header.fields) == 6


def test_what_was_not_said_is_none() -> None:
    header, _ = parse(line())
    assert header is not None
    fields = header.alpn, header.authority, header.unique_id, header.network_namespace
    assert set(fields) == {None}


@pytest.mark.parametrize(
    ("flags", "failed", "verified"),
    [(7, 0, True), (1, 0, False), (3, 1, False), (5, 0, True), (0, 0, False)],
)
def test_the_clients_tls_session_is_told_of(flags: int, failed: int, verified: bool) -> None:
    within = (
        (FieldType.SSL_VERSION, b"TLSv1.3"),
        (FieldType.SSL_CN, b"Ada\xff"),
        (FieldType.SSL_CIPHER, b"TLS_AES_128_GCM_SHA256"),
        (FieldType.SSL_SIG_ALG, b"SHA256"),
    )
    header, _ = parse(binary(SOURCE, DESTINATION, tls_field(flags, failed, *within)))
    assert header is not None
    assert header.tls == ProxiedTLS(
        encrypted=bool(flags & 1),
        certificate_given=bool(flags & 2),
        certificate_in_session=bool(flags & 4),
        verified=verified,
        version="TLSv1.3",
        common_name="Ada\\xff",
        cipher="TLS_AES_128_GCM_SHA256",
        fields=within,
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"2001:db8::1", "2001:db8::1"),
        (b"2001:DB8:0:0::1", "2001:db8::1"),
        (b"::FFFF:1.2.3.4", "::ffff:1.2.3.4"),
        (b"::ffff:102:304", "::ffff:1.2.3.4"),
        (b"::102:304", "::1.2.3.4"),
        (b"1:0:0:2:0:0:0:3", "1:0:0:2::3"),
        (b"1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
    ],
)
def test_addresses_are_shown_as_sockets_show_them(text: bytes, shown: str) -> None:
    header, _ = parse(b"PROXY TCP6 " + text + b" ::1 1 2\r\n")
    assert header is not None
    assert header.source == (shown, 1)
    same, _ = parse(binary((shown, 1), ("::1", 2)))
    assert same is not None
    assert same.source == header.source


def test_a_path_ends_at_nul_and_an_abstract_name_begins_with_it() -> None:
    header, _ = parse(binary(b"/run/a\0junk", b"\0abs\0tract"))
    assert header is not None
    assert (header.source, header.destination) == (b"/run/a", b"\0abs\0tract")


def test_a_header_fed_byte_by_byte_costs_no_more_than_its_length() -> None:
    # Quadratic work on 4 KiB would be eight million steps, and take seconds.
    whole = binary(SOURCE, DESTINATION, *[(4, b"")] * 1300)
    parser = HeaderParser()
    for byte in whole[:-1]:
        assert parser.feed(bytes([byte])) is None
        assert parser.rest == b""
    assert parser.received == len(whole) - 1
    assert parser.feed(whole[-1:]) is not None


# Written, and read again.

_PORTS = st.integers(0, 65535)


def _places(version: int) -> st.SearchStrategy[tuple[str, int]]:
    return st.tuples(
        st.ip_addresses(v=version).map(lambda one: proxy_header._host(one.packed)), _PORTS
    )


_IP = st.sampled_from([4, 6]).flatmap(lambda v: st.tuples(_places(v), _places(v)))
_PATHS = st.binary(max_size=108).filter(lambda path: b"\0" not in path)


@given(_IP, st.integers(1, 2), st.data())
def test_a_header_that_was_encoded_is_decoded_to_the_same(
    both: tuple[tuple[str, int], tuple[str, int]], version: int, data: st.DataObject
) -> None:
    kinds = st.integers(0x30, 0xFF)
    fields = st.lists(st.tuples(kinds, st.binary(max_size=300)), max_size=5).map(tuple)
    header = ProxyHeader(
        version,
        source=both[0],
        destination=both[1],
        fields=data.draw(fields) if version == 2 else (),
    )
    encoded = proxy_header.encode(header)
    parser = HeaderParser()
    decoded = parser.feed(encoded + b"rest")
    assert decoded == header
    assert decoded.size == len(encoded)
    assert parser.rest == b"rest"


@given(_PATHS, _PATHS)
def test_paths_of_unix_sockets_go_through_version_2(source: bytes, destination: bytes) -> None:
    header = ProxyHeader(2, source=source, destination=destination)
    assert HeaderParser().feed(proxy_header.encode(header)) == header


@pytest.mark.parametrize("version", [1, 2])
def test_a_header_without_addresses_names_no_client(version: int) -> None:
    header = ProxyHeader(version)
    assert HeaderParser().feed(proxy_header.encode(header)) == header


def test_local_is_encoded_in_version_2() -> None:
    header = ProxyHeader(2, proxy_header.Command.LOCAL)
    assert HeaderParser().feed(proxy_header.encode(header)) == header


@pytest.mark.parametrize(
    "header",
    [
        ProxyHeader(1, source=("127.0.0.1", 1), destination=("::1", 1)),
        ProxyHeader(2, source=("127.0.0.1", 1), destination=("::1", 1)),
        ProxyHeader(2, source=b"/a", destination=("::1", 1)),
        ProxyHeader(2, source=b"/a" * 60, destination=b""),
        ProxyHeader(2, source=("::1", 1), destination=("::1", 1), fields=((0xE0, bytes(5000)),)),
    ],
)
def test_a_header_that_no_reader_would_take_is_not_encoded(header: ProxyHeader) -> None:
    with pytest.raises(ValueError, match=r"two families|longer than"):
        proxy_header.encode(header)
