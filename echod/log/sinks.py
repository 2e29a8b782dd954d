"""Where lines of the log go: a descriptor, a file that begins anew, the system's log.

What a file's sink promises:

* Only a regular file is ever renamed, and only while it is the one that is written to: a device, a
  FIFO, a symbolic link and a file that somebody else has put at the path stay what they are.
* It appends, so that whoever truncates the file leaves no hole in it.
* Asked to begin anew, it opens the path again: where logrotate has moved the file away, that is a
  new one; where the file is there still, it is renamed first.
* What was written can be read in the old file or the new one, and where no new one can be had, the
  old one goes on.
* Root follows a symbolic link only in a folder that nobody else can write to.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import select
import stat
import syslog
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

# How long a file may get before another one is begun, in bytes.
LONGEST_FILE = 1_000_000

# How long a child waits until a line of its own can be written, in seconds.
PATIENCE = 0.5

# How many symbolic links may lead to a file, one to the next: as many as the kernel follows.
MOST_LINKS = 40

# Names of descriptors that are open already.  To open them again fails where they are sockets, as
# what systemd gives a service is.
_OPEN_ALREADY = re.compile(r"/dev/(stdout|stderr)|(?:/dev|/proc/self)/fd/(\d+)")
_NUMBERS = {"stdout": 1, "stderr": 2}


class Line(NamedTuple):
    """A line on its way: its text, without the newline, and its level's name."""

    text: str
    level: str


class Sink(Protocol):
    """Where lines go."""

    # Whether who receives the lines adds the time to them.
    stamps: bool

    def write(self, lines: Sequence[Line]) -> int:
        """Write `lines`, for as long as that takes; return how many of them were written."""

    def begin_anew(self) -> None:
        """Begin a new file, where there is one.

        Raises:
            OSError: it cannot be; the old one goes on, and again may help.
        """

    def in_child(self) -> Sink:
        """Return what a forked child writes to: files are its parent's to rename."""


class DescriptorSink:
    """A file descriptor: standard output."""

    stamps = False

    def __init__(self, descriptor: int) -> None:
        """Set up.

        Args:
            descriptor: stays the caller's.
        """
        self._descriptor = descriptor
        self._broken = False

    def write(self, lines: Sequence[Line]) -> int:
        encoded = [f"{line.text}\n".encode("utf-8", "backslashreplace") for line in lines]
        if self._broken:
            # A write that failed may have left half a line: this one begins a new line.
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
                # Somebody who shares the file has made it non-blocking.
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
    """The same for a child, which has no thread that could wait: what takes too long is lost."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._patience = PATIENCE

    def _write_all(self, data: bytes) -> int:
        poll, written = select.poll(), 0
        poll.register(self._descriptor, select.POLLOUT)
        while written < len(data):
            if not poll.poll(self._patience * 1000):
                self._patience = 0  # from now on only what can be written at once
                break
            try:
                # A pipe that can be written to takes so much without waiting.
                piece = data[written : written + select.PIPE_BUF]
                written += os.write(self._descriptor, piece)
            except OSError:
                break
        return written

    def in_child(self) -> DescriptorSink:
        return self


class FileSink(DescriptorSink):
    """A log file, which begins anew at a million bytes and whenever it is asked to.

    Attributes:
        keep: how many files to keep beside the one that is written to; 0: all.
    """

    def __init__(self, path: str, *, keep: int = 0) -> None:
        """Open the file, which is made if there is none.

        Args:
            path: where it is.
            keep: see above.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = Path.cwd() / path
        self.keep = keep
        # At which length to begin another.
        self._enough = LONGEST_FILE
        super().__init__(_open(self._path))

    def write(self, lines: Sequence[Line]) -> int:
        with contextlib.suppress(OSError):  # told by the next one that is asked for
            self._begin_anew_if_long()
        return super().write(lines)

    def _begin_anew_if_long(self) -> None:
        length = os.fstat(self._descriptor).st_size
        if length >= self._enough and (mine := self._mine()):
            # If it fails, not again with every line.
            self._enough = length + LONGEST_FILE
            self._rename(mine)
            self._reopen()

    def begin_anew(self) -> None:
        if mine := self._mine():
            self._rename(mine)
        self._reopen()

    def _mine(self) -> Path | None:
        """Return where the file is that is written to, if it is one and nobody has moved it."""
        ours = os.fstat(self._descriptor)
        path = _behind_links(self._path)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(ours.st_mode) and os.path.samestat(ours, path.lstat()):
                return path
        return None

    def _rename(self, path: Path) -> None:
        """Rename the file to `path.1`, what has that name to `path.2`, and so on."""
        names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
        older = list(itertools.takewhile(_is_file, names))
        free = path.with_name(f"{path.name}.{len(older) + 1}")
        if os.path.lexists(free):
            raise FileExistsError(errno.EEXIST, "it is no file of the log", str(free))
        if self.keep:
            for dropped in older[self.keep - 1 :]:
                dropped.unlink()
        for name, next_name in reversed(list(itertools.pairwise([path, *older, free]))):
            if _is_file(name):
                name.rename(next_name)

    def _reopen(self) -> None:
        descriptor = _open(self._path)
        # One number for all files: between the old one and the new one a client may take the last.
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
    """Return a descriptor that appends to the file at `path`, be it what it may.

    Raises:
        OSError: there is none, and none can be made.
    """
    if open_already := _OPEN_ALREADY.fullmatch(str(path)):
        return os.dup(_NUMBERS.get(open_already[1]) or int(open_already[2]))
    path = _behind_links(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISFIFO(path.lstat().st_mode):
            # Open for reading too: nobody may be there to read it yet, or any more.
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o666)


def _behind_links(path: Path) -> Path:
    """Return where the symbolic link at `path` leads; `path` itself if it is none.

    Raises:
        OSError: there is no end of links, or root would follow one that others can make.
    """
    for _ in range(MOST_LINKS):
        try:
            target = path.readlink()
        except OSError:
            return path
        if os.geteuid() == 0 and not _is_roots_alone(path.parent):
            raise PermissionError(
                errno.EACCES,
                "root follows no link in a folder that others can write to",
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
    _PRIORITIES = {  # noqa: RUF012 - a constant
        "debug": syslog.LOG_DEBUG,
        "info": syslog.LOG_INFO,
        "warn": syslog.LOG_WARNING,
        "error": syslog.LOG_ERR,
        "critical": syslog.LOG_CRIT,
    }

    def __init__(self, prefix: str) -> None:
        """Open the connection.

        Args:
            prefix: what each line begins with, twistd's `--prefix`.
        """
        syslog.openlog(prefix, syslog.LOG_PID)

    def write(self, lines: Sequence[Line]) -> int:
        for line in lines:
            for piece in line.text.split("\n"):
                syslog.syslog(self._PRIORITIES.get(line.level, syslog.LOG_INFO), piece)
        return len(lines)

    def begin_anew(self) -> None:
        pass

    def in_child(self) -> SyslogSink:
        return self
