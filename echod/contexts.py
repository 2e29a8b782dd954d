"""A context of its own for each conversation: what one client's handler keeps in context variables
(`contextvars`) no other client's sees.

All calls of a conversation's handler share one `Context`: what `opened` sets is there in
`received` and `closed`, in whatever thread they run.  uvloop runs all that a connection brings in
a context of that connection: where the event loop calls handlers, that one is used, so it costs a
message nothing.  Elsewhere a `Context` is made, and entered.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

_MISSING = object()


def call_in(context: Context, function: Callable[..., T], *arguments: Any) -> T:
    """Call `function`, written in Python, in `context`; within it already, simply call it.

    A handler may have called what led here: closing its own connection, for one.
    """
    try:
        return context.run(function, *arguments)
    except RuntimeError as error:
        # An error of the function's own has a frame of it in its traceback.
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
    return function(*arguments)


def is_entered(context: Context) -> bool:
    """Return whether what runs now has been called within `context`, or a call further out."""
    try:
        context.run(_nothing)
    except RuntimeError:
        return True
    return False


def _nothing() -> None:
    pass


def context_of(transport: Any) -> Context | None:
    """Return the context in which a transport calls its protocol; None where it has none."""
    context = getattr(transport, "context", None)
    return context if isinstance(context, Context) else None


def take_over(changed: Context) -> None:
    """Set each variable of the current context to what it is in `changed`."""
    if changed != copy_context():  # the same mapping is found equal without a look at its items
        for variable, value in changed.items():
            _set(variable, value)


def _set(variable: ContextVar[Any], value: Any) -> None:
    if variable.get(_MISSING) is not value:
        variable.set(value)


class Followed:
    """A coroutine that runs in a copy of the current context, as Twisted has it.

    What it sets there is not lost: see `take_over`.
    """

    __slots__ = ("_context", "coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self._context: Context | None = None

    async def run(self) -> Any:
        """Return what the coroutine does."""
        try:
            return await self.coroutine
        finally:
            self._context = copy_context()

    def take_over(self) -> None:
        """Set in the current context what the coroutine has set in its own."""
        if self._context is not None:
            take_over(self._context)
