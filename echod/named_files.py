"""Read the files that an operator names, which may be anything.

A path may be that of a FIFO to which no process writes, or of a device without an end. The daemon
reads some files while it serves clients, so each is read within a limited time, and up to a
limited length. A pipe that has a writer can be read, once: a shell's `<(command)` is one.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from pathlib import Path

# How long to wait for the writer of a pipe, in seconds: the event loop may stand still for it.
PATIENCE = 5.0

# The longest file, in bytes.
MOST = 16 << 20


def read(path: str | Path) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: it cannot be read, has no end, or is a pipe from which nothing comes.
        ValueError: the path contains NUL.
    """
    with open(path, "rb", buffering=0, opener=_open) as file:
        data = _read_all(file)
        if not data and stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.ENODATA, "nothing was written to this pipe")
    return data


def read_text(path: str | Path, encoding: str, errors: str = "strict") -> str:
    """Return the content of a file, as `Path.read_text` does.

    Raises:
        OSError, ValueError: as for `read`.
        UnicodeDecodeError: it has another encoding.
    """
    return io.TextIOWrapper(io.BytesIO(read(path)), encoding, errors).read()


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _read_all(file: io.FileIO) -> bytes:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    deadline = time.monotonic() + PATIENCE
    data = bytearray()
    while len(data) <= MOST:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, f"its end has not come within {PATIENCE:g} s")
        piece = file.read(1 << 20)
        if piece == b"":
            return bytes(data)
        data += piece or b""  # another process was faster
    raise OSError(errno.EFBIG, f"it is longer than {MOST >> 20} MiB")
