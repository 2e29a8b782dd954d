"""Tracebacks as Python prints them: with causes and contexts, notes, and the members of groups.

The formatting of Failure is older than these features, and does not show them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType

from twisted.python.failure import Failure

from echod.text import escape_lines, shortened


def traceback_of(failure: Failure) -> str:
    """Return the traceback of a Failure, escaped, without a newline at its end."""
    tb, error = failure.tb, failure.value
    if tb is None or error is None:  # it has been cleaned, and has only the names of its frames
        return _safely(type(error), failure.getTraceback)
    return traceback_of_exception(type(error), error, tb)


def traceback_of_exception(
    kind: type[BaseException], error: BaseException | None, tb: TracebackType | None
) -> str:
    """Return the traceback of an exception, given as by `sys.exc_info()`, in the same form."""
    return _safely(kind, lambda: "".join(traceback.format_exception(kind, error, tb)))


def _safely(kind: type, show: Callable[[], str]) -> str:
    """Return the escaped result of `show`.

    Formatting an exception runs its own code, which may raise any exception: none of them gets
    out.
    """
    try:
        text = show()
    except BaseException as raised:
        name, why = kind.__qualname__, type(raised).__qualname__
        text = f"{name} (no traceback, because formatting it raises {why})"
    return escape_lines(shortened(text)).rstrip("\n")
