"""Frozen dataclasses that share their methods."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, field, fields, replace
from typing import Any

import pytest

from echod.value import Value


class Place(Value):
    """A place on a list."""

    name: str
    row: int = 1
    notes: list[str] = field(default_factory=list)
    source: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.row < 1:
            raise ValueError("rows begin at 1")


class Seat(Place):
    """A place with a number."""

    number: int = 7


def test_values_are_given_by_place_or_by_name_and_others_are_the_defaults() -> None:
    one = Seat("a", number=3)
    assert (one.name, one.row, one.notes, one.number) == ("a", 1, [], 3)
    assert [each.name for each in fields(one)] == ["name", "row", "notes", "source", "number"]
    assert Place("b").notes is not Place("b").notes
    with pytest.raises(ValueError, match="rows begin at 1"):
        Place("a", 0)


@pytest.mark.parametrize(
    ("values", "named", "error"),
    [
        ((), {}, "Place needs name"),
        ((), {"name": "a", "nmae": "b", "x": 1}, "Place has no nmae, x"),
        (("a", 1, [], "", 5), {}, "Place takes one value for each field"),
        (("a",), {"name": "b"}, "Place takes one value for each field"),
    ],
)
def test_what_is_missing_unknown_or_too_much_is_refused(
    values: tuple[Any, ...], named: dict[str, Any], error: str
) -> None:
    with pytest.raises(TypeError, match=error):
        Place(*values, **named)


def test_values_are_equal_by_the_fields_that_count() -> None:
    assert Place("a", source="x") == Place("a", source="y")
    assert Place("a") != Place("b")
    assert Seat("a") != Place("a")
    assert hash(Place("a", notes=())) == hash(Place("a", notes=(), source="y"))  # type: ignore[arg-type]
    assert repr(Place("a", source="x")) == "Place(name='a', row=1, notes=[])"


def test_it_is_not_changed_but_replaced() -> None:
    one: Any = Place("a")
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'row'"):
        one.row = 2
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'row'"):
        del one.row
    assert replace(one, row=2) == Place("a", 2)
    with pytest.raises(ValueError, match="rows begin at 1"):
        replace(one, row=0)


def test_it_is_copied() -> None:
    one = Place("a", 2, ["b"])
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
