"""Say whose message a handler is answering.

A context variable for each connection would cost memory for every handler, and time for every
message. So only coroutines have one (`echod.handlers.client.current`), because they go on
elsewhere. Other callers are on the stack: to look there costs a microsecond, when a handler asks.
"""

from __future__ import annotations

import inspect
from types import FrameType

from echod.concurrency.conversation import Conversation
from echod.concurrency.model import owner_of
from echod.concurrency.pool import WorkerPool
from echod.connections.lifecycle import ConnectionProtocol
from echod.handlers.client import Client, current


def client() -> Client:
    """Return the client whose message the handler is answering.

    It works wherever a handler is called, in any thread, and in the tasks and contexts that an
    `async def` starts.

    Raises:
        RuntimeError: no handler is being called here.
    """
    if (found := current.get(None)) is not None:
        return found
    frame = inspect.currentframe()
    while frame is not None:
        if str(frame.f_globals.get("__package__")).startswith("echod."):
            found = _of(frame)
            if found is not None:
                return found
        frame = frame.f_back
    raise RuntimeError(
        "echod.client() works only while a handler is called: keep the client for later"
    )


def _of(frame: FrameType) -> Client | None:
    """Return the client that a frame of ours serves."""
    names = frame.f_locals
    owner = names.get("self")
    if isinstance(owner, WorkerPool) and "done" in names:
        owner = owner_of(names["done"])
    return owner.client if isinstance(owner, ConnectionProtocol | Conversation) else None
