"""What is known about the other side once the handshake is over; values, and no I/O."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate by which the peer has proved who it is.

    Attributes:
        subject: the distinguished name, as (attribute, value) pairs in their order.
        der: the certificate itself, in DER.
    """

    subject: tuple[tuple[str, str], ...]
    der: bytes

    @property
    def common_name(self) -> str:
        """The subject's common name, "" where there is none; not escaped."""
        return next((value for name, value in self.subject if name == "commonName"), "")


@dataclass(frozen=True, slots=True)
class TLSFacts:
    """How a connection is encrypted.

    Attributes:
        version: "TLSv1.3" or "TLSv1.2".
        cipher: the cipher suite, as OpenSSL calls it.
        alpn: the application protocol that both sides chose (RFC 7301); None for none.
        server_name: the host that the client asked for (SNI, RFC 6066, 3): ASCII letters, digits,
            dots, hyphens and underscores; None where it asked for none.
        certificate: the client's, verified; None where it has shown none.
    """

    version: str
    cipher: str
    alpn: str | None = None
    server_name: str | None = None
    certificate: Certificate | None = None


def facts_of(connection: ssl.SSLObject, server_name: str | None) -> TLSFacts:
    """Return the facts about a connection whose handshake is over.

    Args:
        connection: the connection.
        server_name: what the client asked for.
    """
    cipher = connection.cipher()
    return TLSFacts(
        version=connection.version() or "",
        cipher=cipher[0] if cipher else "",
        alpn=connection.selected_alpn_protocol(),
        server_name=server_name,
        certificate=certificate_of(connection),
    )


def certificate_of(connection: ssl.SSLObject) -> Certificate | None:
    """Return the peer's certificate; None where it has shown none that was verified."""
    shown: Any = connection.getpeercert()
    der = connection.getpeercert(binary_form=True)
    if not shown or der is None:
        return None
    subject = tuple(pair for relative in shown.get("subject", ()) for pair in relative)
    return Certificate(subject, der)


class ClientHello:
    """The bytes of a ClientHello (RFC 8446, 4.1.2), for the host name in it.

    Python's own callback for that name prints a traceback where the name is not ASCII, which any
    stranger could have it do.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> bool:
        """Take what came; return whether the first record is complete.

        After that, or after the most that a record may hold, more is not needed.
        """
        self._bytes += data
        whole = 5 + int.from_bytes(self._bytes[3:5], "big")
        return len(self._bytes) >= min(whole, 5 + 2**14)

    @property
    def server_name(self) -> str | None:
        """The host that the client asks for; None where it asks for none, or not in good form."""
        # Slices of what is not there are empty, and empty is 0: no hello makes this raise.
        hello = _Slice(bytes(self._bytes))
        if hello.take(1) != b"\x16":
            return None
        hello.take(4 + 4 + 2 + 32)  # record, message, version, random
        hello.block(1)  # session
        hello.block(2)  # cipher suites
        hello.block(1)  # compression methods
        extensions = _Slice(hello.block(2))
        while kind := extensions.take(2):
            body = _Slice(extensions.block(2))
            if kind == b"\0\0":
                names = _Slice(body.block(2))
                return _host(names.block(2)) if names.take(1) == b"\0" else None
        return None


class _Slice:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        return self._data[start : self._at]

    def block(self, width: int) -> bytes:
        return self.take(int.from_bytes(self.take(width), "big"))


def _host(name: bytes) -> str | None:
    text = name.decode("ascii", "replace")
    # U+FFFD is no letter, and "." alone is no host; anything else is not for logs.
    return text if text.replace(".", "").replace("-", "").replace("_", "").isalnum() else None
