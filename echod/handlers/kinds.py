"""The kinds of handlers: tell which one an object is, and where it can run.

`KINDS` has a row for each kind. The kind is told by, in this order:

1. a decorator: `@message_handler`, `@connection_handler`, `@protocol_factory`;
2. a base class: a `socketserver` request handler, an asyncio protocol, a Twisted protocol or
   factory; or a method `received`;
3. an `async def` with two required positional parameters takes a reader and a writer, unless the
   first is annotated as `bytes`;
4. the annotation of a function's first parameter: `bytes` or `socket.socket`;
5. the annotation of the result of a function without required parameters: a protocol, or a
   Twisted factory;
6. the concurrency model: an unmarked function is a connection handler under
   `thread-per-connection`, otherwise a message handler.

No kind costs an import: a subclass of a class of asyncio or Twisted implies that its module is
there.
"""

from __future__ import annotations

import difflib
import enum
import functools
import inspect
import socket
import sys
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, overload

from echod.handlers.contract import ConcurrencyModel, Handler, HandlerError
from echod.text import quoted


class Kind(enum.StrEnum):
    """The kind of a handler; the value is its name in the log."""

    MESSAGE = "message"
    CONNECTION = "connection"
    STREAMS = "asyncio streams"
    ASYNCIO_PROTOCOL = "asyncio protocol"
    TWISTED_PROTOCOL = "Twisted protocol"
    PROGRAM = "program"
    SERVICE = "service"


# The models in which coroutines run.
IN_THE_LOOP = (ConcurrencyModel.REACTOR, ConcurrencyModel.SERIAL)


class Traits(NamedTuple):
    """The properties of a kind.

    Attributes:
        words: its name in a sentence.
        models: the concurrency models that it can run in.
        given: the names of the arguments that a function of this kind is called with.
        needs_asyncio: whether it needs a reactor with an asyncio event loop.
        takes_messages: whether echod cuts the client's bytes into messages for it.
        is_own: whether it is echod's own: echod then greets for it, and times its calls.
        ignores: the settings that have no effect with it.
    """

    words: str
    models: tuple[ConcurrencyModel, ...]
    given: tuple[str, ...] = ()
    needs_asyncio: bool = False
    takes_messages: bool = False
    is_own: bool = False
    ignores: tuple[str, ...] = ()


# The limits on input that waits, and on the handler's work, which echod does not see.
_OF_MESSAGES = ("max_pending", "handler_timeout")

KINDS: Mapping[Kind, Traits] = MappingProxyType(
    {
        Kind.MESSAGE: Traits(
            "a message handler",
            tuple(ConcurrencyModel),
            given=("message",),
            takes_messages=True,
            is_own=True,
        ),
        Kind.CONNECTION: Traits(
            "a connection handler",
            (ConcurrencyModel.THREAD_PER_CONNECTION,),
            given=("connection",),
            is_own=True,
        ),
        Kind.STREAMS: Traits(
            "a handler of asyncio streams",
            (ConcurrencyModel.REACTOR,),
            given=("reader", "writer"),
            needs_asyncio=True,
        ),
        Kind.ASYNCIO_PROTOCOL: Traits(
            "an asyncio protocol",
            (ConcurrencyModel.REACTOR,),
            needs_asyncio=True,
            ignores=_OF_MESSAGES,
        ),
        Kind.TWISTED_PROTOCOL: Traits(
            "a Twisted protocol", (ConcurrencyModel.REACTOR,), ignores=_OF_MESSAGES
        ),
        Kind.PROGRAM: Traits("a program", (ConcurrencyModel.REACTOR,), ignores=_OF_MESSAGES),
        # The handler that it yields has a kind of its own.
        Kind.SERVICE: Traits(
            "a service",
            tuple(ConcurrencyModel),
            given=("service",),
            takes_messages=True,
            is_own=True,
        ),
    }
)

F = TypeVar("F", bound=Callable[..., object])


class Defaults(NamedTuple):
    """The settings that a handler asks for; flags and files override them.

    Attributes:
        framing: the text of `--framing`.
        concurrency: the text of `--concurrency`.
        banner: the greeting; b"" for none.
    """

    framing: str | None = None
    concurrency: str | None = None
    banner: bytes | None = None


@overload
def message_handler(function: F, /) -> F: ...


@overload
def message_handler(
    *,
    framing: str | None = None,
    concurrency: str | None = None,
    banner: bytes | None = None,
) -> Callable[[F], F]: ...


def message_handler(
    function: F | None = None,
    /,
    *,
    framing: str | None = None,
    concurrency: str | None = None,
    banner: bytes | None = None,
) -> F | Callable[[F], F]:
    """Mark a function as called once a message, under every concurrency model.

    Args:
        function: the function.
        framing: the text of `--framing` that it asks for.
        concurrency: the text of `--concurrency` that it asks for.
        banner: the greeting that it asks for; b"" for none.
    """
    if function is not None:
        return _mark(function, Kind.MESSAGE)

    def mark(function: F) -> F:
        marked = _mark(function, Kind.MESSAGE)
        marked.__echod_defaults__ = Defaults(framing, concurrency, banner)  # type: ignore[attr-defined]
        return marked

    return mark


def defaults_of(target: object) -> Defaults:
    """Return the settings that a handler asks for: arguments of its decorator, or attributes of a
    class with a method `received`.

    Raises:
        HandlerError: it asks for a banner that is text, or for a framing or a model that is none.
    """
    made = class_of(target)
    asking = target if made is None else made
    if not hasattr(asking, "received"):
        found = _marked(target, "__echod_defaults__")
        if not isinstance(found, Defaults):
            return Defaults()
        _refuse_text(found.banner)
        _refuse_object("framing", found.framing)
        _refuse_object("concurrency", found.concurrency)
        return found
    framing, concurrency = getattr(asking, "framing", None), getattr(asking, "concurrency", None)
    if hasattr(framing, "framer"):  # else it may be for something else
        _refuse_object("framing", framing)
    banner, opened = getattr(asking, "banner", None), getattr(asking, "opened", None)
    if getattr(opened, "__func__", opened) in (None, Handler.opened):  # else it may be for that
        _refuse_text(banner)
    return Defaults(
        framing if isinstance(framing, str) else None,
        str(concurrency) if isinstance(concurrency, str) else None,
        banner if isinstance(banner, bytes) else None,
    )


def _refuse_text(banner: object) -> None:
    if isinstance(banner, str):
        raise HandlerError(
            f'its banner {quoted(banner)} is text, and bytes are sent: write banner = b"..."'
        )


def _refuse_object(setting: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise HandlerError(
            f"its {setting} is the object {quoted(repr(value))}, and is given by name: "
            f'write {setting}="{_BY_WORDS[setting]}"'
        )


_BY_WORDS = MappingProxyType({"framing": "line", "concurrency": "defer-to-thread"})


def connection_handler(function: F) -> F:
    """Mark a function as called once a connection, with its socket."""
    return _mark(function, Kind.CONNECTION)


def protocol_factory(function: F) -> F:
    """Mark a function as called once a connection, to make its protocol.

    The protocol is an asyncio protocol, unless the annotation of the result says that it is a
    Twisted protocol or factory.
    """
    made = _result_kind(function) if callable(function) else None
    return _mark(function, Kind.ASYNCIO_PROTOCOL if made is None else made)


def _mark(function: F, kind: Kind) -> F:
    """Mark a function; of one that takes no attributes (a bound method, a builtin), a partial."""
    if not callable(function):
        raise TypeError(
            f"a function is marked, not {function!r}: settings have names, as in "
            '@message_handler(framing="line")'
        )
    try:
        function.__echod_kind__ = kind  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return typing.cast(F, _mark(functools.partial(function), kind))
    return function


def _marked(target: object, name: str) -> Any:
    """Return what a decorator has left at `target`, or at the function within a partial."""
    found = getattr(target, name, None)
    if found is None and isinstance(target, functools.partial):
        return _marked(target.func, name)
    return found


def kind_of(target: object) -> Kind | None:
    """Return the kind that `target` declares, or None for a plain unmarked function.

    Raises:
        HandlerError: `target` is not a handler.
    """
    marked = _marked(target, "__echod_kind__")
    if marked is not None:
        return Kind(marked)
    made = class_of(target)
    if is_request_handler(target):
        return Kind.CONNECTION
    if foreign := _foreign_kind(target if made is None else made):
        if made is not None:
            _check_protocol(made)
        return foreign
    if callable(received := getattr(target if made is None else made, "received", None)):
        _check_that_it_has_its_own("received", received, made or type(target), Handler)
        return Kind.MESSAGE
    if not callable(target):
        raise HandlerError(_why_not_callable(target))
    if made is not None:
        raise HandlerError(
            f"the class {made.__qualname__} has no method `received`, "
            "and is not a socketserver request handler or a protocol"
        )
    if _is_generator(target):
        return Kind.MESSAGE
    if _is_async(target):
        return Kind.STREAMS if _takes_streams(target) else Kind.MESSAGE
    return _kind_by_annotation(target) or _result_kind(target)


def _check_that_it_has_its_own(
    method: str, found: object, made: type, base: type, cutoff: float = 0.8
) -> None:
    """Refuse a class that has a method of a similar name, and this one from a base class only.

    Args:
        method: the method's name.
        found: the method.
        made: the class.
        base: the base class, in which the method does nothing.
        cutoff: how similar the names are at least; 1 is the same.
    """
    if getattr(found, "__func__", found) is not getattr(base, method):
        return
    names = {name.lower(): name for name in dir(made) if not hasattr(base, name)}
    for close in difflib.get_close_matches(method.lower(), names, 1, cutoff):
        if callable(getattr(made, names[close])):
            raise HandlerError(
                f"the class {made.__qualname__} has no method `{method}`: "
                f"rename its `{names[close]}`"
            )


def _check_protocol(made: type) -> None:
    """Refuse a class of protocols that takes no data because of a misspelt name."""
    for module, method in (
        ("asyncio.protocols", "data_received"),
        ("twisted.internet.protocol", "dataReceived"),
    ):
        base = getattr(sys.modules.get(module), "Protocol", None)
        if base is not None and issubclass(made, base):
            # A method for datagrams is not meant.
            _check_that_it_has_its_own(method, getattr(made, method), made, base, 0.9)


def _why_not_callable(target: object) -> str:
    if _foreign_kind(type(target)):
        made = type(target).__qualname__
        return (
            f"this {made} serves one connection only: name the class, or a function that makes one"
        )
    socketserver = sys.modules.get("socketserver")
    if socketserver is not None and isinstance(target, socketserver.BaseServer):
        meant = getattr(target.RequestHandlerClass, "__name__", "")
        return f"this {type(target).__qualname__} listens by itself: name its handler, {meant}"
    return f"{target!r} is not callable, and has no method `received`"


def is_request_handler(target: object) -> bool:
    """Return whether `target` makes `socketserver` request handlers for streams."""
    made = class_of(target)
    socketserver = sys.modules.get("socketserver")
    return (
        made is not None
        and socketserver is not None
        and issubclass(made, socketserver.BaseRequestHandler)
        and not issubclass(made, socketserver.DatagramRequestHandler)
    )


def class_of(target: object) -> type | None:
    """Return the class that `target` instantiates: `target` itself, or the class in a partial."""
    target = within(target)
    return target if isinstance(target, type) else None


def within(target: object) -> object:
    """Return the function, or other object, in a partial; `target` itself if it is none."""
    while isinstance(target, functools.partial):
        target = target.func
    return target


def is_async(target: object) -> bool:
    """Return whether `target`, or one of its methods, is an `async def`."""
    made = class_of(target)
    owner = target if made is None else made
    if not hasattr(owner, "received"):
        return _is_async(owner)
    return any(_is_async(getattr(owner, hook, None)) for hook in ("opened", "received", "closed"))


def _is_generator(function: object) -> bool:
    return _is_one_of(function, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def _is_async(function: object) -> bool:
    return _is_one_of(function, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def _is_one_of(function: object, *questions: Callable[[object], bool]) -> bool:
    """Return whether a function, or the method by which an object is called, is one of these."""
    called = getattr(function, "__call__", None)  # noqa: B004 - the method itself is asked for
    return any(ask(function) or ask(called) for ask in questions)


def models_for(target: object) -> tuple[ConcurrencyModel, ...]:
    """Return the concurrency models that `target` can run in.

    Raises:
        HandlerError: `target` is not a handler.
    """
    kind = kind_of(target)
    if kind is Kind.SERVICE:
        models: tuple[ConcurrencyModel, ...] = within(target).models  # type: ignore[attr-defined]
        return models
    if kind in (None, Kind.MESSAGE) and is_async(target):
        return IN_THE_LOOP
    return KINDS[kind or Kind.MESSAGE].models


def given_to(target: object) -> tuple[str, ...]:
    """Return the names of the positional arguments that echod calls `target` with.

    Args:
        target: any object; echod calls only functions and classes.
    """
    if is_request_handler(target):
        return ("request", "client_address", "server")
    if class_of(target) is not None or not callable(target) or hasattr(target, "received"):
        return ()
    return KINDS[kind_of(target) or Kind.MESSAGE].given


def _foreign_kind(one: object) -> Kind | None:
    """Return the kind of a class of asyncio or Twisted, or of a Twisted factory."""
    if isinstance(one, type) and _is_asyncio_protocol(one):
        return Kind.ASYNCIO_PROTOCOL
    return Kind.TWISTED_PROTOCOL if _is_twisted(one) else None


def _is_asyncio_protocol(made: type) -> bool:
    """Return whether asyncio's loops take these for protocols of streams.

    They call `data_received` of any other than a `BufferedProtocol`; pymodbus derives from
    `BaseProtocol`.
    """
    protocols = sys.modules.get("asyncio.protocols")
    if protocols is None or not issubclass(made, protocols.BaseProtocol):
        return False
    return issubclass(made, protocols.BufferedProtocol) or hasattr(made, "data_received")


def is_protocol(made: object) -> bool:
    """Return whether `made` has the methods of an asyncio protocol."""
    return any(hasattr(made, name) for name in ("data_received", "get_buffer"))


def _is_twisted(one: object) -> bool:
    """Return whether this is a class of Twisted protocols or factories, or a factory."""
    interfaces: Any = sys.modules.get("twisted.internet.interfaces")
    if interfaces is None:
        return False
    if isinstance(one, type):
        both = (interfaces.IProtocol, interfaces.IProtocolFactory)
        return any(one_of.implementedBy(one) for one_of in both)
    return bool(interfaces.IProtocolFactory.providedBy(one))


def _takes_streams(function: Callable[..., object]) -> bool:
    """Return whether an `async def` takes a reader and a writer, and no message."""
    required = _required(function)
    return len(required) == 2 and _annotation(function, required[0]) is not bytes


def _kind_by_annotation(function: Callable[..., object]) -> Kind | None:
    parameter = next(iter(_parameters(function)), None)
    annotation = None if parameter is None else _annotation(function, parameter)
    if annotation is bytes:
        return Kind.MESSAGE
    if isinstance(annotation, type) and issubclass(annotation, socket.socket):
        return Kind.CONNECTION
    return None


def _result_kind(function: Callable[..., object]) -> Kind | None:
    """Return the kind of protocol that a function without required parameters says it makes."""
    if _required(function):
        return None
    annotation = _hints(function).get("return")
    return _foreign_kind(annotation) if isinstance(annotation, type) else None


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _required(function: Callable[..., object]) -> list[inspect.Parameter]:
    """Return the positional parameters without a default."""
    found = _parameters(function)
    return [one for one in found if one.kind in _POSITIONAL and one.default is one.empty]


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        return []


def _annotation(function: Callable[..., object], parameter: inspect.Parameter) -> object:
    """Return the annotation of a parameter; its text if it is postponed and cannot be resolved."""
    if isinstance(parameter.annotation, str):
        return _hints(function).get(parameter.name, parameter.annotation)
    return parameter.annotation


def _hints(function: Callable[..., object]) -> dict[str, object]:
    """Return the annotations of a function by name; the text of one that cannot be resolved."""
    plain: Any = within(function)
    plain = inspect.unwrap(plain)
    routine = isinstance(plain, (types.FunctionType, types.MethodType))
    owner = plain if routine else type(plain).__call__
    try:
        return typing.get_type_hints(owner)
    except Exception:  # a name is known to type checkers only, or an expression raises
        found = getattr(owner, "__annotations__", {})
        return {name: resolved(one, names_of(owner)) for name, one in found.items()}


def names_of(owner: object) -> dict[str, object]:
    """Return the names that the annotations of a function or class can use."""
    owner = inspect.unwrap(owner) if callable(owner) else owner
    found = getattr(owner, "__globals__", None)
    if found is None:
        found = vars(sys.modules.get(str(getattr(owner, "__module__", "")), types))
    return dict(found)


def resolved(annotation: object, names: dict[str, object]) -> object:
    """Return an annotation, evaluated if it is postponed.

    Its text is returned if it cannot be evaluated, because names in it are imported under
    `if TYPE_CHECKING:`.
    """
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)  # noqa: S307 - code of the handler's own module
    except Exception:
        return _BY_NAME.get(annotation, annotation)


# These tell the kind of a handler, also if its module imports them under `if TYPE_CHECKING:`.
_BY_NAME = {"socket.socket": socket.socket, "socket": socket.socket}
