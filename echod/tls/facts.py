"""Facts about the other side, once the handshake is over; values, without I/O."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import lru_cache

from echod.tls.der import subject


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate with which the peer has proved its identity.

    Attributes:
        subject: the distinguished name, as (attribute, value) pairs in their order: attributes by
            OpenSSL's names, or by their OID; a value that is not text is "#" and its DER in
            hexadecimal (RFC 4514, 2.4). Not escaped. Empty if the certificate is not in DER.
        der: the certificate itself, in DER.
    """

    subject: tuple[tuple[str, str], ...]
    der: bytes

    @property
    def common_name(self) -> str:
        """The subject's common name, the first of several, "" if there is none; not escaped."""
        return next((value for name, value in self.subject if name == "commonName"), "")


@dataclass(frozen=True, slots=True)
class TLSFacts:
    """How a connection is encrypted.

    Attributes:
        version: "TLSv1.3" or "TLSv1.2".
        cipher: OpenSSL's name of the cipher suite.
        alpn: the application protocol that both sides chose (RFC 7301); None for none.
        server_name: the host that the client asked for (SNI, RFC 6066, 3): ASCII letters, digits,
            dots, hyphens and underscores; None if it asked for none.
        certificate: the client's, verified; None if it has shown none.
        resumed: whether an earlier session goes on, by its ticket.
    """

    version: str
    cipher: str
    alpn: str | None = None
    server_name: str | None = None
    certificate: Certificate | None = None
    resumed: bool = False


def facts_of(connection: ssl.SSLObject, server_name: str | None) -> TLSFacts:
    """Return the facts about a connection whose handshake is over.

    Args:
        connection: the connection.
        server_name: the host that the client asked for.
    """
    cipher, certificate = connection.cipher(), certificate_of(connection)
    make = _shared_facts if certificate is None else TLSFacts
    return make(
        connection.version() or "",
        cipher[0] if cipher else "",
        connection.selected_alpn_protocol(),
        server_name,
        certificate,
        bool(connection.session_reused),
    )


# Most connections are encrypted like others: that saves each of them memory and time.
_shared_facts = lru_cache(maxsize=64)(TLSFacts)


def certificate_of(connection: ssl.SSLObject) -> Certificate | None:
    """Return the peer's certificate; None if it has shown no verified one."""
    der = connection.getpeercert(binary_form=True)
    if der is None or connection.context.verify_mode == ssl.CERT_NONE:
        return None
    # Not with `getpeercert()`: it returns a BIT STRING in a name as bytes, and raises for a name
    # that OpenSSL cannot convert, or an alternative name that is not UTF-8.
    try:
        return Certificate(subject(der), der)
    except ValueError:  # it is in BER, which OpenSSL reads, too
        return Certificate((), der)
