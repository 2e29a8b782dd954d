"""The number of files and sockets that this process may open: a connection needs at least one."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from echod.handlers.builtin import HANDLERS
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.kinds import Kind, kind_of
from echod.limits import Level
from echod.settings.definitions import Settings

log = Logger("echod")

OPEN = Path("/proc/self/fd")

# The descriptors that the process needs besides its connections: for its own files, sockets and
# pipes, for the status's clients, and for clients that it has just refused: these take a turn or
# two of the event loop to close, and 64 may come in each turn.
SPARE = 256

# How many connections to make room for if their number is not limited.
MOST_CONNECTIONS = 1_000_000

# The descriptors that a connection's own thread needs besides the connection: a duplicate of its
# descriptor; over TLS and behind a proxy, both ends of a socket pair and a duplicate of one.
MOST_OF_A_THREAD = 3

# The descriptors that a connection's own process needs besides the connection: its three pipes,
# and one that tells of its end.
MOST_OF_A_PROCESS = 4


def make_room(wanted: int) -> int:
    """Raise the limit of this process to `wanted` descriptors, as far as the system allows it.

    Shells and systemd start programs with a soft limit of 1024, because some of them use `select`,
    and expect other programs to raise the limit themselves.

    Args:
        wanted: how many; a higher limit is left alone.

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


def fit(
    allowed: int,
    connections: int,
    helpers: int,
    each: int = MOST_OF_A_THREAD,
    of_a_connection: int = 1,
) -> tuple[int, int]:
    """Return how many connections, and threads or processes of theirs, there is room for.

    Some descriptors are kept for other purposes, above all for the status: it has to answer an
    operator who wants to know why clients are refused.

    Args:
        allowed: how many descriptors the process may have.
        connections: how many connections are wanted.
        helpers: how many of these may have a thread, or process, of their own.
        each: how many descriptors it needs besides the connection.
        of_a_connection: how many descriptors every connection needs.
    """
    room = allowed - min(SPARE, allowed // 2)
    helpers = min(helpers, room // (1 + each))
    return max(1, min(connections, (room - helpers * each) // of_a_connection)), helpers


def level() -> Level:
    """Return how many descriptors this process has open, and how many it may have."""
    with contextlib.suppress(OSError):
        # From 6.2 on, Linux gives the number as the size of the folder, without reading it.
        used = OPEN.stat().st_size or len(list(OPEN.iterdir()))
        return Level("descriptors", used, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return Level("descriptors", 0, 0)


def fill_standard_streams() -> list[str]:
    """Open `/dev/null` in place of each standard stream that is closed, as by `>&-`.

    Otherwise the next file that is opened gets its number, and every `print` writes into that
    file.

    Returns:
        The names of streams whose numbers had been taken before this was called.
    """
    for number in range(3):  # before a stream takes one of them
        if not is_open(number):
            # `open` takes the lowest free number, which is this one. Children inherit it, as they
            # do any standard stream.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    taken = []
    for number, (name, mode) in enumerate([("stdin", "r"), ("stdout", "w"), ("stderr", "w")]):
        if getattr(sys, name) is None:  # Python found it closed at the start
            stream = Path(os.devnull).open(mode)  # noqa: SIM115 - stays open as long as the process lives
            if not os.path.sameopenfile(number, stream.fileno()):
                taken.append(name)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    return taken


def is_open(number: int) -> bool:
    """Return whether a descriptor with this number is open."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def fit_limits(settings: Settings) -> Settings:
    """Raise the limit of descriptors for the settings' limits, or lower these limits.

    Returns:
        The settings, with limits that fit: clients above them are told so, and counted; without
        descriptors no client could be told anything.
    """
    wanted = settings.max_connections or MOST_CONNECTIONS
    setting, each = _helpers(settings)
    helpers = getattr(settings, setting) if setting else 0
    of_a_connection = getattr(HANDLERS.get(settings.handler.name), "descriptors", 1)
    needed = wanted * of_a_connection + helpers * each + SPARE
    allowed = make_room(needed)
    if allowed >= needed and settings.max_connections:
        return settings
    connections, fitting = fit(allowed, wanted, helpers, each, of_a_connection)
    changes: dict[str, Any] = {"max_connections": connections}
    if settings.max_connections_per_address:
        share = max(1, connections * 3 // 4)
        changes["max_connections_per_address"] = min(settings.max_connections_per_address, share)
    if setting:
        changes[setting] = max(1, fitting)
    changed = ", ".join(f"{name.replace('_', '-')} is {most}" for name, most in changes.items())
    if settings.max_connections:
        log.warn(
            "This process may open {allowed} files and sockets, too few for {connections} "
            "connections: raise its limit (ulimit -n, LimitNOFILE=); until then {changed}",
            allowed=allowed,
            connections=wanted,
            changed=changed,
        )
    else:
        log.info(
            "This process may open {allowed} files and sockets, so {changed}",
            allowed=allowed,
            changed=changed,
        )
    return replace(settings, **changes)


def _helpers(settings: Settings) -> tuple[str, int]:
    """Return which setting says how many connections have a thread or a process of their own, and
    how many descriptors each of these needs; "" if none has.
    """
    if settings.concurrency is ConcurrencyModel.THREAD_PER_CONNECTION:
        return "max_threads", MOST_OF_A_THREAD
    handler = HANDLERS.get(settings.handler.name)
    if handler is not None and kind_of(handler) is Kind.PROGRAM:
        return "max_processes", MOST_OF_A_PROCESS
    return "", 0
