"""Checks for unsafe set-ups.

Some are refused, some only logged: those that may be intended, such as root within a container.
"""

from __future__ import annotations

import _thread
import os
import pwd
import select
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from echod.permissions import ROOT, is_file, is_folder, others_can_write

# The file to which twistd writes its process id by default.
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
    """Return why the daemon must not start with this set-up; None if it may.

    Args:
        twistd: twistd's own options; empty under `twist`, which has none of these.
        uid: the user that starts it.
    """
    try:
        Path.cwd()
    except OSError as error:
        return f"the current directory: {error.strerror}: change to one that exists"
    pidfile = twistd.get("pidfile")
    # twistd detects these too, but reports them in a traceback.
    if pidfile and not is_file(Path(pidfile)) and not os.access(Path(pidfile).parent, os.W_OK):
        return (
            f"--pidfile {pidfile}: that directory is not writable; name another file, or none: "
            "twistd --pidfile= echod"
        )
    if pidfile and Path(pidfile).is_symlink():
        return (
            f"--pidfile {pidfile} is a symbolic link: twistd would write to its target; "
            "remove it, or name another file"
        )
    if pidfile and not twistd.get("chroot") and (why := _why_not_written(Path(pidfile))):
        return (
            f"--pidfile {pidfile} cannot be written: {why}; name another file, or none: "
            "twistd --pidfile= echod"
        )
    if not is_folder(Path(twistd.get("rundir") or ".")):
        return f"--rundir {twistd['rundir']}: there is no such directory"
    if uid == ROOT and twistd.get("gid") is not None and twistd.get("uid") is None:
        return "--gid without --uid leaves the daemon running as root: name a --uid too"
    if uid != ROOT and twistd.get("uid") not in (None, uid):
        return f"--uid {twistd['uid']}: only root can become another user: leave it out"
    return _unknown_user(twistd.get("uid"))


def refusal_of_programs(twistd: Mapping[str, Any], *, uid: int) -> str | None:
    """Return why a handler that runs programs must not start with this set-up; None if it may.

    Args:
        twistd: as for `refusal`.
        uid: the user that starts it.
    """
    if uid != ROOT:
        return None
    if twistd.get("uid") is None:
        return (
            "exec runs a program for every client, here as root: name another user by echod "
            "serve --uid USER, by twistd --uid USER echod, or in a unit by User= or DynamicUser="
        )
    if twistd.get("euid"):
        return "exec with --euid: the programs could become root again; leave out --euid"
    return None


def _why_not_written(pidfile: Path) -> str | None:
    """Try to write a new file there; return why it cannot be written, or None."""
    # A signal could end the process here, and leave the file.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        return _why_not_written_now(pidfile)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _why_not_written_now(pidfile: Path) -> str | None:
    try:
        descriptor = os.open(pidfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return None  # twistd looks whose it is
    except OSError as error:
        return error.strerror
    try:
        os.write(descriptor, b"%d" % os.getpid())  # a full disk still takes the name
    except OSError as error:
        return error.strerror
    finally:
        os.close(descriptor)
        pidfile.unlink()
    return None


def _unknown_user(uid: int | None) -> str | None:
    """Return why twistd cannot become this user: it looks up the user's name, and groups."""
    try:
        if uid is not None:
            pwd.getpwuid(uid)
    except (KeyError, OverflowError):
        return (
            f"--uid {uid}: there is no user with this id: create one, or start as that user, for "
            f"example by setpriv --reuid {uid} --regid {uid} --clear-groups twistd ..."
        )
    return None


def why_stale(pidfile: str | Path) -> str | None:
    """Return why this pidfile does not belong to a running daemon; None if it may.

    Linux only: elsewhere twistd checks only whether a process with that id exists.

    Raises:
        OSError: the file does not exist, or cannot be read.
    """
    text = Path(pidfile).read_text(errors="replace").strip()
    if not text:
        return "it is empty"
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:12]) < 1 << 31:
        return "it does not contain a process id"
    if int(text) == os.getpid():
        return f"{text} is this process itself"
    try:
        words = os.fsdecode(Path(f"/proc/{text}/cmdline").read_bytes()).split("\0")
    except OSError:  # it is gone, which twistd detects, or we may not look
        return None
    if any(Path(word).name.startswith("twist") for word in words[:3]):
        return None
    return f"process {text} is not twistd"


def warnings(twistd: Mapping[str, Any], folders: Iterable[str | Path], *, uid: int) -> list[str]:
    """Return the warnings about this set-up, for the log.

    Args:
        twistd: as for `refusal`.
        folders: the folders that modules and plugins are imported from, besides the usual ones.
        uid: the user that starts it.
    """
    said = [
        f"{path} is writable by other users, and echod imports code from it: they can run code as "
        "this daemon"
        for folder in folders
        for path in _exposed(Path(folder), uid)
    ]
    if uid == ROOT and twistd.get("uid") is not None and twistd.get("euid"):
        said.append("--euid lets handlers become root again: leave it out to drop privileges")
    return said


def warning_once_started(uid: int, remedy: str) -> str | None:
    """Return the warning for the log once privileges have been dropped.

    Args:
        uid: the effective user.
        remedy: how this program is run as another user.
    """
    if uid != ROOT:
        return None
    return f"Handlers run as root: a mistake in one of them affects the whole machine. {remedy}"


def exchanged() -> list[str]:
    """Return the functions that echod waits in, and that a module has replaced since."""
    return [
        f"{module.__name__}.{name}"
        for (module, name), original in _WAITED_BY.items()
        if not _is_as_good(getattr(module, name, None), original)
    ]


def _is_as_good(found: object, original: object) -> bool:
    # A subclass of the original, such as a library for proxies puts in its place, does no harm.
    both = isinstance(found, type) and isinstance(original, type)
    return found is original or (both and issubclass(found, original))  # type: ignore[arg-type]


def proviso(uid: int) -> str:
    """Return a caveat to add to the message of a successful check.

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
    """Yield what another user can write: the folder, or Twisted's plugin cache in it."""
    for path in (folder, folder / "dropin.cache"):
        try:
            found = path.stat()
        except OSError:
            continue
        if others_can_write(found, uid):
            yield path


def plugin_folders() -> list[str]:
    """Return the folders in which Twisted looks for plugins."""
    import twisted.plugins

    return list(twisted.plugins.__path__)
