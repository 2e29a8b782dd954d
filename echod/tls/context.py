"""A server's certificate and rules, from files that may be read again at any time.

TLS 1.2 and 1.3, with neither renegotiation nor compression nor early data.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from echod.errors import UserError
from echod.tls.der import not_after, serial_number

CERTIFICATE = "-----BEGIN CERTIFICATE-----"

Read: TypeAlias = Callable[[str], str]


class FilesError(UserError):
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

    def load(self) -> Loaded:
        """Return a context made of what the files hold now.

        Each file is read once: a certificate that is rewritten meanwhile is the old one or the new
        one here, or damaged, but is not both.

        Raises:
            FilesError: they cannot be used.
        """
        once = functools.cache(read)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        # OpenSSL would send two, for a client that comes back with two connections at once.
        context.num_tickets = 1
        try:
            self._load_certificate(context, once)
            if self.client_ca is not None:
                self._load_client_ca(context, self.client_ca, once)
            if self.dh_parameters is not None:
                self._load_dh_parameters(context, self.dh_parameters, once)
            if self.alpn:
                context.set_alpn_protocols(list(self.alpn))
            with _explained(f"the certificate in {self.certificate} is damaged"):
                first = certificates_in(once(self.certificate))[0]
                der = ssl.PEM_cert_to_DER_cert(first)
                served = ServedCertificate(self.certificate, serial_number(der), not_after(der))
                return Loaded(context, served)
        except OSError as error:
            raise FilesError(f"{self.certificate} cannot be used: {_why(error)}") from error

    def _load_certificate(self, context: ssl.SSLContext, once: Read) -> None:
        key = self.key or self.certificate
        certificates = self._chained(once)
        if "PRIVATE KEY-----" not in once(key):
            hint = "" if self.key else ": name the key's own file"
            raise FilesError(f"{key} holds no private key in PEM{hint}")
        with _file(certificates) as certificate_file, _file(once(key)) as key_file:
            try:
                context.load_cert_chain(certificate_file, key_file, _no_password)
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

    def _chained(self, once: Read) -> str:
        """Return the certificate and all that lead to a root."""
        if CERTIFICATE not in (text := once(self.certificate)):
            raise FilesError(f"{self.certificate} holds no certificate in PEM")
        if self.chain is None:
            return text
        if CERTIFICATE not in (more := once(self.chain)):
            raise FilesError(f"{self.chain} holds no certificate in PEM")
        return "\n".join([*certificates_in(text), more])

    def _load_client_ca(self, context: ssl.SSLContext, path: str, once: Read) -> None:
        if CERTIFICATE not in once(path):
            raise FilesError(f"{path} holds no certificate in PEM to verify clients by")
        with _explained(f"a certificate in {path} is damaged"), _file(once(path)) as file:
            context.load_verify_locations(file)
        optional = self.client_certificates_optional
        context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED

    def _load_dh_parameters(self, context: ssl.SSLContext, path: str, once: Read) -> None:
        what = f"{path} holds no Diffie-Hellman parameters in PEM"
        with _file(once(path)) as file, _explained(what):
            context.load_dh_params(file)


@dataclass(frozen=True)
class ServedCertificate:
    """The certificate that clients get.

    Attributes:
        path: the file that it was read from.
        serial: its serial number, in hexadecimal.
        valid_until: when its validity ends.
    """

    path: str
    serial: str
    valid_until: datetime.datetime


@dataclass(frozen=True)
class Loaded:
    """What `Files` hold.

    Attributes:
        context: makes OpenSSL's part of a connection.
        served: the certificate.
    """

    context: ssl.SSLContext
    served: ServedCertificate


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
        self._loaded = files.load()

    @property
    def served(self) -> ServedCertificate:
        """The certificate that new connections get."""
        return self._loaded.served

    def reread(self) -> Callable[[], None]:
        """Read the files again, and return what takes them into use.

        That is for handshakes from then on; open connections go on as they are.  Tickets that
        were given out before are of no use from then on: their sessions begin anew.

        Raises:
            FilesError: they cannot be used.
        """
        loaded = self.files.load()

        def take_into_use() -> None:
            self._loaded = loaded

        return take_into_use

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """Return a new connection's server side."""
        return self._loaded.context.wrap_bio(incoming, outgoing, server_side=True)


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


@contextlib.contextmanager
def _file(text: str) -> Iterator[str]:
    """Give the path of a file that holds `text`: Python lets OpenSSL read from nothing else.

    It is in memory where the system has such files, so that no key gets onto a disk by this.

    Raises:
        OSError: there can be no such file.
    """
    with contextlib.ExitStack() as stack:
        if (path := _in_memory(text, stack)) is None:
            file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".pem"))
            file.write(text.encode("ascii", errors="replace"))
            file.flush()
            path = file.name
        yield path


def _in_memory(text: str, stack: contextlib.ExitStack) -> str | None:
    try:
        descriptor = os.memfd_create("echod")
        stack.callback(os.close, descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        path.write_text(text, "ascii", errors="replace")
    except (AttributeError, OSError):  # another system, or one without /proc
        return None
    return str(path)


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
