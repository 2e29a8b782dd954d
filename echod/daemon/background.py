"""An error of a start in the background, whole, where the command was given.

twistd itself prints the first 100 bytes of it, and points to the log. If the process in the
background ends without a word, because it cannot fork again or is killed, twistd would wait for
ever: it waits for the end of a pipe whose other end it has open itself.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import traceback
from collections.abc import Callable
from functools import wraps
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from echod.daemon.resolve import StartError
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


def end_with_the_child() -> None:
    """Let twistd end if the process in the background does; to be called before it forks."""
    os.register_at_fork(after_in_parent=_close_own_end)


def _close_own_end() -> None:
    frame = inspect.currentframe()
    if frame is not None and frame.f_back is not None and _is_twistds(frame.f_back):
        os.close(frame.f_back.f_locals["w"])


def why_not_forked(error: BaseException, trace: TracebackType | None) -> StartError | None:
    """Return the error to show if twistd has failed to go into the background; else None."""
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    if isinstance(error, OSError) and frames and _is_twistds(frames[-1]):
        return StartError(f"cannot go into the background: {error.strerror}")
    return None


def _is_twistds(frame: FrameType) -> bool:
    """Return whether this is a call of twistd's function that goes into the background."""
    module = str(frame.f_globals.get("__name__"))
    return frame.f_code.co_name == "daemonize" and module.startswith("twisted.scripts.")


def write_error(descriptor: int, error: UserError) -> None:
    """Write the line of an error, in one piece: other threads may write there, too."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"echod: {error}\n".encode(errors="backslashreplace"))
