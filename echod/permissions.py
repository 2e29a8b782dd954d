"""Whether other users can write to a folder that the daemon imports from or has a socket in, and
what this user can see and enter.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

ROOT = 0


def is_file(path: Path) -> bool:
    """Return whether there is a file, as far as this user may look."""
    return os.path.isfile(path)  # noqa: PTH113 - Path's own raises where the user may not look


def is_folder(path: Path) -> bool:
    """Return whether there is a folder, as far as this user may look."""
    return os.path.isdir(path)  # noqa: PTH112 - as above


def others_can_write(found: os.stat_result, uid: int) -> bool:
    """Return whether a user other than this one and root can write to a file or folder.

    A private group, which has the user's name and no other members, does not count: where users
    have such groups, folders that the group can write to are common.

    Args:
        found: the result of `stat`.
        uid: the user.
    """
    if found.st_uid not in (ROOT, uid) or found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_alone_in(found.st_gid, found.st_uid, uid)


def _is_alone_in(gid: int, *uids: int) -> bool:
    try:
        group = grp.getgrgid(gid)
        names = {pwd.getpwuid(uid).pw_name for uid in uids}
    except KeyError:
        return False
    return group.gr_name in names and names.issuperset(group.gr_mem)


def closed_folder(path: str) -> str:
    """Return the first folder on the way to a file, links followed, that this user cannot enter.

    Returns:
        "" if this user can enter all.
    """
    folders = (*reversed(Path(path).parents), *reversed(Path(os.path.realpath(path)).parents))
    closed = (str(one) for one in folders if not os.access(one, os.X_OK, effective_ids=True))
    return next(closed, "")


def user_name() -> str:
    """Return the name of the user that this process runs as, or its id."""
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
