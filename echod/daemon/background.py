"""An error of a start in the background, whole, where the command was given.

twistd itself prints the first 100 bytes of it, and points to the log.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Protocol, TypeVar

from echod.errors import UserError

if TYPE_CHECKING:
    from echod.interfaces import Reactor


class Starts(Protocol):
    """A service that tells of an error of its start."""

    tell_error: Callable[[UserError], object]


S = TypeVar("S", bound=Starts)


def telling(start: Callable[[S], None]) -> Callable[[S], None]:
    """Decorate a method that starts a service: it tells of its error before twistd does."""

    @wraps(start)
    def start_and_tell(service: S) -> None:
        try:
            start(service)
        except UserError as error:
            service.tell_error(error)
            raise

    return start_and_tell


def teller(reactor: Reactor) -> Callable[[UserError], object]:
    """Return what writes an error to the terminal, although this process leaves it.

    To be called before it does. Once the reactor runs, the terminal is closed here.
    """
    terminal = os.dup(2)
    reactor.callWhenRunning(os.close, terminal)

    return lambda error: write_error(terminal, error)


def write_error(descriptor: int, error: UserError) -> None:
    """Write the line of an error, in one piece: other threads may write there, too."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"echod: {error}\n".encode(errors="backslashreplace"))
