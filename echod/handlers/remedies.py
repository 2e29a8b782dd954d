"""Explain a handler's error: name the handler, and the remedy, if the cause is a usual mistake."""

from __future__ import annotations

import re
import traceback
from types import CodeType, MappingProxyType

from echod.errors import refuse
from echod.handlers.calling import greeting_of
from echod.handlers.contract import Handler
from echod.handlers.kinds import Kind, class_of, within
from echod.user_code import definition_of

# Methods of sockets that handlers call first.
SOCKET_METHODS = ("recv", "recv_into", "sendall", "send", "makefile", "fileno")


def add_remedy(error: BaseException | None, name: str, target: object = None) -> None:
    """Add a note to an error of a handler, which its traceback shows in the last line.

    No code of the handler runs here: an error of a class of its own, or about an object of its
    own, may raise from any attribute that is asked for.

    Args:
        error: the error.
        name: the handler's name.
        target: the handler; its place is named where no line of it is in the traceback.
    """
    if error is None:
        return
    remedy = ""
    if type(error) is NotImplementedError:
        remedy = _about_what_is_missing(error, name)
    elif type(error) is ValueError and _raised_by(error) is refuse.__code__:
        remedy = f"This is a reply of the handler {name}{_place_of(target, 'received')}"
    elif type(error) in (AttributeError, RuntimeError, TypeError):
        said = error.args[0] if error.args else None
        remedy = _remedy(error, said, name, target) if type(said) is str else ""
    if remedy and not hasattr(error, "__notes__"):
        error.add_note(remedy)


def _about_what_is_missing(error: NotImplementedError, name: str) -> str:
    if _raised_by(error) is _NOT_OVERRIDDEN:
        return f"The handler {name} has no method `received`: add it, as messages have come"
    if _comes_from_sendfile(error):
        return (
            f"The handler {name} uses sendfile, which does not work on this connection: write the "
            "file in pieces, with await writer.drain() after each"
        )
    return ""


def _remedy(error: BaseException, said: str, name: str, target: object) -> str:
    if isinstance(error, RuntimeError) and said in NO_LOOP:
        return (
            f"The handler {name} awaits an asyncio object, and this reactor runs no asyncio loop: "
            "leave out --reactor, so that the uvloop reactor runs"
        )
    if said in _NO_TRIO or said.startswith("Task got bad yield: <class 'trio."):
        return (
            f"The handler {name} awaits trio, which needs a loop of its own: use asyncio, or "
            "anyio with its asyncio backend, which run in echod's"
        )
    if isinstance(error, RuntimeError) and said in _SECOND_LOOP:
        return (
            f"The handler {name} begins an event loop within echod's: make it async def, and "
            "await the coroutine itself"
        )
    if isinstance(error, RuntimeError) and said.startswith("Task got bad yield: <Deferred"):
        return (
            f"The handler {name} awaits a Deferred as an asyncio task: write "
            "await deferred.asFuture(asyncio.get_running_loop())"
        )
    if isinstance(error, AttributeError) and said in _NO_SOCKET:
        return (
            f"The handler {name} uses its {Kind.MESSAGE} as a socket: run it with "
            "--concurrency thread-per-connection, or mark it with @connection_handler"
        )
    if isinstance(error, TypeError) and (wrong := re.fullmatch(_WRONG_REPLY, said)):
        place = _place_of(target, _method_that_returned(error))
        return f"The handler {name}{place} returned {_about_reply(wrong[1])}"
    if isinstance(error, TypeError) and (misused := re.match(_MISUSED, said)):
        return f"This is the handler {name}{_place_of(target, misused[1])}"
    if _uses_connection_as_message(error, said):
        return (
            f"The handler {name} uses its {Kind.CONNECTION} as a message: annotate it as bytes, "
            "or mark the handler with @message_handler"
        )
    return ""


def _place_of(target: object, method: str | None) -> str:
    """Return where a handler, or its method, is defined; "" if it is not known."""
    owner = class_of(target) or within(target)
    return definition_of(getattr(owner, method, owner) if method else owner)


def _method_that_returned(error: BaseException) -> str:
    """Return the method whose result is no reply, and no greeting."""
    steps = traceback.walk_tb(error.__traceback__)
    greeting = any(frame.f_code is greeting_of.__code__ for frame, _ in steps)
    return "opened" if greeting else "received"


def _about_reply(kind: str) -> str:
    """Name a reply of a wrong type, with the remedy."""
    article = "an" if kind[0].lower() in "aeiou" else "a"
    remedy = _REPLIES.get(kind, "a handler returns bytes, None, Close or a generator of these")
    return f"{article} {kind}: {remedy}"


def _uses_connection_as_message(error: BaseException, said: str) -> bool:
    """Return whether a handler has done to its connection what it can do to bytes only."""
    if isinstance(error, AttributeError):
        return (lacks := re.fullmatch(_NO_MESSAGE, said)) is not None and hasattr(bytes, lacks[1])
    return isinstance(error, TypeError) and _CONNECTION in said


def _comes_from_sendfile(error: BaseException) -> bool:
    """Return whether the method of asyncio's loops has raised `error`, as uvloop has none."""
    code = _raised_by(error)
    return code is not None and code.co_name == "sendfile" and "asyncio" in code.co_filename


def _raised_by(error: BaseException) -> CodeType | None:
    """Return the code that has raised an error; None if it has not been raised."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return None if step is None else step.tb_frame.f_code


_NOT_OVERRIDDEN = Handler.received.__code__

# The errors of asyncio's awaitables where no loop runs.
NO_LOOP = {"await wasn't used with future", "no running event loop"}
# Those of trio's, and of `run` where asyncio's loop runs.
_NO_TRIO = {"must be called from async context", "'RunContext' object has no attribute 'runner'"}
_SECOND_LOOP = {
    "Already running asyncio in this thread",
    "asyncio.run() cannot be called from a running event loop",
}
_NO_SOCKET = {f"'bytes' object has no attribute '{method}'" for method in SOCKET_METHODS}

# The text of `echod.handlers.contract.checked`.
_WRONG_REPLY = r"a handler returns bytes, None or Close, not (\w+)"
_REPLIES = MappingProxyType(
    {
        "str": "let it return text.encode()",
        "type": "make an object of it, as in Close()",
        "coroutine": "await it",
        "Deferred": "only the models reactor and serial wait for it",
        "async_generator": "only the models reactor and serial read it",
    }
)
# Other errors that echod raises once a handler has returned: the method, if it is one.
_MISUSED = "in a thread, `(closed)`|a connection handler sends by itself"
# The class of connections in threads, `echod.concurrency.thread_socket.ConnectionSocket`.
_CONNECTION = "ConnectionSocket"
_NO_MESSAGE = rf"'{_CONNECTION}' object has no attribute '(\w+)'"
