"""Share places (threads, places in a queue) and turns fairly among client addresses.

Pure: no I/O, no clock, no Twisted. `echod.addresses.network_of` defines an address; a client of a
UNIX socket has none, "". All the rules are in this file:

* An address may take another place while it holds fewer than `TIMES_THE_FREE` times as many as are
  free. So a single address may hold three quarters of all, two addresses three sevenths each, and
  so on: some always remain for an address that has none.
* A client without an address is on this machine, and only the number of places bounds it.
* Addresses take turns, one waiting client each, in a circle. Clients of one address are served in
  the order in which they came.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, TypeVar

# With this factor, three of four places are usable if all clients share one address. Switches
# share their buffer between ports in this way (Choudhury and Hahne, "Dynamic queue length
# thresholds for shared-memory packet switches", 1998).
TIMES_THE_FREE = 3

T = TypeVar("T")


def may_have_another(held: int, free: int) -> bool:
    """Return whether an address that holds `held` places may have one of the `free` ones."""
    return free > 0 and held < TIMES_THE_FREE * free


class Holders:
    """The holders of places, by address."""

    def __init__(self) -> None:
        self.by_address: Counter[str] = Counter()
        self._addresses: dict[object, str] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def add(self, holder: object, address: str) -> None:
        """Note that `holder` has a place."""
        self._addresses[holder] = address
        self.by_address[address] += 1

    def discard(self, holder: object) -> None:
        """Note that `holder` has no place, or no longer has one."""
        address = self._addresses.pop(holder, None)
        if address is not None:
            self.by_address[address] -= 1
            if not self.by_address[address]:
                del self.by_address[address]


class FairQueue(Generic[T]):
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
        """Queue `waiter`, behind the others of its address."""
        self._lines.setdefault(address, OrderedDict())[waiter] = value
        self._count += 1

    def discard(self, waiter: object, address: str) -> None:
        """Remove `waiter` from the queue, if it waits."""
        line = self._lines.get(address, OrderedDict())
        if waiter in line:
            del line[waiter]
            self._shorten(address)

    def next(self, last: str) -> tuple[object, T]:
        """Return the waiter whose turn it is, with its value; the queue must not be empty.

        Args:
            last: the address that has just had its turn: all others come before it.
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
