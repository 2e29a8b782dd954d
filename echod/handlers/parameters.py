"""Find the keyword arguments that a handler takes, from its signature and its base classes', and
convert texts to their types.

`def __init__(self, *args, directory=None, **kwargs)` takes `directory`, and the arguments of the
next class in line, if it passes `kwargs` on. If it keeps them itself, it takes any name.
"""

from __future__ import annotations

import dis
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from echod.errors import UserError
from echod.handlers.kinds import class_of, given_to, names_of, resolved, within
from echod.text import clipped, escape, excerpt, unescape, unescaped

NUMBERS: Mapping[object, str] = {
    int: r"[+-]?[0-9]+",
    float: r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?",
}
# How an error says that the values of a type are written.
_WRITTEN: Mapping[object, str] = {
    int: "a whole number, as in 65536",
    float: "a number, as in 90 or 0.5",
    bool: "true or false",
    bytes: r"text in which \n, \r, \t, \\ and \x1b are escapes",
}
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

# Annotations of a base class's constructor may still be text.
_BUILTINS: Mapping[object, type] = {one.__name__: one for one in (str, int, float, bool, bytes)}

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Parameters(NamedTuple):
    """The parameters of a handler, except those that echod itself fills.

    Attributes:
        named: the parameters by name.
        required: the names of the mandatory ones.
        any_name: whether other names are allowed too.
    """

    named: Mapping[str, inspect.Parameter] = MappingProxyType({})
    required: frozenset[str] = frozenset()
    any_name: bool = False


def parameters_of(target: object) -> Parameters:
    """Return the parameters of a handler: a function, a class, or a partial of one."""
    made = class_of(target)
    if made is None and (hasattr(target, "received") or not callable(target)):
        return Parameters()  # an existing instance
    assert callable(target)
    return keywords_of(target, len(given_to(target)))


def keywords_of(target: Callable[..., object], filled: int) -> Parameters:
    """Return the parameters of `target`, without the first `filled` positional ones."""
    made = class_of(target)
    own = _signature(target)
    if own is None:
        return Parameters()
    named = _beyond(own, filled)
    required = frozenset(name for name, one in named.items() if one.default is one.empty)
    any_name = _takes_any(own)
    if any_name and made is not None:
        for step in _passed_on(made):
            # The class in between may give a value for a parameter without a default.
            named = {**_beyond(list(step.parameters.values()), filled + 1), **named}
            any_name = step.any_name
    return Parameters(named, required, any_name)


def _signature(target: Callable[..., object]) -> list[inspect.Parameter] | None:
    try:
        found = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # a builtin without one
        return None
    names = names_of(within(target))
    return [one.replace(annotation=resolved(one.annotation, names)) for one in found]


def _beyond(parameters: Iterable[inspect.Parameter], filled: int) -> dict[str, inspect.Parameter]:
    """Return the parameters that can be given by name after `filled` positional ones."""
    left = list(parameters)
    positional = [one for one in left if one.kind is not one.KEYWORD_ONLY][:filled]
    # `*args` takes all remaining ones.
    before = next((one for one in positional if one.kind is one.VAR_POSITIONAL), None)
    taken = positional if before is None else positional[: positional.index(before)]
    return {one.name: one for one in left if one.kind in _NAMED and one not in taken}


def _takes_any(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


class _Step(NamedTuple):
    """A constructor in line: its parameters, and whether any name is allowed from there on."""

    parameters: Mapping[str, inspect.Parameter]
    any_name: bool


def _passed_on(made: type) -> Iterator[_Step]:
    """Yield each constructor that keyword arguments may reach, including the class's own."""
    constructors = [vars(one)["__init__"] for one in made.__mro__[:-1] if "__init__" in vars(one)]
    for constructor in constructors:
        if not isinstance(constructor, types.FunctionType):
            return
        parameters = inspect.signature(constructor).parameters
        takes_any = _takes_any(parameters.values())
        passes = takes_any and _passes_on(constructor)
        is_last = constructor is constructors[-1]
        yield _Step(parameters, takes_any and (not passes or is_last))
        if not passes:
            return


def _passes_on(constructor: types.FunctionType) -> bool:
    """Return whether a call in the constructor has an argument with `**`."""
    return any(one.opname == "DICT_MERGE" for one in dis.get_instructions(constructor))


class Unconvertible(UserError):
    """A text is not of the type of its parameter; the text of the error says so."""


def convert(text: str, parameter: inspect.Parameter) -> object:
    """Convert `text` to the type that `parameter` is annotated with, or that its default has.

    Raises:
        Unconvertible: it is not of that type.
    """
    wanted = _type_of(parameter)
    shown = f"{parameter.name}={excerpt(text)}"
    if typing.get_origin(wanted) is typing.Literal:
        values = {_shown(value): value for value in typing.get_args(wanted)}
        if text not in values:
            raise Unconvertible(f"{shown} is not one of: {', '.join(values)}")
        return values[text]
    try:
        if wanted is bytes:
            return unescape(text)
        if wanted is bool:
            return TRUTHS[text.lower()]
        if wanted in NUMBERS:
            if not re.fullmatch(NUMBERS[wanted], text):  # Python would accept more notations
                raise ValueError
            return int(text) if wanted is int else float(text)
    except (ValueError, KeyError):
        raise Unconvertible(
            f"{shown} is not of type {_named(wanted)}: write {_WRITTEN[wanted]}"
        ) from None
    return text


def described(parameters: Parameters) -> tuple[str, ...]:
    """Describe each parameter for people, as in `times: int = 1`."""
    shown = tuple(
        f"{name}: {_named(_type_of(one))}{_default(one, required=name in parameters.required)}"
        for name, one in parameters.named.items()
    )
    return (*shown, "any other") if parameters.any_name else shown


def _type_of(parameter: inspect.Parameter) -> object:
    """Return the type that a text is converted to; any that is not known here stays a text."""
    wanted = _BUILTINS.get(parameter.annotation, parameter.annotation)
    if wanted is parameter.empty and parameter.default not in (parameter.empty, None):
        wanted = type(parameter.default)
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):  # `int | None`: an int
        wanted = next(one for one in typing.get_args(wanted) if one is not types.NoneType)
    return wanted


def _named(wanted: object) -> str:
    """Return the name of a type, as the list of arguments and errors have it."""
    if typing.get_origin(wanted) is typing.Literal:
        return "|".join(map(_shown, typing.get_args(wanted)))
    return wanted.__name__ if isinstance(wanted, type) and wanted in _BUILTINS.values() else "str"


def _default(parameter: inspect.Parameter, *, required: bool) -> str:
    if required:
        return ", required"
    if parameter.default in (parameter.empty, None):  # a base class has it, or nothing is set
        return ""
    return f" = {clipped(_shown(parameter.default))}"


def _shown(value: object) -> str:
    """Return the text that stands for `value` in an argument."""
    if isinstance(value, bool):
        return str(value).lower()
    return unescaped(value) if isinstance(value, bytes) else escape(str(value))
