"""The drain: answer all that was received, then close every connection, within a deadline.

If a service is to be closed, the last share of the time is its own: the connections that are left
are aborted before, so that no client uses up the time for the rest of the service. It has half a
second even if clients have less, such as none.

At the deadline the connections are aborted. Threads then have a moment to close their generators,
and coroutines have it to end what they wait for in a `finally`.

A drain may be gradual. It then tells connections to finish a few at a time, idle ones too, so that
thousands of clients do not all reconnect in the same second. Until its turn comes, a connection is
served as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from echod.concurrency.life import Life
from echod.concurrency.model import Model
from echod.connections.factory import EchoFactory
from echod.connections.owner import Owned
from echod.daemon.stacks import frames_of_coroutine, frames_of_thread, from_handler, in_one_line
from echod.text import escape
from echod.timers import cancel_timer

log = Logger("echod")

# In a gradual drain, seconds from one share of the connections to the next.
STEP = 0.1

# The share of the drain's time that only the rest of a service has, and its most, in seconds.
SHARE_OF_SERVICE = 0.1
MOST_OF_SERVICE = 1.0
# Its least, in seconds, from the beginning of the drain: the drain's time may be shorter, or 0. It
# has to be below `echod.daemon.signals.GRACE`.
LEAST_OF_SERVICE = 0.5

# Seconds after the deadline in which threads may do what the end of a connection asks for: close
# a generator, and return from a call that its lost connection ends; and in which coroutines, which
# have been cancelled, may wait in their `finally`. If a service is to be closed, these are at most
# half of the service's share. They have to be below `echod.daemon.signals.GRACE`.
LAST_CALLS = 0.2


class Drain:
    """One drain of all listeners."""

    def __init__(
        self,
        reactor: IReactorTime,
        factories: Sequence[EchoFactory],
        model: Model,
        *,
        timeout: float,
        spread: float = 0.0,
        still_there: Callable[[Iterable[object]], list[str]] = lambda _: [],
        life: Life | None = None,
    ) -> None:
        """Set up; nothing happens yet.

        Args:
            reactor: for the deadline.
            factories: the owners of the connections to close.
            model: waited for after the last connection.
            timeout: seconds that clients have.
            spread: seconds over which the connections are told to finish; 0: all at once.
            still_there: returns a line for each remaining connection, with the reason.
            life: of the service, which is closed after the last handler; None without a service.
        """
        self._reactor = reactor
        self._factories = factories
        self._model = model
        self._timeout = timeout
        self._spread = spread
        self._still_there = still_there
        self._life = life
        self._began = 0.0
        self._count = 0
        self._last_calls: IDelayedCall | None = None
        self._deadline: IDelayedCall | None = None
        self._untold: list[Owned] = []
        self._telling = LoopingCall(self._tell_some)
        self._telling.clock = reactor

    def begin(self) -> Deferred[None]:
        """Drain.

        Returns:
            Fires when everything has ended, at the deadline at the latest.
        """
        count = self._left()
        if count or self._model.lost_waiting:
            log.info(
                "Draining, for {seconds:g} s at most; open connections: {count}{_waiting}; "
                "a second signal ends it at once",
                count=count,
                seconds=self._timeout,
                _waiting=self._waiting(),
            )
        for_clients = self._timeout - self._reserved()
        give_up = self._reactor.callLater(for_clients, self._give_up)
        self._deadline = self._reactor.callLater(
            for_clients + self._for_service(), self._leave_service
        )

        # The deadline also covers the work of handlers after their connections are gone.
        return (
            self._tell_gradually()
            .addCallback(lambda _: DeferredList([each.drain() for each in self._factories]))
            .addCallback(lambda _: self._model.drain())
            .addCallback(lambda _: self._model.end())
            .addCallback(lambda _: cancel_timer(give_up))
            .addCallback(lambda _: cancel_timer(self._last_calls))
            .addCallback(lambda _: self._close_service())
            .addCallback(lambda _: cancel_timer(self._deadline))
        )

    def _reserved(self) -> float:
        """Return how many of the drain's seconds only the rest of the service has."""
        if self._life is None or not self._life.is_open:
            return 0.0
        return min(MOST_OF_SERVICE, SHARE_OF_SERVICE * self._timeout)

    def _for_service(self) -> float:
        """Return how many seconds there are from the end of the clients' time to the deadline."""
        reserved = self._reserved()
        return max(reserved, LEAST_OF_SERVICE - self._timeout + reserved)

    def _close_service(self) -> Deferred[None] | None:
        if self._life is None:
            return None
        self._keep_for_service(self._for_service() / 2)
        return self._life.close()

    def _keep_for_service(self, seconds: float) -> None:
        """Let the deadline be this far off at least: the event loop may be late by more than the
        service has.
        """
        if self._deadline is not None and self._deadline.active():
            left = self._deadline.getTime() - self._reactor.seconds()
            self._deadline.reset(max(left, seconds))

    def abort(self) -> None:
        """Close every connection at once, and wait for no handler, nor for the service."""
        self._leave_service()
        self._abort_connections()
        self._leave_handlers()

    def _abort_connections(self) -> None:
        for factory in self._factories:
            factory.abort()
        if self._telling.running:
            self._telling.stop()

    def _leave_handlers(self) -> None:
        """Wait no longer for handlers."""
        for factory in self._factories:
            factory.let_go()
        self._model.stop()

    def _leave_service(self) -> None:
        """Wait no longer for the service, and log what it leaves undone."""
        life = self._life
        if life is None:
            return
        if life.is_closing:
            frames = frames_of_coroutine(life.generator)
            if life.thread is not None:
                frames = frames_of_thread(life.thread)
            place = in_one_line(from_handler(frames))
            log.warn(
                "The rest of the service {name} is not over: it is at {place}",
                name=escape(life.name),
                place=place,
            )
        elif life.is_open:
            log.warn("The rest of the service {name} was not run", name=escape(life.name))
        life.skip()

    def _left(self) -> int:
        return sum(len(factory.connections) for factory in self._factories)

    def _waiting(self) -> str:
        waiting = self._model.lost_waiting
        return f"; calls for lost clients: {waiting}" if waiting else ""

    def _tell_gradually(self) -> Deferred[None]:
        if not self._spread or not self._left():
            return succeed(None)
        self._untold = [each for factory in self._factories for each in factory.connections]
        self._count = len(self._untold)
        self._began = self._reactor.seconds()
        return self._telling.start(STEP).addCallback(lambda _: None)

    def _tell_some(self) -> None:
        passed = (self._reactor.seconds() - self._began) / self._spread
        left = math.floor(self._count * (1.0 - passed))
        while self._untold and len(self._untold) > left:
            self._untold.pop().drain()
        if not self._untold or not self._left():
            self._telling.stop()

    def _give_up(self) -> None:
        connections = [each for factory in self._factories for each in factory.connections]
        left = self._still_there(connections)
        log.warn(
            "Drain time-out: aborting all; open connections: {count}{_waiting}{_lines}",
            count=len(connections),
            _waiting=self._waiting(),
            _lines="".join(f"\n  {line}" for line in left),
        )
        self._keep_for_service(self._for_service())
        # First, because the last connection may end the drain at once.
        self._last_calls = self._reactor.callLater(self._for_last_calls(), self._leave_handlers)
        self._abort_connections()
        self._model.drop()

    def _for_last_calls(self) -> float:
        """Return how many seconds handlers have after the connections are aborted."""
        if self._life is None or not self._life.is_open:
            return LAST_CALLS
        return min(LAST_CALLS, self._reserved() / 2)
