"""One reload of a service with workers: they and the supervisor take the new settings, or none."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from echod.daemon.resolve import why_refused
from echod.timers import cancel_timer
from echod.workers.child import Child
from echod.workers.link import Message

if TYPE_CHECKING:
    from echod.interfaces import Reactor

# How long workers may take to make new settings ready, in seconds.
READY_IN = 10.0


class Reload:
    """One reload: the workers and this process make the settings ready, then all apply them, or
    none.
    """

    _last = 0

    def __init__(
        self,
        reactor: Reactor,
        children: Sequence[Child],
        text: str,
        own: Coroutine[Any, Any, list[Callable[[], object]]],
        decided: Callable[[str], object],
    ) -> None:
        """Set up.

        Args:
            reactor: for the deadline.
            children: the workers.
            text: the content of the file of settings.
            own: makes this process ready, and returns the functions that apply the settings.
            decided: is called with the reason against it; "" if all are ready.
        """
        Reload._last += 1
        self._number = Reload._last
        self._children = list(children)
        self._waiting: set[object] = {self, *children}
        self._text = text
        self._steps = own
        self._preparing: Deferred[Any] = succeed(None)
        self._ready: list[Callable[[], object]] = []
        self._decided = decided
        self._late = reactor.callLater(READY_IN, self._end, "a worker does not answer")

    def begin(self) -> None:
        """Ask the workers, and make this process ready."""
        for child in self._children:
            child.order(do="prepare", number=self._number, text=self._text)
        self._preparing = Deferred.fromCoroutine(self._steps)
        self._preparing.addCallbacks(self._prepared, self._not_prepared)

    def _prepared(self, ready: list[Callable[[], object]]) -> None:
        self._ready = ready
        self.gone(self)

    def _not_prepared(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            failure.trap(Exception)
            self._end(why_refused(cast(Exception, failure.value)))

    def told(self, child: Child, news: Message) -> None:
        """Take a worker's answer, or that it lives; with many files to read it has more time."""
        if news["news"] == "alive":
            if news["preparing"] and child in self._waiting:
                self._late.reset(READY_IN)
        elif news["number"] == self._number:
            if news["why"]:
                self._end(str(news["why"]))
            else:
                self.gone(child)

    def gone(self, waited_for: object) -> None:
        """Wait no longer for this worker: its successor gets the settings in force."""
        if waited_for in self._waiting:
            self._waiting.discard(waited_for)
            if not self._waiting:
                self._end("")

    def cancel(self) -> None:
        """End it, without a decision."""
        self._waiting.clear()
        self._preparing.cancel()
        cancel_timer(self._late)

    def _end(self, why: str) -> None:
        self.cancel()
        self._decided(why)

    def finish(self, *, apply: bool) -> None:
        """Let all apply the settings, or forget them."""
        for take_into_use in self._ready if apply else ():
            take_into_use()
        for child in self._children:
            child.order(do="commit" if apply else "forget")
            if apply:
                child.text = self._text
