"""The handlers that come with echod."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from operator import concat
from typing import TYPE_CHECKING, Any, final

from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from echod.handlers.client import Client
from echod.handlers.contract import Close, Handler, Reply
from echod.handlers.factories import IEndless
from echod.handlers.importing import BuiltIn
from echod.handlers.kinds import Kind, message_handler
from echod.text import plural

if TYPE_CHECKING:
    from echod.interfaces import Stream

BANNER = b"Welcome to the server. Type something and hit enter\n"
PREFIX = b"OK..."


@final  # a `received` of a subclass would not be called
class Echo(Handler):
    """Greets, and sends back what it gets behind `OK...`."""

    __echod_kind__ = Kind.MESSAGE
    __slots__ = ("_banner", "received")

    def __init__(self, *, banner: bytes = BANNER, prefix: bytes = PREFIX) -> None:
        """Set up for one connection.

        Args:
            banner: the greeting; b"" for none.
            prefix: what each reply starts with.
        """
        self._banner = banner
        # A function in C takes less time than a method, and needs no object for each connection.
        self.received = _behind(prefix)  # type: ignore[method-assign]

    def opened(self, client: Client) -> bytes | None:
        return self._banner


@lru_cache(maxsize=8)
def _behind(prefix: bytes) -> Callable[..., Any]:
    """Return the function that puts `prefix` before a message; one serves all connections."""
    return partial(concat, prefix)


@message_handler
def upper(message: bytes) -> bytes:
    """Sends back what it gets in capital letters."""
    return message.upper()


@message_handler
def reverse(message: bytes) -> bytes:
    """Sends back what it gets from its end to its start; a line ending stays where it is."""
    body = message.rstrip(b"\r\n")
    return body[::-1] + message[len(body) :]


class Count(Handler):
    """Numbers each client's messages: `1: happy`, and says how many there were at `quit`."""

    def __init__(self, *, start: int = 1) -> None:
        """Set up for one connection.

        Args:
            start: the number of the first message.
        """
        self._start = start
        self._next = start

    def received(self, message: bytes) -> Reply:
        if message.strip() == b"quit":
            count = self._next - self._start
            return Close(f"{count} {plural(count, 'message', 'messages')}\n".encode())
        numbered = b"%d: %s" % (self._next, message)
        self._next += 1
        return numbered


# The services of RFC 862 to 864.


@message_handler
def plain_echo(message: bytes) -> bytes:
    """Sends back what it gets, and nothing else (RFC 862)."""
    return message


@message_handler
def discard(message: bytes) -> None:
    """Throws away what it gets (RFC 863)."""


# The printing characters of ASCII, and lines of so many of them (RFC 864).
_PRINTING = bytes(range(0x20, 0x7F))
_WIDTH = 72


def pattern() -> bytes:
    """Return the lines of RFC 864, until they are the first one's again: 95 lines of 74 bytes."""
    ring = _PRINTING + _PRINTING
    return b"".join(ring[start : start + _WIDTH] + b"\r\n" for start in range(len(_PRINTING)))


# The data of one write: whole patterns, so that every write is the same object.
_PIECE = pattern() * 10


@implementer(IPullProducer, IHalfCloseableProtocol, IEndless)
class CharacterGenerator(Protocol):
    """Sends lines of 72 characters without end, and throws away what it gets (RFC 864).

    It writes when the transport has taken the piece before, so it holds one piece that all
    connections share.
    """

    transport: Stream

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.transport.write(_PIECE)

    def stopProducing(self) -> None:
        """Do nothing: the connection is lost."""

    def readConnectionLost(self) -> None:
        """Go on: only a client that closes has read enough."""

    def writeConnectionLost(self) -> None:
        """Do nothing: the connection closes."""


# Their names for `--handler`.
HANDLERS: BuiltIn[object] = BuiltIn(
    {
        "chargen": "echod.handlers.builtin:CharacterGenerator",
        "count": "echod.handlers.builtin:Count",
        "discard": "echod.handlers.builtin:discard",
        "echo": "echod.handlers.builtin:Echo",
        "exec": "echod.handlers.command:Command",
        "forward": "echod.handlers.forward:Forward",
        "inspect": "echod.handlers.inspecting:Inspect",
        "plain-echo": "echod.handlers.builtin:plain_echo",
        "reverse": "echod.handlers.builtin:reverse",
        "script": "echod.handlers.script:Script",
        "upper": "echod.handlers.builtin:upper",
    }
)
