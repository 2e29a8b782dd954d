"""The handler contract: what echod calls, when, where, and the meaning of each result.

A handler is your code. These two kinds are echod's own:

* A **message handler** is called for each message and returns the reply. A plain function works::

      def shout(message: bytes) -> bytes:
          return message.upper()

  `async def` functions, and functions that return a Deferred, work in the event loop. For state
  per connection, write a class: see `Handler`.

* A **connection handler** is called for each connection, in a thread of its own, and owns the
  connection, a real blocking `socket.socket`, until it returns::

      def clientthread(conn):
          while data := conn.recv(1024):
              conn.sendall(b"OK..." + data)

  `socketserver` request-handler classes are connection handlers, unchanged.

`echod.handlers.kinds` has the other kinds, such as an asyncio protocol, and tells which one a
handler is.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echod.errors import UserError, refuse

if TYPE_CHECKING:
    from echod.handlers.client import Client


class ConcurrencyModel(enum.StrEnum):
    """Where a handler runs."""

    REACTOR = "reactor"
    DEFER_TO_THREAD = "defer-to-thread"
    THREAD_PER_CONNECTION = "thread-per-connection"
    SERIAL = "serial"


class HandlerError(UserError):
    """A handler cannot be loaded, or cannot run under this model; the text says why, and the
    remedy.
    """


# Types of replies that are sent as they are.
BytesLike = bytes | bytearray | memoryview


def checked(data: object, rule: str = "a handler returns bytes, None or Close") -> bytes:
    """Return a reply, or other data to send, as bytes; copy a mutable buffer.

    Args:
        data: the data.
        rule: what may stand there, for the error.

    Raises:
        TypeError: it is not bytes.
    """
    if isinstance(data, bytes):
        return data
    try:
        return memoryview(data).tobytes()  # type: ignore[arg-type]
    except TypeError:
        refuse(TypeError(f"{rule}, not {type(data).__name__}"))


# How often a handler may read the end of the stream, and do nothing else meanwhile.
MOST_ENDS = 10_000


def end_ignored(times: int) -> RuntimeError:
    """Return the error of a handler that reads nothing but the end of the stream.

    Args:
        times: how often it has read the end.
    """
    return RuntimeError(
        f"the client has ended its stream, and the handler has read this end {times} times: "
        'a read that returns b"" is the last one; return then'
    )


@dataclass(frozen=True)
class Close:
    """The last reply: echod sends `reply`, then closes the connection."""

    reply: BytesLike = b""

    def __post_init__(self) -> None:
        if not isinstance(self.reply, bytes):
            reply = b"" if self.reply is None else checked(self.reply)
            object.__setattr__(self, "reply", reply)


# A piece of a stream.
Piece = BytesLike | Close | None

# The results of a message handler; in the event loop also a coroutine or Deferred of these.
Reply = Piece | Iterator[Piece] | AsyncIterator[Piece]


def answer_of(result: object) -> tuple[bytes | None, bool]:
    """Return the meaning of a handler's result: its reply, and whether it is the last one.

    ===================  ====================================================================
    bytes, or a buffer   a reply, even if it is empty
    None                 no reply
    Close                the last reply, or none if it is empty; then the connection closes
    a generator          a stream: it yields pieces, each of which is one of those above, and
                         `Close` ends it. A value that it returns is its last piece
    an async generator   the same, in the event loop only
    anything else        an error
    ===================  ====================================================================

    `echod.connections.stream` and `Conversation` send streams; here a generator is an error.

    The concurrency model deals with the other ways in which a call may end. In the event loop a
    coroutine or a Deferred stands for the result that it will have; in a thread it is an error.
    An exception is logged, and the connection closes behind the replies before it.

    In four places a call for each message would cost noticeable time, so bytes and None are told
    there without this function: `EchoProtocol._answer_messages`, `DirectProtocol`,
    `PooledProtocol` and `Conversation._answer_reads`. The suite in
    `tests/connections/test_results.py` runs each kind of result through all of them.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(result, Close):
        return checked(result.reply) or None, True
    return (None if result is None else checked(result)), False


def piece_of(generator: Generator[object, object, object]) -> tuple[object, bool]:
    """Return the next piece of a stream, and whether it is the last: the generator's value."""
    try:
        return next(generator), False
    except StopIteration as stop:
        return stop.value, True


def reply_from(received: Callable[..., object], *arguments: object) -> object:
    """Call a handler's method, and return an immutable copy of its result.

    Threads need this: before the event loop takes a result, another thread may reuse its buffer.
    """
    reply = received(*arguments)
    if reply.__class__ is bytes or not isinstance(reply, BytesLike):
        return reply
    return checked(reply)


class Handler:
    """A message handler with state: one instance for each connection.

    Subclassing is a convenience; any class with these methods works. The concurrency model decides
    where all three run: in the event loop (`reactor`, `serial`), in a pool thread
    (`defer-to-thread`; possibly a different one each time), or in the connection's own thread
    (`thread-per-connection`). They never run at the same time for one connection, so an instance
    needs no lock for its own state. Context variables (`contextvars`) that one of them, or the
    constructor, sets keep their values in the next one, and no other connection sees them.

    The constructor runs in the event loop when the connection is accepted, except under
    `thread-per-connection`. Do slow work (a database, a file) in `opened`.

    An exception from any of them is logged once with its traceback and ends the connection, after
    the replies before it; no other connection is affected.
    """

    __slots__ = ()

    def opened(self, client: Client) -> BytesLike | Awaitable[BytesLike | None] | None:
        """Called once, first; the connection is open.

        Returns:
            A greeting to send, or None. `--banner` and `--no-banner` override it, and `serial`
            sends no greeting.
        """
        return None

    def received(self, message: bytes) -> Reply | Awaitable[Reply]:
        """Called for each message, in order; the next one waits until this returns.

        The client may be gone by now; then the reply is dropped, and `closed` is next.

        Args:
            message: one message without its framing, otherwise unchanged.

        Returns:
            `bytes` to send them (framed like the messages; a `bytearray` or `memoryview` works
            too, and may be reused at once), None to send nothing, `Close(b"...")` to send a last
            reply and close, or a generator of these to send them one by one, as fast as the client
            reads. In the event loop also an async generator, or a coroutine or a Deferred of one
            of these; it is cancelled if the client goes away.
        """
        raise NotImplementedError

    def closed(self, reason: str) -> Awaitable[None] | None:
        """Called once, last, if `opened` has returned; the connection is no longer open.

        In the event loop it may be an `async def`, or return a Deferred. When the service ends,
        the daemon waits for it until the drain's deadline, then cancels it.

        Args:
            reason: why it ended: one of the values of `echod.EndReason`.
        """
