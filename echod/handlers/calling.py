"""Call a handler's methods, in any thread."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType

from twisted.internet.defer import Deferred

from echod.errors import refuse
from echod.handlers.client import Client
from echod.handlers.contract import Handler, checked
from echod.messages.framing import Framing, encode_greeting
from echod.reasons import EndReason

# The hooks that do nothing.
_NOTHING = {"opened": Handler.opened, "closed": Handler.closed}


def overridden(handler: Handler, hook: str) -> Callable[..., object] | None:
    """Return `handler`'s method `hook`, unless it is missing or does nothing."""
    method = getattr(handler, hook, None)
    if type(method) is MethodType and method.__func__ is _NOTHING[hook]:
        return None
    return method


def call_opened(handler: Handler, client: Client) -> object:
    """Call `handler.opened` if there is one, and return its greeting."""
    opened = overridden(handler, "opened")
    return opened(client) if opened else None


def greeting_of(result: object, framing: Framing, banner: bytes | None) -> bytes:
    """Return the greeting of a connection as it is sent; b"" for none.

    Args:
        result: the result of the handler's `opened`.
        framing: the framing of replies.
        banner: sent as it is instead of the handler's own greeting, unless it is None.
    """
    if banner is not None:
        return banner
    if not result:
        return b""
    return encode_greeting(framing, result if type(result) is bytes else checked(result))


def call_closed(handler: Handler, reason: EndReason) -> None:
    """Call `handler.closed` if there is one."""
    closed = overridden(handler, "closed")
    if closed:
        close_in_thread(closed, reason.value)


def close_in_thread(closed: Callable[[str], object], reason: str) -> None:
    """Call a handler's `closed` in a thread, which cannot wait for a coroutine or Deferred.

    Raises:
        TypeError: it returns one.
    """
    result = closed(reason)
    if inspect.iscoroutine(result) or isinstance(result, Deferred):
        if inspect.iscoroutine(result):
            result.close()
        made = type(result).__name__
        refuse(TypeError(f"in a thread, `closed` cannot wait: it has returned a {made}"))
