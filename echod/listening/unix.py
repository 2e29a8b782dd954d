"""UNIX sockets: who may connect, whose file it is, and what a dead daemon left behind.

* The mode is explicit, and 0660 unless another is asked for: the owner and the group.
* A file that nobody listens on, as SIGKILL leaves it, is replaced; one that somebody listens on is
  not.  Asking the socket itself (does it refuse a connection?) is the whole test: a lock file, as
  Twisted makes it, stays behind too, and holds the number of a process that may be another by now.
  The directory is locked (flock) while we look, remove and bind, so that of two daemons that start
  at once one gets the socket, and the other is told so.
* At the end the file is removed if it is still ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorUNIX,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.permissions import others_can_write
from echod.text import escape

if TYPE_CHECKING:
    from echod.interfaces import Reactor

log = Logger("echod")

# The owner and the group: a client outside both wants a group, or a mode that says so.
MODE = 0o660

# How many connections the kernel queues: as many as it will.
BACKLOG = socket.SOMAXCONN

# How long another daemon that starts in the same directory is waited for, in seconds.
PATIENCE = 2.0


@implementer(IStreamServerEndpoint)
class UNIXEndpoint:
    """Listens on a UNIX socket."""

    def __init__(
        self, reactor: Reactor, path: str, mode: int = MODE, backlog: int = BACKLOG
    ) -> None:
        """Set up.

        Args:
            reactor: can be adapted to `IReactorUNIX`.
            path: the socket's file.
            mode: the permissions of that file.
            backlog: how many connections wait to be accepted.
        """
        # By its types, Twisted's method takes subclasses of Twisted's `Factory` alone.
        self._reactor: Any = IReactorUNIX(reactor)
        self._path = Path(path)
        self._mode = mode
        self._backlog = backlog

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        return execute(self._listen, factory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        check_directory(self._path.parent)
        with _locked(self._path.parent):
            remove_stale(self._path)
            port = self._reactor.listenUNIX(
                str(self._path), factory, backlog=self._backlog, mode=self._mode
            )
            ours = _identity(self._path)

        # Twisted's would remove whatever is there by then, and fail where nothing is.
        def connection_lost(reason: Failure) -> None:
            with contextlib.suppress(OSError):  # privileges may be gone: the next start removes it
                if _identity(self._path) == ours:
                    self._path.unlink()
            tcp.Port.connectionLost(port, reason)

        port.connectionLost = connection_lost
        listening: IListeningPort = port
        return listening


def check_directory(directory: Path) -> None:
    """Refuse a directory where anyone could put a socket in place of ours; warn of a shared one.

    Raises:
        OSError: it is writable for everybody, or it is not there.
    """
    try:
        found = directory.stat()
    except FileNotFoundError as error:
        raise OSError(
            error.errno,
            f"There is no directory {directory}: make it first, as in mkdir {directory}",
        ) from None
    mode = found.st_mode
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, f"{directory} is not a directory")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise OSError(
            errno.EPERM,
            f"Anyone may write to {directory}, and replace the socket: chmod o-w, "
            "or use a directory of its own",
        )
    if mode & stat.S_IWOTH:
        log.warn(
            "Anyone may write to {directory}: another user could have been there first. "
            "A directory of its own is better.",
            directory=escape(str(directory)),
        )
    elif others_can_write(found, os.geteuid()):
        log.warn(
            "Others can write to {directory}, and replace the socket: its group, or its owner. "
            "A directory of its own is better.",
            directory=escape(str(directory)),
        )


def remove_stale(path: Path) -> None:
    """Remove a socket's file if nobody listens there.

    Raises:
        OSError: somebody does, or it is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, "A file that is not a socket exists there")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(str(path))
    if error != errno.ECONNREFUSED:
        raise OSError(errno.EADDRINUSE, "Address in use by another process")
    log.info("Removing the stale socket {path}", path=escape(str(path)))
    path.unlink()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other daemons from starting in `directory` at the same time."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    message = f"Another process keeps {directory} locked"
                    raise OSError(errno.EAGAIN, message) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
