"""Start threads of which the daemon needs each."""

from __future__ import annotations

import threading
from collections.abc import Callable

from echod.errors import UserError


class NoThreadError(UserError):
    """The system allows no further thread."""


def start_thread(work: Callable[[], object], name: str, part: str) -> threading.Thread:
    """Start a thread that does not hold up the end of the process, and return it.

    Args:
        work: what it does.
        name: its name.
        part: which part of the daemon needs it, for the error.

    Raises:
        NoThreadError: the system allows no further thread.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # at the system's limit, or the unit's
        raise NoThreadError(
            f"no thread can be started for {part} ({error}): raise the limit, as by ulimit -u, or "
            "TasksMax= in a unit"
        ) from None
    return thread
