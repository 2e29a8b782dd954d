"""Tracebacks as Python prints them: with causes and contexts, notes, and the members of groups.

The formatting of Failure is older than these features, and does not show them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType

from twisted.python.failure import Failure

from echod.errors import UserError
from echod.text import escape_lines, shortened
from echod.user_code import is_ours, is_users, place_of, refuses


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


def traceback_of_handler(failure: Failure) -> str:
    """Return the traceback of a handler's error in the same form, without echod's way to the
    handler.

    Only frames that led to code of another are left out, or to the refusal of what the handler has
    returned: if echod itself has raised, its frames stay.
    """
    tb, error = failure.tb, failure.value
    if tb is None or error is None:
        return traceback_of(failure)

    def show() -> str:
        shown = traceback.TracebackException(type(error), error, tb, compact=True)
        _leave_out_ours(shown)
        # Python leaves out this line if no frame is left; but it is what people look for.
        heading = "" if shown.stack or shown.exceptions else "Traceback (most recent call last):\n"
        return heading + "".join(shown.format())

    return _safely(type(error), show)


def traceback_of_start(error: BaseException) -> str:
    """Return the traceback of the user's error that keeps a service from starting, without the
    frames of others; "" if no code of the user's has raised: the error's text says all.

    Args:
        error: the error that ended the start: the user's is its cause, or came before it.
    """
    found = error
    while isinstance(found, UserError | SystemExit):
        before = found.__cause__ or found.__context__
        if before is None:
            break
        found = before
    if isinstance(found, UserError) or not (isinstance(found, SyntaxError) or place_of(found)):
        return ""

    def show() -> str:
        tb = found.__traceback__
        shown = traceback.TracebackException(type(found), found, tb, compact=True)
        if own := [at for at in shown.stack if is_users(at.filename)]:
            shown.stack[:] = own
        elif isinstance(found, SyntaxError):  # it names the line itself
            return "".join(shown.format_exception_only())
        else:
            _leave_out_ours(shown)
        return "".join(shown.format())

    return _safely(type(found), show)


def _leave_out_ours(shown: traceback.TracebackException) -> None:
    """Leave out echod's frames before the last one of another, here and in what led to it."""
    waiting, seen = [shown], set()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            others = [i for i, at in enumerate(one.stack) if not is_ours(at.filename)]
            refused = bool(one.stack) and refuses(one.stack[-1].filename)
            last = len(one.stack) if refused else max(others, default=0)
            one.stack[:last] = [at for at in one.stack[:last] if not is_ours(at.filename)]
            linked = (one.__cause__, one.__context__, *(one.exceptions or ()))
            waiting += [other for other in linked if other is not None]


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
