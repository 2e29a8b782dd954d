"""Admission whose limits hold over several processes: each counts in memory that all can read.

Each process has a block of the table, and writes only there; it reads those of the others without
a lock. So of connections that several processes accept in the same moment, each process but the
first may accept one too many. The supervisor clears the block of a process that has ended.

Of other processes, addresses are counted by a keyed hash, each in two places, and the lower count
is taken (a count-min sketch). So an address is never counted too low, and too high only if both of
its places are also others': it is then refused a little early, by the fewer of their connections.

The processes number their connections together, by the same table: a number is never given twice,
and a connection that comes after another has the higher one.
"""

from __future__ import annotations

import hashlib
import heapq
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence

from echod.connections.admission import Admission
from echod.limits import Level, Limits
from echod.reasons import Refusal

# The counters of a block, in 32 bits each: open connections; all that were accepted, which is not
# cleared; the tokens of the rate, one more than there are, because 0 says nothing; nothing; the
# last number that the process has given, in 64 bits, which is not cleared either; addresses.
_OPEN, _ACCEPTED, _TOKENS, _, _NUMBERED, _, _ADDRESSES = range(7)

# How many places there are for addresses, in two rows.
_ROW = 1 << 14
_PLACES = 2 * _ROW

# Its length, in words of 32 bits: an even number.
_BLOCK = _ADDRESSES + _PLACES
_WRAP = 1 << 32

_HASHES = struct.Struct(">II")

# How many of the busiest addresses are asked for in the others' blocks.
_BUSIEST = 8


class AdmissionTable:
    """The memory that the processes share.

    Attributes:
        descriptor: of the file that is this memory, for the processes to inherit.
    """

    def __init__(self, descriptor: int, blocks: int) -> None:
        """Map the table.

        Args:
            descriptor: see above.
            blocks: how many processes there may be at a time.
        """
        self.descriptor = descriptor
        self._blocks = blocks
        self._map = mmap.mmap(descriptor, self.size(blocks))
        self.counters = memoryview(self._map).cast("I")
        self._numbered = memoryview(self._map).cast("Q")[_NUMBERED // 2 :: _BLOCK // 2]

    @classmethod
    def create(cls, blocks: int) -> AdmissionTable:
        """Make a new one, with nothing counted.

        Raises:
            OSError: the system has no memory for it, or allows no file of its size.
        """
        descriptor = os.memfd_create("echod-limits")
        os.ftruncate(descriptor, cls.size(blocks))
        return cls(descriptor, blocks)

    @staticmethod
    def size(blocks: int) -> int:
        """Return how many bytes it takes for so many processes."""
        return 4 * blocks * _BLOCK

    def numbers(self, block: int) -> Iterator[int]:
        """Yield the numbers of the connections of a process, all higher than those given before.

        Args:
            block: the number of its block; `block_of` finds it in a number.
        """
        while True:
            self._numbered[block] = step = max(self._numbered) + 1
            yield step * self._blocks + block

    def block_of(self, number: int) -> int:
        """Return the block of the process that has given a connection this number."""
        return number % self._blocks

    def clear(self, block: int) -> None:
        """Count nothing more for a process that has ended."""
        counters, start = self.counters, block * _BLOCK
        counters[start + _OPEN] = counters[start + _TOKENS] = 0
        places = start + _ADDRESSES
        counters[places : places + _PLACES] = memoryview(bytes(4 * _PLACES)).cast("I")

    def close(self) -> None:
        """Unmap it, and close the file."""
        self.counters.release()
        self._numbered.release()
        self._map.close()
        os.close(self.descriptor)


class SharedAdmission(Admission):
    """Counts in the block of this process, and refuses by the sums of all."""

    def __init__(
        self,
        limits: Limits,
        seconds: Callable[[], float],
        *,
        table: AdmissionTable,
        block: int,
        key: bytes,
        factor: float = 1.0,
    ) -> None:
        """Set up, without any connection.

        Args:
            limits: how many connections, and how fast; the first of these for this process.
            seconds: the clock.
            table: the memory.
            block: the number of this process's block.
            key: of the hash of addresses; the same in all processes.
            factor: how many times the limits on numbers hold for all processes together.
        """
        self._counters = table.counters
        self._start = block * _BLOCK
        self._key = key
        self._factor = factor
        self._seen = 0
        super().__init__(limits, seconds)
        self._seen = self._accepted_by_others()
        self._begin_with_the_others_tokens()

    def _use(self, most: int) -> None:
        self._most = round(most * self._factor)
        self._most_of_address = round(self._limits.max_connections_per_address * self._factor)
        super()._use(self._most)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The numbers of connections in all processes, in total and from one address."""
        busiest = heapq.nlargest(_BUSIEST, self.by_address, key=self.by_address.__getitem__)
        highest = max(map(self._from_address, busiest), default=0)
        return (
            Level(Refusal.MAX_CONNECTIONS.value, self._sum(_OPEN), self._most),
            Level(Refusal.PER_ADDRESS.value, highest, self._most_of_address),
        )

    def accept(self) -> Refusal | None:
        """Count a connection, or return why it is refused."""
        here = self._limits.max_connections
        if here and (self.open >= here or self._sum(_OPEN) >= self._most):
            return Refusal.MAX_CONNECTIONS
        if self._limits.max_accept_rate and not self._take():
            return Refusal.ACCEPT_RATE
        self.open += 1
        self._counters[self._start + _OPEN] = self.open
        return None

    def identify(self, network: str) -> Refusal | None:
        """Count the address of an accepted connection, or return why it is refused."""
        places = self._places(network)
        if (most := self._most_of_address) and self._counted(network, places) >= most:
            return Refusal.PER_ADDRESS
        self.by_address[network] = self.by_address.get(network, 0) + 1
        for place in places:
            self._counters[self._start + place] += 1
        return None

    def release(self, network: str = "") -> None:
        """Stop counting an accepted connection, and its address, if that was counted."""
        super().release(network)
        self._counters[self._start + _OPEN] = self.open
        if network:
            for place in self._places(network):
                self._counters[self._start + place] -= 1

    def _sum(self, counter: int) -> int:
        """Return the sum of a counter over all processes."""
        return sum(self._counters[counter::_BLOCK])

    def _from_address(self, network: str) -> int:
        return self._counted(network, self._places(network))

    def _counted(self, network: str, places: Sequence[int]) -> int:
        """Return how many connections an address has: here exactly, elsewhere by its places."""
        counters, start = self._counters, self._start
        elsewhere = min(self._sum(place) - counters[start + place] for place in places)
        return self.by_address.get(network, 0) + elsewhere

    def _places(self, network: str) -> tuple[int, int]:
        """Return the place of an address in each row."""
        digest = hashlib.blake2b(network.encode(), digest_size=8, key=self._key).digest()
        one, other = _HASHES.unpack(digest)
        return _ADDRESSES + one % _ROW, _ADDRESSES + _ROW + other % _ROW

    def _take(self) -> bool:
        """Take a token, after those that the other processes have taken since."""
        others = self._accepted_by_others()
        taken, self._seen = (others - self._seen) % _WRAP, others
        now = self._seconds()
        self._bucket.spend(taken, now)
        is_allowed = self._bucket.take(now)
        if is_allowed:
            accepted = self._start + _ACCEPTED
            self._counters[accepted] = (self._counters[accepted] + 1) % _WRAP
        self._counters[self._start + _TOKENS] = int(self._bucket.tokens) + 1
        return is_allowed

    def _accepted_by_others(self) -> int:
        return self._sum(_ACCEPTED) - self._counters[self._start + _ACCEPTED]

    def _begin_with_the_others_tokens(self) -> None:
        """Let a successor have no more tokens than the others have left."""
        tokens = [each - 1 for each in self._counters[_TOKENS::_BLOCK] if each]
        if tokens:
            now = self._seconds()
            self._bucket.spend(max(0, int(self._bucket.tokens) - min(tokens)), now)
