"""Children that a handler has forked: they end where the handler's code ends.

A child of `os.fork` has one thread, which goes on with whatever called the handler.  That is the
event loop, or the loop of a pool's thread: unless it is ended, the child waits there for ever, or
serves the parent's clients, and keeps every connection and port of the parent open.
"""

from __future__ import annotations

import os
from typing import NoReturn

from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.log.tracebacks import traceback_of

log = Logger("echod.concurrency")


def end_child(result: object) -> NoReturn:
    """End this process, a handler's child, as a script would with `result`.

    Args:
        result: what the handler has returned there; a Failure where it has raised.
    """
    os._exit(_status(result.value, result) if isinstance(result, Failure) else 0)


def _status(error: BaseException | None, failure: Failure) -> int:
    code = error.code if isinstance(error, SystemExit) else failure
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    shown = traceback_of(failure)
    log.error("A child process of a handler has failed:\n{traceback}", traceback=shown)
    return 1
