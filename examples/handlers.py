"""One handler of each kind. Run one: twistd -n echod --handler handlers:NAME

Do so in this folder; from the folder above, its name is `examples.handlers:NAME`.
A connection handler (`clientthread`, `Lines`) also needs: --concurrency thread-per-connection
"""

import socketserver
import time

from twisted.internet.task import deferLater
from twisted.logger import Logger

from echod import Client, Close, Handler, Reply, message_handler

log = Logger()


def shout(message: bytes) -> bytes:
    """Takes a message, and returns a reply."""
    return message.upper()


def repeat(message: bytes, *, times: int = 2) -> bytes:
    """A parameter after the message is an argument: --handler handlers:repeat:times=3"""
    return message * times


async def later(message: bytes, *, seconds: float = 1.0) -> bytes:
    """Waits without delaying others: during `await` the reactor serves the other clients."""
    # Imported here, so that importing this file does not choose a reactor.
    from twisted.internet import reactor

    await deferLater(reactor, seconds)
    return b"Later: " + message


def slow(message: bytes, *, seconds: float = 1.0) -> bytes:
    """Blocks its thread, as a database driver or a long computation does.

    In the reactor it would block all clients, so run it with --concurrency defer-to-thread.
    """
    time.sleep(seconds)
    return b"Slow: " + message


def clientthread(conn):
    """The handler of most first threaded servers: it has the socket until it returns."""
    conn.sendall(b"Welcome to the server. Type something and hit enter\n")
    while data := conn.recv(1024):
        conn.sendall(b"OK..." + data)


class Lines(socketserver.StreamRequestHandler):
    """A handler written for the standard library's `socketserver`, unchanged."""

    def handle(self) -> None:
        """Answer each line: `rfile` and `wfile` are files made from the socket."""
        for line in self.rfile:
            self.wfile.write(b"OK..." + line)


class Total(Handler):
    """Adds up a client's numbers: a handler with state has one instance for each connection."""

    def __init__(self, *, start: int = 0) -> None:
        """Begin at `start`: --handler handlers:Total:start=100"""
        self.total = start

    def opened(self, client: Client) -> bytes:
        """Called first; returns the greeting."""
        self.peer = client.peer
        return b"Numbers, please; an empty line ends it\n"

    def received(self, message: bytes) -> Reply:
        """Called for each message."""
        text = message.strip()
        if not text:
            return Close(b"The total is %d\n" % self.total)
        try:
            self.total += int(text)
        except ValueError:
            return b"That is not a number\n"
        return b"%d so far\n" % self.total

    def closed(self, reason: str) -> None:
        """Called last; the connection is gone."""
        log.info("{peer} had {total}: {reason}", peer=self.peer, total=self.total, reason=reason)


@message_handler(framing="line", banner=b"")
def primes(message: bytes) -> bytes:
    """Computes: with --workers it uses every core."""
    below = int(message)
    count = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))
    return b"%d\n" % count
