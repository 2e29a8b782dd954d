"""The handlers that come with echod."""

from __future__ import annotations

from collections.abc import Mapping

from echod.handlers.client import Client
from echod.handlers.command import Command
from echod.handlers.contract import Close, Handler, Reply
from echod.handlers.kinds import message_handler
from echod.text import plural

BANNER = b"Welcome to the server. Type something and hit enter\n"
PREFIX = b"OK..."


class Echo(Handler):
    """Greets, and sends back what it gets behind `OK...`."""

    __slots__ = ("_banner", "_prefix")

    def __init__(self, *, banner: bytes = BANNER, prefix: bytes = PREFIX) -> None:
        """Set up for one connection.

        Args:
            banner: the greeting; b"" for none.
            prefix: what each reply starts with.
        """
        self._banner = banner
        self._prefix = prefix

    def opened(self, client: Client) -> bytes | None:
        return self._banner

    def received(self, message: bytes) -> bytes:
        return self._prefix + message


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


# Their names for `--handler`.
HANDLERS: Mapping[str, object] = {
    "count": Count,
    "echo": Echo,
    "exec": Command,
    "reverse": reverse,
    "upper": upper,
}
