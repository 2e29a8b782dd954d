"""Which keyword arguments a handler takes: by its signature, and by where it passes others on to.

`def __init__(self, *args, directory=None, **kwargs)` takes `directory`, and what the next class in
line takes, if it passes `kwargs` on.  If it keeps them itself, it takes any name.
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
    """The parameters of a handler beyond those that echod itself fills.

    Attributes:
        named: by name.
        required: the names of those that have to be given.
        any_name: whether others may be given too.
    """

    named: Mapping[str, inspect.Parameter] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    any_name: bool = False


def parameters_of(target: object) -> Parameters:
    """Return what may be given to `target`: a function, a class, or a partial of one."""
    made = class_of(target)
    if made is None and hasattr(target, "received"):  # an instance that is there already
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
            # Without a default it may be the class in between that gives it.
            named = {**_beyond(list(step.parameters.values()), filled + 1), **named}
            any_name = step.any_name
    return Parameters(named, required, any_name)


def _signature(target: Callable[..., object]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(target, eval_str=True).parameters.values())
    except NameError:  # an annotation that names nothing: it is left as it is
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # a builtin without one
        return None


def _beyond(parameters: Iterable[inspect.Parameter], filled: int) -> dict[str, inspect.Parameter]:
    """Return what can be given by name, once the first `filled` have been given by position."""
    left = list(parameters)
    positional = [one for one in left if one.kind is not one.KEYWORD_ONLY][:filled]
    # `*args` takes all that are left.
    before = next((one for one in positional if one.kind is one.VAR_POSITIONAL), None)
    taken = positional if before is None else positional[: positional.index(before)]
    return {one.name: one for one in left if one.kind in _NAMED and one not in taken}


def _takes_any(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


@dataclass(frozen=True)
class _Step:
    """A constructor in line: its parameters, and whether any name is taken from there on."""

    parameters: Mapping[str, inspect.Parameter]
    any_name: bool


def _passed_on(made: type) -> Iterator[_Step]:
    """Yield each constructor that keyword arguments may come to, the class's own included."""
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
    """Return whether a call in it has `**` before an argument."""
    return any(one.opname == "DICT_MERGE" for one in dis.get_instructions(constructor))
