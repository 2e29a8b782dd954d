"""The children of process 1, as the supervisor is in a container.

A process whose parent has ended becomes a child of process 1: what a program of `exec` has left,
once its worker cannot wait for it. Unless process 1 reaps it, it stays a zombie for ever.
"""

from __future__ import annotations

import contextlib
import os

from twisted.internet import process


def reap_orphans() -> None:
    """Reap each child that has ended, and that Twisted has not started, if this is process 1.

    The exit status of a process that Twisted has started stays for Twisted, which takes it in its
    next turn. The kernel tells of one child at a time, so an orphan behind such a process waits
    for the next call.
    """
    if os.getpid() != 1:
        return
    with contextlib.suppress(ChildProcessError):  # there is no child
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in process.reapProcessHandlers:
                return
            os.waitpid(ended.si_pid, 0)
