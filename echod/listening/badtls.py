"""`badtls:`: certificates with mistakes on purpose, and the files by which clients trust them."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorFromThreads,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from zope.interface import implementer

from echod.errors import UserError
from echod.text import escape

if TYPE_CHECKING:
    from echod.tls.mistakes import Mistakes

log = Logger("echod")

# The first line of each file: only such a file is written over. PEM allows text around it.
HEAD = "# Of a badtls: listener of echod; good for nothing once that has ended.\n"
# The modes of a certificate, and of a file with a key.
READABLE, PRIVATE = 0o644, 0o600

# Returns a user's number; None for who runs the process.
Owner = Callable[[], int | None]


class BadTLSError(UserError):
    """A listener `badtls:` cannot be made; the text says why, in one line."""


class SharedMistakes:
    """The daemon's authority for tests, made when it is first needed.

    Attributes:
        announced: whether clients find its certificate in a file.
        owner: the user who shall own temporary files, so as to remove them; None for who writes.
    """

    def __init__(self, *, announced: bool = False) -> None:
        """Set up.

        Args:
            announced: whether a listener writes its certificate.
        """
        self.announced = announced
        self.owner: int | None = None
        self._file: TrustFile | None = None

    def announce(self) -> None:
        """Write its certificate into a temporary file, if it is in no file yet.

        Raises:
            BadTLSError: that fails.
        """
        if not self.announced:
            self._file = TrustFile("ca", None, READABLE)
            self._file.write(self.mistakes.certificate)
            self.announced = True
            log.info("wrong-certificate: the authority is in {path}", path=escape(self._file.path))

    def withdraw(self) -> None:
        """Remove that file."""
        if self._file is not None:
            self._file.remove()

    def make_ahead(self, reactor: IReactorFromThreads) -> Deferred[None]:
        """Make the certificates in a thread: the first time, their import takes long.

        An error comes again when they are asked for.
        """
        made: Deferred[None] = Deferred()

        def work() -> None:
            with contextlib.suppress(BadTLSError):
                self.mistakes.certificate  # noqa: B018 - it is kept
            reactor.callFromThread(made.callback, None)

        threading.Thread(target=work, name="echod-authority", daemon=True).start()
        return made

    def get_owner(self) -> int | None:
        """Return `owner`."""
        return self.owner

    def get_mistakes(self) -> Mistakes:
        """Return `mistakes`."""
        return self.mistakes

    def trusted(
        self, endpoint: IStreamServerEndpoint, paths: Iterable[str]
    ) -> IStreamServerEndpoint:
        """Have an endpoint write the authority's certificate, for clients of wrong certificates.

        Args:
            endpoint: the endpoint.
            paths: of the files; "" for a temporary one.

        Raises:
            BadTLSError: a path cannot be written.
        """
        for path in paths:
            ca = str(Path.cwd() / path) if path else None
            endpoint = TrustedEndpoint(
                endpoint, self.mistakes, ca, served=False, owner=self.get_owner
            )
        return endpoint

    @cached_property
    def mistakes(self) -> Mistakes:
        """The certificates.

        Raises:
            BadTLSError: the package that makes them is not installed.
        """
        try:
            from echod.tls.mistakes import Mistakes
        except ImportError as error:
            raise BadTLSError(
                "the package cryptography makes these certificates, and cannot be imported "
                f"({error}): pip install 'txechod[badtls]'"
            ) from None
        return Mistakes()


class TrustFile:
    """A file in which clients find what they need while a listener listens."""

    def __init__(
        self, option: str, path: str | None, mode: int, owner: Owner = lambda: None
    ) -> None:
        """Set up, without writing.

        Args:
            option: the option that names it.
            path: its path; None for a temporary file, which `remove` removes.
            mode: its permissions.
            owner: returns the user who shall own it, if it is temporary.

        Raises:
            BadTLSError: it could not be written.
        """
        self._option = option
        self._is_temporary = path is None
        self._mode = mode
        self._owner = owner
        self.path = "" if path is None else path
        self._check()

    def _check(self) -> None:
        if self._is_temporary:
            return
        path = Path(self.path)
        try:
            if not path.parent.is_dir():
                raise BadTLSError(f"{self._option}={self.path}: there is no folder {path.parent}")
            with path.open(encoding="utf-8", errors="replace") as file:
                ours = file.readline() == HEAD
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise BadTLSError(f"{self._option}={self.path}: {why}") from None
        if not ours:
            raise BadTLSError(
                f"{self._option}={self.path}: this file exists, and no badtls: listener has "
                "written it: name another"
            )

    def write(self, content: bytes) -> None:
        """Write it, all at once.

        Raises:
            BadTLSError: that fails.
        """
        self._check()
        try:
            folder = None if self._is_temporary else Path(self.path).parent
            descriptor, made = tempfile.mkstemp(".pem", "echod-", folder)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, self._mode)
                owner = self._owner()
                if self._is_temporary and owner is not None:
                    os.fchown(descriptor, owner, -1)
                file.write(HEAD.encode() + content)
            if self._is_temporary:
                self.path = made
            else:
                Path(made).replace(self.path)
        except OSError as error:
            raise BadTLSError(f"{self._option}={self.path}: {error.strerror}") from error

    def remove(self) -> None:
        """Remove a temporary file."""
        if self._is_temporary and self.path:
            with contextlib.suppress(OSError):
                Path(self.path).unlink()


@implementer(IStreamServerEndpoint)
class TrustedEndpoint:
    """Listens on another endpoint, and writes what its clients need to trust it."""

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        mistakes: Mistakes,
        ca: str | None = None,
        client: str | None = None,
        *,
        served: bool = True,
        owner: Owner = lambda: None,
    ) -> None:
        """Set up, without listening.

        Args:
            endpoint: where to listen.
            mistakes: the certificates that are served there.
            ca: the path for the authority's certificate; None for a temporary file.
            client: the path for a client's certificate and its key; None for none.
            served: whether clients get the certificates by the names of their hosts.
            owner: returns the user who shall own temporary files.

        Raises:
            BadTLSError: a path cannot be written.
        """
        self.endpoint = endpoint
        self._mistakes = mistakes
        self._served = served
        self._ca = TrustFile("ca", ca, READABLE, owner)
        self._client = client and TrustFile("client", client, PRIVATE)

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        # Made before: a client that waits for the port looks for the files at once. Written after,
        # since a second daemon on this port must not spoil those of the first.
        authority = self._mistakes.certificate
        client = self._mistakes.issue_for_client() if self._client else b""
        return self.endpoint.listen(factory).addCallback(self._listens, authority, client)

    def _listens(self, port: IListeningPort, authority: bytes, client: bytes) -> IListeningPort:
        try:
            self._ca.write(authority)
            if self._client:
                self._client.write(client)
        except BadTLSError:
            self._ca.remove()
            port.stopListening()
            raise
        path = escape(self._ca.path)
        if self._served:
            names = ", ".join(self._mistakes.hosts)
            log.info(
                "badtls: the authority is in {path}; its certificates are {names}",
                path=path,
                names=names,
            )
        else:
            log.info("wrong-certificate: the authority is in {path}", path=path)
        stop = port.stopListening

        def stop_listening() -> Deferred[None] | None:
            self._ca.remove()
            return stop()

        port.stopListening = stop_listening  # type: ignore[method-assign]
        return port
