"""A fault: its keys, the connections that it selects, and its stage in a stream."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from echod.faults.items import Act, Direction, Draws, Item
from echod.faults.keys import (
    After,
    Network,
    key,
    parse_after,
    parse_host,
    parse_network,
    parse_pattern,
    parse_share,
    whole,
)


@dataclass(frozen=True)
class Selection:
    """Which connections a fault selects, and from when on it works there. All must hold."""

    after: After = key(
        After(),
        parse_after,
        "from which byte of its direction on, or after so many messages of the client (`3msg`), "
        "seconds (`2s`), or the `handshake` of TLS",
    )
    message: re.Pattern[bytes] | None = key(
        None, parse_pattern, "from the first message of the client on that this matches"
    )
    p: float = key(1.0, parse_share, "the share of the connections")
    every: int = key(1, whole(1), "only each so many connections of a listener: 10 is the tenth")
    first: int = key(0, whole(1), "only so many connections, the first of a listener")
    at_most: int = key(0, whole(1), "at most so many connections of a listener")
    source: Network | None = key(None, parse_network, "only clients of this network")
    listener: str = key("", str, "only this listener: its number, from 1, or its endpoint")
    sni: str = key("", parse_host, "only clients that ask for this host in TLS, or for `*.DOMAIN`")

    def covers(self, number: int, endpoint: str) -> bool:
        """Return whether it selects connections of a listener."""
        return self.listener in ("", str(number), endpoint)

    def is_for(self, host: str | None) -> bool:
        """Return whether it selects a client that has asked for this host in TLS (SNI)."""
        name = (host or "").lower().removesuffix(".")
        return self.sni in ("", name, f"*.{name.partition('.')[2]}")


class Cutter(Protocol):
    """Cuts a stream where its messages end; see `echod.messages.cutting`."""

    def take(self, data: bytes) -> Iterable[tuple[bytes, bytes | None]]:
        """Take data; return parts, each with the message that it is, or None if it is none."""

    def end(self) -> Iterable[tuple[bytes, bytes | None]]:
        """Take the end of the stream; return the rest."""

    def rest(self) -> Iterable[bytes]:
        """Return the bytes of an incomplete message, and forget them."""


class Reads:
    """Takes each read for a message."""

    def take(self, data: bytes) -> Iterable[tuple[bytes, bytes | None]]:
        return [(data, data)]

    def end(self) -> Iterable[tuple[bytes, bytes | None]]:
        return ()

    def rest(self) -> Iterable[bytes]:
        return ()


class Stage:
    """One fault at work in one direction of one connection.

    This base passes everything on, and finds the place where the fault begins.

    Attributes:
        happened: whether it has changed anything so far.
        wake_at: when `wake` has to be called although nothing comes, in seconds; inf: never.
        holds_until: until when it holds what has come since it began, in seconds.
    """

    # Whether the fault begins by itself, also while nothing comes.
    begins_alone: ClassVar[bool] = False
    # The act of a fault that acts on the whole connection: it has happened once that is done.
    act: Act | None = None

    def __init__(self, rule: Rule, draws: Draws, now: float, cutter: Cutter) -> None:
        """Set up, at the start of a connection.

        Args:
            rule: the fault.
            draws: its chance.
            now: the time.
            cutter: cuts this direction into messages, if it is the client's.
        """
        self.fault: Any = rule.fault
        self.draws = draws
        self.happened = False
        self.wake_at = math.inf
        self.holds_until = 0.0
        self._after = rule.selection.after
        self._pattern = rule.selection.message
        # Whether it begins with a message; in the direction of the client's stream it finds them
        # itself, else `heard` tells it.
        self.begins_with_message = bool(self._after.messages or self._pattern)
        self._finds_messages = self.begins_with_message and rule.direction is Direction.IN
        self._cutter = cutter
        self._messages = 0
        self._handshaken = False
        self._working = False
        # How many bytes have come; how many of them since the fault began.
        self._offset = 0
        self.seen = 0
        # When the last item is due.
        self._last = 0.0
        self._begins = math.inf
        if self._after.seconds is not None:
            self._begins = now + self._after.seconds
        if self.begins_alone and not self.begins_with_message:
            self.wake_at = self._begins

    @property
    def begins_at(self) -> float:
        """The time at which it begins, in seconds; 0 if it does not begin by time."""
        return self._begins if self._begins < math.inf else 0.0

    @property
    def has_begun(self) -> bool:
        """Whether it is at work."""
        return self._working

    def start(self, now: float) -> Iterator[Item]:
        """Begin at once, if it is to begin with the connection, and has not."""
        after, later = self._after, self._working or self.begins_with_message
        if not (later or after.size or after.seconds or after.handshake):
            yield from self._begin_at(now)

    def handshaken(self, now: float) -> Iterator[Item]:
        """Begin with the end of the handshake."""
        self._handshaken = True
        if self._after.handshake and not (self._working or self.begins_with_message):
            yield from self._begin_at(now)

    def wake(self, now: float) -> Iterator[Item]:
        """Begin by time."""
        if not self._working and now >= self._begins and not self.begins_with_message:
            yield from self._begin_at(now)

    def begins_with(self, message: bytes, now: float) -> bool:
        """Return whether it would begin with this message, the next one of the client."""
        after = self._after
        return (
            self.begins_with_message
            and not self._working
            and self._messages >= after.messages
            and self._offset >= after.size
            and (after.seconds is None or now >= self._begins)
            and (self._handshaken or not after.handshake)
            and (self._pattern is None or self._pattern.search(message) is not None)
        )

    def heard(self, message: bytes, now: float) -> Iterator[Item]:
        """Note that this message of the client is passed to the handler, after this call."""
        begins = not self._finds_messages and self.begins_with(message, now)
        self._messages += 1
        if begins:
            yield from self._begin_at(now)

    def take(self, item: Item) -> Iterator[Item]:
        """Take the next item, and pass on others."""
        if not (self._working or self.begins_with_message) and item.due >= self._begins:
            yield from self._begin_at(self._begins)
        if self._finds_messages and not self._working:
            yield from self._find(item)
        elif not item.data:
            yield from self._other(item)
        elif self._working:
            yield from self._work_on(item)
        elif self.begins_with_message:
            self._offset += len(item.data)
            yield self.on_time(item.due, item.data)
        else:
            yield from self._before(item)

    def _find(self, item: Item) -> Iterator[Item]:
        """Take data, or the end, until the message comes with which it begins."""
        ends = not item.data and item.act is None
        for data, message in self._cutter.end() if ends else self._cutter.take(item.data):
            if message is not None and self.begins_with(message, item.due):
                yield from self._begin_at(item.due)
            if message is not None:
                self._messages += 1
            self._offset += len(data)
            if self._working:
                yield from self._work_on(Item(item.due, data))
            else:
                yield self.on_time(item.due, data)
        if self._working:
            for data in self._cutter.rest():
                yield from self._work_on(Item(item.due, data))
        if not item.data:
            yield from self._other(item)

    def _before(self, item: Item) -> Iterator[Item]:
        """Take data before, or around, the place where it begins."""
        by_size = not (self._after.seconds or self._after.handshake)
        room = self._after.size - self._offset if by_size else len(item.data)
        early, late = item.data[:room], item.data[room:]
        self._offset += len(item.data)
        if early:
            yield self.on_time(item.due, early)
        if by_size and self._offset >= self._after.size:
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

    def release(self, now: float) -> None:
        """Note that another fault holds nothing more: what it has passed on is due now."""
        self._last = min(self._last, now)

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

    @property
    def generates(self) -> bool:
        """Whether it sends data of its own, for as long as the other side takes it."""
        return False

    def generate(self, now: float) -> Iterator[Item]:
        """Return the next data of its own."""
        return iter(())

    def stop_generating(self, now: float) -> Iterator[Item]:
        """Let the stream end, if it has: the daemon drains."""
        return iter(())

    def client_spoke(self) -> None:
        """Note that the client's first byte is passed to the handler."""


OUT_FIRST = (Direction.OUT, Direction.IN)


@dataclass(frozen=True)
class Fault:
    """A fault, with its own keys."""

    name: ClassVar[str]
    stage: ClassVar[type[Stage]]
    # The directions in which it can work, the default first.
    directions: ClassVar[tuple[Direction, ...]] = OUT_FIRST
    # Whether it is a fault of TLS.
    needs_tls: ClassVar[bool] = False

    def objection(self, selection: Selection) -> str:
        """Return why it cannot begin where `selection` says; "" if it can."""
        return ""


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

    @property
    def tls_needed_by(self) -> str:
        """The key that needs a listener with TLS, or the fault's name; "" if none does."""
        if self.selection.after.handshake:
            return "after=handshake"
        return "sni=" if self.selection.sni else self.fault.name if self.fault.needs_tls else ""

    def __str__(self) -> str:
        return self.text
