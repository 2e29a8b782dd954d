"""Share each turn of the event loop among connections that have more than one message to answer.

One read may hold 256,000 messages. Answered at once, they would keep all other clients waiting,
and SIGTERM and the watchdog too. So a connection answers until its share of the turn is used up,
then rests until the next turn of the loop; in between, all others get their turn.

Guarantees:

* A connection answers for `SLICE` in a turn, or for `TURN` while no other rests, and exceeds that
  by at most a first message and `PACE` more. With a handler that takes up to a millisecond a
  message, that is less than 5 ms. It holds for the whole turn, which may bring the rest of one
  read, many further reads, and awaited replies.
* All resting connections share `TURN` in each turn, in the order in which they began to rest. So a
  turn is bounded, however many they are, and none is passed over. A connection whose input arrives
  when that time is used up answers one message, or goes on for `FREE`, like clients that send one
  message at a time; then it queues too.
* A timed call resumes the resting connections, and reactors look for input and output between two
  rounds of timed calls. There is one such call for all, and none while no connection rests and
  none has taken more than `FREE` of this turn, or got a `LONG` read.

Reading the clock takes a sixth of the time of a short message. So a short read of one message does
not read it, and other reads do so at most once in `PACE` messages, and at their end.

A turn brings at most one short read to a connection. So its share is remembered, until the turn is
over, only after more than `FREE`, and after a long read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

log = Logger("echod.connection")
T = TypeVar("T")

# The most messages that are answered between two readings of the clock.
PACE = 3
# How long a connection answers in a turn while others rest, in seconds: ten times the cost of a
# turn of the loop. With a hundred such clients each waits for a fortieth of a second.
SLICE = 0.00025
# How long all resting connections together may answer in one turn of the loop, in seconds.
TURN = 0.00075
# How long a connection may answer before that counts against its share, in seconds.
FREE = 0.0001
# How long work in steps rests at most between two of them, in seconds.
LONGEST_REST = 0.01
# After a read of this many bytes another one may come in the same turn, up to 32 of them: libuv
# reads on while reads fill its buffer, and this is its smallest (`reactor.transport.SHORT_READ`).
LONG = 65 * 1024


async def go_through(clock: IReactorTime, steps: Generator[None, None, T]) -> T:
    """Take one step in each turn of the event loop, the first one at once, and return the result.

    After each step the loop rests from this work for as long as that took. So half of the
    processor's time is left to clients, also where several workers do the same at once: without
    rests two of them would use all the time of two processors, in which their clients run, too.

    Args:
        clock: of the loop.
        steps: work that is no connection's, in steps that are short enough for a turn.
    """
    while True:
        began = clock.seconds()
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await deferLater(clock, min(clock.seconds() - began, LONGEST_REST))


class Resting(Protocol):
    """A connection that waits for its turn."""

    def take_turn(self) -> None:
        """Go on."""


class Share:
    """The share of one connection in this turn of the loop.

    Attributes:
        stream: whose it is: the connection's transport. An application over TLS, whose transport
            is the TLS connection, and that connection have one share together.
        begun: when it began.
        until: when to check next whether it is used up. Both by the clock of `Turns.seconds`.
    """

    __slots__ = ("_turns", "begun", "stream", "until")

    def __init__(self, turns: Turns, stream: object, begun: float | None = None) -> None:
        """Begin a share; if the stream has one in `Turns.shares` already, that one counts.

        Args:
            turns: the turns of the loop.
            stream: whose it is.
            begun: when it began; None: now.
        """
        self._turns = turns
        self.stream = stream
        self.begun = turns.seconds() if begun is None else begun
        self.until = self.begun + FREE

    def used_up(self) -> bool:
        """Return whether the connection has to rest."""
        now = self._turns.seconds()
        if now >= self.until:
            self.until = self._turns.end_of(self)
        return now >= self.until


class Turns:
    """The queue of resting connections, and how much of this turn of the loop is used up.

    Attributes:
        seconds: the clock.
        shares: the shares that have begun in this turn and count to its end, by their streams.
    """

    def __init__(self, clock: IReactorTime, seconds: Callable[[], float] | None = None) -> None:
        """Set up, with an empty queue.

        Args:
            clock: an `IReactorTime`, of the loop that is shared.
            seconds: a faster clock than that one; the two need not agree.
        """
        self.seconds: Callable[[], float] = seconds or clock.seconds
        self._clock = clock
        # A dictionary, because it has an order, and items can be removed from the middle.
        self._line: dict[Resting, None] = {}
        self.shares: dict[object, Share] = {}
        # The call in the next turn. While it is pending, `_ends` and `shares` are about the
        # current turn.
        self._call: IDelayedCall | None = None
        self._ends = 0.0

    def keep(self, share: Share) -> None:
        """Let `share` count for the rest of this turn."""
        if self._call is None:
            self._begin(share.begun)
        self.shares[share.stream] = share

    def end_of(self, share: Share) -> float:
        """Return the end of a share of which more than `FREE` is used; it counts from here on."""
        self.keep(share)
        return min(share.begun + SLICE, self._ends) if self._line else self._ends

    def rest(self, connection: Resting) -> None:
        """Call `connection.take_turn` in a later turn of the loop, once."""
        self._line[connection] = None
        if self._call is None:
            self._begin(self.seconds())

    def leave(self, connection: Resting, stream: object) -> None:
        """Forget `connection`, which has ended. Calling it again is harmless.

        Args:
            connection: the connection.
            stream: whose share it had.
        """
        if self._call is None:
            return  # no connection rests, and no share counts
        self._line.pop(connection, None)
        self.shares.pop(stream, None)
        if not self._line and not self.shares:
            call, self._call = self._call, None
            call.cancel()

    def _begin(self, begun: float) -> None:
        """Note that a turn of the loop began at `begun`."""
        self._ends = begun + TURN
        self._call = self._clock.callLater(0, self._take_turns)

    def _take_turns(self) -> None:
        self._call = None
        self.shares.clear()
        if not self._line:
            return  # the turn is over in which a share was kept
        # Input that is read later in this turn gets the rest of it.
        self._begin(self.seconds())
        for _ in range(len(self._line)):
            connection = next(iter(self._line), None)
            if connection is None:  # it went with one of those before
                break
            del self._line[connection]
            try:
                connection.take_turn()
            except Exception:  # an error of one connection must not keep the others waiting
                log.failure("Resuming a connection failed")
            if self.seconds() >= self._ends:
                break
