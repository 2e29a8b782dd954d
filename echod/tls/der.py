"""Parse DER (X.690), as far as needed here: names, the validity and the number of certificates.

Any invalid input raises a ValueError.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator

# The encodings of the string types (X.680, 8.4), as in OpenSSL; those with one byte a letter are
# treated as Latin-1.
CHARSETS = {
    0x0C: "utf-8",  # UTF8String
    0x12: "latin-1",  # NumericString
    0x13: "latin-1",  # PrintableString
    0x14: "latin-1",  # TeletexString, also called T61String
    0x16: "latin-1",  # IA5String
    0x1A: "latin-1",  # VisibleString
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}
UTC_TIME = 0x17
VERSION = 0xA0
# The tag of a certificate's extensions; the OID of the alternative names; the tag of a host's.
EXTENSIONS = 0xA3
ALTERNATIVE_NAMES = b"\x55\x1d\x11"
HOST_NAME = 0x82


def validity(certificate: bytes) -> tuple[datetime.datetime, datetime.datetime]:
    """Return the beginning and the end of a certificate's validity (RFC 5280, 4.1.2.5).

    Raises:
        ValueError: it is not a certificate.
    """
    begin, end = _two(element(_fields(certificate)[3])[1])
    return _moment(begin), _moment(end)


def _moment(der: bytes) -> datetime.datetime:
    tag, body, _ = element(der)
    form = "%y%m%d%H%M%SZ" if tag == UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.datetime.strptime(body.decode(), form).replace(tzinfo=datetime.UTC)


def serial_number(certificate: bytes) -> str:
    """Return a certificate's serial number (RFC 5280, 4.1.2.2) in hexadecimal, as openssl does.

    Raises:
        ValueError: it is not a certificate.
    """
    return element(_fields(certificate)[0])[1].hex().upper().removeprefix("00")


def subject(certificate: bytes) -> tuple[tuple[str, str], ...]:
    """Return the name of a certificate's owner (RFC 5280, 4.1.2.6).

    Returns:
        (attribute, value) pairs in their order, those of one relative name one after the other.
        An attribute has OpenSSL's name, or the numbers of its OID. A value that is not text, such
        as a BIT STRING, is "#" and its DER in hexadecimal (RFC 4514, 2.4).

    Raises:
        ValueError: it is not a certificate.
    """
    name = element(_fields(certificate)[4])[1]
    return tuple(
        (_attribute(element(kind)[1]), _value(value))
        for relative in elements(name)
        for pair in elements(element(relative)[1])
        for kind, value in [_two(element(pair)[1])]
    )


def host_names(certificate: bytes) -> tuple[str, ...]:
    """Return the hosts that a certificate names (RFC 6125): "*.example.com" is one, too.

    Its common names count if it has no alternative names of hosts.

    Raises:
        ValueError: it is not a certificate.
    """
    names = [
        body.decode("ascii", "replace")
        for tag, body in _alternative_names(certificate)
        if tag == HOST_NAME
    ]
    return tuple(names or [text for name, text in subject(certificate) if name == "commonName"])


def _alternative_names(certificate: bytes) -> Iterator[tuple[int, bytes]]:
    """Return the tag and the body of each name (RFC 5280, 4.2.1.6)."""
    for field in _fields(certificate)[6:]:
        if field[0] != EXTENSIONS:
            continue
        for extension in elements(element(element(field)[1])[1]):
            kind, *_, value = elements(element(extension)[1])
            if element(kind)[1] == ALTERNATIVE_NAMES:
                names = element(element(value)[1])[1]
                yield from (element(name)[:2] for name in elements(names))


def element(der: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the body of the first element of `der`, and the rest.

    Raises:
        ValueError: it ends too early.
    """
    size, start = der[1:2], 2
    length = size[0] if size else 0
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start], "big")
    if not size or len(der) < start + length:
        raise ValueError("it ends too early")
    return der[0], der[start : start + length], der[start + length :]


def elements(der: bytes) -> Iterator[bytes]:
    """Return each element of `der`, whole.

    Raises:
        ValueError: the last one ends too early.
    """
    while der:
        rest = element(der)[2]
        yield der[: len(der) - len(rest)]
        der = rest


def _two(der: bytes) -> tuple[bytes, bytes]:
    first, second = elements(der)
    return first, second


def _fields(certificate: bytes) -> list[bytes]:
    """Return serial number, signature's algorithm, issuer, validity, subject, and the rest."""
    fields = list(elements(element(element(certificate)[1])[1]))
    if fields and fields[0][0] == VERSION:  # it may be left out
        del fields[0]
    if len(fields) < 5:
        raise ValueError("it ends too early")
    return fields


def _attribute(oid: bytes) -> str:
    """Return OpenSSL's name of an attribute, or its OID in dots if it has none."""
    numbers = [0]
    for byte in oid:
        numbers[-1] = numbers[-1] << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(0)
    first = min(numbers[0] // 40, 2)
    dotted = ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:-1])))
    try:
        return ssl._ASN1Object(dotted).longname
    except ValueError:
        return dotted


def _value(der: bytes) -> str:
    tag, body, _ = element(der)
    try:
        return body.decode(CHARSETS[tag])
    except (KeyError, UnicodeDecodeError):
        return f"#{der.hex()}"
