from __future__ import annotations

import contextlib
import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from hypothesis import given
from hypothesis import strategies as st

from echod.tls.der import element, elements, host_names, subject, validity
from tests.support.certificates import DAY, Authority

AUTHORITY = Authority("an authority")
COMMON_NAME = x509.NameOID.COMMON_NAME
TEXT = _ASN1Type.UTF8String


def attribute(
    value: str | bytes,
    kind: _ASN1Type = TEXT,
    oid: x509.ObjectIdentifier = COMMON_NAME,
) -> x509.NameAttribute[str | bytes]:
    return x509.NameAttribute(oid, value, kind, _validate=False)


def der_of(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode().partition("-----BEGIN PRIVATE")[0])


def issued(*relatives: list[x509.NameAttribute[str | bytes]]) -> bytes:
    """Return a certificate, in DER, with a name of these relative names."""
    name = x509.Name([x509.RelativeDistinguishedName(each) for each in relatives])
    return der_of(AUTHORITY.issue(name))


@pytest.mark.parametrize("kind", ["UTF8String", "BMPString", "UniversalString"])
def test_a_name_may_be_of_any_type_that_holds_all_letters(kind: str) -> None:
    assert subject(issued([attribute("Zoë", _ASN1Type[kind])])) == (("commonName", "Zoë"),)


@pytest.mark.parametrize(
    "kind", ["PrintableString", "IA5String", "NumericString", "VisibleString"]
)
def test_a_name_may_be_of_any_type_that_holds_ascii(kind: str) -> None:
    assert subject(issued([attribute("12", _ASN1Type[kind])])) == (("commonName", "12"),)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x14\x04Zo\xeb!", "Zoë!"),  # TeletexString, as commonly decoded
        (b"\x16\x04Zo\xeb!", "Zoë!"),  # IA5String with what it may not hold
        (
            b"\x0c\x04a\0\x1bb",
            "a\0\x1bb",
        ),  # text, not escaped here
        (b"\x0c\x04Zo\xeb!", "#0c045a6feb21"),  # not UTF-8
        (b"\x1e\x04\xd8\x00\0a", "#1e04d8000061"),  # half a character
        (b"\x1c\x04\0\x11\0\0", "#1c0400110000"),  # beyond Unicode
        (b"\x03\x04\x05abc", "#030405616263"),  # BIT STRING
        (b"\x03\x04\0abc", "#030400616263"),
        (b"\x04\x04name", "#04046e616d65"),  # OCTET STRING
        (b"\x02\x04\0\0\0\1", "#020400000001"),  # INTEGER
        (b"\x30\x04\x0c\x02ab", "#30040c026162"),  # SEQUENCE
    ],
)
def test_a_name_is_text_or_its_der(value: bytes, text: str) -> None:
    certificate = der_of(AUTHORITY.issue_changed("name", b"\x0c\x04name", value))
    assert subject(certificate) == (("commonName", text),)


def test_names_come_in_their_order_the_empty_one_too() -> None:
    with pytest.warns(UserWarning, match="length must be >= 1"):
        nothing = attribute("")
    # Of what one relative name holds, DER says the order.
    together = [attribute("host", oid=x509.NameOID.SURNAME), attribute("one")]
    assert subject(issued(together, [nothing], [attribute("two")])) == (
        ("commonName", "one"),
        ("surname", "host"),
        ("commonName", ""),
        ("commonName", "two"),
    )
    assert subject(issued()) == ()


@pytest.mark.parametrize(
    ("oid", "name"),
    [
        ("2.5.4.45", "x500UniqueIdentifier"),
        ("0.9.2342.19200300.100.1.1", "userId"),
        ("1.3.6.1.4.1.99999.1", "1.3.6.1.4.1.99999.1"),
        ("2.999.128", "2.999.128"),
    ],
)
def test_an_attribute_has_openssls_name_or_its_numbers(oid: str, name: str) -> None:
    certificate = issued([attribute("x", oid=x509.ObjectIdentifier(oid))])
    assert subject(certificate) == ((name, "x"),)


def test_validity_begins_and_ends_in_either_form_of_time() -> None:
    for days in (1, 365 * 40):  # UTCTime, and from 2050 on GeneralizedTime
        found = validity(der_of(AUTHORITY.issue("name", days * DAY)))
        for moment, away in zip(found, (-9, days), strict=True):
            expected = datetime.datetime.now(datetime.UTC) + away * DAY
            assert abs(moment - expected) < datetime.timedelta(minutes=5)


def test_elements_may_be_long() -> None:
    first, second = b"\x04\x03abc", b"\x04\x82\x01\0" + bytes(256)
    assert list(elements(first + second)) == [first, second]
    assert element(second) == (4, bytes(256), b"")


@given(st.binary(max_size=40))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    for read in (subject, validity, host_names, lambda data: list(elements(data))):
        with contextlib.suppress(ValueError):
            read(data)


CERTIFICATE = issued([attribute("somebody")])


@given(st.data())
def test_no_change_to_a_certificate_makes_it_fail_otherwise(data: st.DataObject) -> None:
    changed = bytearray(CERTIFICATE)
    for place in data.draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=4)):
        changed[place] = data.draw(st.integers(0, 255))
    for read in (subject, validity, host_names):
        with contextlib.suppress(ValueError):
            read(bytes(changed[: data.draw(st.integers(0, len(changed)))]))


@given(st.lists(st.from_regex(r"(\*\.)?[a-z0-9-]{1,20}(\.[a-z]{1,9}){0,3}", fullmatch=True)))
def test_the_hosts_of_a_certificate_are_found(hosts: list[str]) -> None:
    certificate = der_of(AUTHORITY.issue("owner", hosts=hosts))
    assert host_names(certificate) == (tuple(hosts) or ("owner",))
