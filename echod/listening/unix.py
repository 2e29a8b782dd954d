"""UNIX sockets: their mode, their owner, and stale files of a dead daemon.

* The mode is explicit, and 0660 by default: owner and group.
* A stale file, as SIGKILL leaves it, is replaced; a file on which a process listens is not. The
  only test is a connection to the socket, which a stale file refuses: a lock file, as Twisted
  makes it, is left behind too, and the process id in it may by now belong to another process. The
  directory is locked (flock) while the daemon checks, removes and binds, so that of two daemons
  that start at once one gets the socket, and the other gets an error.
* At the end the daemon removes the file if it is still its own.
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

from echod.listening.tcp import BACKLOG
from echod.permissions import others_can_write
from echod.text import escape

if TYPE_CHECKING:
    from echod.interfaces import Reactor

log = Logger("echod")

# Owner and group: other clients need to join the group, or another mode.
MODE = 0o660

# How long to wait for another daemon that starts in the same directory.
LOCK_SECONDS = 2.0


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
        self._bound: tuple[int, int] | None = None

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        return execute(self._listen, factory)

    def bind(self) -> socket.socket:
        """Return a listening socket, for several processes; the file stays until `remove`.

        Raises:
            OSError: that failed.
        """
        check_directory(self._path.parent)
        with _locked(self._path.parent):
            remove_stale(self._path)
            made = socket.socket(socket.AF_UNIX)
            try:
                made.setblocking(False)
                made.bind(str(self._path))
                self._path.chmod(self._mode)  # before any client can connect
                made.listen(self._backlog)
            except BaseException:
                made.close()
                raise
            self._bound = _identity(self._path)
        return made

    def remove(self) -> None:
        """Remove the file of `bind`, if it is still there."""
        with contextlib.suppress(OSError):  # the next start removes it
            if self._bound is not None and _identity(self._path) == self._bound:
                self._path.unlink()

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        check_directory(self._path.parent)
        with _locked(self._path.parent):
            remove_stale(self._path)
            port = self._reactor.listenUNIX(
                str(self._path), factory, backlog=self._backlog, mode=self._mode
            )
            ours = _identity(self._path)

        def withdraw() -> None:
            with contextlib.suppress(OSError):  # it is gone; or the next start removes it
                if _identity(self._path) == ours:
                    self._path.unlink()

        # At once: after a start that fails, the reactor does not run.
        def stop_listening() -> Any:
            withdraw()
            return stop()

        # Twisted's method would remove any file there, and fail if there is none.
        def connection_lost(reason: Failure) -> None:
            withdraw()
            tcp.Port.connectionLost(port, reason)

        stop = port.stopListening
        port.withdraw = withdraw
        port.stopListening = stop_listening
        port.connectionLost = connection_lost
        listening: IListeningPort = port
        return listening


def check_directory(directory: Path) -> None:
    """Refuse a directory in which any user could replace our socket; warn about a shared one.

    Raises:
        OSError: every user may write to it, or it does not exist.
    """
    try:
        found = directory.stat()
    except FileNotFoundError as error:
        raise OSError(
            error.errno,
            f"There is no directory {directory}: make it first, as in mkdir {directory}",
        ) from None
    except PermissionError as error:
        raise OSError(error.errno, f"This user may not enter {directory}") from None
    mode = found.st_mode
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, f"{directory} is not a directory")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        if not read_only:  # of which `bind` tells
            raise OSError(errno.EACCES, f"This user may not make a file in {directory}")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise OSError(
            errno.EPERM,
            f"Any user may write to {directory}, and replace the socket: chmod o-w, "
            "or use a directory of its own",
        )
    if mode & stat.S_IWOTH:
        log.warn(
            "Any user may write to {directory}: another user could have been there first. "
            "A directory of its own is better.",
            directory=escape(str(directory)),
        )
    elif others_can_write(found, os.geteuid()):
        log.warn(
            "Other users can write to {directory}, and replace the socket: its group, or owner. "
            "A directory of its own is better.",
            directory=escape(str(directory)),
        )


def remove_stale(path: Path) -> None:
    """Remove a socket's file if no process listens there.

    Raises:
        OSError: a process does, or it is not a socket.
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
        raise OSError(errno.EADDRINUSE, "Address in use by another process, which ss -lxp shows")
    log.info("Removing the stale socket {path}", path=escape(str(path)))
    path.unlink()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other daemons from starting in `directory` at the same time."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
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
