"""Enter a network from a thread, without a program that goes there first."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)

Result = TypeVar("Result")


def enter(namespace: Path) -> None:
    """Let this thread be in a network from now on; its sockets and its children stay there.

    Args:
        namespace: the file of the network's namespace.
    """
    with namespace.open() as file:
        if _libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns", str(namespace))


def within(namespace: Path | None, work: Callable[[], Result]) -> Result:
    """Call `work` in a thread that is in a network, and return what it returns.

    Args:
        namespace: the file of the network's namespace; None: here, which needs no permission.
        work: what is called.
    """
    if namespace is None:
        return work()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter(namespace)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
