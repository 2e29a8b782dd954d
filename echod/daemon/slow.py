"""Log slow calls of handlers while they last, with their place and client.

Calls in threads are checked a few times in each `threshold`. A call that is still the same has
lasted since it was first seen, so this costs a message nothing. When a coroutine or a Deferred
begins to wait in the event loop, the time is noted. (`stalls.py` detects calls that block the
event loop itself.) A handler of asyncio streams is checked as a call in a thread: its time counts
while the client waits for it.

A connection handler's call lasts as long as its connection. Only the time counts during which
there is input that it does not read. Time during which a handler waits for its client to send or
to read does not count. A stream's time begins again with each piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from echod.concurrency.model import Model, UnderWay
from echod.connections.clients import shown
from echod.connections.lifecycle import ConnectionProtocol
from echod.daemon.stacks import (
    Frames,
    frames_of_coroutine,
    frames_of_thread,
    from_handler,
    in_one_line,
)
from echod.daemon.stacks import shown as shown_frames
from echod.log.event import LogLine

log = Logger("echod.slow")
_slow = LogLine(
    log, "warn", "A call of the handler for {peer} has lasted {seconds:.1f} s; it is at:\n{stack}"
)
_over = LogLine(log, "warn", "The call of the handler for {peer} is over, after {seconds:.1f} s")

# Shown in place of a stack for a call that has returned a Deferred.
DEFERRED = "a Deferred that has not fired"

# The shortest and the longest time between two checks, in seconds.
SHORTEST, LONGEST = 0.05, 1.0
# The least number of checks in each threshold.
LOOKS = 4
# How many clients the line about the drain's time-out names.
MOST_NAMED = 10


@dataclass
class _Seen:
    """A call that was running at the last check; times in seconds.

    Attributes:
        call: the call.
        progress: the progress of its connection at that time.
        since: its time counts from then on.
        next_told: how long it has to last before it is logged (again).
        told: whether it was logged.
    """

    call: UnderWay
    progress: object
    since: float
    next_told: float
    told: bool = False


class SlowCalls:
    """Checks the running calls of a model's handlers.

    Attributes:
        threshold: how long a call may last before it is logged, in seconds; 0: any time.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        model: Model,
        threshold: float,
        *,
        conversing: Callable[[], Iterable[object]] = tuple,
    ) -> None:
        """Set up; nothing is checked yet.

        Args:
            reactor: for its clock and a timer.
            model: knows the running calls.
            threshold: how long a call may last before it is logged, in seconds; 0: any time.
            conversing: returns the open connections that run their handlers' calls themselves.
        """
        self._reactor = reactor
        self._model = model
        self._conversing = conversing
        self.threshold = threshold
        self._seen: dict[object, _Seen] = {}
        self._looking = LoopingCall(self._look_again)
        self._looking.clock = reactor

    def start(self) -> None:
        """Start checking."""
        wanted = self.threshold / LOOKS if self.threshold else LONGEST
        interval = min(LONGEST, max(SHORTEST, wanted))
        self._looking.start(interval, now=False)

    def stop(self) -> None:
        """Stop checking. Calling it again is harmless."""
        if self._looking.running:
            self._looking.stop()

    def reconfigure(self, threshold: float) -> None:
        """Use a new threshold."""
        if threshold != self.threshold:
            self.threshold = threshold
            for seen in self._seen.values():
                seen.next_told = threshold
            if self._looking.running:
                self.stop()
                self.start()

    def _look_again(self) -> None:
        try:
            self.look()
        except Exception:  # an error about one call must not stop the checks
            log.failure("Looking for slow calls failed")

    def look(self) -> None:
        """Check which calls are still running, and log those that last too long."""
        now = self._reactor.seconds()
        before, self._seen = self._seen, {}
        for call in chain(self._model.under_way(), _calls_of(self._conversing())):
            self._seen[call.key] = self._see(before.pop(call.key, None), call, now)
        for over in before.values():
            self._tell_end(over, now)

    def _see(self, seen: _Seen | None, call: UnderWay, now: float) -> _Seen:
        progress = _progress_of(call)
        if seen is None and progress is not None:
            seen = _Seen(call, progress, now - call.age, self.threshold)
        elif seen is None or progress is None or seen.progress != progress:
            if seen is not None:
                self._tell_end(seen, now)
            return _Seen(call, progress, now, self.threshold)
        lasted = now - seen.since
        if self.threshold and lasted >= seen.next_told:
            seen.next_told = 2 * lasted
            seen.told = True
            if _slow.wanted(_peer(call.owner)):
                _slow.write(stack=_stack_of(call), **_who(call), seconds=lasted)
        return seen

    def _tell_end(self, seen: _Seen, now: float) -> None:
        if seen.told and _over.wanted(_peer(seen.call.owner)):
            _over.write(**_who(seen.call), seconds=now - seen.since)

    def oldest(self) -> float:
        """Return the age of the oldest call, in seconds; 0 if there is none."""
        self.look()
        now = self._reactor.seconds()
        return max((now - seen.since for seen in self._seen.values()), default=0.0)

    def left_behind(self, connections: Iterable[object]) -> list[str]:
        """Return a line for each remaining client, with the place where its handler hangs.

        Args:
            connections: the open ones; running calls for others are named too.
        """
        left = set(connections)
        lines = list(_left_behind(left, [*self._model.under_way(), *_calls_of(left)]))
        more = len(lines) - MOST_NAMED
        if more > 0:
            lines[MOST_NAMED:] = [f"and {more} more"]
        return lines


def _left_behind(open_ones: set[object], calls: Iterable[UnderWay]) -> Iterator[str]:
    """Yield a line for each remaining client; those with a handler at work come first."""
    for call in calls:
        gone = "" if call.owner in open_ones and not call.gone else ", which is gone"
        open_ones.discard(call.owner)
        yield f"{_peer(call.owner)}{gone}: the handler is at {_place_of(call)}"
    for connection in open_ones:
        yield f"{_peer(connection)}: {_waits_for(connection)}"


def _waits_for(connection: object) -> str:
    return connection.waits_for if isinstance(connection, ConnectionProtocol) else "it is open"


def _calls_of(connections: Iterable[object]) -> Iterator[UnderWay]:
    """Yield the calls that connections run themselves."""
    for connection in connections:
        call = connection.call if isinstance(connection, ConnectionProtocol) else None
        if call is not None:
            yield call


def _progress_of(call: UnderWay) -> object:
    """Return a value that changes when a call makes progress; None if its time does not count."""
    progress = getattr(call.owner, "progress", None)
    return progress() if progress is not None else call.key


def _frames_of(call: UnderWay) -> Frames:
    if call.thread is not None:
        return from_handler(frames_of_thread(call.thread))
    return from_handler(frames_of_coroutine(call.coroutine))


def _stack_of(call: UnderWay) -> str:
    return shown_frames(_frames_of(call)) if _has_frames(call) else f"  {DEFERRED}"


def _place_of(call: UnderWay) -> str:
    return in_one_line(_frames_of(call)) if _has_frames(call) else DEFERRED


def _has_frames(call: UnderWay) -> bool:
    return call.thread is not None or call.coroutine is not None


def _who(call: UnderWay) -> dict[str, str]:
    client = getattr(call.owner, "client", None)
    return {"peer": _peer(call.owner), "listener": client.listener if client else ""}


def _peer(owner: object) -> str:
    client = getattr(owner, "client", None)
    return shown(client) if client is not None else "no client"
