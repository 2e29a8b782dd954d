"""Who else can write where the daemon reads code, or has its socket."""

from __future__ import annotations

import grp
import os
import pwd
import stat

ROOT = 0


def others_can_write(found: os.stat_result, uid: int) -> bool:
    """Return whether somebody else than this user, or root, can write to a file or folder.

    A group of the user's own, which has its name and no other members, is nobody else: with such
    groups, folders that the group can write are usual.

    Args:
        found: what `stat` says of it.
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
