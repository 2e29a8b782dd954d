"""The base of the errors that an operator can correct, and the refusal of a handler's result."""

from __future__ import annotations

from typing import NoReturn


class UserError(Exception):
    """A request of the operator cannot be fulfilled.

    The text is one line: it names the given value, the problem, and the remedy. Code that reports
    errors to the operator catches this class, and shows only the text. Any other exception there
    is a fault in a program, and is shown with its type and its place.

    Errors of a peer are not among these (`FramingError`, `ProxyError`, `TLSError`, `Busy`): an
    operator cannot correct them, and they end one connection.
    """


def refuse(error: Exception) -> NoReturn:
    """Raise an error about what the user's code has returned.

    Its text says all: a traceback leaves out the lines of echod that led here.
    """
    raise error from None
