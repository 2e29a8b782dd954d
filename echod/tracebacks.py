"""Tracebacks as Python shows them: with causes and contexts, notes, and the members of groups.

A Failure's own way of showing itself was there before exceptions had any of these.
"""

from __future__ import annotations

import traceback

from twisted.python.failure import Failure

from echod.escaping import escape_lines, shortened


def traceback_of(failure: Failure) -> str:
    """Return the traceback of a Failure, escaped, without a newline at its end.

    To show an exception is to run its code, which may raise anything: nothing of it gets out.
    """
    try:
        text = _shown(failure)
    except BaseException as error:
        kind = type(failure.value).__qualname__
        text = f"{kind} (no traceback, as showing it raises {type(error).__qualname__})"
    return escape_lines(shortened(text)).rstrip("\n")


def _shown(failure: Failure) -> str:
    tb, error = failure.tb, failure.value
    if tb is None or error is None:  # it has been cleaned, and knows only names of its frames
        return failure.getTraceback()
    return "".join(traceback.format_exception(type(error), error, tb))
