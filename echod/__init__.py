"""echod: you write a handler, echod makes it a service."""

from echod.concurrency.models import InPool, InReactor, Serial, ThreadPerConnection
from echod.concurrency.pool import WorkerPool
from echod.concurrency.thread_socket import ConnectionSocket
from echod.connections.factory import EchoFactory
from echod.connections.message_protocol import EchoProtocol
from echod.handlers import (
    Client,
    Close,
    Handler,
    HandlerPlugin,
    Reply,
    connection_handler,
    message_handler,
)
from echod.limits import Limits
from echod.messages.framing import Chunk, Length, Line
from echod.metrics import Metrics
from echod.reasons import EndReason

__version__ = "0.1.0"

__all__ = [
    "Chunk",
    "Client",
    "Close",
    "ConnectionSocket",
    "EchoFactory",
    "EchoProtocol",
    "EndReason",
    "Handler",
    "HandlerPlugin",
    "InPool",
    "InReactor",
    "Length",
    "Limits",
    "Line",
    "Metrics",
    "Reply",
    "Serial",
    "ThreadPerConnection",
    "WorkerPool",
    "connection_handler",
    "message_handler",
]
