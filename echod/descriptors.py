"""How many files and sockets this process may have open: each connection is one at least."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

from echod.limits import Level

OPEN = Path("/proc/self/fd")

# What the process needs beside its connections: its own files, sockets and pipes, the status's
# clients, and those whom it has just refused: they take a turn or two of the event loop to be
# gone, in each of which 64 may come.
SPARE = 256

# How many connections to make room for where their number has no limit of its own.
MOST_CONNECTIONS = 1_000_000

# What a connection's own thread needs beside the connection: a duplicate of its descriptor; over
# TLS and behind a proxy, both ends of a socket pair and a duplicate of one.
MOST_OF_A_THREAD = 3


def make_room(wanted: int) -> int:
    """Allow this process `wanted` descriptors, as far as the system lets it.

    Shells and systemd start programs with a soft limit of 1024, for the sake of those that use
    `select`, and expect a program that can do with more to ask for them.

    Args:
        wanted: how many; a limit that is higher is left alone.

    Returns:
        How many it may have now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= wanted:
        return wanted
    allowed = wanted if hard == unlimited else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid even that
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return soft


def fit(allowed: int, connections: int, threads: int) -> tuple[int, int]:
    """Return how many connections, and threads for connections, there is room for.

    Some descriptors are kept for what is not a connection, the status above all: who asks why
    nobody is let in shall get an answer.

    Args:
        allowed: how many descriptors the process may have.
        connections: how many connections are wanted.
        threads: how many of these may have a thread of their own.
    """
    room = allowed - min(SPARE, allowed // 2)
    threads = min(threads, room // (1 + MOST_OF_A_THREAD))
    return max(1, min(connections, room - threads * MOST_OF_A_THREAD)), threads


def level() -> Level:
    """Return how many descriptors this process has open, and how many it may have."""
    with contextlib.suppress(OSError):
        # Linux tells the number as the size of the folder, from 6.2 on: no need to read it.
        used = OPEN.stat().st_size or len(list(OPEN.iterdir()))
        return Level("descriptors", used, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return Level("descriptors", 0, 0)


def fill_standard_streams() -> list[str]:
    """Open `/dev/null` in the place of each standard stream that is closed, as by `>&-`.

    Else the next file that is opened takes its number, and is written to by whoever prints.

    Returns:
        The names of streams whose numbers had been taken before this was called.
    """
    taken = []
    for number, (name, mode) in enumerate([("stdin", "r"), ("stdout", "w"), ("stderr", "w")]):
        if not is_open(number):
            # The lowest number that is free is this one.  Children get it, as any such stream.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:  # as Python has found it closed
            stream = Path(os.devnull).open(mode)  # noqa: SIM115 - as long as the process lives
            if not os.path.sameopenfile(number, stream.fileno()):
                taken.append(name)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    return taken


def is_open(number: int) -> bool:
    """Return whether there is a descriptor of this number."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
