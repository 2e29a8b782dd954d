"""End the children that a handler has forked where the handler's code ends.

A child of `os.fork` has one thread, which returns from the handler to its caller: the event loop,
or the loop of a pool's thread. Unless it is ended there, the child would wait for ever, or serve
the parent's clients, and keep every connection and port of the parent open.
"""

from __future__ import annotations

import os
from typing import NoReturn

from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.log.tracebacks import traceback_of

log = Logger("echod.concurrency")


class _Forks:
    """Whether this process has forked: a child may hold the descriptors of its connections.

    A child that begins another program at once, as those of `subprocess` do, does not hold them.
    """

    seen = False

    def note(self) -> None:
        """Note a fork, in the parent."""
        self.seen = True


forks = _Forks()
os.register_at_fork(after_in_parent=forks.note)


def end_child(result: object) -> NoReturn:
    """End this process, a handler's child, as a script would with `result`.

    Args:
        result: the handler's result in the child; a Failure if it has raised.
    """
    os._exit(_status(result.value, result) if isinstance(result, Failure) else 0)


def _status(error: BaseException | None, failure: Failure) -> int:
    code = error.code if isinstance(error, SystemExit) else failure
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    shown = traceback_of(failure)
    log.error("A child process of a handler failed:\n{traceback}", traceback=shown)
    return 1
