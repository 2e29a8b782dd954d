"""The grammar of `--fault`, and every fault there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from echod.errors import UserError
from echod.faults.arrival import KEYS, Arrival, ConnectTimeout, Refuse, SlowAccept
from echod.faults.content import Corrupt, Drop, Duplicate, Endless, Garbage, Truncate
from echod.faults.ends import Close, HalfClose, NeverClose, Reset
from echod.faults.items import Direction
from echod.faults.keys import key_of, parse_after_seconds
from echod.faults.silence import NeverAnswer, NeverRead, NoBanner
from echod.faults.stage import Fault, Rule, Selection
from echod.faults.times import Bandwidth, Delay, Drip, Slice, Stall
from echod.faults.tls import Alert, CutHandshake, NoCloseNotify, StallHandshake, WrongCertificate
from echod.text import did_you_mean, excerpt, quoted


class FaultError(UserError):
    """The text of a `--fault` is wrong."""


FAULTS: Mapping[str, type[Fault]] = {
    one.name: one
    for one in (
        Reset,
        Close,
        HalfClose,
        NeverClose,
        Delay,
        Stall,
        Bandwidth,
        Slice,
        Drip,
        Corrupt,
        Drop,
        Duplicate,
        Truncate,
        Garbage,
        Endless,
        NeverRead,
        NeverAnswer,
        NoBanner,
        Refuse,
        ConnectTimeout,
        SlowAccept,
        StallHandshake,
        CutHandshake,
        WrongCertificate,
        NoCloseNotify,
        Alert,
    )
}


def parse_fault(text: str) -> Rule:
    r"""Parse `NAME[:key=value,...]`; in a value `\,` is a comma, and `\\` a backslash.

    Raises:
        FaultError: there is no such fault, or it takes no such key or value.
    """
    name, colon, rest = text.partition(":")
    kind = FAULTS.get(name)
    if kind is None:
        if re.split("[ ,=]", name)[0] in FAULTS:
            hint = "keys follow a colon, as in reset:after=10"
        else:
            hint = did_you_mean(name, FAULTS) or f"there are: {', '.join(FAULTS)}"
        raise FaultError(f"no fault is named {quoted(name)}; {hint}")
    own, common = keys_of(kind), keys_of(Selection)
    directions: dict[str, object] = {"direction": kind.directions}
    if issubclass(kind, Arrival):
        common, directions = {word: common[word] for word in KEYS}, {}
        common["after"] = parse_after_seconds
    known = [*own, *common, *(directions if len(kind.directions) > 1 else ())]
    values: dict[str, object] = {}
    for word, equals, value in _arguments(rest) if colon else ():
        if not equals:
            takes = f"{name} takes: {', '.join(known)}"
            raise FaultError(f"{quoted(word)} is not of the form key=value; {takes}")
        if word in values:
            raise FaultError(f"{name}: {word} is given twice")
        if word not in {**own, **common, **directions}:
            hint = did_you_mean(word, known) or f"it takes: {', '.join(known)}"
            raise FaultError(f"{name} takes no key {quoted(word)}; {hint}")
        parse = own.get(word) or common.get(word) or _direction(kind)
        try:
            values[word] = parse(value)
        except ValueError as error:
            raise FaultError(f"{name}: {word}={excerpt(value)} is not {error}") from None
    _check(name, values)
    fault = kind(**_by_field(kind, values))
    selection = Selection(**_by_field(Selection, values))
    if objection := fault.objection(selection):
        raise FaultError(f"{name}: {objection}")
    direction = Direction(str(values.get("direction", kind.directions[0])))
    return Rule(text, fault, direction, selection)


def keys_of(kind: type[Fault] | type[Selection]) -> dict[str, Callable[[str], object]]:
    """Return the keys of a fault, or those that all faults have, with their parsers."""
    return {key_of(one.name): one.metadata["parse"] for one in fields(kind)}


def _by_field(kind: type[Fault] | type[Selection], values: Mapping[str, object]) -> dict[str, Any]:
    names = {key_of(one.name): one.name for one in fields(kind)}
    return {names[word]: value for word, value in values.items() if word in names}


def _direction(kind: type[Fault]) -> Callable[[str], Direction]:
    def parse(text: str) -> Direction:
        if text not in [one.value for one in kind.directions]:
            raise ValueError(" or ".join(one.value for one in kind.directions))
        return Direction(text)

    return parse


def _check(name: str, values: Mapping[str, object]) -> None:
    if values.get("jitter") and values.get("sigma"):
        raise FaultError(f"{name}: jitter and sigma contradict each other")


def _arguments(text: str) -> Iterator[tuple[str, str, str]]:
    r"""Split `key=value,...` where a comma has no backslash before it; and each at its `=`."""
    items = [""]
    for part in re.findall(r"\\.|\\$|,|[^,\\]+", text, re.DOTALL):
        if part == ",":
            items.append("")
        else:
            items[-1] += part
    for item in items:
        word, equals, value = item.partition("=")
        yield word, equals, re.sub(r"\\([\\,])", r"\1", value)
