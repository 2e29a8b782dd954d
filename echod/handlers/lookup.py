"""Find the handler that the text of `--handler` names, and prepare it to run.

`--handler NAME[:key=value,...]`, where NAME is, in this order:

1. `module:object`, imported;
2. a built-in handler; no plugin is loaded for it, so none can stop a daemon that runs it;
3. a plugin: an entry point in the group `echod.handlers`, or a Twisted plugin that provides
   `IHandlerPlugin`.

A plugin that is broken, or has the name of another handler, is an error if it is asked for, and a
line in the list of installed handlers; it does not hide any other.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from echod.handlers.builtin import HANDLERS
from echod.handlers.contract import (
    ConcurrencyModel,
    Handler,
    HandlerError,
    Kind,
    class_of,
    is_async,
    kind_of,
    models_for,
)
from echod.handlers.parameters import parameters_of
from echod.handlers.plugins import Offer, offers
from echod.text import clipped, escape, quoted, unescape

NUMBERS: Mapping[object, re.Pattern[str]] = {
    int: re.compile(r"[+-]?[0-9]+"),
    float: re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"),
}


@dataclass(frozen=True)
class HandlerSpec:
    """The parsed value of `--handler`.

    Attributes:
        name: an installed name, or `module:object`.
        arguments: texts by name.
        text: the original text; "" if there was none.
    """

    name: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.text:
            return self.text
        items = (f"{key}={value}".replace(",", "\\,") for key, value in self.arguments.items())
        return ":".join([self.name, *filter(None, [",".join(items)])])


@dataclass(frozen=True)
class ResolvedHandler:
    """A handler, found and checked against the concurrency model it will run in.

    Attributes:
        name: the name by which it was requested.
        kind: its kind.
        target: the function, or class, itself.
        arguments: keyword arguments, converted to the types that `target` declares.
    """

    name: str
    kind: Kind
    target: Callable[..., object]
    arguments: Mapping[str, object] = field(default_factory=dict)

    def message_handler(self) -> Handler:
        """Return the handler of one connection; a class is instantiated.

        Raises:
            Exception: any exception of the class's constructor.
        """
        if class_of(self.target) is not None:
            return cast("Handler", self.target(**self.arguments))
        if hasattr(self.target, "received"):  # an instance that serves every connection
            return cast("Handler", self.target)
        return _FunctionHandler(self.target, self.arguments)

    def try_constructor(self) -> None:
        """Make the handler of one connection, if it is a class, and drop it.

        An `OSError`, or a `RuntimeError` because no event loop runs yet, is ignored: its cause may
        be gone when a client connects.

        Raises:
            HandlerError: the constructor always fails.
        """
        if self.kind is not Kind.MESSAGE or class_of(self.target) is None:
            return
        try:
            Context().run(self.message_handler)
        except (OSError, RuntimeError):
            return
        except (Exception, SystemExit) as error:
            raise HandlerError(
                f"{escape(clipped(self.name))} cannot be made: {type(error).__name__}: "
                f"{escape(clipped(str(error), 300))}"
            ) from error

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


@dataclass(frozen=True)
class InstalledHandler:
    """A line of `echod handlers`; `error` is set if it could not be loaded."""

    name: str
    summary: str
    models: tuple[ConcurrencyModel, ...]
    origin: str
    error: str = ""


def parse(text: str) -> HandlerSpec:
    r"""Parse `NAME[:key=value,...]`; `\,` is a comma within a value, and `\:` a colon.

    Raises:
        HandlerError: the text has another form.
    """
    match = re.fullmatch(
        r"(?P<name>[^:=,]+(?::[^:=,]+)?)(?::(?P<arguments>[^:=,]+=.*))?", text, re.DOTALL
    )
    if match is None:
        raise HandlerError(
            f"{quoted(text)} is not of the form NAME[:key=value,...] "
            "(NAME: an installed name, or module:object)"
        )
    arguments: dict[str, str] = {}
    for item in re.split(r"(?<!\\),", match["arguments"] or "") if match["arguments"] else ():
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise HandlerError(
                f"{quoted(item)} is not of the form key=value (a comma within a value: \\,)"
            )
        if key in arguments:
            raise HandlerError(f"{quoted(key)} is given twice")
        arguments[key] = re.sub(r"\\([,:;& ])", r"\1", value)
    return HandlerSpec(match["name"], arguments, text)


def resolve(spec: HandlerSpec, model: ConcurrencyModel) -> ResolvedHandler:
    """Find the handler that `spec` names, and check that it can run in `model`.

    Raises:
        HandlerError: no handler has that name, it cannot be imported, it does not take the
            arguments, or it cannot run in that model.
    """
    target = find(spec.name)
    _check_separators(spec, parameters_of(target).named if callable(target) else ())
    return adopt(target, model, spec.name, spec.arguments)


def _check_separators(spec: HandlerSpec, parameters: Collection[str]) -> None:
    r"""Refuse `name:a=1:b=2` if `b` is an argument, too: with `\:` it is part of the value."""
    others = "|".join(re.escape(key) for key in parameters if key not in spec.arguments)
    written = spec.text[len(spec.name) + 1 :]
    wrong = re.compile(rf"(?<![\\,])([:;&\s])\s*({others})=")
    if not others or (found := wrong.search(written)) is None:
        return
    right = f"{spec.name}:" + wrong.sub(r",\2=", written)
    raise HandlerError(
        f"arguments are separated by commas: {escape(clipped(right, 200))} "
        f"(or, if {found[1]!r} belongs to the value, write \\{escape(found[1])})"
    )


def adopt(
    target: object,
    model: ConcurrencyModel,
    name: str = "",
    arguments: Mapping[str, str] | None = None,
) -> ResolvedHandler:
    """Return `target` as a handler, checked against the model it will run in.

    Args:
        target: a function, class or instance by the handler contract.
        model: the model it will run in.
        name: its name in errors; its own name by default.
        arguments: texts for its keyword parameters.

    Raises:
        HandlerError: it cannot run in that model, or does not take the arguments.
    """
    name = name or getattr(target, "__name__", type(target).__name__)
    kind = kind_of(target)
    able = models_for(target)
    if model not in able:
        what = "an async handler" if is_async(target) else f"a {kind} handler"
        raise HandlerError(
            f"{name} is {what}: it runs with --concurrency {' or '.join(able)}, not {model}"
        )
    if kind is None:
        threaded = model is ConcurrencyModel.THREAD_PER_CONNECTION
        kind = Kind.CONNECTION if threaded else Kind.MESSAGE
    converted = convert_arguments(name, target, arguments or {})
    _check_call(name, target, kind, converted)
    return ResolvedHandler(name, kind, target, converted)  # type: ignore[arg-type]


def find(name: str) -> object:
    """Return the object with this name.

    Raises:
        HandlerError: there is none, two plugins have the name, or it cannot be imported.
    """
    if ":" in name:
        return _import_target(name, name)
    return HANDLERS[name] if name in HANDLERS else _load(_offered(name))


def check_name(name: str) -> None:
    """Check that `name` could name a handler, without importing one.

    Raises:
        HandlerError: it is neither `module:object` nor the name of exactly one installed handler.
    """
    if ":" not in name and name not in HANDLERS:
        _offered(name)


def _offered(name: str) -> Offer:
    """Return the plugin of this name.

    Raises:
        HandlerError: there is none, or there are two, or it is broken.
    """
    plugins = _plugins()
    claims = [offer for offer in plugins if offer.name == name]
    if not claims:
        names = sorted({*HANDLERS, *(escape(offer.name) for offer in plugins if not offer.error)})
        raise HandlerError(
            f"no handler is named {quoted(name)}; installed: {', '.join(names)} "
            f"({_suggestion(name, names)})"
        )
    if len(claims) > 1:
        origins = ", ".join(offer.origin for offer in claims)
        raise HandlerError(
            f"{quoted(name)} is the name of {len(claims)} plugins: {origins}; give module:object"
        )
    if claims[0].error:
        raise HandlerError(f"{escape(clipped(name))}: {claims[0].error}")
    return claims[0]


def _plugins() -> list[Offer]:
    """Return the plugins, each object once for a name, with an error if that cannot be used."""
    found: dict[tuple[str, str], Offer] = {}
    for offer in offers():
        if not _is_builtin(offer):
            found.setdefault((offer.name, offer.target or offer.source), offer)
    return [
        replace(one, error=one.error or _misnamed(one, found.values())) for one in found.values()
    ]


def _misnamed(offer: Offer, others: Iterable[Offer]) -> str:
    """Return why a plugin cannot be selected by its name; "" if it can."""
    instead = f"give {escape(clipped(offer.target))}"
    if offer.name in HANDLERS:
        return f"echod has a built-in handler {offer.name}; {instead}"
    if rivals := [one.origin for one in others if one.name == offer.name and one != offer]:
        return f"{', '.join(rivals)} has the same name; {instead}"
    return "" if _can_be_named(offer.name) else f"--handler cannot name it so; {instead}"


def _can_be_named(name: str) -> bool:
    try:
        return ":" not in name and parse(name).name == name
    except HandlerError:
        return False


def _is_builtin(offer: Offer) -> bool:
    """Whether this is a built-in handler, offered again under its own name."""
    target: Any = HANDLERS.get(offer.name)
    return target is not None and offer.target == f"{target.__module__}:{target.__qualname__}"


def _suggestion(name: str, names: Sequence[str]) -> str:
    """Suggest a correction for a name that does not exist."""
    file = Path(f"{_module(name).replace('.', '/')}.py")
    if "\0" not in name and len(name) < 200 and file.is_file():
        there = escape(clipped(_module(name)))
        return f"{escape(clipped(str(file)))} is in this folder: give {there}:FUNCTION"
    if close := get_close_matches(name, names, 1):
        return f"did you mean {close[0]}?"
    module, _, attribute = _module(name).rpartition(".")
    if module and attribute:
        return f"or give module:object, as in {escape(clipped(f'{module}:{attribute}'))}"
    return "or give module:object"


def _module(path: str) -> str:
    """Return the module that a file's path may mean."""
    return path.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")


def installed() -> Iterator[InstalledHandler]:
    """Yield all handlers, by name; a broken one with its error."""
    found = [_described(name, target) for name, target in HANDLERS.items()]
    found += map(_plugin, _plugins())
    yield from sorted(found, key=lambda handler: (handler.name, handler.error, handler.origin))


def _plugin(offer: Offer) -> InstalledHandler:
    name = escape(clipped(offer.name))
    if offer.error:
        return InstalledHandler(name, "", (), offer.origin, error=offer.error)
    try:
        return replace(_described(name, _load(offer)), origin=offer.origin)
    except HandlerError as error:
        return InstalledHandler(name, "", (), offer.origin, error=str(error))
    except Exception as error:  # the object may raise when it is inspected
        why = f"{name} cannot be used: {type(error).__name__}: {escape(clipped(str(error), 300))}"
        return InstalledHandler(name, "", (), offer.origin, error=why)


def _described(name: str, target: object) -> InstalledHandler:
    return InstalledHandler(name, escape(_summary(target)), models_for(target), "echod")


def _load(offer: Offer) -> object:
    return _import_target(offer.target, offer.name)


def convert_arguments(name: str, target: object, texts: Mapping[str, str]) -> dict[str, object]:
    """Convert `texts` to the types that the parameters of `target` are annotated with.

    Raises:
        HandlerError: there is no such parameter, one is missing, or a text does not convert.
    """
    takes = parameters_of(target)
    unknown = [key for key in texts if key not in takes.named]
    if unknown and not takes.any_name:
        names = ", ".join(takes.named) or "none"
        raise HandlerError(
            f"{name} takes no argument {quoted(unknown[0])}; it takes: {names}"
            f"{_right_form(name, unknown[0], texts[unknown[0]], list(takes.named))}"
        )
    for key in takes.named:
        if key in takes.required and key not in texts:
            raise HandlerError(f"{name} needs the argument {key!r}: {name}:{key}=...")
    return {
        key: _convert(name, key, text, takes.named[key]) if key in takes.named else text
        for key, text in texts.items()
    }


def _right_form(name: str, key: str, text: str, parameters: Sequence[str]) -> str:
    """Suggest the correct form of an argument that the handler does not take."""
    if not parameters:
        return f"; write: {name}"
    close = get_close_matches(key, parameters, 1)
    word = "did you mean" if close else "as in"
    form = f"{name}:{(close or parameters)[0]}={text}"
    return f"; {word} {escape(clipped(form))}{'?' if close else ''}"


def _check_call(name: str, target: Any, kind: Kind, arguments: Mapping[str, object]) -> None:
    """Refuse a function that cannot take a message, or connection: its first client would fail."""
    called, given, made = target, [str(kind)], class_of(target)
    if made is not None:
        called, given, arguments = vars(made).get("received"), ["self", *given], {}
        if not isinstance(called, types.FunctionType):  # inherited, static, socketserver's, ...
            return
    elif hasattr(target, "received"):
        called = target.received
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # a builtin without one
        return
    try:
        signature.bind(*given, **arguments)
    except TypeError:
        wanted = ", ".join(given)
        raise HandlerError(f"{name} takes no {kind}: let its parameters be ({wanted})") from None


# Annotations that may still be text, because another one of the same function cannot be resolved.
_BUILTINS: Mapping[object, type] = {one.__name__: one for one in (str, int, float, bool, bytes)}


def _convert(handler: str, name: str, text: str, parameter: inspect.Parameter) -> object:
    wanted = _BUILTINS.get(parameter.annotation, parameter.annotation)
    if wanted is parameter.empty and parameter.default not in (parameter.empty, None):
        wanted = type(parameter.default)
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):  # `int | None`: an int
        wanted = next(one for one in typing.get_args(wanted) if one is not types.NoneType)
    try:
        if wanted is bytes:
            return unescape(text)
        if wanted is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
                text.lower()
            ]
        if wanted in NUMBERS:
            if not NUMBERS[wanted].fullmatch(text):  # Python would accept more notations
                raise ValueError
            return wanted(text)
    except (ValueError, KeyError):
        raise HandlerError(
            f"{handler}: {name}={escape(clipped(text))} is not of type {wanted.__name__}"
        ) from None
    return text


def _import_target(target: str, name: str) -> object:
    module, _, attribute = target.partition(":")
    try:
        return attrgetter(attribute)(import_module(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing it may raise anything
        hint = _hint(error, module, attribute)
        raise HandlerError(
            f"{escape(clipped(name))} cannot be imported: {type(error).__name__}: "
            f"{escape(clipped(str(error), 300))}{_place(error)}{hint and f'; {hint}'}"
        ) from error


def _place(error: BaseException) -> str:
    """Return the line of the user's code that raised; "" if the text of the error names it."""
    if isinstance(error, SyntaxError):
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename != __file__ and "importlib" not in frame.filename:
            return f" ({escape(frame.filename)}, line {frame.lineno})"
    return ""


def _hint(error: BaseException, module: str, attribute: str) -> str:
    """Return a remedy for a module, or a name in it, that does not exist."""
    meant = _module(module)
    if meant != module and isinstance(error, (ModuleNotFoundError, TypeError)):
        return f"write {escape(clipped(f'{meant}:{attribute}'))}"
    if isinstance(error, ModuleNotFoundError) and _is_part(error.name, module):
        if module in {*HANDLERS, *(offer.name for offer in offers())}:
            return f"an argument has a value: {escape(clipped(f'{module}:{attribute}'))}=..."
        return (
            f"{escape(clipped(module.replace('.', '/')))}.py has to be in {escape(os.getcwd())}, "
            "in a folder of PYTHONPATH, or installed"
        )
    if isinstance(error, AttributeError) and module in sys.modules:
        if hidden := _hidden(module):
            found = getattr(sys.modules[module], "__file__", None) or "built into Python"
            return f"that module is {escape(found)}, and hides {escape(hidden)}: rename yours"
        close = get_close_matches(attribute, dir(sys.modules[module]), 1)
        return f"did you mean {escape(f'{module}:{close[0]}')}?" if close else ""
    return ""


def _hidden(module: str) -> str:
    """Return the path of a module in the current folder that another one hides; "" if none is."""
    own = Path.cwd() / f"{module.replace('.', '/')}.py"
    found = getattr(sys.modules[module], "__file__", None)
    return str(own) if own.exists() and not (found and own.samefile(found)) else ""


def _is_part(name: str | None, module: str) -> bool:
    """Whether the missing module is the requested one, or a package that contains it."""
    return name is not None and f"{module}.".startswith(f"{name}.")


def _summary(target: object) -> str:
    return (inspect.getdoc(target) or "").partition("\n")[0]
