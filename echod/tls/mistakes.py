"""Certificates with mistakes on purpose, by an authority that lives as long as this process.

`Mistakes` makes them: each differs from a good one in one thing, so that a client which accepts it
has missed that thing. `MistakesContext` serves them by the host that a client asks for.

* The authority's key, and every other one, stays in memory. The authority may sign only for
  `localhost` and the names below it, and for the addresses of the loopback (RFC 5280, 4.2.1.10): a
  client that trusts it trusts no other host by it.
* Each certificate is made when the first client asks for it.

This module needs the package cryptography, and nothing imports it unless it is used.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import ssl
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from echod.tls.context import Exchange, ServedCertificate, new_server_context
from echod.tls.pem import as_file

# An extension, and whether it is critical.
Extensions = Sequence[tuple[x509.ExtensionType, bool]]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# The authority signs for this domain only.
DOMAIN = "localhost"
LOOPBACK = ("127.0.0.0/8", "::1/128")
DAY = datetime.timedelta(days=1)
# The longest common name (X.520).
LONGEST_NAME = 64
# How many contexts are kept; each is made again when it is asked for.
KEPT = 64
# Clients of today want 2048 bits at least.
WEAK = 1024


class Mistake(StrEnum):
    """The mistakes of certificates; the values are the hosts' names below `DOMAIN`."""

    GOOD = "good"
    EXPIRED = "expired"
    NOT_YET = "not-yet"
    SELF_SIGNED = "self-signed"
    WRONG_HOST = "wrong-host"
    UNTRUSTED_ROOT = "untrusted-root"
    INCOMPLETE_CHAIN = "incomplete-chain"
    NO_SAN = "no-san"
    WEAK_KEY = "weak-key"
    WANTS_CLIENT_CERTIFICATE = "wants-client-certificate"


@dataclass(frozen=True)
class _Signer:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Mistakes:
    """An authority, and the certificates that it makes, with mistakes and without."""

    def __init__(self) -> None:
        """Set up; keys are made when they are first needed."""
        self.context_for = lru_cache(KEPT)(self._make_context)

    @property
    def hosts(self) -> list[str]:
        """The hosts that `badtls:` serves."""
        return [f"{one}.{DOMAIN}" for one in Mistake]

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate, by which clients verify the others, in PEM."""
        return _pem([self._root.certificate])

    def serving(self, mistake: str, host: str | None, alpn: tuple[str, ...] = ()) -> OneMistake:
        """Return the server's side with this mistake, for a client that asks for this host."""
        return OneMistake(self.context_for(Mistake(mistake), (host or DOMAIN).lower(), alpn))

    def issue_for_client(self) -> bytes:
        """Return a certificate for a client, and its key, in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        host = f"client.{DOMAIN}"
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = _sign(host, key, self._root, _of_one((host,), purpose), _valid())
        return _pem([certificate]) + _key_pem(key)

    @cached_property
    def _root(self) -> _Signer:
        # A name of its own, because clients may still trust the authority of an earlier run.
        return _make_authority(f"echod test authority {secrets.token_hex(4)}")

    @cached_property
    def _intermediate(self) -> _Signer:
        return _make_authority("echod test intermediate", self._root)

    @cached_property
    def _stranger(self) -> _Signer:
        return _make_authority("echod untrusted authority")

    def _make_context(
        self, mistake: Mistake, host: str, alpn: tuple[str, ...] = ()
    ) -> ssl.SSLContext:
        """Return a context that serves `host` with this mistake.

        Args:
            mistake: what is wrong.
            host: the host that the client asks for.
            alpn: the application protocols to offer.
        """
        context = new_server_context(alpn)
        key: Key = ec.generate_private_key(ec.SECP256R1())
        if mistake is Mistake.WEAK_KEY:
            context.set_ciphers("DEFAULT:@SECLEVEL=0")  # or OpenSSL refuses to serve it
            key = rsa.generate_private_key(65537, WEAK)
        if mistake is Mistake.WANTS_CLIENT_CERTIFICATE:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self.certificate.decode())
        chain = _pem(self._chain(mistake, host, key)).decode()
        with as_file(chain) as certificate_file, as_file(_key_pem(key).decode()) as key_file:
            context.load_cert_chain(certificate_file, key_file)
        return context

    def _chain(self, mistake: Mistake, host: str, key: Key) -> list[x509.Certificate]:
        """Return the certificates that are sent."""
        hosts: tuple[str, ...] = (host,)
        valid = _valid()
        signer, above = self._intermediate, [self._intermediate.certificate]
        match mistake:
            case Mistake.GOOD:
                hosts = (host, DOMAIN, "127.0.0.1", "::1")
            case Mistake.EXPIRED:
                valid = _valid(until=-DAY)
            case Mistake.NOT_YET:
                valid = _valid(since=365 * DAY, until=730 * DAY)
            case Mistake.SELF_SIGNED:
                return [_sign(host, key, None, _of_one(hosts), valid)]
            case Mistake.WRONG_HOST:
                hosts = (f"elsewhere.{DOMAIN}",)
            case Mistake.UNTRUSTED_ROOT:
                signer, above = self._stranger, [self._stranger.certificate]
            case Mistake.INCOMPLETE_CHAIN:
                above = []
            case Mistake.NO_SAN:
                hosts = ()
        return [_sign(host, key, signer, _of_one(hosts), valid), *above]


class OneMistake:
    """The server side of TLS, by one certificate with a mistake."""

    server_side: ClassVar[bool] = True

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_name: str | None
    ) -> ssl.SSLObject:
        """Return a new connection's server side."""
        return self._context.wrap_bio(incoming, outgoing, server_side=True)


class MistakesContext:
    """The server side of TLS, by `Mistakes`: a client gets the mistake that its host names."""

    server_side: ClassVar[bool] = True
    # They are to be wrong: no expiry is watched.
    served: ClassVar[tuple[ServedCertificate, ...]] = ()

    def __init__(self, mistakes: Mistakes, alpn: tuple[str, ...] = ()) -> None:
        """Set up.

        Args:
            mistakes: makes the certificates.
            alpn: the application protocols to offer.
        """
        self._mistakes = mistakes
        self.alpn = alpn

    def reread(self) -> Generator[None, None, Exchange]:
        """Return a function that does nothing: there are no files."""
        yield from ()
        return lambda: iter(())

    def wrap(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_name: str | None
    ) -> ssl.SSLObject:
        """Return a new connection's server side; any other host is served by a good one."""
        name, _, domain = (server_name or "").lower().removesuffix(".").partition(".")
        known = domain == DOMAIN and name in list(Mistake)
        mistake = Mistake(name) if known else Mistake.GOOD
        context = self._mistakes.context_for(mistake, f"{mistake}.{DOMAIN}", self.alpn)
        return context.wrap_bio(incoming, outgoing, server_side=True)


def _make_authority(name: str, signer: _Signer | None = None) -> _Signer:
    """Return an authority that may sign for `DOMAIN` only, below another one or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    networks = [x509.IPAddress(ipaddress.ip_network(each)) for each in LOOPBACK]
    extensions: Extensions = [
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (_usage(signs=True), True),
        (x509.NameConstraints([x509.DNSName(DOMAIN), *networks], None), True),
    ]
    valid = _valid(-60 * DAY, 730 * DAY)
    return _Signer(_sign(name, key, signer, extensions, valid), key)


def _of_one(
    hosts: Iterable[str], purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH
) -> Extensions:
    """Return the extensions of a certificate that is no authority's."""
    names = [_general_name(host) for host in hosts]
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs=False), True),
        (x509.ExtendedKeyUsage([purpose]), False),
        *([(x509.SubjectAlternativeName(names), False)] if names else []),
    ]


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _valid(
    since: datetime.timedelta = -30 * DAY, until: datetime.timedelta = 365 * DAY
) -> tuple[datetime.datetime, datetime.datetime]:
    """Return the two ends of a validity, as seen from now."""
    now = datetime.datetime.now(datetime.UTC)
    return now + since, now + until


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    name: str,
    key: Key,
    signer: _Signer | None,
    extensions: Extensions,
    valid: tuple[datetime.datetime, datetime.datetime],
) -> x509.Certificate:
    """Return a certificate.

    Args:
        name: its owner's common name.
        key: its owner's.
        signer: signs it; None: its owner does.
        extensions: beside those that name the keys.
        valid: since when, and until when.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:LONGEST_NAME])])
    public, above = key.public_key(), (signer.key if signer else key)
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )
    for extension, critical in [*extensions, (identifier, False), (issuer, False)]:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(above, hashes.SHA256())


def _pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def _key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
