"""Set-ups that are dangerous without showing it.

What nobody can want is refused.  What may be meant so, as root within a container is, gets a line
in the log.
"""

from __future__ import annotations

import _thread
import os
import pwd
import select
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from echod.permissions import ROOT, others_can_write

# Where twistd writes its number unless it is told otherwise.
PIDFILE = "twistd.pid"

_WAITED_BY = {
    (module, name): getattr(module, name, None)
    for module, names in (
        (_thread, ("start_new_thread", "allocate_lock")),
        (select, ("select", "poll", "epoll")),
        (socket, ("socket",)),
        (time, ("sleep",)),
    )
    for name in names
}


def refusal(twistd: Mapping[str, Any], *, uid: int) -> str | None:
    """Return why the daemon must not start like this; None where it may.

    Args:
        twistd: twistd's own options; empty under `twist`, which has none of these.
        uid: the user that starts it.
    """
    try:
        Path.cwd()
    except OSError as error:
        return f"the current directory: {error.strerror}: cd into one that is there"
    pidfile = twistd.get("pidfile")
    if pidfile and Path(pidfile).is_symlink():
        return (
            f"--pidfile {pidfile} is a symbolic link: twistd would write to wherever it points; "
            "remove it, or name another file"
        )
    # twistd finds these out too, but says so in a traceback.
    if pidfile and not Path(pidfile).exists() and not os.access(Path(pidfile).parent, os.W_OK):
        return (
            f"--pidfile {pidfile}: nothing can be written to that directory; "
            "name another file, or none: twistd --pidfile= echod"
        )
    if not Path(twistd.get("rundir") or ".").is_dir():
        return f"--rundir {twistd['rundir']}: there is no such directory"
    if uid == ROOT and twistd.get("gid") is not None and twistd.get("uid") is None:
        return "--gid without --uid leaves the daemon running as root: name a --uid too"
    return _unknown_user(twistd.get("uid"))


def _unknown_user(uid: int | None) -> str | None:
    """Return why twistd cannot become this user: it asks for the user's name, and groups."""
    try:
        if uid is not None:
            pwd.getpwuid(uid)
    except (KeyError, OverflowError):
        return (
            f"--uid {uid}: there is no user of this number: make one, or start as that user, as "
            f"by setpriv --reuid {uid} --regid {uid} --clear-groups twistd ..."
        )
    return None


def why_stale(pidfile: str | Path) -> str | None:
    """Return why this pidfile is of no daemon that runs; None where it may be of one.

    Linux only: elsewhere twistd asks whether there is a process of that number, and no more.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    text = Path(pidfile).read_text(errors="replace").strip()
    if not text:
        return "it is empty"
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:12]) < 1 << 31:
        return "there is no number of a process in it"
    if int(text) == os.getpid():
        return f"{text} is this very process"
    try:
        words = os.fsdecode(Path(f"/proc/{text}/cmdline").read_bytes()).split("\0")
    except OSError:  # it is gone, which twistd finds out, or we may not know
        return None
    if any(Path(word).name.startswith("twist") for word in words[:3]):
        return None
    return f"process {text} is not twistd"


def warnings(twistd: Mapping[str, Any], folders: Iterable[str | Path], *, uid: int) -> list[str]:
    """Return what the log should say about this set-up.

    Args:
        twistd: as for `refusal`.
        folders: where modules and plugins are imported from beside the usual places.
        uid: the user that starts it.
    """
    said = [
        f"{path} can be written by others, and code is read from there: whoever can write there "
        "runs code as this daemon"
        for folder in folders
        for path in _exposed(Path(folder), uid)
    ]
    if uid == ROOT and twistd.get("uid") is not None and twistd.get("euid"):
        said.append("--euid lets handlers become root again: without it, privileges are dropped")
    return said


def warning_once_started(uid: int) -> str | None:
    """Return what the log should say now that privileges have been dropped.

    Args:
        uid: the effective user.
    """
    if uid != ROOT:
        return None
    return (
        "Handlers run as root: a mistake in one of them is the whole machine's. "
        "Start twistd with --uid, or from a unit with User= or DynamicUser="
    )


def exchanged() -> list[str]:
    """Return what echod waits by, and a module has exchanged for something else since."""
    return [
        f"{module.__name__}.{name}"
        for (module, name), original in _WAITED_BY.items()
        if not _is_as_good(getattr(module, name, None), original)
    ]


def _is_as_good(found: object, original: object) -> bool:
    # A class made of the original one, as a library for proxies puts in its place, does no harm.
    both = isinstance(found, type) and isinstance(original, type)
    return found is original or (both and issubclass(found, original))  # type: ignore[arg-type]


def proviso(uid: int) -> str:
    """Return what has to be added where a check has found everything good.

    Args:
        uid: the effective user.
    """
    if uid != ROOT:
        return ""
    return (
        " for root, who can read every file: for another user, run this as that user "
        "(runuser -u USER -- ...)"
    )


def _exposed(folder: Path, uid: int) -> Iterator[Path]:
    """Yield what somebody else can write: the folder, or Twisted's cache of plugins in it."""
    for path in (folder, folder / "dropin.cache"):
        try:
            found = path.stat()
        except OSError:
            continue
        if others_can_write(found, uid):
            yield path


def plugin_folders() -> list[str]:
    """Return where Twisted looks for plugins."""
    import twisted.plugins

    return list(twisted.plugins.__path__)
