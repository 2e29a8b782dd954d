"""Talk to a handler without a network: no socket, no thread, no waiting.

The daemon's own protocol calls the handler, in the test's thread, on a clock that the test moves.
Each message is framed by its length: so the handler gets exactly what the test sends, and the test
sees exactly what the handler sends. Framings have tests of their own.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.python.failure import Failure

from echod.connections.factory import EchoFactory
from echod.connections.message_protocol import NO_STARTTLS
from echod.handlers.client import Client
from echod.handlers.contract import checked
from echod.handlers.kinds import KINDS, Kind, kind_of
from echod.limits import Limits
from echod.messages.framing import MOST
from echod.messages.prefixed import Length
from echod.testing.client import MESSAGE_RULE
from echod.testing.in_memory import PEER, MemoryTransport, VirtualReactor

_ANY_LENGTH = Length(max_message=MOST)


class TalkError(Exception):
    """A handler needs what a conversation without a network does not have."""


def talk(
    handler: Callable[..., object], messages: Iterable[bytes] = (), *, limits: Limits | None = None
) -> Conversation:
    """Connect to a handler, send it messages, and return the conversation so far.

    Args:
        handler: a message handler: a function, a coroutine function or a class; give arguments by
            `functools.partial`.
        messages: sent in order; each waits until the one before is answered, as ever.
        limits: the limits on this client, as in `Limits(idle_timeout=60)`.

    Returns:
        The conversation, which goes on.

    Raises:
        HandlerError: it is no handler.
        TalkError: it needs a real connection, TLS, the global reactor or asyncio's loop: use
            `serving`.
    """
    conversation = Conversation(handler, limits)
    for message in messages:
        conversation.send(message)
    return conversation


class Conversation:
    """A conversation with a handler; made by `talk`.

    Attributes:
        greeting: what the handler sent before the first message, in order.
        errors: the exceptions of the handler; each has ended the conversation.
    """

    def __init__(self, handler: Callable[..., object], limits: Limits | None = None) -> None:
        """Connect; see `talk`."""
        _check_kind(handler)
        self.errors: list[BaseException] = []
        self._clock = VirtualReactor()
        factory = EchoFactory(
            self._clock,
            handler=handler,
            framing=_ANY_LENGTH,
            limits=Limits() if limits is None else limits,
        )
        factory.report = self._failed
        self._factory = factory
        self._received = _ANY_LENGTH.framer()
        self._seen = 0
        self._replies: list[bytes] = []
        self._needs_loop = False
        self._wants_tls = False
        self._protocol: Any = factory.buildProtocol(PEER)
        self._transport = MemoryTransport(self._clock, self._protocol)
        self._do(self._transport.connect)
        self._read()
        self.greeting, self._replies = self._replies, []

    @property
    def replies(self) -> list[bytes]:
        """The replies and pushes since the first message, in order."""
        self._read()
        return list(self._replies)

    @property
    def closed(self) -> str | None:
        """Why the connection has ended, as `closed` is told; None while it is open."""
        ended = self._factory.metrics.ended
        return next((reason for reason, count in ended.items() if count), None)

    @property
    def aborted(self) -> bool:
        """Whether it was cut off, which the client sees as a reset."""
        return self._transport.aborted

    @property
    def client(self) -> Client:
        """The client, as the handler knows it."""
        client: Client = self._protocol.client
        return client

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            TypeError: it is not bytes.
            TalkError: the handler needs the global reactor, or asyncio's loop.
        """
        message = checked(message, MESSAGE_RULE)
        self._do(self._transport.deliver, _ANY_LENGTH.encode(message))

    def ask(self, message: bytes) -> bytes | None:
        """Send a message, and return what the handler has sent for it; None if nothing."""
        before = len(self.replies)
        self.send(message)
        return b"".join(self.replies[before:]) if len(self.replies) > before else None

    def advance(self, seconds: float) -> None:
        """Let time pass, for time-outs.

        Args:
            seconds: how much; nothing waits meanwhile.
        """
        self._do(self._clock.run_for, seconds)

    def finish(self) -> None:
        """End the client's stream, as a client that has sent everything and reads on."""
        self._do(self._transport.finish)

    def leave(self) -> None:
        """Lose the client, as by a reset."""
        self._do(self._transport.vanish)

    def drain(self) -> None:
        """Let the service end, as at SIGTERM."""
        self._do(self._factory.drain)

    def _do(self, function: Callable[..., object], *arguments: object) -> None:
        with _without_the_global_reactor():
            function(*arguments)
            self._clock.run_due()
        if self._needs_loop:
            raise TalkError(
                "the handler waits for asyncio, and here no event loop runs: "
                "use echod.testing.serving"
            )
        if self._wants_tls:
            raise TalkError(
                "the handler begins TLS, and here is no network: use "
                'echod.testing.serving(handler, listen="starttls:0:certificate=...:key=...") and '
                "begin_tls"
            )

    def _read(self) -> None:
        written = self._transport.written
        if len(written) > self._seen:
            self._received.feed(bytes(written[self._seen :]))
            self._seen = len(written)
        while (reply := self._received.next_message()) is not None:
            self._replies.append(reply)

    def _failed(self, failure: Failure, client: Client) -> None:
        assert failure.value is not None
        if isinstance(failure.value, RuntimeError) and "event loop" in str(failure.value):
            self._needs_loop = True
        elif str(failure.value).endswith(NO_STARTTLS):
            self._wants_tls = True
        elif not isinstance(failure.value, TalkError):  # which the test gets itself
            self.errors.append(failure.value)


def _check_kind(handler: object) -> None:
    """Refuse what is no handler of messages.

    Raises:
        TalkError: it needs a real connection, or it is the text of a name.
    """
    if isinstance(handler, str):
        raise TalkError(f"talk takes the handler itself, not its name {handler!r}")
    if (kind := kind_of(handler)) not in (None, Kind.MESSAGE):
        raise TalkError(
            f"this is {KINDS[kind].words}, which needs a real connection: "
            "use echod.testing.serving"
        )


@contextmanager
def _without_the_global_reactor() -> Iterator[None]:
    """Hide the event loop of this thread, and refuse timers of the global reactor.

    Here neither ever fires.

    Raises:
        TalkError: the block has asked for a timer.
    """
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        if reactor is None:
            yield
            _refuse_timers_of_a_new_reactor()
        else:
            with _refusing_timers(reactor):
                yield
    finally:
        asyncio._set_running_loop(loop)


@contextmanager
def _refusing_timers(reactor: Any) -> Iterator[None]:
    asked: list[TalkError] = []
    thread, ours = threading.get_ident(), vars(reactor).get("callLater")
    original = reactor.callLater

    def call_later(*arguments: Any, **named: Any) -> Any:
        if threading.get_ident() != thread:  # the reactor's own, in its thread
            return original(*arguments, **named)
        asked.append(_wrong_clock())
        raise asked[-1]

    reactor.callLater = call_later
    try:
        yield
    finally:
        if ours is None:
            del reactor.callLater
        else:
            reactor.callLater = ours
    if asked:
        raise asked[0]


def _wrong_clock() -> TalkError:
    return TalkError(
        "the handler has called reactor.callLater: talk moves a clock of its own, not the global "
        "reactor's; use echod.testing.serving"
    )


def _refuse_timers_of_a_new_reactor() -> None:
    """Refuse timers that the handler has just set with the reactor that it has installed."""
    reactor = sys.modules.get("twisted.internet.reactor")
    calls = reactor.getDelayedCalls() if reactor is not None else []
    if calls:
        for one in calls:
            one.cancel()
        raise _wrong_clock()
