"""The Twisted factory of a handler: one for the whole service, made at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import Interface

from echod.handlers.contract import HandlerError
from echod.handlers.kinds import class_of
from echod.text import excerpt
from echod.user_code import told_with_place

log = Logger("echod.handlers")


class IClosedByDrain(Interface):
    """Marks a Twisted protocol to which the end of its input means that its client has ended it: a
    drain closes its connection instead of telling it of such an end.
    """


class IEndless(IClosedByDrain):
    """Marks a Twisted protocol that never waits for its client: a drain closes its connection as
    soon as it begins, instead of at the client's turn.
    """


def factory_of(name: str, target: Any, arguments: Mapping[str, object]) -> IProtocolFactory:
    """Return the factory that makes the protocols of each connection.

    Args:
        name: the handler's name.
        target: a protocol class, a factory or its class, or a function that makes one of these.
        arguments: keyword arguments for the class or function.

    Raises:
        HandlerError: it cannot be made, or makes something else.
    """
    if IProtocolFactory.providedBy(target):
        return target
    make = partial(target, **arguments)
    made_class = class_of(target)
    if made_class is not None and not IProtocolFactory.implementedBy(made_class):
        return _factory_for(make)
    try:
        made = make()
    except HandlerError:
        raise
    except (Exception, SystemExit) as error:
        raise HandlerError(f"{excerpt(name)} cannot be made: {told_with_place(error)}") from error
    if IProtocolFactory.providedBy(made):
        return made
    if IProtocol.providedBy(made):
        return _factory_for(make)
    raise HandlerError(
        f"{excerpt(name)} makes a {type(made).__name__}, which is no protocol or factory "
        "of Twisted's"
    )


def _factory_for(make: Callable[[], Any]) -> IProtocolFactory:
    factory = Factory.forProtocol(make)
    factory.noisy = False
    return factory


def start(name: str, factory: Any) -> None:
    """Tell a factory that a listener begins.

    Raises:
        HandlerError: its `startFactory` has failed, or it can make no protocol.
    """
    try:
        factory.doStart()
    except Exception as error:
        raise HandlerError(
            f"{excerpt(name)}: startFactory failed: {told_with_place(error)}"
        ) from error
    build = getattr(factory.buildProtocol, "__func__", None)
    if build is Factory.buildProtocol and factory.protocol is None:
        raise HandlerError(
            f"{excerpt(name)} is a factory without a protocol: set its `protocol`, or write "
            "`buildProtocol`"
        )


def stop(factory: Any) -> None:
    """Tell a factory that a listener has ended; an error of its own is logged."""
    try:
        factory.doStop()
    except Exception:
        log.failure("stopFactory failed")
