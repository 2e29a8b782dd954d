"""Tracebacks as Python shows them: with causes and contexts, notes, and the members of groups.

A Failure's own way of showing itself was there before exceptions had any of these.
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
    if tb is None or error is None:  # it has been cleaned, and knows only names of its frames
        return _safely(type(error), failure.getTraceback)
    return traceback_of_exception(type(error), error, tb)


def traceback_of_exception(
    kind: type[BaseException], error: BaseException | None, tb: TracebackType | None
) -> str:
    """Return the traceback of an exception, as `sys.exc_info()` has it, in the same way."""
    return _safely(kind, lambda: "".join(traceback.format_exception(kind, error, tb)))


def _safely(kind: type, show: Callable[[], str]) -> str:
    """Return what `show` returns, escaped.

    To show an exception is to run its code, which may raise anything: nothing of it gets out.
    """
    try:
        text = show()
    except BaseException as raised:
        name, why = kind.__qualname__, type(raised).__qualname__
        text = f"{name} (no traceback, as showing it raises {why})"
    return escape_lines(shortened(text)).rstrip("\n")
