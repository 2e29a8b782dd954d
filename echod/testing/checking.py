"""Check a handler by the rules that hold for any: the network may not change its replies.

Each rule serves the handler over real sockets, in each model that it can run in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

from echod.handlers.contract import ConcurrencyModel, HandlerError, checked
from echod.handlers.kinds import KINDS, Kind, kind_of, message_handler
from echod.handlers.lookup import adopt
from echod.messages.framing import Chunk
from echod.testing.client import MESSAGE_RULE, Connection
from echod.testing.serving import Server, serving

MESSAGES = (b"one", b"two", b"three")

# How many clients talk at the same time.
_CLIENTS = 4


def check(
    handler: Any,
    messages: Sequence[bytes] = MESSAGES,
    *,
    models: Iterable[str] = tuple(ConcurrencyModel),
    framing: object = "line",
    **settings: Any,
) -> None:
    """Check that a handler's replies do not depend on the network, nor on its model.

    It is for handlers of messages whose replies depend on their own client's messages alone. The
    rules:

    * The replies are the same however the input is cut: a message at a time, all at once, or byte
      by byte; and every reply reaches a client that ends its stream at once.
    * Clients that talk at the same time get the same replies.
    * A drain answers everything that was received.
    * Clients that leave at once, or in the middle of a message, by FIN or by RST, raise nothing.

    Args:
        handler: a handler; give its arguments by `functools.partial`.
        messages: the messages of a conversation, which may end with the last reply.
        models: the concurrency models to run it in; those that it cannot run in are left out.
        framing: how the messages are framed, as in `serving`; not `chunk`, which has no messages
            of its own.
        **settings: other settings of the daemon; see `serving`.

    Raises:
        AssertionError: a rule does not hold; the text says which, and what came.
        TypeError: a message is not bytes.
        ValueError: the handler is for no messages, the framing has no messages of its own, the
            settings say where to listen, or no model is left.
    """
    if kind_of(handler) not in (None, Kind.MESSAGE):
        raise ValueError(f"check is for handlers of messages, and this is {_words(handler)}")
    if {"tls", "unix", "listen"} & settings.keys():
        raise ValueError(
            "check connects by TCP, in clear: a handler gets the same over TLS and by a UNIX "
            "socket; to see one there, use serving(handler, tls=True)"
        )
    if _is_chunk(framing):
        raise ValueError("with chunk framing, how the input is cut is part of the input")
    messages = [checked(message, MESSAGE_RULE) for message in messages]
    if kind_of(handler) is None:  # under thread-per-connection it would get the socket
        handler = _message_handler(handler)
    left = [model for model in models if _can_run(handler, ConcurrencyModel(model))]
    if not left:
        raise ValueError(f"{handler!r} can run in none of these models")
    replies: dict[str, bytes] = {}
    for model in left:
        serial = model == ConcurrencyModel.SERIAL  # it answers one message, and does not greet
        given: dict[str, Any] = {"framing": framing, "concurrency": model, **settings}
        case = _Case(handler, messages[:1] if serial else messages, model, given)
        for rule in _RULES:
            rule(case)
        if not serial:
            replies[model] = case.replies
    if len(set(replies.values())) > 1:
        raise AssertionError(f"the models give different replies: {replies}")


def _is_chunk(framing: object) -> bool:
    if isinstance(framing, str):
        return framing.partition(":")[0] == "chunk"
    return framing is Chunk or isinstance(framing, Chunk)


def _message_handler(function: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a function that does the same, and is a message handler in every model."""

    @message_handler
    @wraps(function)
    def received(message: bytes) -> Any:
        return function(message)

    return received


def _words(handler: object) -> str:
    kind = kind_of(handler)
    assert kind is not None
    return KINDS[kind].words


def _can_run(handler: Any, model: ConcurrencyModel) -> bool:
    try:
        adopt(handler, model)
    except HandlerError:
        return False
    return True


@dataclass
class _Case:
    """A handler in one model.

    Attributes:
        handler: the handler.
        messages: what each client sends.
        model: the name of the model.
        settings: the settings of the daemon, among them the model.
        replies: all that a client gets for a message at a time.
    """

    handler: Any
    messages: Sequence[bytes]
    model: str
    settings: dict[str, Any]
    replies: bytes = b""

    def serving(self) -> Server:
        """Return a server of the handler, not started."""
        return serving(self.handler, direct=True, **self.settings)

    def expect(self, rule: str, replies: bytes, server: Server) -> None:
        """Raise unless these are the replies, and the handler has raised nothing."""
        self.expect_no_error(rule, server)
        if replies != self.replies:
            got = f"expected {self.replies!r}, got {replies!r}"
            raise AssertionError(f"{self.model}: {rule}: {got}")

    def expect_no_error(self, rule: str, server: Server) -> None:
        """Raise if the handler has raised."""
        if server.errors:
            first = server.errors[0]
            raise AssertionError(f"{self.model}: {rule}: {first!r}") from first


def _one_at_a_time(case: _Case) -> None:
    with case.serving() as server, server.connect() as client:
        for number, message in enumerate(case.messages, start=1):
            _send(client, server.framing.encode(message))
            server.wait_until(partial(_has_taken, server, number))
        client.finish()
        case.replies = client.receive_all()
        case.expect_no_error("a message at a time", server)


def _has_taken(server: Server, number: int) -> object:
    """Return whether the handler has got so many messages, or its last one."""
    return server.messages >= number or (server.accepted and server.closing == server.open)


def _cut(case: _Case) -> None:
    sizes: dict[str, Callable[[bytes], int]] = {"all at once": len, "byte by byte": lambda _: 1}
    for rule, size_of in sizes.items():
        with case.serving() as server, server.connect() as client:
            data = _framed(case, server)
            size = size_of(data) or 1
            for start in range(0, len(data), size):
                _send(client, data[start : start + size])
            client.finish()
            case.expect(rule, client.receive_all(), server)


def _at_the_same_time(case: _Case) -> None:
    with case.serving() as server:
        clients = [server.connect() for _ in range(_CLIENTS)]
        for message in case.messages:
            for client in clients:
                _send(client, server.framing.encode(message))
        for client in clients:
            client.finish()
        for client in clients:
            case.expect("clients at the same time", client.receive_all(), server)


def _drained(case: _Case) -> None:
    with case.serving() as server, server.connect() as client:
        client.sendall(_framed(case, server))
        server.wait_until(lambda: server.accepted == 1)
        server.drain()
        case.expect("a drain", client.receive_all(), server)


def _left(case: _Case) -> None:
    with case.serving() as server:
        for begin in (b"", _framed(case, server)[:-1]):
            for end in (Connection.close, Connection.reset):
                client = server.connect()
                client.sendall(begin)
                end(client)
        server.wait_until(lambda: server.accepted == 4 and not server.open)
        case.expect_no_error("a client that leaves", server)


def _send(client: Connection, data: bytes) -> None:
    with suppress(ConnectionError):  # the handler has closed before the last message
        client.sendall(data)


def _framed(case: _Case, server: Server) -> bytes:
    return b"".join(server.framing.encode(message) for message in case.messages)


_RULES = (_one_at_a_time, _cut, _at_the_same_time, _drained, _left)
