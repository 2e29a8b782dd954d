"""echod: you write a handler, echod makes it a service.

Each public name is imported when it is first used (PEP 562): a handler's module that wants
`message_handler` alone does not wait for Twisted.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echod.concurrency.life import opened as opened
    from echod.concurrency.models import InPool as InPool
    from echod.concurrency.models import InReactor as InReactor
    from echod.concurrency.models import Serial as Serial
    from echod.concurrency.models import ThreadPerConnection as ThreadPerConnection
    from echod.concurrency.pool import WorkerPool as WorkerPool
    from echod.concurrency.thread_socket import ConnectionSocket as ConnectionSocket
    from echod.connections.broadcast import broadcast as broadcast
    from echod.connections.current import client as client
    from echod.connections.factory import EchoFactory as EchoFactory
    from echod.connections.message_protocol import EchoProtocol as EchoProtocol
    from echod.handlers.client import Client as Client
    from echod.handlers.contract import Close as Close
    from echod.handlers.contract import Handler as Handler
    from echod.handlers.contract import Reply as Reply
    from echod.handlers.kinds import connection_handler as connection_handler
    from echod.handlers.kinds import message_handler as message_handler
    from echod.handlers.kinds import protocol_factory as protocol_factory
    from echod.handlers.per_thread import PerThread as PerThread
    from echod.handlers.plugins import HandlerPlugin as HandlerPlugin
    from echod.handlers.service import Service as Service
    from echod.handlers.service import SettingError as SettingError
    from echod.handlers.service import service as service
    from echod.limits import Limits as Limits
    from echod.messages.framing import BufferingFramer as BufferingFramer
    from echod.messages.framing import Chunk as Chunk
    from echod.messages.framing import Fixed as Fixed
    from echod.messages.framing import Framer as Framer
    from echod.messages.framing import Framing as Framing
    from echod.messages.framing import FramingError as FramingError
    from echod.messages.framing import Line as Line
    from echod.messages.framing import MessageCutShort as MessageCutShort
    from echod.messages.framing import MessageTooLong as MessageTooLong
    from echod.messages.prefixed import Length as Length
    from echod.messages.prefixed import Netstring as Netstring
    from echod.messages.prefixed import Varint as Varint
    from echod.metrics import Metrics as Metrics
    from echod.reasons import EndReason as EndReason

__version__ = "0.1.0"

_MODULES = {
    "BufferingFramer": "messages.framing",
    "Chunk": "messages.framing",
    "Client": "handlers.client",
    "Close": "handlers.contract",
    "ConnectionSocket": "concurrency.thread_socket",
    "EchoFactory": "connections.factory",
    "EchoProtocol": "connections.message_protocol",
    "EndReason": "reasons",
    "Fixed": "messages.framing",
    "Framer": "messages.framing",
    "Framing": "messages.framing",
    "FramingError": "messages.framing",
    "Handler": "handlers.contract",
    "HandlerPlugin": "handlers.plugins",
    "InPool": "concurrency.models",
    "InReactor": "concurrency.models",
    "Length": "messages.prefixed",
    "Limits": "limits",
    "Line": "messages.framing",
    "MessageCutShort": "messages.framing",
    "MessageTooLong": "messages.framing",
    "Metrics": "metrics",
    "Netstring": "messages.prefixed",
    "PerThread": "handlers.per_thread",
    "Reply": "handlers.contract",
    "Serial": "concurrency.models",
    "Service": "handlers.service",
    "SettingError": "handlers.service",
    "ThreadPerConnection": "concurrency.models",
    "Varint": "messages.prefixed",
    "WorkerPool": "concurrency.pool",
    "broadcast": "connections.broadcast",
    "client": "connections.current",
    "connection_handler": "handlers.kinds",
    "message_handler": "handlers.kinds",
    "protocol_factory": "handlers.kinds",
    "opened": "concurrency.life",
    "service": "handlers.service",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
