"""Find the handler that the text of `--handler` names, and prepare it to run.

`echod.handlers.naming` has the rules of names. Plugins are entry points in the group
`echod.handlers`, and Twisted plugins that provide `IHandlerPlugin`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from contextvars import Context
from dataclasses import field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from echod.handlers.builtin import HANDLERS
from echod.handlers.contract import (
    ConcurrencyModel,
    Handler,
    HandlerError,
)
from echod.handlers.factories import factory_of
from echod.handlers.kinds import (
    KINDS,
    Kind,
    class_of,
    is_async,
    is_protocol,
    kind_of,
    models_for,
    within,
)
from echod.handlers.naming import Catalogue, Installed, Spec, summary
from echod.handlers.parameters import described, parameters_of
from echod.handlers.service import Service
from echod.text import excerpt
from echod.user_code import told_with_place
from echod.value import Value

if TYPE_CHECKING:
    from echod.handlers.plugins import Offer


def _offers() -> list[Offer]:
    from echod.handlers.plugins import offered_handlers  # only for what is not built in

    return offered_handlers()


# The objects that `--handler` can name.
NAMES = Catalogue("handler", "FUNCTION", HANDLERS, HandlerError, _offers)


class ResolvedHandler(Value):
    """A handler, found and checked against the concurrency model it will run in.

    Attributes:
        name: the name by which it was requested.
        kind: its kind.
        target: the function, or class, itself.
        arguments: keyword arguments, converted to the types that `target` declares.
        service: the open service that it belongs to; None if it is no service's.
    """

    name: str
    kind: Kind
    target: Callable[..., object]
    arguments: Mapping[str, object] = field(default_factory=dict)
    service: Service | None = None

    def message_handler(self) -> Handler:
        """Return the handler of one connection; a class is instantiated.

        Raises:
            Exception: any exception of the class's constructor.
        """
        make = self._make
        return make()

    @functools.cached_property
    def _make(self) -> Callable[[], Handler]:
        target: Any = self.target
        if class_of(target) is not None:
            return functools.partial(target, **self.arguments) if self.arguments else target
        if hasattr(target, "received"):  # an instance that serves every connection
            return lambda: target
        return functools.partial(_FunctionHandler, target, self.arguments)

    def try_constructor(self) -> None:
        """Make the handler of one connection, if it is a class or a maker of asyncio protocols,
        and drop it.

        An `OSError`, or a `RuntimeError` because no event loop runs yet, is ignored: its cause may
        be gone when a client connects.

        Raises:
            HandlerError: the constructor always fails.
        """
        if self.kind is Kind.PROGRAM:
            program: Any = self.target
            program.check()
        is_class = class_of(self.target) is not None
        if self.kind is not Kind.ASYNCIO_PROTOCOL and not (self.kind is Kind.MESSAGE and is_class):
            return
        make = self.message_handler if self.kind is Kind.MESSAGE else self.converse
        try:
            made = Context().run(make)
        except (OSError, RuntimeError):
            return
        except (Exception, SystemExit) as error:
            raise HandlerError(
                f"{excerpt(self.name)} cannot be made: {told_with_place(error)}"
            ) from error
        if self.kind is Kind.ASYNCIO_PROTOCOL and not is_protocol(made):
            raise HandlerError(
                f"{excerpt(self.name)} makes a {type(made).__name__}, which is no asyncio protocol"
            )

    def converse(self, *given: object) -> object:
        """Call a connection handler with the arguments it gets; the first is its connection."""
        return self.target(*given, **self.arguments)


class _FunctionHandler(Handler):
    """A plain function as a message handler without state."""

    __slots__ = ("received",)

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, object]) -> None:
        # An attribute of the instance, so that a call costs no more than the function.
        self.received = (  # type: ignore[method-assign]
            (lambda message: function(message, **arguments)) if arguments else function
        )


def parse(text: str) -> Spec:
    """Parse the text of `--handler`.

    Raises:
        HandlerError: the text has another form than `NAME[:key=value,...]`.
    """
    return NAMES.parse(text)


def resolve(spec: Spec, model: ConcurrencyModel, target: object = None) -> ResolvedHandler:
    """Find the handler that `spec` names, and check that it can run in `model`.

    Args:
        spec: its name and its arguments.
        model: the model it will run in.
        target: what has been found by its name; None: look it up.

    Raises:
        HandlerError: no handler has that name, it cannot be imported, it does not take the
            arguments, or it cannot run in that model.
    """
    if target is None:
        target = NAMES.find(spec.name)
    NAMES.check_separators(spec, parameters_of(target).named if callable(target) else ())
    return adopt(target, model, spec.name, spec.arguments)


def adopt(
    target: object,
    model: ConcurrencyModel,
    name: str = "",
    arguments: Mapping[str, str] | None = None,
    service: Service | None = None,
) -> ResolvedHandler:
    """Return `target` as a handler, checked against the model it will run in.

    Args:
        target: a function, class or instance by the handler contract.
        model: the model it will run in.
        name: its name in errors; its own name by default.
        arguments: texts for its keyword parameters.
        service: the open service that has yielded it; None if no service has.

    Raises:
        HandlerError: it cannot run in that model, or does not take the arguments.
    """
    whole = within(target)
    name = name or getattr(whole, "__name__", type(whole).__name__)
    kind = kind_of(target)
    able = models_for(target)
    traits = KINDS[kind or Kind.MESSAGE]
    if model not in able:
        what = "an async handler" if traits.takes_messages and is_async(target) else traits.words
        if kind is Kind.SERVICE:
            what = "an async service"
        raise HandlerError(
            f"{name} is {what}: it runs with --concurrency {' or '.join(able)}, not {model}"
        )
    if kind is None:
        threaded = model is ConcurrencyModel.THREAD_PER_CONNECTION
        kind = Kind.CONNECTION if threaded else Kind.MESSAGE
    plain = isinstance(target, types.FunctionType) and not arguments
    if plain and (hint := _wrong_parameters(target, kind)):
        raise HandlerError(f"{name}: {hint}")
    if kind is Kind.CONNECTION:
        target = _given_the_address(target, arguments or {})
    converted = NAMES.convert_arguments(name, parameters_of(target), arguments or {}, target)
    if kind is Kind.PROGRAM and class_of(target) is not None:
        return ResolvedHandler(name, kind, target(**converted))  # type: ignore[operator]
    if kind is Kind.TWISTED_PROTOCOL:
        factory: Any = factory_of(name, target, converted)
        return ResolvedHandler(name, kind, factory)
    _check_call(name, target, kind, converted)
    if kind is Kind.SERVICE and isinstance(target, functools.partial):
        converted = {**target.keywords, **converted}
        target = whole
    return ResolvedHandler(name, kind, target, converted, service)  # type: ignore[arg-type]


def check_name(name: str) -> None:
    """Check that `name` could name a handler, without importing one.

    Raises:
        HandlerError: it is neither `module:object` nor the name of exactly one installed handler.
    """
    NAMES.check_name(name)


def installed() -> list[Installed]:
    """Return all handlers, by name; a broken one with its error."""
    return NAMES.installed(_described)


def _described(name: str, target: object) -> Installed:
    kind = kind_of(target)
    taken = _given_the_address(target, {}) if kind is Kind.CONNECTION else target
    arguments = described(parameters_of(taken))
    notes = notes_on(kind, models_for(target))
    return Installed(name, summary(target), "echod", arguments, notes=notes)


def notes_on(kind: Kind | None, models: Collection[ConcurrencyModel]) -> str:
    """Return the kind of a handler, and the models it can run in, as a line of the list has them.

    Args:
        kind: None if the concurrency model decides.
        models: the concurrency models that it can run in.
    """
    shown = f"{Kind.MESSAGE} or {Kind.CONNECTION}" if kind is None else kind
    every = len(models) == len(ConcurrencyModel)
    return f"{shown}; {'every model' if every else ', '.join(models)}"


def _wrong_parameters(function: Any, kind: Kind) -> str:
    """Return the remedy for a function whose parameters are those of another library's; "" if
    they are not.
    """
    if function.__defaults__:
        return ""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    is_coroutine = inspect.iscoroutinefunction(function)
    if kind is Kind.MESSAGE and not is_coroutine and len(names) == 2 and names[1] in _ADDRESSES:
        return "it takes a socket: it runs with --concurrency thread-per-connection"
    if kind is Kind.MESSAGE and is_coroutine and names[1:] == ("reader", "writer"):
        return f"let its parameters be (reader, writer, *, {names[0]})"
    if not is_coroutine and names == ("reader", "writer"):
        return "a handler of asyncio streams is a coroutine: make it async def"
    if kind is Kind.MESSAGE and is_coroutine and not inspect.signature(function).parameters:
        return "it takes no message: name the function that it gives to start_server"
    return ""


# The parameter for the client's address, as `accept` returns it: `handle(conn, addr)`.
_ADDRESSES = ("addr", "address", "client_address")


def _given_the_address(target: Any, arguments: Mapping[str, object]) -> Any:
    """Return a connection handler that takes the socket alone.

    If its second parameter is for the address, and no argument of the handler is, it is given that
    of the client.
    """
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # a builtin without one
        return target
    parameters = list(signature.parameters.values())
    if class_of(target) is not None or len(parameters) < 2:
        return target
    address = parameters.pop(1)
    if address.name not in _ADDRESSES or address.name in arguments:
        return target
    if address.default is not address.empty or address.kind is address.KEYWORD_ONLY:
        return target

    @functools.wraps(target)
    def converse(conn: Any, **more: object) -> object:
        return target(conn, conn.getpeername(), **more)

    converse.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return converse


def _check_call(name: str, target: Any, kind: Kind, arguments: Mapping[str, object]) -> None:
    """Refuse a function that cannot take its arguments: its first client would fail."""
    made = class_of(target)
    if made is None and not hasattr(target, "received"):
        _check_takes(name, str(kind), target, KINDS[kind].given, arguments)
    elif kind is Kind.MESSAGE:
        for hook, given in _HOOKS.items():
            subject = name if hook == "received" else f"{name}: `{hook}`"
            if made is None:
                _check_takes(subject, given, getattr(target, hook, None), (given,))
            # Static, a builtin, of another kind, ...
            elif isinstance(plain := inspect.getattr_static(made, hook, None), types.FunctionType):
                _check_takes(subject, given, plain, ("self", given))
            if hook != "received":
                _check_gives_no_pieces(subject, getattr(target, hook, None))


def _check_gives_no_pieces(subject: str, hook: object) -> None:
    """Refuse a generator where no stream is sent: its code would never run."""
    if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
        raise HandlerError(f"{subject} must not yield: send the pieces by client.send")


# The methods of a message handler, and what each is given.
_HOOKS = MappingProxyType({"received": "message", "opened": "client", "closed": "reason"})


def _check_takes(
    subject: str,
    noun: str,
    called: Any,
    given: tuple[str, ...],
    arguments: Mapping[str, object] = MappingProxyType({}),
) -> None:
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # a builtin without one, or no function
        return
    try:
        signature.bind(*given, **arguments)
    except TypeError:
        remedy = f"let its parameters be ({', '.join(given)})"
        if given == KINDS[Kind.MESSAGE].given and not signature.parameters:
            # As for `loop.create_server`.
            remedy += "; if it makes a protocol, mark it with @protocol_factory"
        raise HandlerError(f"{subject} takes no {noun}: {remedy}") from None
