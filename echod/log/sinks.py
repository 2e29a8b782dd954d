"""Targets for lines of the log: a descriptor, a file that is rotated, the system's log.

Guarantees of a file's sink:

* It renames only a regular file, and only while it writes to that file: it never renames a device,
  a FIFO, a symbolic link, or a file that another program has put at the path.
* It appends, so that a program that truncates the file leaves no hole in it.
* To begin a new file, it opens the path again: if logrotate has moved the file away, that makes a
  new one; if the file is still there, it is renamed first.
* Each line is in the old file or in the new one, and if no new file can be opened, the sink keeps
  writing to the old one.
* As root it follows a symbolic link only in a folder that no other user can write to.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import select
import socket
import stat
import sys
import syslog
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

# The length at which a new file begins, in bytes.
LONGEST_FILE = 1_000_000

# How long a child waits until it can write a line.
CHILD_WAIT_SECONDS = 0.5

# The longest chain of symbolic links: as many as the kernel follows.
MOST_LINKS = 40

# The socket of the system's log.
SYSLOG = "/var/run/syslog" if sys.platform == "darwin" else "/dev/log"

_PRIORITIES = {
    "debug": syslog.LOG_DEBUG,
    "info": syslog.LOG_INFO,
    "warn": syslog.LOG_WARNING,
    "error": syslog.LOG_ERR,
    "critical": syslog.LOG_CRIT,
}

# Names of descriptors that are already open. Opening them again fails if they are sockets, such as
# those that systemd gives to a service.
_OPEN_ALREADY = r"/dev/(stdout|stderr)|(?:/dev|/proc/self)/fd/(\d+)"
_NUMBERS = {"stdout": 1, "stderr": 2}


class Line(NamedTuple):
    """A line to write: its text, without the newline, and the name of its level."""

    text: str
    level: str


class Sink(Protocol):
    """A target for lines."""

    # Whether the receiver of the lines adds the time to them.
    stamps: bool

    def write(self, lines: Sequence[Line]) -> int:
        """Write `lines`, however long that takes; return how many of them were written."""

    def begin_anew(self) -> None:
        """Begin a new file, if the sink writes to a file.

        Raises:
            OSError: that failed; the sink keeps writing to the old file, and trying again may
                help.
        """

    def in_child(self) -> Sink:
        """Return the sink for a forked child, which must not rename its parent's files."""


class DescriptorSink:
    """A file descriptor: standard output."""

    stamps = False

    def __init__(self, descriptor: int) -> None:
        """Set up.

        Args:
            descriptor: it still belongs to the caller.
        """
        self._descriptor = descriptor
        self._broken = False

    def write(self, lines: Sequence[Line]) -> int:
        encoded = [f"{line.text}\n".encode("utf-8", "backslashreplace") for line in lines]
        if self._broken:
            # A failed write may have left part of a line, so begin a new line.
            encoded[0] = b"\n" + encoded[0]
        written = self._write_all(b"".join(encoded))
        ends = itertools.accumulate(map(len, encoded))
        whole = sum(end <= written for end in ends)
        self._broken = whole < len(lines)
        return whole

    def _write_all(self, data: bytes) -> int:
        view, written = memoryview(data), 0
        while written < len(data):
            try:
                written += os.write(self._descriptor, view[written:])
            except BlockingIOError:
                # Another process that shares the file has made it non-blocking.
                self._wait_until_writable()
            except OSError:
                break
        return written

    def _wait_until_writable(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll()

    def begin_anew(self) -> None:
        pass

    def in_child(self) -> DescriptorSink:
        return _ImpatientSink(self._descriptor)


class _ImpatientSink(DescriptorSink):
    """A descriptor for a child, which has no writer thread: lines that take too long are lost."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._patience = CHILD_WAIT_SECONDS

    def _write_all(self, data: bytes) -> int:
        poll, written = select.poll(), 0
        poll.register(self._descriptor, select.POLLOUT)
        while written < len(data):
            if not poll.poll(self._patience * 1000):
                self._patience = 0  # from now on write only without waiting
                break
            try:
                # A writable pipe takes this much without waiting.
                piece = data[written : written + select.PIPE_BUF]
                written += os.write(self._descriptor, piece)
            except OSError:
                break
        return written

    def in_child(self) -> DescriptorSink:
        return self


class FileSink(DescriptorSink):
    """A log file; a new one begins at a million bytes, and whenever asked to.

    Attributes:
        keep: how many old files to keep; 0: all.
    """

    def __init__(self, path: str, *, keep: int = 0) -> None:
        """Open the file, or create it.

        Args:
            path: its path.
            keep: see above.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = Path.cwd() / path
        self.keep = keep
        # The length at which to begin a new file.
        self._enough = LONGEST_FILE
        super().__init__(_open(self._path))

    def write(self, lines: Sequence[Line]) -> int:
        with contextlib.suppress(OSError):  # the next request for a new file reports the error
            self._begin_anew_if_long()
        return super().write(lines)

    def _begin_anew_if_long(self) -> None:
        length = os.fstat(self._descriptor).st_size
        if length >= self._enough and (mine := self._mine()):
            # If it fails, do not try again with every line.
            self._enough = length + LONGEST_FILE
            self._rename(mine)
            self._reopen()

    def begin_anew(self) -> None:
        if mine := self._mine():
            self._rename(mine)
        self._reopen()

    def _mine(self) -> Path | None:
        """Return the path of the open file; None if it is not regular, or has been moved away."""
        ours = os.fstat(self._descriptor)
        path = _behind_links(self._path)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(ours.st_mode) and os.path.samestat(ours, path.lstat()):
                return path
        return None

    def _rename(self, path: Path) -> None:
        """Rename the file to `path.1`, the file with that name to `path.2`, and so on."""
        names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
        older = list(itertools.takewhile(_is_file, names))
        free = path.with_name(f"{path.name}.{len(older) + 1}")
        if os.path.lexists(free):
            raise FileExistsError(errno.EEXIST, "it is not a log file", str(free))
        if self.keep:
            for dropped in older[self.keep - 1 :]:
                dropped.unlink()
        for name, next_name in reversed(list(itertools.pairwise([path, *older, free]))):
            if _is_file(name):
                name.rename(next_name)

    def _reopen(self) -> None:
        descriptor = _open(self._path)
        # Keep the descriptor's number: after closing it, a client could take the last free one.
        os.dup2(descriptor, self._descriptor, inheritable=False)
        os.close(descriptor)
        self._enough = LONGEST_FILE

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _open(path: Path) -> int:
    """Return a descriptor that appends to the file at `path`, of any kind.

    Raises:
        OSError: it cannot be opened or created.
    """
    if open_already := re.fullmatch(_OPEN_ALREADY, str(path)):
        return os.dup(_NUMBERS.get(open_already[1]) or int(open_already[2]))
    path = _behind_links(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISFIFO(path.lstat().st_mode):
            # Open it for reading too, because it may have no reader yet, or no longer.
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o666)


def _behind_links(path: Path) -> Path:
    """Follow the symbolic links at `path`; return `path` itself if it is not one.

    Raises:
        OSError: there are too many links, or root would follow one that another user can make.
    """
    for _ in range(MOST_LINKS):
        try:
            target = path.readlink()
        except OSError:
            return path
        if os.geteuid() == 0 and not _is_roots_alone(path.parent):
            raise PermissionError(
                errno.EACCES,
                "root does not follow a link in a folder that other users can write to",
                str(path),
            )
        path = path.parent / target
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _is_roots_alone(folder: Path) -> bool:
    status = folder.stat()
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class SyslogSink:
    """The system's log; it adds the time itself."""

    stamps = True

    def __init__(self, prefix: str) -> None:
        """Open the connection.

        Args:
            prefix: the beginning of each line, twistd's `--prefix`.
        """
        self._prefix = prefix
        syslog.openlog(prefix, syslog.LOG_PID)

    def write(self, lines: Sequence[Line]) -> int:
        for line in lines:
            for priority, piece in _pieces(line):
                syslog.syslog(priority, piece)
        return len(lines)

    def begin_anew(self) -> None:
        pass

    def in_child(self) -> Sink:
        return _ImpatientSyslogSink(self._prefix)


class _ImpatientSyslogSink:
    """The system's log for a child, without libc: another thread of the parent may have held
    libc's lock when the child was forked. Lines that take too long are lost.
    """

    stamps = True

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._patience = CHILD_WAIT_SECONDS

    def write(self, lines: Sequence[Line]) -> int:
        written = 0
        try:
            with _syslog_socket(self._patience) as log:
                end = b"\0" if log.type == socket.SOCK_STREAM else b""
                for line in lines:
                    for priority, piece in _pieces(line):
                        head = f"<{syslog.LOG_USER | priority}>{self._prefix}[{os.getpid()}]: "
                        log.sendall((head + piece).encode("utf-8", "backslashreplace") + end)
                    written += 1
        except (TimeoutError, BlockingIOError):
            self._patience = 0  # from now on write only without waiting
        except OSError:
            pass
        return written

    def begin_anew(self) -> None:
        pass

    def in_child(self) -> Sink:
        return self


def _pieces(line: Line) -> Iterator[tuple[int, str]]:
    """Return the messages for the system's log, each with its priority."""
    priority = _PRIORITIES.get(line.level, syslog.LOG_INFO)
    return ((priority, piece) for piece in line.text.split("\n"))


def _syslog_socket(patience: float) -> socket.socket:
    """Return a connection to the system's log, of the kind that it has.

    Args:
        patience: how long each step may take, in seconds.

    Raises:
        OSError: there is none.
    """
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        log = socket.socket(socket.AF_UNIX, kind)
        log.settimeout(patience)
        try:
            log.connect(SYSLOG)
        except OSError as error:
            log.close()
            if error.errno != errno.EPROTOTYPE:
                raise
        else:
            return log
    raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE), SYSLOG)
