"""The faults and their keys in words, as `echod faults` prints them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import Field, fields

from echod.faults.arrival import KEYS, Arrival
from echod.faults.grammar import FAULTS
from echod.faults.items import Direction
from echod.faults.keys import key_of
from echod.faults.stage import OUT_FIRST, Fault, Selection

_DIRECTION_MEANS = (
    f"`{Direction.OUT.value}`: in what the server sends; `{Direction.IN.value}`: in what the "
    "client sends; only where the list above names none"
)
_DIRECTION = (f"direction={OUT_FIRST[0].value}", _DIRECTION_MEANS)


def listing() -> Iterator[str]:
    """Return lines: each fault with its own keys, and then the keys that all of them take."""
    width = max(map(len, FAULTS))
    for name, kind in FAULTS.items():
        notes = f" [{where}]" if (where := _where(kind)) else ""
        yield f"{name:{width}}  {_summary(kind)}{notes}"
        yield from _table(map(_described, fields(kind)), width + 4)
    yield ""
    yield "All of them take these keys, too:"
    yield from _table([*map(_described, fields(Selection)), _DIRECTION], 2)
    yield f"But those of a listener take only {' (in seconds) and '.join(KEYS)} of these."


def _summary(kind: type[Fault]) -> str:
    return str(kind.__doc__).partition("\n")[0]


def _where(kind: type[Fault]) -> str:
    """Return where a fault works, if that cannot be chosen."""
    if issubclass(kind, Arrival):
        return "listener"
    if kind.needs_tls:
        return "TLS"
    return f"direction={kind.directions[0].value}" if len(kind.directions) == 1 else ""


def _described(one: Field[object]) -> tuple[str, str]:
    """Return a key, with its default if that can be written, and its meaning."""
    key, default = key_of(one.name), one.default
    text = f"{default:g}" if isinstance(default, float) else str(default)
    try:
        is_written = default not in (None, "") and one.metadata["parse"](text) == default
    except ValueError:
        is_written = False  # such as for ever
    return f"{key}={text}" if is_written else key, one.metadata["meaning"]


def _table(rows: Iterable[tuple[str, str]], margin: int) -> Iterator[str]:
    known = list(rows)
    width = max((len(key) for key, _ in known), default=0)
    for key, meaning in known:
        yield f"{'':{margin}}{key:{width}}  {meaning}"
