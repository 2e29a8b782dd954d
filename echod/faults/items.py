"""The vocabulary of faults: items of a stream, acts on a connection, and draws."""

from __future__ import annotations

from enum import Enum, StrEnum
from hashlib import blake2b
from typing import NamedTuple


class Direction(StrEnum):
    """The direction of a stream, as the server sees it."""

    IN = "in"
    OUT = "out"


class Act(Enum):
    """An action on the whole connection."""

    RESET = "reset"
    RESET_NOW = "reset at once"
    CLOSE = "close"
    HALF_CLOSE = "half-close"
    STOP_READING = "stop reading"
    ALERT = "alert"


class Item(NamedTuple):
    """One item of a stream: data, or if there is none an act, or else the end of the stream.

    Attributes:
        due: when it is due, in seconds, by the clock of the caller.
        data: bytes; b"" for the others.
        act: the act.
        gap: how long after the item ahead of it, in seconds, whenever that has left.
    """

    due: float
    data: bytes = b""
    act: Act | None = None
    gap: float = 0.0


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
