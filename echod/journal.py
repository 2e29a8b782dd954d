"""The journal: a bounded record of connections, of those that are open and the last that ended.

Tests and operators ask it what a client did. It exists only if it was asked for: without it,
connections keep nothing, and call nothing.

Memory is bounded: at most `most` ended connections are kept, and of each connection at most
`most_bytes` of what it sent, one mismatch, and short texts.

Pure: the factory tells the journal of connections, and passes in the clocks. One thread uses it.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Generic, TypeVar


@dataclass(frozen=True, slots=True)
class Encryption:
    """How a connection is encrypted.

    Attributes:
        version: "TLSv1.3" or "TLSv1.2".
        cipher: the cipher suite, by OpenSSL's name.
        server_name: the host that the client asked for; None for none.
        alpn: the application protocol; None for none.
        common_name: of the client's certificate; None without a certificate.
        resumed: whether an earlier session goes on.
    """

    version: str
    cipher: str
    server_name: str | None = None
    alpn: str | None = None
    common_name: str | None = None
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Proxied:
    """The header of a proxy.

    Attributes:
        through: the proxy's own address.
        version: of the header, 1 or 2.
        command: "PROXY" or "LOCAL".
        source, destination: the addresses in the header; None if it names none.
    """

    through: str
    version: int
    command: str
    source: str | None = None
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The place where a client left its script.

    Attributes:
        line: the line of the script.
        expected: the text of that line.
        got: what the client sent, as a literal of Python, or "the end of the stream".
    """

    line: int
    expected: str
    got: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts that a connection itself knows.

    Attributes:
        peer: the client's address, escaped; "" if it has none.
        local: the address that it connected to.
        listener: the endpoint string of the listener.
        tls: None if the connection is not encrypted.
        proxy: None without a proxy.
        messages: how many its handler got; None if echod does not see messages.
        bytes_in, bytes_out: received from the client and sent to it.
        faults: the names of the faults on purpose that have happened.
    """

    peer: str
    local: str = ""
    listener: str = ""
    tls: Encryption | None = None
    proxy: Proxied | None = None
    messages: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Facts):
    """A connection, open or ended.

    Attributes:
        number: its number among all connections since the start, from 1.
        began: when it was accepted, as Unix time.
        seconds: how long it lasted, or has lasted so far.
        reason: why it ended, by a value of `echod.reasons.EndReason`; None while it is open.
        received: the first bytes that reached its handler: after TLS, the PROXY header and faults.
        mismatches: where the client left its script.
    """

    number: int
    began: float
    seconds: float
    reason: str | None = None
    received: bytes = b""
    mismatches: tuple[Mismatch, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.reason is None


_FACTS = tuple(one.name for one in fields(Facts))


class _Entry:
    """The part of an open connection's record that the journal itself keeps."""

    __slots__ = ("began", "began_at", "mismatches", "number", "received")

    def __init__(self, number: int, began: float, began_at: float) -> None:
        self.number = number
        self.began = began
        self.began_at = began_at
        self.received = b""
        self.mismatches: tuple[Mismatch, ...] = ()


Connection = TypeVar("Connection")


class Journal(Generic[Connection]):
    """The record of all listeners together.

    Attributes:
        most: how many ended connections are kept.
        most_bytes: how many of a connection's first bytes are kept.
        has_ended: how many connections have ended since the start.
    """

    def __init__(
        self,
        most: int,
        most_bytes: int,
        *,
        facts_of: Callable[[Connection], Facts],
        now: Callable[[], float],
        seconds: Callable[[], float],
        numbers: Iterator[int] | None = None,
    ) -> None:
        """Set up, empty.

        Args:
            most: see above.
            most_bytes: see above.
            facts_of: returns the facts of a connection, open or just ended.
            now: returns the Unix time.
            seconds: returns the time of a clock that never steps.
            numbers: gives each connection a higher number than the one before; None: from 1 on.
        """
        self.most = most
        self.most_bytes = most_bytes
        self.has_ended = 0
        self._facts_of = facts_of
        self._now = now
        self._seconds = seconds
        self._next = itertools.count(1) if numbers is None else numbers
        self._entries: dict[Connection, _Entry] = {}
        self._numbers: dict[int, Connection] = {}
        self._ended: OrderedDict[int, Record] = OrderedDict()

    # For connections.

    def begin(self, connection: Connection) -> None:
        """Give a new connection its number."""
        number = next(self._next)
        self._entries[connection] = _Entry(number, self._now(), self._seconds())
        self._numbers[number] = connection

    def hear(self, connection: Connection, data: bytes) -> None:
        """Keep the first bytes that a connection's handler gets."""
        entry = self._entries.get(connection)
        if entry is not None and len(entry.received) < self.most_bytes:
            entry.received += data[: self.most_bytes - len(entry.received)]

    def note(self, connection: Connection, line: int, expected: str, got: str) -> None:
        """Keep where a connection's client left its script; see `Mismatch`."""
        entry = self._entries.get(connection)
        if entry is not None:
            entry.mismatches = (Mismatch(line, expected, got),)

    def end(self, connection: Connection, reason: str) -> None:
        """Keep a connection that ends, and drop the oldest one above `most`."""
        entry = self._entries.pop(connection, None)
        if entry is not None:
            del self._numbers[entry.number]
            self.has_ended += 1
            if self.most:
                self._ended[entry.number] = self._record(connection, entry, reason)
                if len(self._ended) > self.most:
                    self._ended.popitem(last=False)

    # For readers.

    def __contains__(self, connection: object) -> bool:
        return connection in self._entries

    def open(self) -> list[int]:
        """Return the numbers of the open connections, the oldest first."""
        return list(self._numbers)

    def connection(self, number: int) -> Connection | None:
        """Return the open connection of a number; None if it has ended, or never was."""
        return self._numbers.get(number)

    def ended(self) -> list[Record]:
        """Return the ended connections that are kept, in the order in which they ended."""
        return list(self._ended.values())

    def latest(self, count: int) -> list[Record]:
        """Return so many of those that ended last, or all that are kept, in the same order."""
        found = list(itertools.islice(reversed(self._ended.values()), count))
        return found[::-1]

    def find(self, number: int) -> Record | None:
        """Return the record of a number; None if it is not kept, or never was."""
        connection = self._numbers.get(number)
        if connection is None:
            return self._ended.get(number)
        return self._record(connection, self._entries[connection], None)

    def records(self, after: int = 0) -> Iterator[Record]:
        """Yield each record in the order of the numbers: of all connections that were open, or
        remembered, at the call, without those that have been forgotten since.

        Args:
            after: only those with a higher number.
        """
        for number in sorted(one for one in (*self._ended, *self._numbers) if one > after):
            if (record := self.find(number)) is not None:
                yield record

    def _record(self, connection: Connection, entry: _Entry, reason: str | None) -> Record:
        facts = self._facts_of(connection)
        return Record(
            number=entry.number,
            began=entry.began,
            seconds=self._seconds() - entry.began_at,
            reason=reason,
            received=entry.received,
            mismatches=entry.mismatches,
            **{name: getattr(facts, name) for name in _FACTS},
        )
