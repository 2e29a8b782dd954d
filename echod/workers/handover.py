"""A worker hands its journal on to the supervisor, while it runs: a killed one takes little along.

With each heartbeat it tells the connections that have ended since the one before, a few in each
turn of the event loop. Guarantees:

* The supervisor learns of each connection once, in the order in which they ended, and of the last
  `MOST` at least: of more than that between two heartbeats, the oldest are left out.
* If the supervisor does not read, no more than that waits for it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.journal import Journal
from echod.turns import go_through
from echod.workers.link import Link

log = Logger("echod")

# How many connections that have ended are told at once, at most: all take a few hundredths of a
# second, and each 15 microseconds.
MOST = 1000

# How many are told in one turn of the event loop, and how many bytes they may have roughly.
SHARE, SHARE_BYTES = 20, 1 << 18

Connection = TypeVar("Connection")


class Handover(Generic[Connection]):
    """Tells the supervisor of connections that have ended."""

    def __init__(self, clock: IReactorTime, journal: Journal[Connection], link: Link) -> None:
        """Set up.

        Args:
            clock: of the event loop.
            journal: their record.
            link: to the supervisor.
        """
        self._clock = clock
        self._journal = journal
        self._link = link
        self._share = few(SHARE, SHARE_BYTES, journal.most_bytes)
        self._told = 0
        self._tells = False
        self._telling: Deferred[None] = succeed(None)

    def begin(self) -> None:
        """Tell those that have ended since, in the next turns of the event loop."""
        if self._tells or self._told == self._journal.has_ended or self._link.waiting > MOST:
            return
        self._tells = True
        self._telling = Deferred.fromCoroutine(go_through(self._clock, self._steps()))
        self._telling.addBoth(self._over)

    def _over(self, result: object) -> None:
        self._tells = False
        if isinstance(result, Failure) and not result.check(CancelledError):
            log.failure("Handing on the journal failed", result)

    def finish(self) -> None:
        """Tell those that are left, at once: the worker ends."""
        self._telling.cancel()
        for _ in self._steps():
            pass

    def _steps(self) -> Generator[None, None, None]:
        from echod.control.operations import shown  # only with --control

        while left := min(self._journal.has_ended - self._told, MOST):
            latest = self._journal.latest(left)
            # The journal has dropped the others.
            self._told = self._journal.has_ended - len(latest)
            for record in latest[: self._share]:
                self._told += 1
                self._link.send(news="ended", connection=shown(record))
            yield


def few(most: int, most_bytes: int, first_bytes: int) -> int:
    """Return how many connections make no more than so many bytes of JSON.

    Args:
        most: how many there are at most.
        most_bytes: the bytes of all together.
        first_bytes: how many bytes of a client the journal keeps: each may take five, as text and
            in base64.
    """
    return max(1, min(most, most_bytes // (1000 + 5 * first_bytes)))
