"""Time the calls of handlers. Only with `--status`: the handler itself is wrapped.

In the event loop one message in `EVERY` is timed, including the first: reading the clock twice
costs more than a short handler. In threads, where a message costs more, each message is timed.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import field
from typing import Any

from twisted.internet.defer import Deferred

from echod.handlers.contract import Handler
from echod.handlers.kinds import KINDS
from echod.handlers.lookup import ResolvedHandler
from echod.metrics import Histogram

# In the event loop, one message in this many is timed.
EVERY = 64

BOUNDS = (1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


class HandlerTimer:
    """Times the calls of handlers.

    Attributes:
        histogram: the measured times, in seconds.
    """

    def __init__(
        self, *, in_threads: bool, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Set up.

        Args:
            in_threads: whether handlers run in threads.
            clock: the time, in seconds.
        """
        self.histogram = Histogram(BOUNDS)
        self._in_threads = in_threads
        self._clock = clock
        self._lock = threading.Lock()
        self._skip = itertools.cycle([False, *[True] * (EVERY - 1)]).__next__

    def timed(self, handler: ResolvedHandler) -> ResolvedHandler:
        """Return `handler` with its calls timed; of a connection handler, each conversation.

        One that is not echod's own stays as it is.
        """
        if not KINDS[handler.kind].is_own:
            return handler
        return _Timed(handler.name, handler.kind, handler.target, handler.arguments, timer=self)

    def wrap(self, received: Callable[[bytes], object]) -> Callable[[bytes], object]:
        """Return a function that calls `received`, and times it."""
        return self._each(received) if self._in_threads else self._some(received)

    def _each(self, received: Callable[[bytes], object]) -> Callable[[bytes], object]:
        clock = self._clock

        def call(message: bytes) -> object:
            began = clock()
            try:
                return received(message)
            finally:
                self._observe(clock() - began)

        return call

    def time(self, function: Callable[..., object], *arguments: object) -> object:
        """Call `function`, time it, and return its result."""
        began = self._clock()
        try:
            return function(*arguments)
        finally:
            self._observe(self._clock() - began)

    def _some(self, received: Callable[[bytes], object]) -> Callable[[bytes], object]:
        skip, clock = self._skip, self._clock

        def call(message: bytes) -> object:
            if skip():
                return received(message)
            began = clock()
            result = None
            try:
                result = received(message)
            finally:
                if not (inspect.iscoroutine(result) or isinstance(result, Deferred)):
                    self._observe(clock() - began)
            if inspect.iscoroutine(result):
                result = self._awaited(result, began)
            elif isinstance(result, Deferred):
                result.addBoth(self._fired, began)
            return result

        return call

    async def _awaited(self, result: Awaitable[object], began: float) -> object:
        try:
            return await result
        finally:
            self._observe(self._clock() - began)

    def _fired(self, result: object, began: float) -> object:
        self._observe(self._clock() - began)
        return result

    def _observe(self, seconds: float) -> None:
        with self._lock:
            self.histogram.observe(seconds)


class _TimedHandler(Handler):
    """One connection's handler, with its calls timed."""

    __slots__ = ("closed", "opened", "received")

    def __init__(self, handler: Handler, timer: HandlerTimer) -> None:
        # Attributes of the instance, so that only the timer is between caller and handler.
        for hook in ("opened", "closed"):
            if (method := getattr(handler, hook, None)) is not None:
                setattr(self, hook, method)
        self.received: Any = timer.wrap(handler.received)


class _Timed(ResolvedHandler):
    timer: HandlerTimer = field(kw_only=True)

    def message_handler(self) -> Handler:
        return _TimedHandler(super().message_handler(), self.timer)

    def converse(self, *given: object) -> object:
        return self.timer.time(super().converse, *given)
