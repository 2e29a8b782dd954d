from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from echod.limits import Limits


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_a_negative_limit_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        Limits(**{name: -1})


def test_limits_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().linger = 1.0  # type: ignore[misc]
