"""Notify Twisted of the end of its child processes, without SIGCHLD.

Twisted's own reactors handle SIGCHLD. Here that fails: libuv takes the signal for the processes
that asyncio starts, and restores its default when the last of them has ended. So each child is
watched by a descriptor of its own (pidfd_open(2)), or, if there is none, by a thread.
"""

from __future__ import annotations

import contextlib
import os
import threading
from contextvars import Context
from typing import TYPE_CHECKING

from twisted.internet import process

if TYPE_CHECKING:
    from echod.reactor.interfaces import LoopReactor


def watch(reactor: LoopReactor, pid: int) -> None:
    """Let Twisted reap the child ``pid``, which has not been waited for yet, at its end."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # a kernel before 5.3, a sandbox, or no descriptor is left
        threading.Thread(target=_wait, args=[reactor, pid], daemon=True).start()
        return

    def ended() -> None:
        reactor.loop.remove_reader(descriptor)
        os.close(descriptor)
        _reap(pid)

    # An empty context, as for the reactor's other callbacks. The reactor's own may be entered now.
    Context().run(reactor.loop.add_reader, descriptor, ended)


def _wait(reactor: LoopReactor, pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # it has been waited for already
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    reactor.callFromThread(_reap, pid)


def _reap(pid: int) -> None:
    child = process.reapProcessHandlers.get(pid)
    if child is not None:
        child.reapProcess()
