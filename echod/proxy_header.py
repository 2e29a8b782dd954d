r"""The PROXY protocol, versions 1 and 2: a header about its client that a proxy sends first.

Pure: bytes in, a header out, split at any byte; `encode` is the other way round. Follows the
specification that comes with haproxy, doc/proxy-protocol.txt (2020/03/05). The parser is strict
wherever a header could be read in two ways, because limits and logs rely on the client's address
in it.

* Version 1 is a line: ``PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n``.
* Version 2 is binary; after the addresses it may have fields of a type, a length and a value
  (TLVs), about the client's TLS session, the host name it asked for, and more.

`LOCAL` (a health check), `UNKNOWN` and `UNSPEC` are valid headers that name no client: `source`
and `destination` are None, and the addresses of the socket itself apply. The rest of such a header
is discarded, as the specification demands.

An invalid header raises a `ProxyError`, whose text contains none of the received bytes.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import itertools
import re
import struct
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

# A version 1 line with its CRLF: section 2.1 counts 107 for the longest.
MAX_LINE = 107
# A whole version 2 header. Its length has 16 bits; a header should fit one small segment of 536
# bytes (section 2), and this is seven of them, with room for long names of certificates.
MAX_HEADER = 4096
# Section 2.2.5.
MAX_UNIQUE_ID = 128

_START = b"PROXY "
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = 16
_UNPRINTABLE = re.compile(rb"[^ -~]")
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

# "192.0.2.1", 56324 or a UNIX socket's path, which begins with NUL if it is an abstract name.
Address = tuple[str, int] | bytes


class ProxyError(ValueError):
    """The received bytes are not a valid header; the text says why, in a few words."""


class Command(enum.StrEnum):
    """Whether the proxy connects on behalf of a client, or for itself."""

    PROXY = "PROXY"
    LOCAL = "LOCAL"


class FieldType(enum.IntEnum):
    """The registered types of fields (section 2.2)."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    NOOP = 0x04
    UNIQUE_ID = 0x05
    SSL = 0x20
    SSL_VERSION = 0x21
    SSL_CN = 0x22
    SSL_CIPHER = 0x23
    SSL_SIG_ALG = 0x24
    SSL_KEY_ALG = 0x25
    NETNS = 0x30


# Each a type and a value, in the order received.
Fields = tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class ProxiedTLS:
    """The TLS session between the client and the proxy (section 2.2.6).

    The texts come from a client's certificate: escape them before you show them.

    Attributes:
        encrypted: whether the client used TLS at all.
        certificate_given: whether it showed a certificate in this connection.
        certificate_in_session: whether it showed one in this connection's TLS session, maybe in
            an earlier connection that is resumed here.
        verified: whether it showed a certificate, which the proxy found to be good.
        version: as in "TLSv1.3"; "" if the proxy does not say.
        common_name: of the certificate's subject; "" if there is none.
        cipher: as in "TLS_AES_256_GCM_SHA384"; "" if the proxy does not say.
        fields: all fields within, known or not.
    """

    encrypted: bool
    certificate_given: bool
    certificate_in_session: bool
    verified: bool
    version: str = ""
    common_name: str = ""
    cipher: str = ""
    fields: Fields = ()


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A proxy's header.

    Attributes:
        version: 1 or 2.
        command: `LOCAL` for a connection of the proxy's own, such as a health check.
        source: the client's address; None if the socket's own applies.
        destination: the address that the client connected to; None if the socket's own applies.
        fields: all type-length-value fields, known or not, in the order received.
        tls: the client's TLS session with the proxy; None if the header does not mention one.
        size: how many bytes the header had on the wire.
    """

    version: int
    command: Command = Command.PROXY
    source: Address | None = None
    destination: Address | None = None
    fields: Fields = ()
    tls: ProxiedTLS | None = None
    size: int = dataclasses.field(default=0, compare=False)

    def field(self, kind: int) -> bytes | None:
        """Return the value of the first field of a type, or None."""
        return _first(self.fields, kind)

    @property
    def is_local(self) -> bool:
        """Whether the connection is the proxy's own, such as a health check."""
        return self.command is Command.LOCAL

    @property
    def alpn(self) -> bytes | None:
        """The protocol that was negotiated with the client, as in b"h2"."""
        return self.field(FieldType.ALPN)

    @property
    def authority(self) -> str | None:
        """The host name that the client asked for (SNI); escape it before you show it."""
        value = self.field(FieldType.AUTHORITY)
        return None if value is None else _text(value)

    @property
    def unique_id(self) -> bytes | None:
        """The name of this connection in the proxy's own log."""
        return self.field(FieldType.UNIQUE_ID)

    @property
    def network_namespace(self) -> str | None:
        """The network namespace, on the proxy, that the client connected to."""
        value = self.field(FieldType.NETNS)
        return None if value is None else _text(value)


class HeaderParser:
    """Reads one header from the beginning of a stream.

    Attributes:
        rest: once the header is complete, the bytes after it.
    """

    __slots__ = ("_buffer", "rest")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.rest = b""

    @property
    def received(self) -> int:
        """The number of bytes received so far."""
        return len(self._buffer)

    def feed(self, data: bytes) -> ProxyHeader | None:
        """Take the next bytes; return the header once it is complete, which ends the parser's
        work.

        Raises:
            ProxyError: this is not a header, and cannot become one.
        """
        buffer = self._buffer
        buffer += data
        if buffer.startswith(_START):
            return self._feed_line()
        if buffer.startswith(_SIGNATURE):
            return self._feed_binary()
        if not (_START.startswith(buffer) or _SIGNATURE.startswith(buffer)):
            raise ProxyError("no PROXY header")
        return None

    def _feed_line(self) -> ProxyHeader | None:
        # At most `MAX_LINE` bytes are searched again for each byte that arrives.
        line, end, _ = self._buffer[:MAX_LINE].partition(b"\r\n")
        if _UNPRINTABLE.search(line if end else line.removesuffix(b"\r")):
            raise ProxyError("control characters in the line")
        if not end and len(line) < MAX_LINE:
            return None
        if not end:
            raise ProxyError(f"more than {MAX_LINE} bytes without CRLF")
        self.rest = bytes(self._buffer[len(line) + 2 :])
        return parse_line(bytes(line))

    def _feed_binary(self) -> ProxyHeader | None:
        if len(self._buffer) < _FIXED:
            return None
        size = _FIXED + int.from_bytes(self._buffer[14:_FIXED], "big")
        if size > MAX_HEADER:
            raise ProxyError(f"longer than {MAX_HEADER} bytes")
        if len(self._buffer) < size:
            return None
        self.rest = bytes(self._buffer[size:])
        return parse_binary(bytes(self._buffer[:size]))


def parse_line(line: bytes) -> ProxyHeader:
    """Parse a version 1 header.

    Args:
        line: printable ASCII that begins with "PROXY ", without the CRLF.

    Raises:
        ProxyError: it is not valid (section 2.1).
    """
    _, family, *words = line.split(b" ")
    size = len(line) + 2
    if family == b"UNKNOWN":
        return ProxyHeader(1, size=size)
    if family not in (b"TCP4", b"TCP6"):
        raise ProxyError("neither TCP4, TCP6 nor UNKNOWN")
    if len(words) != 4:
        raise ProxyError("not two addresses and two ports, one space before each")
    read = _ipv4 if family == b"TCP4" else _ipv6
    source, destination = read(words[0]), read(words[1])
    ports = _port(words[2]), _port(words[3])
    return ProxyHeader(
        1, source=(source, ports[0]), destination=(destination, ports[1]), size=size
    )


def parse_binary(header: bytes) -> ProxyHeader:
    """Parse a version 2 header.

    Args:
        header: all of it, with the signature.

    Raises:
        ProxyError: it is not valid (section 2.2).
    """
    size = len(header)
    version, command = divmod(header[12], 16)
    if version != 2:
        raise ProxyError("a version that is neither 1 nor 2")
    if command == 0:
        return ProxyHeader(2, Command.LOCAL, size=size)
    if command != 1:
        raise ProxyError("neither LOCAL nor PROXY")
    family, transport = divmod(header[13], 16)
    if family > 3 or transport > 2:
        raise ProxyError("an unknown kind of address")
    if transport == 2:
        raise ProxyError("it is for datagrams, and this is a stream")
    if not (family and transport):
        return ProxyHeader(2, size=size)
    source, destination, start = _addresses(header, family)
    if start == size:
        return ProxyHeader(2, Command.PROXY, source, destination, size=size)
    fields = parse_fields(header[start:])
    _check(header, start, fields)
    if len(_first(fields, FieldType.UNIQUE_ID) or b"") > MAX_UNIQUE_ID:
        raise ProxyError(f"a unique ID of more than {MAX_UNIQUE_ID} bytes")
    return ProxyHeader(2, Command.PROXY, source, destination, fields, _tls(fields), size)


def encode(header: ProxyHeader) -> bytes:
    """Return a header as it goes over the wire, in its version.

    Version 1 has no fields, no UNIX sockets and no `LOCAL`: such a header is sent as `UNKNOWN`.
    `tls` and `size` are not sent: `fields` has the TLS session, as it was received.

    Raises:
        ValueError: it is too long, or its addresses are of two families.
    """
    if header.version == 1:
        return _encode_line(header)
    fields = b"".join(
        struct.pack("!BH", kind, len(value)) + value for kind, value in header.fields
    )
    if header.command is Command.LOCAL:
        return _SIGNATURE + struct.pack("!BBH", 0x20, 0, 0)
    if header.source is None or header.destination is None:
        return _SIGNATURE + struct.pack("!BBH", 0x21, 0, 0)
    family, addresses = _encode_addresses(header.source, header.destination)
    body = addresses + fields
    if _FIXED + len(body) > MAX_HEADER:
        raise ValueError(f"the header is longer than {MAX_HEADER} bytes")
    return _SIGNATURE + struct.pack("!BBH", 0x21, family << 4 | 1, len(body)) + body


def _encode_line(header: ProxyHeader) -> bytes:
    source, destination = header.source, header.destination
    if not isinstance(source, tuple) or not isinstance(destination, tuple):
        return b"PROXY UNKNOWN\r\n"
    if _is_ipv6(source) is not _is_ipv6(destination):
        raise ValueError("the two addresses are of two families")
    family = "TCP6" if _is_ipv6(source) else "TCP4"
    (host, port), (to_host, to_port) = source, destination
    return f"PROXY {family} {host} {to_host} {port} {to_port}\r\n".encode("ascii")


def _encode_addresses(source: Address, destination: Address) -> tuple[int, bytes]:
    """Return the family, and both addresses as version 2 has them."""
    if isinstance(source, bytes) and isinstance(destination, bytes):
        layout = _LAYOUTS[3]
        if max(len(source), len(destination)) > 108:
            raise ValueError("the path of a UNIX socket is longer than 108 bytes")
        return 3, layout.pack(source, destination)
    if isinstance(source, bytes) or isinstance(destination, bytes):
        raise ValueError("the two addresses are of two families")
    if _is_ipv6(source) is not _is_ipv6(destination):
        raise ValueError("the two addresses are of two families")
    (host, port), (to_host, to_port) = source, destination
    packed = ipaddress.ip_address(host).packed, ipaddress.ip_address(to_host).packed
    family = 2 if _is_ipv6(source) else 1
    return family, _LAYOUTS[family].pack(*packed, port, to_port)


def _is_ipv6(address: tuple[str, int]) -> bool:
    return ":" in address[0]


def parse_fields(data: bytes) -> Fields:
    """Split `data` into its fields.

    Raises:
        ProxyError: a field goes beyond the end.
    """
    fields = []
    at = 0
    while at < len(data):
        start = at + 3
        end = start + int.from_bytes(data[at + 1 : start], "big")
        if start > len(data) or end > len(data):
            raise ProxyError("a field goes beyond the end")
        fields.append((data[at], data[start:end]))
        at = end
    return tuple(fields)


def crc32c(data: bytes) -> int:
    """Return the CRC32c checksum of `data` (RFC 4960, Appendix B)."""
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum = _CRC32C[(checksum ^ byte) & 0xFF] ^ (checksum >> 8)
    return checksum ^ 0xFFFFFFFF


def _crc32c_of(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C = [_crc32c_of(byte) for byte in range(256)]


_LAYOUTS = {
    1: struct.Struct("!4s4sHH"),
    2: struct.Struct("!16s16sHH"),
    3: struct.Struct("!108s108s"),
}


def _addresses(header: bytes, family: int) -> tuple[Address, Address, int]:
    """Return the source, the destination, and where the fields begin."""
    layout = _LAYOUTS[family]
    end = _FIXED + layout.size
    if end > len(header):
        raise ProxyError("too short for its addresses")
    source, destination, *ports = layout.unpack_from(header, _FIXED)
    if family == 3:
        return _path(source), _path(destination), end
    return (_host(source), ports[0]), (_host(destination), ports[1]), end


def _check(header: bytes, start: int, fields: Fields) -> None:
    """Verify the checksum, if there is one."""
    given = [value for kind, value in fields if kind == FieldType.CRC32C]
    if not given:
        return
    if len(given) > 1 or len(given[0]) != 4:
        raise ProxyError("not one checksum of 4 bytes")
    before = itertools.takewhile(lambda field: field[0] != FieldType.CRC32C, fields)
    at = start + sum(3 + len(value) for _, value in before) + 3
    if crc32c(header[:at] + bytes(4) + header[at + 4 :]) != int.from_bytes(given[0], "big"):
        raise ProxyError("the checksum is wrong")


def _tls(fields: Fields) -> ProxiedTLS | None:
    value = _first(fields, FieldType.SSL)
    if value is None:
        return None
    if len(value) < 5:
        raise ProxyError("a TLS field that is too short")
    flags, failed = struct.unpack_from("!BI", value)
    within = parse_fields(value[5:])
    return ProxiedTLS(
        encrypted=bool(flags & 1),
        certificate_given=bool(flags & 2),
        certificate_in_session=bool(flags & 4),
        verified=bool(flags & 6) and not failed,
        version=_text(_first(within, FieldType.SSL_VERSION) or b""),
        common_name=_text(_first(within, FieldType.SSL_CN) or b""),
        cipher=_text(_first(within, FieldType.SSL_CIPHER) or b""),
        fields=within,
    )


def _first(fields: Fields, kind: int) -> bytes | None:
    return next((value for found, value in fields if found == kind), None)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _path(padded: bytes) -> bytes:
    """Return a UNIX socket's path without its padding; an abstract name begins with NUL."""
    if padded.startswith(b"\0"):
        return padded.rstrip(b"\0")
    return padded.partition(b"\0")[0]


def _ipv4(text: bytes) -> str:
    host = text.decode("ascii")
    if not _is_canonical(AF_INET, host):  # there is no second way to write one
        raise ProxyError("an invalid IPv4 address")
    return host


def _ipv6(text: bytes) -> str:
    host = text.decode("ascii")
    if _is_canonical(AF_INET6, host):
        return host
    try:
        if "%" in host:  # a zone: it has a meaning only on the proxy's machine
            raise ValueError
        return _host(ipaddress.IPv6Address(host).packed)
    except ValueError:
        raise ProxyError("an invalid IPv6 address") from None


def _is_canonical(family: int, host: str) -> bool:
    """Return whether `host` is an address as the `socket` module formats it.

    Proxies write them so, and `ipaddress` would take ten times as long to read one.
    """
    try:
        return inet_ntop(family, inet_pton(family, host)) == host
    except OSError:
        return False


def _host(packed: bytes) -> str:
    """Format an address as the `socket` module does."""
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def _port(text: bytes) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise ProxyError("an invalid port")
    return int(text)
