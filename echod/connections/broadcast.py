"""Send one message to many clients: it is framed once, and another thread wakes the loop once."""

from __future__ import annotations

from collections.abc import Iterable
from threading import get_ident
from typing import Any

from echod.connections.message_protocol import EchoProtocol
from echod.connections.outbox import Outbox, put_in_each, sendable
from echod.connections.owner import Owner
from echod.handlers.client import Client
from echod.handlers.contract import BytesLike


def broadcast(clients: Iterable[Client], data: BytesLike) -> list[Client]:
    """Send `data` to each of `clients`, in the way of `Client.send`, for less of the processor.

    Any thread may call this, at any time. Order and bounds are those of `Client.send`, for each
    client by itself: one that does not read keeps no other from its message.

    Args:
        clients: whom to send to; a set may change meanwhile.
        data: a message; a buffer may be reused at once.

    Returns:
        Those that it was not sent to: they are gone, or more than `--max-unsent` bytes would wait
        for them.

    Raises:
        TypeError: `data` is not bytes.
        RuntimeError: a handler has its connection itself, and sends by that.
    """
    data = sendable(data)
    thread = get_ident()
    missed: list[Client] = []
    outboxes: list[Outbox] = []
    kind: type[object] = type(None)
    owner: Owner | None = None
    is_shared, framed, in_loop = False, b"", False
    # This looks at what is private, and once at what all have in common, as a rule: each call for
    # each client would cost noticeable time. The copy is for a set that `closed` or another thread
    # changes meanwhile.
    try:
        for client in [*clients]:
            link: Any = client._link
            if type(link) is not kind:
                kind = type(link)
                is_shared = issubclass(kind, EchoProtocol)
            if not is_shared:  # gone, or without this kind of outbox
                if link is None or not link.push(data):
                    missed.append(client)
                continue
            if link._owner is not owner:
                missed += put_in_each(outboxes, framed)
                outboxes.clear()
                owner = link._owner
                framed = owner.framing.encode(data)
                in_loop = thread == owner.errands.thread
            if in_loop:
                if not link.push_here(framed):
                    missed.append(client)
            elif link._outbox is None or not link._entered:
                if not link.push(data):  # which makes an outbox
                    missed.append(client)
            else:
                link._seen_activity = -1  # as in `EchoProtocol.push_here`
                outboxes.append(link._outbox)
    finally:  # those before one that raises get the message
        missed += put_in_each(outboxes, framed)
    return missed
