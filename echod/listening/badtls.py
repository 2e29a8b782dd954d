"""`badtls:`: certificates with mistakes on purpose, and the files by which clients trust them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorFromThreads,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from zope.interface import implementer

from echod.errors import UserError
from echod.named_files import read
from echod.text import escape
from echod.threads import NoThreadError, start_thread

if TYPE_CHECKING:
    from echod.tls.mistakes import Mistakes

log = Logger("echod")

# The first line of each file: only such a file is written over. PEM allows text around it.
HEAD = "# Of a badtls: listener of echod; good for nothing once that has ended.\n"
# The modes of a certificate, and of a file with a key.
READABLE, PRIVATE = 0o644, 0o600


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

        An error comes again when they are asked for. Without a thread they are made then.
        """
        made: Deferred[None] = Deferred()

        def work() -> None:
            with contextlib.suppress(BadTLSError):
                self.mistakes.certificate  # noqa: B018 - it is kept
            reactor.callFromThread(made.callback, None)

        try:
            start_thread(work, "echod-authority", "the certificates")
        except NoThreadError:
            return succeed(None)
        return made

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
            endpoint = TrustedEndpoint(endpoint, self, ca, served=False)
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

    def __init__(self, option: str, path: str | None, mode: int) -> None:
        """Set up, without writing.

        Args:
            option: the option that names it.
            path: its path; None for a temporary file, which `remove` removes.
            mode: its permissions.

        Raises:
            BadTLSError: it could not be written.
        """
        self._option = option
        self._is_temporary = path is None
        self._mode = mode
        self._before: bytes | None = None
        self.path = "" if path is None else path
        self._check()

    def _check(self) -> None:
        if self._is_temporary:
            return
        path = Path(self.path)
        try:
            if not path.parent.is_dir():
                raise BadTLSError(f"{self._option}={self.path}: there is no folder {path.parent}")
            ours = read(path).startswith(HEAD.encode())
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

    def write(self, content: bytes, owner: int | None = None) -> None:
        """Write it, all at once.

        Args:
            content: what to write.
            owner: the user who shall own it, if it is temporary; None for who writes.

        Raises:
            BadTLSError: that fails.
        """
        self._check()
        try:
            if not self._is_temporary:
                self._before = _content_of(self.path)
            self._put(HEAD.encode() + content, owner)
        except OSError as error:
            raise BadTLSError(f"{self._option}={self.path}: {error.strerror}") from error

    def _put(self, content: bytes, owner: int | None = None) -> None:
        folder = None if self._is_temporary else Path(self.path).parent
        descriptor, made = tempfile.mkstemp(".pem", "echod-", folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, self._mode)
                if self._is_temporary and owner is not None:
                    os.fchown(descriptor, owner, -1)
                file.write(content)
            if self._is_temporary:
                self.path = made
            else:
                Path(made).replace(self.path)
        except OSError:  # the disk is full, for example
            Path(made).unlink()
            raise

    def put_back(self) -> None:
        """Undo `write`: the file that was there may be that of another daemon, which serves."""
        with contextlib.suppress(OSError):
            if self._before is not None:
                self._put(self._before)
            elif self.path:
                Path(self.path).unlink()

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
        authority: SharedMistakes,
        ca: str | None = None,
        client: str | None = None,
        *,
        served: bool = True,
    ) -> None:
        """Set up, without listening.

        Args:
            endpoint: where to listen.
            authority: of the certificates that are served there.
            ca: the path for the authority's certificate; None for a temporary file.
            client: the path for a client's certificate and its key; None for none.
            served: whether clients get the certificates by the names of their hosts.

        Raises:
            BadTLSError: a path cannot be written.
        """
        self.endpoint = endpoint
        self._authority = authority
        self._served = served
        self._ca = TrustFile("ca", ca, READABLE)
        self._client = TrustFile("client", client, PRIVATE) if client else None

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        return Deferred.fromCoroutine(self._listen(factory))

    async def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        # Written before: a client that waits for the port looks for the files at once.
        written: list[TrustFile] = []
        try:
            self._ca.write(self._authority.mistakes.certificate, self._authority.owner)
            written.append(self._ca)
            if self._client:
                self._client.write(self._authority.mistakes.issue_for_client())
                written.append(self._client)
            port = await self.endpoint.listen(factory)
        except BaseException:
            for file in written:
                file.put_back()
            raise
        self._tell()
        stop = port.stopListening

        def stop_listening() -> Deferred[None] | None:
            self._ca.remove()
            return stop()

        port.stopListening = stop_listening  # type: ignore[method-assign]
        return port

    def _tell(self) -> None:
        path = escape(self._ca.path)
        if self._served:
            names = ", ".join(self._authority.mistakes.hosts)
            log.info(
                "badtls: the authority is in {path}; its certificates are {names}",
                path=path,
                names=names,
            )
        else:
            log.info("wrong-certificate: the authority is in {path}", path=path)


def _content_of(path: str) -> bytes | None:
    """Return the content of a file; None if there is none."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
