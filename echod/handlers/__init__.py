"""Handlers: the contract, the built-in ones, and their look-up by name."""

from echod.handlers.builtin import BANNER, PREFIX, Count, Echo, reverse, upper
from echod.handlers.contract import (
    Client,
    Close,
    ConcurrencyModel,
    Handler,
    HandlerError,
    Kind,
    Reply,
    checked,
    connection_handler,
    is_request_handler,
    kind_of,
    message_handler,
    reply_from,
)
from echod.handlers.lookup import (
    HandlerSpec,
    InstalledHandler,
    ResolvedHandler,
    adopt,
    check_name,
    installed,
    parse,
    resolve,
)
from echod.handlers.plugins import HandlerPlugin, IHandlerPlugin, ModulesOnly
from echod.handlers.standin import StandInServer

__all__ = [
    "BANNER",
    "PREFIX",
    "Client",
    "Close",
    "ConcurrencyModel",
    "Count",
    "Echo",
    "Handler",
    "HandlerError",
    "HandlerPlugin",
    "HandlerSpec",
    "IHandlerPlugin",
    "InstalledHandler",
    "Kind",
    "ModulesOnly",
    "Reply",
    "ResolvedHandler",
    "StandInServer",
    "adopt",
    "check_name",
    "checked",
    "connection_handler",
    "installed",
    "is_request_handler",
    "kind_of",
    "message_handler",
    "parse",
    "reply_from",
    "resolve",
    "reverse",
    "upper",
]
