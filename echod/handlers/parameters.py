"""Find the keyword arguments that a handler takes, from its signature and its base classes'.

`def __init__(self, *args, directory=None, **kwargs)` takes `directory`, and the arguments of the
next class in line, if it passes `kwargs` on. If it keeps them itself, it takes any name.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from echod.handlers.contract import class_of, is_request_handler

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Parameters:
    """The parameters of a handler, except those that echod itself fills.

    Attributes:
        named: the parameters by name.
        required: the names of the mandatory ones.
        any_name: whether other names are allowed too.
    """

    named: Mapping[str, inspect.Parameter] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    any_name: bool = False


def parameters_of(target: object) -> Parameters:
    """Return the parameters of `target`: a function, a class, or a partial of one."""
    made = class_of(target)
    if made is None and hasattr(target, "received"):  # an existing instance
        return Parameters()
    assert callable(target)
    # A function's first is the message, or the connection.
    filled = 1 if made is None else 3 if is_request_handler(target) else 0
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
        return list(inspect.signature(target, eval_str=True).parameters.values())
    except NameError:  # an annotation that cannot be resolved stays as it is
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # a builtin without one
        return None


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


@dataclass(frozen=True)
class _Step:
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
