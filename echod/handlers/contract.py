"""The handler contract: what echod calls, when, where, and what each answer means.

A handler is your code.  There are two kinds:

* A **message handler** is called once a message and returns the reply.  A plain function will do::

      def shout(message: bytes) -> bytes:
          return message.upper()

  `async def` functions, and functions that return a Deferred, do too, in the event loop.  Where
  state per connection is needed, a class: see `Handler`.

* A **connection handler** is called once a connection, in a thread of its own, and owns the
  connection, a real blocking `socket.socket`, until it returns::

      def clientthread(conn):
          while data := conn.recv(1024):
              conn.sendall(b"OK..." + data)

  `socketserver` request-handler classes are connection handlers, unchanged.

Which kind an unmarked function is depends on the concurrency model: a connection handler under
`thread-per-connection`, else a message handler.  The annotation of its first parameter (`bytes`
or `socket.socket`) or a decorator (`@message_handler`, `@connection_handler`) settles it.
"""

from __future__ import annotations

import enum
import functools
import inspect
import socket
import socketserver
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from echod.proxy_header import ProxyHeader
    from echod.tls import TLSFacts


class ConcurrencyModel(enum.StrEnum):
    """Where a handler runs."""

    REACTOR = "reactor"
    DEFER_TO_THREAD = "defer-to-thread"
    THREAD_PER_CONNECTION = "thread-per-connection"
    SERIAL = "serial"


class Kind(enum.StrEnum):
    """What a handler is called with: each message, or the whole connection."""

    MESSAGE = "message"
    CONNECTION = "connection"


class HandlerError(ValueError):
    """A handler cannot be had, or cannot run so; the text says which, why, and what would do."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who is at the other end of a connection.

    Attributes:
        peer: the client's address: "127.0.0.1:60225", "[::1]:60225"; a UNIX socket's path, or
            "" where it has none.  Escaped: fit for a log.
        local: the address it came to, in the same form.
        listener: the endpoint string that it came by, as in "tcp:8888".
        tls: how the connection is encrypted; None where it is not.
        proxy: what the proxy said that the connection came through, with all fields; None where
            there was none.  `peer` and `local` are the real client's then.
    """

    peer: str
    local: str = ""
    listener: str = ""
    tls: TLSFacts | None = None
    proxy: ProxyHeader | None = None


# What is sent as it is: bytes, or what holds some.
BytesLike = bytes | bytearray | memoryview


def checked(reply: object) -> bytes:
    """Return a reply as bytes; what could still be changed is copied.

    Raises:
        TypeError: it holds no bytes.
    """
    if isinstance(reply, bytes):
        return reply
    try:
        return memoryview(reply).tobytes()  # type: ignore[arg-type]
    except TypeError:
        name = type(reply).__name__
        raise TypeError(f"a handler returns bytes, None or Close, not {name}") from None


@dataclass(frozen=True)
class Close:
    """A reply that is the last one: `reply` is sent, then the connection closes."""

    reply: BytesLike = b""

    def __post_init__(self) -> None:
        if not isinstance(self.reply, bytes):
            reply = b"" if self.reply is None else checked(self.reply)
            object.__setattr__(self, "reply", reply)


# What a message handler may return; in the event loop also a coroutine or Deferred of these.
Reply = BytesLike | Close | None


def reply_from(received: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a handler's method returns, as nobody can change it any more.

    For threads: until the event loop takes a result, another thread may use its buffer again.
    """
    reply = received(*arguments)
    if reply.__class__ is bytes or not isinstance(reply, bytearray | memoryview):
        return reply
    return checked(reply)


class Handler:
    """A message handler with state: one instance a connection.

    Subclassing is a convenience; any class with these methods will do.  All three run in the
    same place, by the concurrency model: in the event loop (`reactor`, `serial`), in a pool
    thread (`defer-to-thread`: maybe another one each time), or in the connection's own thread
    (`thread-per-connection`).  They never run at the same time for one connection, so an
    instance needs no lock for its own state.  Context variables (`contextvars`) that one of them,
    or the constructor, sets are there in the next one, and in no other connection's.

    The constructor runs in the event loop, under every model but `thread-per-connection`, when
    the connection is accepted.  What may take its time (a database, a file) belongs in `opened`.

    An exception from any of them is logged once with its traceback and ends the connection,
    after the replies before it; no other connection is touched.
    """

    __slots__ = ()

    def opened(self, client: Client) -> BytesLike | None:
        """Once, first; the connection is open.

        Returns:
            A greeting to send, or None.  `--banner` and `--no-banner` overrule it, and in
            `serial` nobody is greeted.
        """
        return None

    def received(self, message: bytes) -> Reply:
        """Once a message, in order; the next one waits until this returns.

        The client may be gone by now; then the reply goes nowhere, and `closed` is next.

        Args:
            message: what the framing made of the input; never changed, never decoded.

        Returns:
            `bytes` to send them (framed as the messages are; a `bytearray` or `memoryview` is as
            good, and may be used again at once), None to send nothing,
            `Close(b"...")` to send a last reply and close.  In the event loop a coroutine or a
            Deferred of one of these too; it is cancelled if the client goes away.
        """
        raise NotImplementedError

    def closed(self, reason: str) -> None:
        """Once, last, if `opened` returned; the connection is no longer open.

        In the event loop it may be an `async def`, or return a Deferred.  When the service ends it
        is waited for until the drain's deadline, then cancelled.

        Args:
            reason: why it ended: one of the values of `echod.EndReason`.
        """


F = TypeVar("F", bound=Callable[..., Any])


def message_handler(function: F) -> F:
    """Mark a function as called once a message, under every concurrency model."""
    function.__echod_kind__ = Kind.MESSAGE  # type: ignore[attr-defined]
    return function


def connection_handler(function: F) -> F:
    """Mark a function as called once a connection, with its socket."""
    function.__echod_kind__ = Kind.CONNECTION  # type: ignore[attr-defined]
    return function


def kind_of(target: object) -> Kind | None:
    """Return the kind that `target` says it is, or None for a plain unmarked function.

    Raises:
        HandlerError: `target` is nothing that could be called.
    """
    marked = getattr(target, "__echod_kind__", None)
    if marked is not None:
        return Kind(marked)
    if is_request_handler(target):
        return Kind.CONNECTION
    made = class_of(target)
    if callable(getattr(target if made is None else made, "received", None)):
        return Kind.MESSAGE
    if not callable(target):
        raise HandlerError(f"{target!r} is not callable, nor has it a method `received`")
    if made is not None:
        raise HandlerError(
            f"the class {made.__qualname__} has no method `received`, "
            "nor is it a socketserver request handler"
        )
    return Kind.MESSAGE if is_async(target) else _kind_by_annotation(target)


def is_request_handler(target: object) -> bool:
    """Return whether `target` makes `socketserver` request handlers for streams."""
    made = class_of(target)
    return (
        made is not None
        and issubclass(made, socketserver.BaseRequestHandler)
        and not issubclass(made, socketserver.DatagramRequestHandler)
    )


def class_of(target: object) -> type | None:
    """Return the class that `target` makes instances of: itself, or behind a partial."""
    while isinstance(target, functools.partial):
        target = target.func
    return target if isinstance(target, type) else None


def is_async(target: object) -> bool:
    """Return whether `target`, or one of its methods, is an `async def`."""
    made = class_of(target)
    owner = target if made is None else made
    if not hasattr(owner, "received"):
        return _is_async(owner)
    return any(_is_async(getattr(owner, hook, None)) for hook in ("opened", "received", "closed"))


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is what is asked about
    )


def models_for(target: object) -> tuple[ConcurrencyModel, ...]:
    """Return the concurrency models that `target` can run in."""
    if kind_of(target) is Kind.CONNECTION:
        return (ConcurrencyModel.THREAD_PER_CONNECTION,)
    if is_async(target):
        return (ConcurrencyModel.REACTOR, ConcurrencyModel.SERIAL)
    return tuple(ConcurrencyModel)


def _kind_by_annotation(function: Callable[..., Any]) -> Kind | None:
    parameter = _first_parameter(function)
    if parameter is None or parameter.annotation is parameter.empty:
        return None
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = _evaluate(annotation, function)
    if annotation is bytes:
        return Kind.MESSAGE
    if isinstance(annotation, type) and issubclass(annotation, socket.socket):
        return Kind.CONNECTION
    return None


def _first_parameter(function: Callable[..., Any]) -> inspect.Parameter | None:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return None
    return next(iter(parameters.values()), None)


def _evaluate(annotation: str, function: Callable[..., Any]) -> object:
    """Return what a postponed annotation names, or the text itself where that is not known."""
    plain = inspect.unwrap(function)
    owner = plain if isinstance(plain, types.FunctionType) else type(plain).__call__
    try:
        hints = typing.get_type_hints(owner)
    except (NameError, AttributeError, TypeError):
        return annotation
    return next((hint for name, hint in hints.items() if name != "return"), annotation)
