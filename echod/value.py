"""Frozen dataclasses that share the methods of one base class.

Python compiles six functions for each frozen dataclass. For those that every start needs, that was
a twentieth of it, half of that for the settings.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from typing import Any, ClassVar, NoReturn, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value:
    """Base of a frozen dataclass; `fields` and `replace` of `dataclasses` take its instances.

    Making one takes longer than with compiled functions: it is for what is made once or twice.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    __match_args__: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        """Set the fields to these values, and the others to their defaults.

        Raises:
            TypeError: a field has no value or two, or a value no field.
        """
        given = dict(zip(self.__match_args__, values, strict=False))
        if len(given) < len(values) or given.keys() & named:
            raise TypeError(f"{type(self).__name__} takes one value for each field")
        given.update(named)
        for one in fields(self):
            value = given.pop(one.name) if one.name in given else _default_of(one)
            if value is MISSING:
                raise TypeError(f"{type(self).__name__} needs {one.name}")
            object.__setattr__(self, one.name, value)
        if given:
            raise TypeError(f"{type(self).__name__} has no {', '.join(given)}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the values."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _compared(self) -> tuple[object, ...]:
        return tuple(getattr(self, one.name) for one in fields(self) if one.compare)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def __repr__(self) -> str:
        shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"


def _default_of(one: Field[Any]) -> object:
    return one.default if one.default_factory is MISSING else one.default_factory()
