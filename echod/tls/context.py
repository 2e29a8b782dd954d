"""A server's certificate and rules, from files that may be read again at any time.

TLS 1.2 and 1.3, with neither renegotiation nor compression nor early data.
"""

from __future__ import annotations

import contextlib
import datetime
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CERTIFICATE = "-----BEGIN CERTIFICATE-----"


class FilesError(ValueError):
    """Files cannot be used for TLS; the text says which, why, and what would do, in one line."""


@dataclass(frozen=True)
class Files:
    """What a server's TLS is made of, all of it in PEM.

    Attributes:
        certificate: path of the certificate, and behind it those that lead to a root.
        key: path of its private key; None where `certificate` holds it too.
        chain: path of more certificates that lead to a root; None for none.
        client_ca: path of the certificates that clients' certificates are verified by; None: no
            client is asked for one.
        client_certificates_optional: with `client_ca`, whether a client without one is welcome.
        dh_parameters: path of Diffie-Hellman parameters, for old clients; None for none.
        alpn: the application protocols offered (RFC 7301), the preferred one first.
    """

    certificate: str
    key: str | None = None
    chain: str | None = None
    client_ca: str | None = None
    client_certificates_optional: bool = False
    dh_parameters: str | None = None
    alpn: tuple[str, ...] = ()

    def load(self) -> ssl.SSLContext:
        """Return a context made of what the files hold now.

        Raises:
            FilesError: they cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        self._load_certificate(context)
        if self.client_ca is not None:
            self._load_client_ca(context, self.client_ca)
        if self.dh_parameters is not None:
            read(self.dh_parameters)
            with _explained(f"{self.dh_parameters} holds no Diffie-Hellman parameters in PEM"):
                context.load_dh_params(self.dh_parameters)
        if self.alpn:
            context.set_alpn_protocols(list(self.alpn))
        return context

    def _load_certificate(self, context: ssl.SSLContext) -> None:
        key = self.key or self.certificate
        if CERTIFICATE not in read(self.certificate):
            raise FilesError(f"{self.certificate} holds no certificate in PEM")
        if "PRIVATE KEY-----" not in read(key):
            hint = "" if self.key else ": name the key's own file"
            raise FilesError(f"{key} holds no private key in PEM{hint}")
        with self._chained() as certificates:
            try:
                context.load_cert_chain(certificates, key, _no_password)
            except ssl.SSLError as error:
                if error.reason == "KEY_VALUES_MISMATCH":
                    raise FilesError(
                        f"{key} is not the key of the certificate in {self.certificate}: "
                        "name the two that were made together"
                    ) from error
                raise FilesError(
                    f"the certificate in {self.certificate} or the key in {key} is damaged"
                    f"{_reason(error)}: make them anew"
                ) from error
            except _Encrypted:
                raise FilesError(
                    f"the key in {key} is encrypted, and nobody is here to be asked for its "
                    "password: decrypt it, with openssl pkey"
                ) from None

    @contextlib.contextmanager
    def _chained(self) -> Iterator[str]:
        """Give the path of one file with the certificate and all that lead to a root."""
        if self.chain is None:
            yield self.certificate
            return
        if CERTIFICATE not in (more := read(self.chain)):
            raise FilesError(f"{self.chain} holds no certificate in PEM")
        try:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write("\n".join([*certificates_in(read(self.certificate)), more]))
                file.flush()
                yield file.name
        except OSError as error:
            raise FilesError(
                f"{self.chain} cannot be used: {_why(error)}: append its certificates to those in "
                f"{self.certificate}, and leave it out"
            ) from error

    def _load_client_ca(self, context: ssl.SSLContext, path: str) -> None:
        if CERTIFICATE not in read(path):
            raise FilesError(f"{path} holds no certificate in PEM to verify clients by")
        with _explained(f"a certificate in {path} is damaged"):
            context.load_verify_locations(path)
        optional = self.client_certificates_optional
        context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED

    def expiry(self) -> datetime.datetime:
        """Return until when the certificate is valid.

        Raises:
            FilesError: it cannot be read.
        """
        with _explained(f"the certificate in {self.certificate} is damaged"):
            return not_after(certificates_in(read(self.certificate))[0])


class Context(Protocol):
    """What makes a side of a TLS connection."""

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """Return a connection that reads `incoming` and writes `outgoing`."""


class ServerContext:
    """The server's side of TLS, by files that can be read again.

    Attributes:
        files: what it is made of.
    """

    def __init__(self, files: Files) -> None:
        """Read the files.

        Raises:
            FilesError: they cannot be used.
        """
        self.files = files
        self._context = files.load()

    def reread(self) -> Callable[[], None]:
        """Read the files again, and return what takes them into use.

        That is for handshakes from then on; open connections go on as they are.

        Raises:
            FilesError: they cannot be used.
        """
        loaded = self.files.load()

        def take_into_use() -> None:
            self._context = loaded

        return take_into_use

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """Return a new connection's server side."""
        return self._context.wrap_bio(incoming, outgoing, server_side=True)


def read(path: str) -> str:
    """Return what a file in PEM holds.

    Raises:
        FilesError: it cannot be read.
    """
    try:
        # Bytes beyond ASCII have no meaning in PEM, and are no reason to refuse a comment.
        return Path(path).read_text("ascii", errors="replace")
    except (OSError, ValueError) as error:  # no path can hold NUL
        raise FilesError(f"cannot read {path}: {_why(error)}") from error


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def certificates_in(text: str) -> list[str]:
    """Return the certificates in a text, each as PEM."""
    end = "-----END CERTIFICATE-----"
    return [
        CERTIFICATE + part.partition(end)[0] + end + "\n" for part in text.split(CERTIFICATE)[1:]
    ]


def not_after(certificate: str) -> datetime.datetime:
    """Return the end of a certificate's validity (RFC 5280, 4.1.2.5).

    Raises:
        ValueError: it is no certificate.
    """
    _, certificate_body, _ = _element(ssl.PEM_cert_to_DER_cert(certificate))
    _, fields, _ = _element(certificate_body)
    tag, _, rest = _element(fields)
    # The version may be left out; serial number, signature's algorithm and issuer follow.
    for _ in range(3 if tag == 0xA0 else 2):
        _, _, rest = _element(rest)
    _, validity, _ = _element(rest)
    _, _, after = _element(validity)
    tag, moment, _ = _element(after)
    form = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    return datetime.datetime.strptime(moment.decode(), form).replace(tzinfo=datetime.UTC)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the body of the first element of `der`, and what follows it."""
    if len(der) < 2:
        raise ValueError("it ends too early")
    size, start = der[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[2:start], "big")
    return der[0], der[start : start + size], der[start + size :]


class _Encrypted(Exception):
    """The private key asks for a password."""


def _no_password() -> str:
    """Stand in for OpenSSL's own way to get one: it asks at the terminal, and waits."""
    raise _Encrypted


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (ssl.SSLError, ValueError) as error:
        raise FilesError(f"{what}{_reason(error)}") from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return f" ({reason.lower().replace('_', ' ')})" if reason else ""
