"""Share each turn of the event loop among connections that have more than one message to answer.

One read may hold 256,000 messages. Answered at once, they would keep all other clients waiting,
and SIGTERM and the watchdog too. So a connection answers until its share of the turn is used up,
then rests until the next turn of the loop; in between, all others get their turn.

Guarantees:

* A connection answers for `SLICE` in a turn, or for `TURN` while no other rests, and exceeds that
  by at most a first message and `PACE` more. With a handler that takes up to a millisecond a
  message, that is less than 5 ms; and less than twice that in a turn that brings both the rest of
  one read and another read.
* All resting connections share `TURN` in each turn, in the order in which they began to rest. So a
  turn is bounded, however many they are, and none is passed over. A connection whose input arrives
  when that time is used up answers one message, or goes on for `FREE`, like clients that send one
  message at a time; then it queues too.
* A timed call resumes the resting connections, and reactors look for input and output between two
  rounds of timed calls. There is one such call for all, and none while no connection rests and
  none has taken more than `FREE` of this turn.

Reading the clock takes a sixth of the time of a short message. So a read of one message does not
read it, and other reads do so at most once in `PACE` messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

log = Logger("echod.connection")

# The most messages that are answered between two readings of the clock.
PACE = 3
# How long a connection answers in a turn while others rest, in seconds: ten times the cost of a
# turn of the loop. With a hundred such clients each waits for a fortieth of a second.
SLICE = 0.00025
# How long all resting connections together may answer in one turn of the loop, in seconds.
TURN = 0.00075
# How long a connection may answer before that counts against its share, in seconds. With long
# reads, libuv reads up to 32 times from one connection in a turn: together they stay within the
# share.
FREE = 0.0001


class Resting(Protocol):
    """A connection that waits for its turn."""

    def take_turn(self) -> None:
        """Go on."""


class Share:
    """The share of one connection in this turn of the loop, from now on.

    Attributes:
        until: when to check next whether it is used up, by the clock of `Turns.seconds`.
    """

    __slots__ = ("_begun", "_turns", "until")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._begun = turns.seconds()
        self.until = self._begun + FREE

    def used_up(self) -> bool:
        """Return whether the connection has to rest."""
        now = self._turns.seconds()
        if now >= self.until:
            self.until = self._turns.end_of(self._begun)
        return now >= self.until


class Turns:
    """The queue of resting connections, and how much of this turn of the loop is used up."""

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
        # The call in the next turn. While it is pending, `_ends` is about the current turn.
        self._call: IDelayedCall | None = None
        self._ends = 0.0

    def end_of(self, begun: float) -> float:
        """Return the end of the share of a connection that has answered for more than `FREE`.

        Args:
            begun: when it began to answer in this turn.
        """
        if self._call is None:
            self._begin(begun)
        return min(begun + SLICE, self._ends) if self._line else self._ends

    def rest(self, connection: Resting) -> None:
        """Call `connection.take_turn` in a later turn of the loop, once."""
        self._line[connection] = None
        if self._call is None:
            self._begin(self.seconds())

    def leave(self, connection: Resting) -> None:
        """Forget `connection`, which has ended. Calling it again is harmless."""
        self._line.pop(connection, None)
        if self._call is not None and not self._line:
            call, self._call = self._call, None
            call.cancel()

    def _begin(self, begun: float) -> None:
        """Note that a turn of the loop began at `begun`."""
        self._ends = begun + TURN
        self._call = self._clock.callLater(0, self._take_turns)

    def _take_turns(self) -> None:
        self._call = None
        if not self._line:
            return  # the turn is over in which a connection took more than `FREE`
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
