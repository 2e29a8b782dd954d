"""A separate context for each conversation: no other client's handler sees the context variables
(`contextvars`) that one client's handler sets.

All calls of a conversation's handler share one `Context`: a variable that `opened` sets keeps its
value in `received` and `closed`, in any thread.  uvloop runs the callbacks of each connection in a
context of that connection. If the event loop calls the handler, echod uses that context, so it
costs a message nothing. Otherwise echod makes a `Context`, and enters it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

_MISSING = object()


def call_in(context: Context, function: Callable[..., T], *arguments: object) -> T:
    """Call `function`, written in Python, in `context`; call it directly if already within it.

    That happens if a handler itself caused this call, for example by closing its own connection.
    """
    try:
        return context.run(function, *arguments)
    except RuntimeError as error:
        # If the function itself raised the error, the traceback has a frame of the function.
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
    return function(*arguments)


def is_entered(context: Context) -> bool:
    """Return whether the current code runs within `context`, directly or further out."""
    try:
        context.run(_nothing)
    except RuntimeError:
        return True
    return False


def _nothing() -> None:
    pass


def context_of(transport: object) -> Context | None:
    """Return the context in which a transport calls its protocol; None if it has none."""
    context = getattr(transport, "context", None)
    return context if isinstance(context, Context) else None


def has_context(transport: object) -> bool:
    """Return whether `context_of` has one, with less work where the transport says so."""
    return getattr(transport, "has_context", False) or context_of(transport) is not None


def take_over(changed: Context) -> None:
    """Set each variable of the current context to its value in `changed`."""
    if changed != copy_context():  # comparing a mapping with itself does not look at its items
        for variable, value in changed.items():
            _set(variable, value)


def _set(variable: ContextVar[object], value: object) -> None:
    if variable.get(_MISSING) is not value:
        variable.set(value)


class Followed:
    """A coroutine that runs in a copy of the current context, as in Twisted.

    `take_over` keeps the variables that it sets there.
    """

    __slots__ = ("_context", "coroutine")

    def __init__(self, coroutine: Coroutine[object, Any, object]) -> None:
        self.coroutine = coroutine
        self._context: Context | None = None

    async def run(self) -> object:
        """Return the coroutine's result."""
        try:
            return await self.coroutine
        finally:
            self._context = copy_context()

    def take_over(self) -> None:
        """Set the variables that the coroutine has set in the current context, too."""
        if self._context is not None:
            take_over(self._context)
