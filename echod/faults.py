r"""Faults on purpose: the grammar of `--fault`, the choice of connections, and each fault itself.

A fault is a stage in one direction of a connection: it takes items (a piece of data, the end of
the stream, an act such as a reset), each with the time at which it is due, and passes on others.
A `Course` is the stages of one direction, in their order.

Guarantees:

* A decision depends on the seed, the fault, the listener, the connection's number there, and the
  offset of a byte in its stream: never on how reads fell. Two runs in which clients connect in the
  same order get the same bytes and the same acts. Only `after=` with seconds depends on time.
* Every time is computed at once, when an item comes: a stage has no timer. Items stay in order,
  so no item is due before the one ahead of it.

Pure: `echod.connections.faulty` waits, reads and writes.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum, StrEnum
from hashlib import blake2b
from statistics import NormalDist
from typing import Any, ClassVar, NamedTuple, TypeVar

from echod.errors import UserError
from echod.text import clipped, did_you_mean, escape, quoted

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# A draw of `delay` is for so many bytes: short enough that short messages have a draw each.
BLOCK = 64
# How many pieces `bandwidth` sends a second, and their largest size in bytes.
PACE = 20
LARGEST = 16 * 1024


class FaultError(UserError):
    """The text of a `--fault` is wrong."""


class Direction(StrEnum):
    """The direction of a stream, as the server sees it."""

    IN = "in"
    OUT = "out"


# Items.


class Act(Enum):
    """An action on the whole connection."""

    RESET = "reset"
    CLOSE = "close"
    HALF_CLOSE = "half-close"
    STOP_READING = "stop reading"


class Item(NamedTuple):
    """One item of a stream: data, or if there is none an act, or else the end of the stream.

    Attributes:
        due: when it is due, in seconds, by the clock of the caller.
        data: bytes; b"" for the others.
        act: the act.
    """

    due: float
    data: bytes = b""
    act: Act | None = None


# Draws.


class Draws:
    """Numbers that look random, each of which depends on the key and its own number alone."""

    def __init__(self, *key: object) -> None:
        """Set up for everything that the key names, the seed first."""
        self._key = blake2b(repr(key).encode(), digest_size=32).digest()

    def uniform(self, number: int) -> float:
        """Return draw `number`, between 0 and 1, both excluded."""
        drawn = blake2b(number.to_bytes(8, "big"), key=self._key, digest_size=7).digest()
        return ((int.from_bytes(drawn, "big") >> 3) + 0.5) / 2**53

    def block(self, number: int) -> bytes:
        """Return 64 bytes."""
        return blake2b(number.to_bytes(8, "big"), key=self._key, digest_size=64).digest()


# Values of keys.


@dataclass(frozen=True)
class After:
    """When a fault begins: after so many bytes of its direction, or seconds of the connection."""

    size: int = 0
    seconds: float | None = None


def _number(text: str) -> float:
    if not re.fullmatch(r"(0|[1-9][0-9]{0,14})(\.[0-9]{1,9})?|\.[0-9]{1,9}", text):
        raise ValueError("a number, as in 10 or 0.5")
    return float(text)


def _whole(least: int, most: int = 2**40) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"0|[1-9][0-9]{0,14}", text) or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    number = text.removesuffix("s")
    try:
        value = _number(number)
    except ValueError:
        value = math.inf
    if value > 10**7:
        raise ValueError("a number of seconds, up to 10000000, as in 0.2 or 2s")
    return value


def _pause(text: str) -> float:
    value = _seconds(text)
    if value < 0.001:
        raise ValueError("a number of seconds from 0.001, as in 0.2")
    return value


def _share(text: str) -> float:
    try:
        value = _number(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError("a share above 0, up to 1, as in 0.1")
    return value


def _after(text: str) -> After:
    if re.fullmatch(r"0|[1-9][0-9]{0,14}", text):
        return After(int(text))
    if text.endswith("s") and not text.endswith("msgs"):
        return After(seconds=_seconds(text))
    raise ValueError("a number of bytes, or of seconds with an s, as in 10 or 2s")


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("a network, as in 10.0.0.0/8 or fd00::/8, or an address") from None


def _text(text: str) -> str:
    return text


def key(default: T, parse: Callable[[str], object], meaning: str) -> T:
    """Return a dataclass field that is a key of a fault.

    Args:
        default: its value if it is not given.
        parse: converts its text; raises ValueError with a description of the accepted values.
        meaning: its meaning, for the documentation.
    """
    return field(default=default, metadata={"parse": parse, "meaning": meaning})


# The keys that every fault has.


@dataclass(frozen=True)
class Selection:
    """Which connections a fault selects, and from when on it works there. All must hold."""

    after: After = key(
        After(), _after, "from which byte of its direction on, or after how many seconds (`2s`)"
    )
    p: float = key(1.0, _share, "the share of the connections")
    every: int = key(1, _whole(1), "only each so many connections of a listener: 10 is the tenth")
    first: int = key(0, _whole(1), "only so many connections, the first of a listener")
    at_most: int = key(0, _whole(1), "at most so many connections of a listener")
    source: Network | None = key(None, _network, "only clients of this network")
    listener: str = key("", _text, "only this listener: its number, from 1, or its endpoint")


# A field's name, where it is not the key's.
_KEYS = {"source": "from"}


def key_of(name: str) -> str:
    """Return the key that a field is written as."""
    return _KEYS.get(name, name.replace("_", "-"))


# Stages.


class Stage:
    """One fault at work in one direction of one connection.

    This base passes everything on, and finds the place where the fault begins.

    Attributes:
        happened: whether it has changed anything so far.
        wake_at: when `wake` has to be called although nothing comes, in seconds; inf: never.
    """

    # Whether the fault begins by itself, also while nothing comes.
    begins_alone: ClassVar[bool] = False

    def __init__(self, rule: Rule, draws: Draws, now: float) -> None:
        """Set up, at the start of a connection."""
        self.fault: Any = rule.fault
        self.draws = draws
        self.happened = False
        self.wake_at = math.inf
        self._after = rule.selection.after
        self._working = False
        # How many bytes have come; how many of them since the fault began.
        self._offset = 0
        self.seen = 0
        # When the last item is due.
        self._last = 0.0
        self._begins = math.inf if self._after.seconds is None else now + self._after.seconds
        if self.begins_alone:
            self.wake_at = self._begins

    def start(self, now: float) -> Iterator[Item]:
        """Begin at once, if it is to begin with the connection."""
        if not self._after.size and not self._after.seconds:
            yield from self._begin_at(now)

    def wake(self, now: float) -> Iterator[Item]:
        """Begin by time."""
        if not self._working and now >= self._begins:
            yield from self._begin_at(now)

    def take(self, item: Item) -> Iterator[Item]:
        """Take the next item, and pass on others."""
        if not self._working and item.due >= self._begins:
            yield from self._begin_at(item.due)
        if not item.data:
            yield from self._other(item)
        elif self._working:
            yield from self._work_on(item)
        else:
            yield from self._before(item)

    def _before(self, item: Item) -> Iterator[Item]:
        """Take data before, or around, the place where it begins."""
        room = len(item.data) if self._after.seconds else self._after.size - self._offset
        early, late = item.data[:room], item.data[room:]
        self._offset += len(item.data)
        if early:
            yield self.on_time(item.due, early)
        if not self._after.seconds and self._offset >= self._after.size:
            yield from self._begin_at(item.due)
            if late:
                yield from self._work_on(Item(item.due, late))

    def _begin_at(self, now: float) -> Iterator[Item]:
        self._working = True
        self.wake_at = math.inf
        yield from self.begin(now)

    def _work_on(self, item: Item) -> Iterator[Item]:
        yield from self.work(item)
        self.seen += len(item.data)

    def _other(self, item: Item) -> Iterator[Item]:
        if self._working:
            yield from self.end(item)
        else:
            yield self.on_time(item.due, act=item.act)

    def on_time(self, due: float, data: bytes = b"", act: Act | None = None) -> Item:
        """Return an item that is due then, or with the last one if that is later."""
        self._last = max(self._last, due)
        return Item(self._last, data, act)

    # For each fault.

    def begin(self, now: float) -> Iterator[Item]:
        """Return what is sent, or done, where the fault begins."""
        return iter(())

    def work(self, item: Item) -> Iterator[Item]:
        """Take data from where it begins on; `seen` bytes came before."""
        yield self.on_time(item.due, item.data)

    def end(self, item: Item) -> Iterator[Item]:
        """Take an item without data, from where it begins on."""
        yield self.on_time(item.due, act=item.act)

    def client_spoke(self) -> None:
        """Note that the client's first byte is passed to the handler."""


class _Acting(Stage):
    """Acts where it begins, and lets nothing pass from there on."""

    begins_alone = True
    act: ClassVar[Act]

    def begin(self, now: float) -> Iterator[Item]:
        self.happened = True
        yield self.on_time(now, act=self.act)

    def work(self, item: Item) -> Iterator[Item]:
        return iter(())

    def end(self, item: Item) -> Iterator[Item]:
        return iter(())


class _Resetting(_Acting):
    act = Act.RESET


class _Closing(_Acting):
    act = Act.CLOSE


class _HalfClosing(_Acting):
    act = Act.HALF_CLOSE

    def end(self, item: Item) -> Iterator[Item]:
        if item.act is not None:
            yield self.on_time(item.due, act=item.act)


class _NotReading(_HalfClosing):
    act = Act.STOP_READING


class _Delaying(Stage):
    fault: Delay

    def work(self, item: Item) -> Iterator[Item]:
        self.happened = True
        if not self.fault.jitter and not self.fault.sigma:
            yield self.on_time(item.due + self.fault.time, item.data)
            return
        parts: list[bytes] = []
        for offset, part in _cut(item.data, self.seen, BLOCK):
            due = item.due + self._drawn(offset // BLOCK)
            if due > self._last and parts:
                yield self.on_time(0.0, b"".join(parts))
                parts.clear()
            self._last = max(self._last, due)
            parts.append(part)
        yield self.on_time(0.0, b"".join(parts))

    def end(self, item: Item) -> Iterator[Item]:
        self.happened = True
        yield self.on_time(item.due + self.fault.time, act=item.act)

    def _drawn(self, block: int) -> float:
        fault, drawn = self.fault, self.draws.uniform(block)
        if fault.sigma:
            return fault.time * math.exp(fault.sigma * NormalDist().inv_cdf(drawn))
        return max(0.0, fault.time + fault.jitter * (2 * drawn - 1))


class _Limiting(Stage):
    fault: Bandwidth

    def work(self, item: Item) -> Iterator[Item]:
        self.happened = True
        size = max(1, min(LARGEST, self.fault.rate // PACE))
        for _, part in _cut(item.data, self.seen, size):
            begun = max(item.due, self._last)
            yield self.on_time(begun + len(part) / self.fault.rate, part)


class _Slicing(Stage):
    fault: Slice

    def __init__(self, rule: Rule, draws: Draws, now: float) -> None:
        super().__init__(rule, draws, now)
        self._slice = 0
        self._left = self._length(0)
        self._is_new = False

    def _length(self, number: int) -> int:
        fault = self.fault
        drawn = self.draws.uniform(number) if fault.jitter else 0.5
        return max(1, round(fault.size + fault.jitter * (2 * drawn - 1)))

    def work(self, item: Item) -> Iterator[Item]:
        data = item.data
        while data:
            due = item.due
            if self._is_new:
                self.happened = True
                due = max(due, self._last + self.fault.pause)
                self._is_new = False
            part, data = data[: self._left], data[self._left :]
            yield self.on_time(due, part)
            self._left -= len(part)
            if not self._left:
                self._slice += 1
                self._left = self._length(self._slice)
                self._is_new = True


class _Stalling(Stage):
    fault: Stall
    begins_alone = True
    until = math.inf

    def begin(self, now: float) -> Iterator[Item]:
        self.until = now + self.fault.time
        return iter(())

    def work(self, item: Item) -> Iterator[Item]:
        self.happened = self.happened or item.due < self.until
        yield self.on_time(max(item.due, self.until), item.data)

    def end(self, item: Item) -> Iterator[Item]:
        self.happened = self.happened or item.due < self.until
        yield self.on_time(max(item.due, self.until), act=item.act)


class _Sprinkling(Stage):
    """Hits single bytes, a share of all: draws say how many are skipped before the next."""

    def __init__(self, rule: Rule, draws: Draws, now: float) -> None:
        super().__init__(rule, draws, now)
        self._hits = 0
        self._next = self._skip()

    def _skip(self) -> int:
        rate = self.fault.rate
        if rate >= 1:
            return 0
        return int(math.log(self.draws.uniform(self._hits)) / math.log1p(-rate))

    def work(self, item: Item) -> Iterator[Item]:
        parts: list[bytes] = []
        begun, data = 0, item.data
        while (place := self._next - self.seen) < len(data):
            self.happened = True
            parts += [data[begun:place], self.hit(data[place])]
            begun = place + 1
            self._hits += 1
            self._next += 1 + self._skip()
        parts.append(data[begun:])
        if result := b"".join(parts):
            yield self.on_time(item.due, result)

    def hit(self, byte: int) -> bytes:
        """Return what takes the place of a byte."""
        raise NotImplementedError


class _Corrupting(_Sprinkling):
    def hit(self, byte: int) -> bytes:
        changes = 1 + int(255 * self.draws.uniform(2**62 + self._hits))
        return bytes([byte ^ changes])


class _Dropping(_Sprinkling):
    def hit(self, byte: int) -> bytes:
        return b""


class _Duplicating(_Sprinkling):
    def hit(self, byte: int) -> bytes:
        return bytes([byte, byte])


class _Truncating(Stage):
    def work(self, item: Item) -> Iterator[Item]:
        self.happened = True
        return iter(())


class _Inserting(Stage):
    fault: Garbage
    begins_alone = True

    def begin(self, now: float) -> Iterator[Item]:
        self.happened = True
        size = self.fault.size
        garbage = b"".join(map(self.draws.block, range(size // 64 + 1)))
        yield self.on_time(now, garbage[:size])


class _Muting(Stage):
    """Drops what is sent before, or what is sent after, the client's first byte."""

    _spoken = False
    drops_after: ClassVar[bool]

    def client_spoke(self) -> None:
        self._spoken = True

    def work(self, item: Item) -> Iterator[Item]:
        if self._spoken is self.drops_after:
            self.happened = True
        else:
            yield self.on_time(item.due, item.data)


class _NotAnswering(_Muting):
    drops_after = True


class _NotGreeting(_Muting):
    drops_after = False


class _StayingOpen(Stage):
    def end(self, item: Item) -> Iterator[Item]:
        if item.act is None:
            self.happened = True
        else:
            yield self.on_time(item.due, act=item.act)


def _cut(data: bytes, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Cut data that begins at `offset` where the offset is a multiple of `size`."""
    start = 0
    while start < len(data):
        end = start + size - (offset + start) % size
        yield offset + start, data[start:end]
        start = end


# Faults.

OUT_FIRST = (Direction.OUT, Direction.IN)


@dataclass(frozen=True)
class Fault:
    """A fault, with its own keys."""

    name: ClassVar[str]
    stage: ClassVar[type[Stage]]
    # The directions in which it can work, the default first.
    directions: ClassVar[tuple[Direction, ...]] = OUT_FIRST


@dataclass(frozen=True)
class Reset(Fault):
    """The connection ends with RST."""

    name = "reset"
    stage = _Resetting


@dataclass(frozen=True)
class Close(Fault):
    """The connection ends early, with FIN."""

    name = "close"
    stage = _Closing


@dataclass(frozen=True)
class HalfClose(Fault):
    """The server sends FIN early, and reads on."""

    name = "half-close"
    stage = _HalfClosing
    directions = (Direction.OUT,)


@dataclass(frozen=True)
class Delay(Fault):
    """Every byte comes later."""

    name = "delay"
    stage = _Delaying
    time: float = key(0.2, _seconds, "how much later, in seconds")
    jitter: float = key(0.0, _seconds, "up to how much more, or less, for each 64 bytes")
    sigma: float = key(0.0, _number, "spread of a lognormal delay, whose median is `time`")


@dataclass(frozen=True)
class Stall(Fault):
    """Nothing passes any more, for a time or for ever."""

    name = "stall"
    stage = _Stalling
    time: float = key(math.inf, _seconds, "for how long, in seconds; without it, for ever")


@dataclass(frozen=True)
class Bandwidth(Fault):
    """Bytes pass at a rate."""

    name = "bandwidth"
    stage = _Limiting
    rate: int = key(1024, _whole(1, 10**9), "bytes a second")


@dataclass(frozen=True)
class Slice(Fault):
    """The stream comes in short segments, with pauses between them."""

    name = "slice"
    stage = _Slicing
    size: int = key(16, _whole(1, 2**20), "bytes in each")
    jitter: int = key(0, _whole(0, 2**20), "up to how many more, or fewer")
    pause: float = key(0.01, _pause, "seconds between two of them")


@dataclass(frozen=True)
class Drip(Fault):
    """The stream comes byte by byte."""

    name = "drip"
    stage = _Slicing
    jitter: ClassVar[int] = 0
    size: int = key(1, _whole(1, 2**20), "bytes at once")
    pause: float = key(0.1, _pause, "seconds between two of them")


@dataclass(frozen=True)
class Corrupt(Fault):
    """Bytes are changed."""

    name = "corrupt"
    stage = _Corrupting
    rate: float = key(0.01, _share, "the share of the bytes")


@dataclass(frozen=True)
class Drop(Fault):
    """Bytes are left out."""

    name = "drop"
    stage = _Dropping
    rate: float = key(0.01, _share, "the share of the bytes")


@dataclass(frozen=True)
class Duplicate(Fault):
    """Bytes come twice."""

    name = "duplicate"
    stage = _Duplicating
    rate: float = key(0.01, _share, "the share of the bytes")


@dataclass(frozen=True)
class Truncate(Fault):
    """The rest of the stream is left out; its end comes."""

    name = "truncate"
    stage = _Truncating


@dataclass(frozen=True)
class Garbage(Fault):
    """Bytes that belong nowhere stand in the stream."""

    name = "garbage"
    stage = _Inserting
    size: int = key(64, _whole(1, 2**20), "how many")


@dataclass(frozen=True)
class NeverAnswer(Fault):
    """Nothing is sent once the client has spoken; a greeting is."""

    name = "never-answer"
    stage = _NotAnswering
    directions = (Direction.OUT,)


@dataclass(frozen=True)
class NoBanner(Fault):
    """Nothing is sent before the client has spoken."""

    name = "no-banner"
    stage = _NotGreeting
    directions = (Direction.OUT,)


@dataclass(frozen=True)
class NeverRead(Fault):
    """The server reads no more."""

    name = "never-read"
    stage = _NotReading
    directions = (Direction.IN,)


@dataclass(frozen=True)
class NeverClose(Fault):
    """The end of the server's stream never comes."""

    name = "never-close"
    stage = _StayingOpen
    directions = (Direction.OUT,)


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
        NeverRead,
        NeverAnswer,
        NoBanner,
    )
}


# The grammar.


@dataclass(frozen=True)
class Rule:
    """One `--fault`.

    Attributes:
        text: as it was written.
        fault: the fault.
        direction: the direction in which it works.
        selection: which connections it selects, and when it begins there.
    """

    text: str
    fault: Fault
    direction: Direction
    selection: Selection

    def __str__(self) -> str:
        return self.text


def parse_fault(text: str) -> Rule:
    r"""Parse `NAME[:key=value,...]`; in a value `\,` is a comma, and `\\` a backslash.

    Raises:
        FaultError: there is no such fault, or it takes no such key or value.
    """
    name, colon, rest = text.partition(":")
    kind = FAULTS.get(name)
    if kind is None:
        hint = did_you_mean(name, FAULTS) or f"there are: {', '.join(FAULTS)}"
        raise FaultError(f"no fault is named {quoted(name)}; {hint}")
    own, common = keys_of(kind), keys_of(Selection)
    directions = {"direction": kind.directions}
    values: dict[str, object] = {}
    for word, value in _arguments(rest) if colon else ():
        if word in values:
            raise FaultError(f"{name}: {word} is given twice")
        if word not in {**own, **common, **directions}:
            known = [*own, *common, *(directions if len(kind.directions) > 1 else ())]
            hint = did_you_mean(word, known) or f"it takes: {', '.join(known)}"
            raise FaultError(f"{name} takes no key {quoted(word)}; {hint}")
        parse = own.get(word) or common.get(word) or _direction(kind)
        try:
            values[word] = parse(value)
        except ValueError as error:
            raise FaultError(f"{name}: {word}={escape(clipped(value))} is not {error}") from None
    _check(name, values)
    return Rule(
        text,
        kind(**_by_field(kind, values)),
        Direction(str(values.get("direction", kind.directions[0]))),
        Selection(**_by_field(Selection, values)),
    )


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


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    r"""Split `key=value,...` where a comma has no backslash before it."""
    items = [""]
    for part in re.findall(r"\\.|\\$|,|[^,\\]+", text, re.DOTALL):
        if part == ",":
            items.append("")
        else:
            items[-1] += part
    for item in items:
        word, equals, value = item.partition("=")
        if not equals:
            raise FaultError(f"{quoted(item)} is not of the form key=value")
        yield word, re.sub(r"\\([\\,])", r"\1", value)


# The choice, and what a connection gets.


class Course:
    """The stages of one direction of a connection.

    Attributes:
        wake_at: when `wake` has to be called at the latest, in seconds; inf: never.
    """

    def __init__(self, named: Sequence[tuple[str, Stage]]) -> None:
        """Set up with stages in the order in which data passes them, each with its name."""
        self._named = named
        self._told: set[str] = set()
        self.wake_at = min((stage.wake_at for _, stage in named), default=math.inf)

    def start(self, now: float) -> list[Item]:
        """Begin those that begin with the connection."""
        return self._each(lambda stage: stage.start(now))

    def take(self, data: bytes, now: float) -> list[Item]:
        """Take data that comes now."""
        return self._pass_on([Item(now, data)], 0)

    def end(self, now: float) -> list[Item]:
        """Take the end of the stream."""
        return self._pass_on([Item(now)], 0)

    def wake(self, now: float) -> list[Item]:
        """Begin those whose time has come."""
        return self._each(lambda stage: stage.wake(now))

    def client_spoke(self) -> None:
        """Note that the client's first byte is passed to the handler."""
        for _, stage in self._named:
            stage.client_spoke()

    def fresh(self) -> list[str]:
        """Return the names of the faults that have happened since the last call."""
        names = [name for name, one in self._named if one.happened and name not in self._told]
        self._told.update(names)
        return names

    def _each(self, ask: Callable[[Stage], Iterable[Item]]) -> list[Item]:
        items: list[Item] = []
        for number, (_, stage) in enumerate(self._named):
            items += self._pass_on(list(ask(stage)), number + 1)
        return items

    def _pass_on(self, items: list[Item], start: int) -> list[Item]:
        for _, stage in self._named[start:]:
            items = [one for item in items for one in stage.take(item)]
        self.wake_at = min((stage.wake_at for _, stage in self._named), default=math.inf)
        return items


@dataclass(frozen=True)
class Chosen:
    """The faults of one connection.

    Attributes:
        rules: which, each with its number among all.
        seed, listener, number: the connection.
    """

    rules: tuple[tuple[int, Rule], ...]
    seed: int
    listener: int
    number: int

    def course(self, direction: Direction, now: float) -> Course:
        """Return the course of one direction, for a connection that begins now."""
        ours = [(number, rule) for number, rule in self.rules if rule.direction is direction]
        if direction is Direction.OUT:  # the first fault is the client's nearest
            ours.reverse()
        return Course(
            [
                (
                    rule.fault.name,
                    rule.fault.stage(
                        rule,
                        Draws(self.seed, number, self.listener, self.number, direction.value),
                        now,
                    ),
                )
                for number, rule in ours
            ]
        )


class Faults:
    """The faults of one listener: chooses those of each connection."""

    def __init__(self, rules: Iterable[Rule], seed: int, listener: int, endpoint: str) -> None:
        """Set up.

        Args:
            rules: all faults.
            seed: the seed.
            listener: the listener's number, from 1.
            endpoint: its endpoint string.
        """
        self._seed = seed
        self._listener = listener
        self._rules = [
            (number, rule)
            for number, rule in enumerate(rules)
            if rule.selection.listener in ("", str(listener), endpoint)
        ]
        self._connections = 0
        self._hit: Counter[int] = Counter()

    @property
    def names(self) -> list[str]:
        """The names of the faults that may happen here."""
        return [rule.fault.name for _, rule in self._rules]

    def choose(self, host: str) -> Chosen | None:
        """Return the faults of the next connection; None if it has none.

        Args:
            host: the client's address; "" if it has none.
        """
        self._connections += 1
        chosen = tuple(one for one in self._rules if self._selects(*one, host))
        self._hit.update(number for number, _ in chosen)
        if not chosen:
            return None
        return Chosen(chosen, self._seed, self._listener, self._connections)

    def _selects(self, number: int, rule: Rule, host: str) -> bool:
        wanted, connection = rule.selection, self._connections
        if connection % wanted.every or (wanted.first and connection > wanted.first):
            return False
        if wanted.at_most and self._hit[number] >= wanted.at_most:
            return False
        if wanted.source is not None and not _is_within(host, wanted.source):
            return False
        draws = Draws(self._seed, number, self._listener, connection, "choice")
        return wanted.p >= 1 or draws.uniform(0) < wanted.p


def _is_within(host: str, network: Network) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a UNIX socket's client has none
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped in network or address in network
    return address in network
