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
    """Files cannot be used for TLS; the text says which, why, and the remedy, in one line."""


@dataclass(frozen=True)
class Files:
    """The files of a server's TLS, all of them in PEM.

    Attributes:
        certificate: path of the certificate, followed by the intermediate certificates.
        key: path of its private key; None if `certificate` also contains it.
        chain: path of further intermediate certificates; None for none.
        client_ca: path of the certificates that verify clients' certificates; None: clients are
            not asked for one.
        client_certificates_optional: with `client_ca`, whether a client without one is accepted.
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
        """Make a context from the current content of the files.

        Each file is read once: a certificate that is rewritten meanwhile is the old one, the new
        one, or damaged, but never a mixture that goes unnoticed.

        Raises:
            FilesError: they cannot be used.
        """
        once = functools.cache(read)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        # OpenSSL would send two, for a client that reconnects with two connections at once.
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
                    f"{_reason(error)}: create them again"
                ) from error
            except _Encrypted:
                raise FilesError(
                    f"the key in {key} is encrypted, and the daemon cannot ask for its password: "
                    "decrypt it, with openssl pkey"
                ) from None

    def _chained(self, once: Read) -> str:
        """Return the certificate and its intermediate certificates."""
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
    """The certificate that is sent to clients.

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
    """The loaded content of `Files`.

    Attributes:
        context: makes OpenSSL's part of a connection.
        served: the certificate.
    """

    context: ssl.SSLContext
    served: ServedCertificate


class Context(Protocol):
    """Makes one side of a TLS connection."""

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """Return a connection that reads `incoming` and writes `outgoing`."""


class ServerContext:
    """The server side of TLS, from files that can be read again.

    Attributes:
        files: the files.
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
        """Read the files again, and return a function that applies them.

        It applies them to later handshakes; open connections stay as they are. Tickets that were
        issued before become invalid: their sessions begin again.

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


class ClientContext:
    """The client side of TLS 1.2 and 1.3, for connections to one server."""

    def __init__(
        self, server_name: str, authorities: str | None = None, *, verify: bool = True
    ) -> None:
        """Set up.

        Args:
            server_name: the host whose certificate is expected, and that is asked for (SNI).
            authorities: path of the certificates, in PEM, that its certificate is verified by;
                None for those of the system.
            verify: whether the server's certificate is verified.

        Raises:
            FilesError: the file cannot be used.
        """
        self._name = server_name
        self._context = ssl.create_default_context()
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        if authorities is not None:
            if CERTIFICATE not in (text := read(authorities)):
                raise FilesError(f"{authorities} holds no certificate in PEM to verify servers by")
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            with _explained(f"a certificate in {authorities} is damaged"):
                self._context.load_verify_locations(cadata=text)
        if not verify:
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """Return a new connection's client side."""
        return self._context.wrap_bio(incoming, outgoing, server_hostname=self._name)


def read(path: str) -> str:
    """Return the content of a file in PEM.

    Raises:
        FilesError: it cannot be read.
    """
    try:
        # Bytes beyond ASCII have no meaning in PEM, and are no reason to refuse a comment.
        return Path(path).read_text("ascii", errors="replace")
    except (OSError, ValueError) as error:  # a path cannot contain NUL
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
    """Give the path of a file with the content `text`, because Python lets OpenSSL read only
    files.

    It is in memory if the system has such files, so that no key is written to a disk.

    Raises:
        OSError: the file cannot be created.
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
    """Raise instead of letting OpenSSL ask for a password at the terminal, and wait."""
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
