"""Tells which calls of handlers take long, while they do: where each is, and for which client.

A call in a thread is looked at a few times in each `threshold`; a call that is still the same then
has gone on since it was seen first, so a message costs nothing for it.  What a coroutine or a
Deferred waits for in the event loop is dated when it begins to wait.  (What holds the event loop
itself is the business of `stalls.py`.)

A connection handler's call lasts as long as its connection.  Of it only the time counts in which
there is input that it does not read; nor does time count in which a thread waits for its client to
send or to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from echod.concurrency.model import Model, UnderWay
from echod.connections.clients import shown
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

# Where a call is that has returned a Deferred, whoever is to fire it.
DEFERRED = "a Deferred that has not fired"

# The shortest and the longest time between two looks, in seconds.
SHORTEST, LONGEST = 0.05, 1.0
# How many looks there are in each threshold, at least.
LOOKS = 4
# How many clients a drain that has run out of time names.
MOST_NAMED = 10


@dataclass
class _Seen:
    """A call that was under way at the last look; times in seconds.

    Attributes:
        call: what is known of it.
        progress: what its connection had done by then.
        since: from when on its time counts.
        next_told: how long it has to last to be told of, again.
    """

    call: UnderWay
    progress: object
    since: float
    next_told: float
    told: bool = False


class SlowCalls:
    """Looks at what a model's handlers are at.

    Attributes:
        threshold: how long a call may last before it is told of, in seconds; 0: for ever.
    """

    def __init__(self, reactor: Any, model: Model, threshold: float) -> None:
        """Set up; nothing is looked at yet.

        Args:
            reactor: for its clock and a timer.
            model: which is asked for what is under way.
            threshold: how long a call may last, in seconds; 0: for ever.
        """
        self._reactor = reactor
        self._model = model
        self.threshold = threshold
        self._seen: dict[object, _Seen] = {}
        self._looking = LoopingCall(self._look_again)
        self._looking.clock = reactor

    def start(self) -> None:
        """Look from now on, and tell."""
        wanted = self.threshold / LOOKS if self.threshold else LONGEST
        interval = min(LONGEST, max(SHORTEST, wanted))
        self._looking.start(interval, now=False)

    def stop(self) -> None:
        """Look no more.  Again is harmless."""
        if self._looking.running:
            self._looking.stop()

    def take(self, threshold: float) -> None:
        """Take a new threshold into use."""
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
        except Exception:  # what one connection is at must not keep the others' from being seen
            log.failure("Looking for slow calls failed")

    def look(self) -> None:
        """See which calls still go on, and tell of those that last too long."""
        now = self._reactor.seconds()
        before, self._seen = self._seen, {}
        for call in self._model.under_way():
            seen = self._see(before.pop(call.key, None), call, now)
            if seen is not None:
                self._seen[call.key] = seen
        for over in before.values():
            self._tell_end(over, now)

    def _see(self, seen: _Seen | None, call: UnderWay, now: float) -> _Seen | None:
        progress = _progress_of(call)
        if progress is None or seen is None or seen.progress != progress:
            if seen is not None:
                self._tell_end(seen, now)
            if progress is None:
                return None
            seen = _Seen(call, progress, now - call.age, self.threshold)
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
        """Return for how long the oldest call has lasted, in seconds; 0 where there is none."""
        self.look()
        now = self._reactor.seconds()
        return max((now - seen.since for seen in self._seen.values()), default=0.0)

    def left_behind(self, connections: Iterable[Any]) -> list[str]:
        """Return who is still there, and where each hangs, in a line for the log each.

        Args:
            connections: those that are open; what handlers do for others is named too.
        """
        lines = list(_left_behind(set(connections), self._model.under_way()))
        more = len(lines) - MOST_NAMED
        if more > 0:
            lines[MOST_NAMED:] = [f"and {more} more"]
        return lines


def _left_behind(open_ones: set[Any], calls: Iterable[UnderWay]) -> Iterator[str]:
    """Yield a line for each that is there; those come first whose handler is at work."""
    for call in calls:
        gone = "" if call.owner in open_ones else ", which is gone"
        open_ones.discard(call.owner)
        yield f"{_peer(call.owner)}{gone}: the handler is at {_place_of(call)}"
    for connection in open_ones:
        yield f"{_peer(connection)}: {getattr(connection, 'waits_for', 'it is open')}"


def _progress_of(call: UnderWay) -> object:
    """Return what changes when a call gets on; None where its time does not count."""
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


def _peer(owner: Any) -> str:
    client = getattr(owner, "client", None)
    return shown(client) if client is not None else "no client"
