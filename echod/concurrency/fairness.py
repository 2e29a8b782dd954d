"""What one address may take of what is scarce, and whose turn it is.

Pure: no I/O, no clock, no Twisted.  `echod.addresses.network_of` says what counts as one
address; a client at a UNIX socket has none, "".  The rules, and they are all in this file:

* An address may have more places while it has fewer than `TIMES_THE_FREE` times as many as are
  free.  So one alone may have three quarters of all, two three sevenths each, and so on: some are
  always left for an address that has none.
* Who has no address is on the machine, and is bounded by the number of places alone.
* Those who wait have their turns by address: each address one, in a circle.  Within an address
  they have them in the order they came.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, TypeVar

# So that where all clients share one address, three of four places are of use.  It is how switches
# share their buffer between ports (Choudhury and Hahne, "Dynamic queue length thresholds for
# shared-memory packet switches", 1998).
TIMES_THE_FREE = 3

T = TypeVar("T")


def may_have_another(held: int, free: int) -> bool:
    """Return whether an address that holds `held` places may have one of the `free` ones."""
    return free > 0 and held < TIMES_THE_FREE * free


class Holders:
    """Who holds a place, by address."""

    def __init__(self) -> None:
        self.by_address: Counter[str] = Counter()
        self._addresses: dict[object, str] = {}

    def add(self, holder: object, address: str) -> None:
        """Note that `holder` has a place."""
        self._addresses[holder] = address
        self.by_address[address] += 1

    def discard(self, holder: object) -> None:
        """Note that `holder` has none, or not any more."""
        address = self._addresses.pop(holder, None)
        if address is not None:
            self.by_address[address] -= 1
            if not self.by_address[address]:
                del self.by_address[address]


class Turns(Generic[T]):
    """A queue in which addresses take turns."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, OrderedDict[object, T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting(self, address: str) -> int:
        """Return how many of an address wait."""
        return len(self._lines.get(address, ()))

    def add(self, waiter: object, address: str, value: T) -> None:
        """Let `waiter` wait, behind those of its address."""
        self._lines.setdefault(address, OrderedDict())[waiter] = value
        self._count += 1

    def discard(self, waiter: object, address: str) -> None:
        """Let `waiter` wait no longer, if it does."""
        line = self._lines.get(address, OrderedDict())
        if waiter in line:
            del line[waiter]
            self._shorten(address)

    def next(self, last: str) -> tuple[object, T]:
        """Return whose turn it is, with its value; somebody has to wait.

        Args:
            last: the address that has had its turn: all others come before it.
        """
        if last in self._lines:
            self._lines.move_to_end(last)
        address, line = next(iter(self._lines.items()))
        waiter, value = line.popitem(last=False)
        self._shorten(address)
        return waiter, value

    def _shorten(self, address: str) -> None:
        self._count -= 1
        if not self._lines[address]:
            del self._lines[address]
