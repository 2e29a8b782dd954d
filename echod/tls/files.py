"""A server's certificates and rules, from files that may be read again at any time."""

from __future__ import annotations

import functools
import os
import re
import ssl
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

from echod.tls.context import Exchange, ServedCertificate, new_server_context
from echod.tls.der import host_names, serial_number, validity
from echod.tls.pem import (
    CERTIFICATE,
    FilesError,
    as_file,
    certificates_in,
    explained,
    openssl_reason,
    read,
    why,
)

# The ends of the names of a folder's certificates, in lower case, and of their keys.
IN_FOLDERS = (".pem", ".crt", ".cert", ".cer")
KEY = ".key"

# A host's name, or all of a domain, as a certificate has it.
HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
Read: TypeAlias = Callable[[str], str]


@dataclass(frozen=True)
class Pair:
    """The files of a certificate, all of them in PEM.

    Attributes:
        certificate: path of the certificate, followed by the intermediate certificates; or of a
            folder of certificates. There each file counts that ends in `IN_FOLDERS`, and its key
            is in it, or in the file that ends in `KEY` instead.
        key: path of its private key; None if `certificate` also contains it.
        chain: path of further intermediate certificates; None for none.
    """

    certificate: str
    key: str | None = None
    chain: str | None = None

    def each(self) -> Iterator[Pair]:
        """Return the files of each certificate: there may be several in a folder.

        Raises:
            FilesError: the folder cannot be read, or holds none.
        """
        folder = Path(self.certificate)
        if not _is_folder(folder):
            yield self
            return
        if self.key is not None:
            raise FilesError(
                f"{folder} is a folder, in which each certificate has a key of its own: "
                "leave out the key"
            )
        try:
            with os.scandir(folder) as entries:  # `iterdir` takes ten times as long
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            raise FilesError(f"cannot read {folder}: {why(error)}") from error
        known = frozenset(names)
        certificates = [
            name
            for name in names
            if name.lower().endswith(IN_FOLDERS) and not name.startswith(".")
        ]
        if not certificates:
            raise FilesError(
                f"{folder} holds no certificate: no file there ends in {', '.join(IN_FOLDERS)}"
            )
        for name in certificates:
            key = name[: name.rindex(".")] + KEY
            yield Pair(str(folder / name), str(folder / key) if key in known else None)


class Source(Protocol):
    """A place that has files."""

    def read(self, path: str) -> str:
        """Return the content of a file.

        Raises:
            FilesError: it cannot be read.
        """

    def pairs_of(self, pair: Pair) -> Iterable[Pair]:
        """Return the files of each certificate: see `Pair.each`."""


class Disk:
    """The files as they are now."""

    def read(self, path: str) -> str:
        """Return the content of a file."""
        return read(path)

    def pairs_of(self, pair: Pair) -> Iterable[Pair]:
        """Return the files of each certificate."""
        return pair.each()


@dataclass(frozen=True)
class Files:
    """The files of a server's TLS, all of them in PEM.

    Attributes:
        certificate, key, chain: see `Pair`; this certificate is for clients that ask for no host,
            or for one that no certificate names.
        others: further certificates, for the hosts that they name.
        client_ca: path of the certificates that verify clients' certificates; None: clients are
            not asked for one.
        client_certificates_optional: with `client_ca`, whether a client without one is accepted.
        dh_parameters: path of Diffie-Hellman parameters, for old clients; None for none.
        alpn: the application protocols offered (RFC 7301), the preferred one first.
        tickets: whether clients get session tickets, by which they resume a session.
    """

    certificate: str
    key: str | None = None
    chain: str | None = None
    others: tuple[Pair, ...] = ()
    client_ca: str | None = None
    client_certificates_optional: bool = False
    dh_parameters: str | None = None
    alpn: tuple[str, ...] = ()
    tickets: bool = True

    def load(self, source: Source | None = None) -> Loaded:
        """Make a context for each certificate, from the current content of the files.

        Args:
            source: has the files; None for the disk.

        Each file is read once: a certificate that is rewritten meanwhile is the old one, the new
        one, or damaged, but never a mixture that goes unnoticed.

        Raises:
            FilesError: they cannot be used.
        """
        steps = self.begin_to_load(source)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                loaded: Loaded = end.value
                return loaded

    def begin_to_load(self, source: Source | None = None) -> Generator[None, None, Loaded]:
        """Do the same in steps: one certificate in each, because a folder may hold thousands.

        Args:
            source: as for `load`.

        Raises:
            FilesError: they cannot be used.
        """
        source = source or Disk()
        once = functools.cache(source.read)
        pairs = (Pair(self.certificate, self.key, self.chain), *self.others)
        hosts = _Hosts()
        served: list[ServedCertificate] = []
        for pair in pairs:
            for each in source.pairs_of(pair):
                if served:
                    yield
                one = self._load(each, once)
                hosts.add(one)
                served.append(one.served)
        return Loaded(hosts.first, hosts.contexts, tuple(served))

    def _load(self, pair: Pair, once: Read) -> _One:
        context = new_server_context(self.alpn)
        if not self.tickets:
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET  # in TLS 1.2
        try:
            _load_certificate(context, pair, once)
            if self.client_ca is not None:
                self._load_client_ca(context, self.client_ca, once)
            if self.dh_parameters is not None:
                self._load_dh_parameters(context, self.dh_parameters, once)
            with explained(f"the certificate in {pair.certificate} is damaged"):
                first = certificates_in(once(pair.certificate))[0]
                der = ssl.PEM_cert_to_DER_cert(first)
                begin, end = validity(der)
                served = ServedCertificate(
                    pair.certificate, serial_number(der), end, begin, self._content(pair, once)
                )
                return _One(context, served, host_names(der))
        except OSError as error:
            raise FilesError(f"{pair.certificate} cannot be used: {why(error)}") from error

    def _content(self, pair: Pair, once: Read) -> int:
        paths = (pair.certificate, pair.key, pair.chain, self.client_ca, self.dh_parameters)
        return hash(tuple(path and once(path) for path in paths))

    def _load_client_ca(self, context: ssl.SSLContext, path: str, once: Read) -> None:
        if CERTIFICATE not in once(path):
            raise FilesError(f"{path} holds no certificate in PEM to verify clients by")
        with explained(f"a certificate in {path} is damaged"), as_file(once(path)) as file:
            context.load_verify_locations(file)
        optional = self.client_certificates_optional
        context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED

    def _load_dh_parameters(self, context: ssl.SSLContext, path: str, once: Read) -> None:
        what = f"{path} holds no Diffie-Hellman parameters in PEM"
        with as_file(once(path)) as file, explained(what):
            context.load_dh_params(file)


def _load_certificate(context: ssl.SSLContext, pair: Pair, once: Read) -> None:
    key = pair.key or pair.certificate
    certificates = _chained(pair, once)
    if "PRIVATE KEY-----" not in once(key):
        beside = Path(key).with_suffix(KEY).name
        hint = "" if pair.key else f": name the key's own file, or in a folder call it {beside}"
        raise FilesError(f"{key} holds no private key in PEM{hint}")
    with as_file(certificates) as certificate_file, as_file(once(key)) as key_file:
        try:
            context.load_cert_chain(certificate_file, key_file, _no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise FilesError(
                    f"{key} is not the key of the certificate in {pair.certificate}: "
                    "name the two that were made together"
                ) from error
            raise FilesError(
                f"the certificate in {pair.certificate} or the key in {key} is damaged"
                f"{openssl_reason(error)}: create them again"
            ) from error
        except _Encrypted:
            raise FilesError(
                f"the key in {key} is encrypted, and the daemon cannot ask for its password: "
                "decrypt it, with openssl pkey"
            ) from None


def _chained(pair: Pair, once: Read) -> str:
    """Return the certificate and its intermediate certificates."""
    if CERTIFICATE not in (text := once(pair.certificate)):
        raise FilesError(f"{pair.certificate} holds no certificate in PEM")
    if pair.chain is None:
        return text
    if CERTIFICATE not in (more := once(pair.chain)):
        raise FilesError(f"{pair.chain} holds no certificate in PEM")
    return "\n".join([*certificates_in(text), more])


class _Encrypted(Exception):
    """The private key asks for a password."""


def _no_password() -> str:
    """Raise instead of letting OpenSSL ask for a password at the terminal, and wait."""
    raise _Encrypted


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # reading it will say why
        return False


class _Hosts:
    """The contexts by the hosts that their certificates name.

    Attributes:
        first: the context of the first certificate.
        contexts: see above; the hosts are in lower case.
    """

    first: ssl.SSLContext

    def __init__(self) -> None:
        self.contexts: dict[str, ssl.SSLContext] = {}
        self._paths: dict[str, str] = {}
        self._count = 0

    def add(self, one: _One) -> None:
        """Add a certificate.

        Raises:
            FilesError: another one names the same host; or it names none, and is not the first.
        """
        path = one.served.path
        hosts = {host.lower().removesuffix(".") for host in one.hosts if HOST.fullmatch(host)}
        if not self._count:
            self.first = one.context
        elif not hosts:
            raise FilesError(f"{path} names no host, so no client would get it: put it first")
        self._count += 1
        for host in sorted(hosts):
            if host in self._paths:
                raise FilesError(
                    f"{self._paths[host]} and {path} are both for {host}: leave out one of them"
                )
            self._paths[host] = path
            self.contexts[host] = one.context


@dataclass(frozen=True)
class _One:
    """One loaded certificate, and the hosts that it names."""

    context: ssl.SSLContext
    served: ServedCertificate
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """The loaded content of `Files`.

    Attributes:
        context: makes OpenSSL's part of a connection, with the first certificate.
        by_host: the contexts by the hosts that their certificates name, in lower case.
        served: the certificates.
    """

    context: ssl.SSLContext
    by_host: dict[str, ssl.SSLContext]
    served: tuple[ServedCertificate, ...]

    def let_go(self) -> Iterator[None]:
        """Free the contexts, which are out of use, one in each step."""
        while self.by_host:
            self.by_host.popitem()
            yield

    def context_for(self, server_name: str | None) -> ssl.SSLContext:
        """Return the context whose certificate names this host, or else the first one.

        "*" in a certificate stands for one whole label (RFC 6125, 6.4.3).
        """
        host = (server_name or "").lower().removesuffix(".")
        wildcard = f"*.{host.partition('.')[2]}"
        return self.by_host.get(host) or self.by_host.get(wildcard) or self.context


class ServerContext:
    """The server side of TLS, from files that can be read again.

    Attributes:
        files: the files.
    """

    server_side: ClassVar[bool] = True

    def __init__(self, files: Files, load: Callable[[Files], Loaded] | None = None) -> None:
        """Read the files.

        Args:
            files: the files.
            load: loads them this time; None: from the disk.

        Raises:
            FilesError: they cannot be used.
        """
        self.files = files
        self._loaded = files.load() if load is None else load(files)

    @property
    def alpn(self) -> tuple[str, ...]:
        """The application protocols that are offered."""
        return self.files.alpn

    @property
    def served(self) -> tuple[ServedCertificate, ...]:
        """The certificates that new connections get."""
        return self._loaded.served

    def reread(self) -> Generator[None, None, Exchange]:
        """Read the files again, a certificate in each step, and return a function that applies
        them.

        It applies them to later handshakes; open connections stay as they are. Tickets that were
        issued before become invalid: their sessions begin again.

        Raises:
            FilesError: they cannot be used.
        """
        loaded = yield from self.files.begin_to_load()

        def take_into_use() -> Iterator[None]:
            before, self._loaded = self._loaded, loaded
            return before.let_go()

        return take_into_use

    def wrap(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_name: str | None
    ) -> ssl.SSLObject:
        """Return a new connection's server side, with the certificate for the host."""
        context = self._loaded.context_for(server_name)
        return context.wrap_bio(incoming, outgoing, server_side=True)
