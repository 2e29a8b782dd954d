"""Certificates to try TLS with."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)

# The purposes that a key may serve.
_USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True)
class Authority:
    """A certificate that signs others, and first of all itself; all is PEM."""

    name: str = "127.0.0.1"

    @cached_property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(ec.SECP256R1())

    @cached_property
    def certificate(self) -> bytes:
        """Its own certificate, for 127.0.0.1 too."""
        return self._sign(self.name, self._key.public_key(), DAY)

    @property
    def key(self) -> bytes:
        """Its private key."""
        return _pem(self._key)

    @property
    def pem(self) -> bytes:
        """Certificate and key."""
        return self.certificate + self.key

    def issue(
        self, name: str | x509.Name, valid: datetime.timedelta = DAY, *, hosts: Sequence[str] = ()
    ) -> bytes:
        """Return a new certificate, valid for so long from now on, and its key.

        Args:
            name: its owner.
            valid: for how long.
            hosts: the hosts that it names, beside 127.0.0.1.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return self._sign(name, key.public_key(), valid, hosts) + _pem(key)

    def issue_changed(self, name: str, old: bytes, new: bytes) -> bytes:
        """Return a new certificate with other bytes in what is signed, and its key.

        Args:
            name: as for `issue`.
            old: what stands in it, in DER.
            new: what is put in its place, of the same size.
        """
        assert len(old) == len(new)
        certificate, _, key = self.issue(name).partition(b"-----BEGIN PRIVATE")
        parsed = x509.load_pem_x509_certificate(certificate)
        before, signed, signature = (
            parsed.public_bytes(serialization.Encoding.DER),
            parsed.tbs_certificate_bytes,
            parsed.signature,
        )
        assert old in signed
        start = before.index(signed)
        algorithm = before[start + len(signed) : before.index(signature) - 3]
        changed = signed.replace(old, new)
        signature = self._key.sign(changed, ec.ECDSA(hashes.SHA256()))
        bits = b"\x03" + bytes([len(signature) + 1]) + b"\0" + signature
        body = changed + algorithm + bits
        der = b"\x30\x82" + len(body).to_bytes(2, "big") + body
        return ssl.DER_cert_to_PEM_cert(der).encode() + b"-----BEGIN PRIVATE" + key

    def _sign(
        self,
        name: str | x509.Name,
        key: ec.EllipticCurvePublicKey,
        valid: datetime.timedelta,
        hosts: Sequence[str] = (),
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, hosts)]
        own = name == self.name
        constraints = x509.BasicConstraints(ca=own, path_length=None)
        # Clients on Python 3.13 want to know what a key is for, and by which one is signed.
        usage = dict.fromkeys(_USES, False) | {"digital_signature": True, "key_cert_sign": own}
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name) if isinstance(name, str) else name)
            .issuer_name(_name(self.name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 9 * DAY)
            .not_valid_after(now + valid)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(constraints, critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def encrypted_key(password: bytes = b"secret") -> bytes:
    """Return a private key that needs a password."""
    return _pem(ec.generate_private_key(ec.SECP256R1()), password)


def self_signed_pem() -> bytes:
    """Return a new certificate for 127.0.0.1, signed by itself, and its key, as PEM."""
    return Authority().pem
