"""Share one snapshot of the figures among simultaneous requests.

With many connections a snapshot is expensive, because each connection is asked, and so is
formatting it. However many requests there are, both happen at most once a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from echod.status.snapshot import Snapshot

# How long a snapshot is used for further requests, in seconds.
FRESH = 1.0

# How many formatted versions are kept; each `Accept` header makes one.
MOST_FORMS = 16

Form = TypeVar("Form")


class SharedLook:
    """Takes snapshots, and keeps each for a while."""

    def __init__(
        self,
        seconds: Callable[[], float],
        *,
        look: Callable[[], Awaitable[Snapshot]],
        state: Callable[[], str],
    ) -> None:
        """Set up, without taking a snapshot.

        Args:
            seconds: the clock.
            look: returns the figures.
            state: returns the daemon's state; figures from another state are not fresh.
        """
        self._seconds = seconds
        self._look = look
        self._state = state
        self._seen: Snapshot | None = None
        self._seen_at = 0.0
        self._forms: dict[str, Any] = {}
        self._looking: Deferred[Snapshot] | None = None
        self._waiting: list[Deferred[Snapshot]] = []

    async def form(self, name: str, make: Callable[[Snapshot], Form]) -> Form:
        """Return the figures in the form that `make` gives them, made once for `name` while fresh.

        Raises:
            Exception: any exception of the snapshot, or of `make`.
        """
        now = await self._figures()
        if name not in self._forms:
            if len(self._forms) >= MOST_FORMS:
                return make(now)
            self._forms[name] = make(now)
        form: Form = self._forms[name]
        return form

    def _figures(self) -> Awaitable[Snapshot]:
        if (seen := self._seen) is not None and self._is_fresh(seen):
            return succeed(seen)
        waiting: Deferred[Snapshot] = Deferred(self._left)
        self._waiting.append(waiting)
        if self._looking is None:
            self._looking = Deferred.fromCoroutine(self._once())
            self._looking.addBoth(self._looked)
        return waiting

    def _is_fresh(self, seen: Snapshot) -> bool:
        return self._seconds() - self._seen_at < FRESH and seen.state == self._state()

    async def _once(self) -> Snapshot:
        return await self._look()

    def _looked(self, result: Snapshot | Failure) -> None:
        self._looking = None
        self._forms.clear()
        self._seen = None if isinstance(result, Failure) else result
        self._seen_at = self._seconds()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(result)

    def _left(self, waiting: Deferred[Snapshot]) -> None:
        """Note that a waiting request has gone; with the last one, cancel the snapshot."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            if not self._waiting and self._looking is not None:
                self._looking.cancel()
