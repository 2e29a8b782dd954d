"""PROXY headers to send: what a proxy does, and what it never would."""

from __future__ import annotations

import ipaddress
import struct

from echod.proxy_header import Address, FieldType, crc32c

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

SOURCE = ("203.0.113.7", 56324)
DESTINATION = ("198.51.100.1", 443)


def line(source: Address = SOURCE, destination: Address = DESTINATION) -> bytes:
    """Return a version 1 header."""
    assert isinstance(source, tuple)
    assert isinstance(destination, tuple)
    family = 6 if ":" in source[0] else 4
    return (
        f"PROXY TCP{family} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode()
    )


def binary(
    source: Address | None = SOURCE,
    destination: Address | None = DESTINATION,
    *fields: tuple[int, bytes],
    command: int = 1,
    version: int = 2,
    kind: int | None = None,
    checksum: bool = False,
) -> bytes:
    """Return a version 2 header; without addresses, or with a command of 0, a LOCAL one."""
    if source is None:
        block, natural, command = b"", 0, 0
    else:
        assert destination is not None
        block, natural = _block(source, destination)
    if checksum:
        fields = (*fields, (FieldType.CRC32C, bytes(4)))
    body = block + b"".join(field(*each) for each in fields)
    start = bytes([version << 4 | command, natural if kind is None else kind])
    header = SIGNATURE + start + struct.pack("!H", len(body)) + body
    return header[:-4] + struct.pack("!I", crc32c(header)) if checksum else header


def field(kind: int, value: bytes) -> bytes:
    """Return a type-length-value field."""
    return struct.pack("!BH", kind, len(value)) + value


def tls_field(flags: int, failed: int, *within: tuple[int, bytes]) -> tuple[int, bytes]:
    """Return the field that tells of the client's TLS session."""
    fields = b"".join(field(*each) for each in within)
    return FieldType.SSL, struct.pack("!BI", flags, failed) + fields


def _block(source: Address, destination: Address) -> tuple[bytes, int]:
    if isinstance(source, bytes):
        assert isinstance(destination, bytes)
        return source.ljust(108, b"\0") + destination.ljust(108, b"\0"), 0x31
    assert isinstance(destination, tuple)
    packed = b"".join(ipaddress.ip_address(host).packed for host, _ in (source, destination))
    ports = struct.pack("!HH", source[1], destination[1])
    return packed + ports, 0x11 if len(packed) == 8 else 0x21
