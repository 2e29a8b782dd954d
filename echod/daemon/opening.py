"""Open a service at the start, before the reactor runs: so a failure is the start's own, with exit
code 1, also in the background.

The reactor takes its turns here meanwhile, for the service alone: no listener accepts yet.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorThreads
from twisted.python.failure import Failure

from echod.concurrency.life import Life
from echod.daemon import ending
from echod.daemon.resolve import StartError, named
from echod.errors import UserError
from echod.handlers.lookup import ResolvedHandler
from echod.text import escape

if TYPE_CHECKING:
    from echod.daemon.signals import Signals
    from echod.interfaces import Reactor

# How long one turn may wait, in seconds.
TURN = 0.005


class _Ended(BaseException):
    """Raised in a service that blocks the main thread while it opens; a signal ends the start."""


class _Start:
    """Notes why a start has to end."""

    def __init__(self) -> None:
        self.number = 0
        self.late = False
        self.blocked = False

    def on_signal(self, number: int) -> None:
        """Note a signal to stop."""
        self.number = number
        self._interrupt()

    def on_alarm(self, number: int, frame: FrameType | None) -> None:
        """Note that the time is over."""
        self.late = True
        self._interrupt()

    @property
    def has_to_end(self) -> bool:
        """Whether it has to end."""
        return self.late or bool(self.number)

    def _interrupt(self) -> None:
        if self.blocked:
            self.blocked = False
            raise _Ended


def open_before_running(
    reactor: Reactor, life: Life, timeout: float, grace: float, signals: Signals | None
) -> ResolvedHandler:
    """Open the service of `life` while the reactor is not started; return its handler.

    Args:
        reactor: takes its turns here.
        life: the life of the service.
        timeout: seconds that it may take; 0: any time.
        grace: seconds that it may take to clean up, if it has to end.
        signals: tells of SIGTERM; None if another part does.

    Raises:
        StartError: it cannot be opened, takes too long, or a signal ends the start.
    """
    start = _Start()
    if signals is not None:
        signals.starting = start.on_signal
    pool = _start_threads(reactor)
    try:
        result = _opened(reactor, life, timeout, grace, start, signals)
    finally:
        if signals is not None:
            signals.starting = None
    if isinstance(result, ResolvedHandler):
        if start.number and signals is not None:
            signals.pass_on(start.number)  # the end closes what is open
        return result
    _stop_threads(pool)
    if start.number and signals is not None:
        ending.end_by_signal(start.number)
    if why := _why_ended(life, start, timeout):
        raise StartError(why)
    assert result is not None
    assert result.value is not None
    with named("--handler"):
        raise result.value.with_traceback(result.getTracebackObject())


def _opened(
    reactor: Reactor,
    life: Life,
    timeout: float,
    grace: float,
    start: _Start,
    signals: Signals | None,
) -> ResolvedHandler | Failure | None:
    results: list[ResolvedHandler | Failure] = []
    deadline = time.monotonic() + (timeout or math.inf)
    with _alarm(timeout, start) if life.blocks else contextlib.nullcontext():
        start.blocked = life.blocks
        life.open().addBoth(results.append)
        start.blocked = False
    while not (results or start.has_to_end):
        reactor.iterate(TURN)
        start.late = time.monotonic() >= deadline
    if results:
        return results[0]
    if start.number and signals is not None:
        signals.answer()
    life.skip()
    end = time.monotonic() + grace
    while not results and time.monotonic() < end:
        reactor.iterate(TURN)
    return None


@contextlib.contextmanager
def _alarm(timeout: float, start: _Start) -> Iterator[None]:
    """Interrupt code that blocks the main thread for longer than `timeout`."""
    if not timeout or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, start.on_alarm)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _why_ended(life: Life, start: _Start, timeout: float) -> str:
    name = escape(life.name)
    if start.number:
        return f"--handler: {signal.Signals(start.number).name} came while {name} was opened"
    return _too_long(name, timeout) if start.late else ""


def _too_long(name: str, timeout: float) -> str:
    return f"--handler: {name} was not open within {timeout:g} s (--start-timeout)"


def _start_threads(reactor: Reactor) -> Any:
    """Start the reactor's pool of threads, which otherwise waits until the reactor runs."""
    pool = IReactorThreads(reactor).getThreadPool()
    if not pool.started:
        pool.start()
    return pool


def _stop_threads(pool: Any) -> None:
    """Stop the pool, or the process could not end; wait for none of its threads."""
    threading.Thread(target=pool.stop, name="echod-pool-stopper", daemon=True).start()


def open_running(reactor: Reactor, life: Life, timeout: float) -> Deferred[ResolvedHandler]:
    """Open the service of `life` while the reactor runs.

    Returns:
        Fires with its handler; fails with `StartError`.
    """
    late = reactor.callLater(timeout, life.skip) if timeout else None

    def over(result: ResolvedHandler | Failure) -> ResolvedHandler:
        if late is not None and late.active():
            late.cancel()
        elif late is not None:
            raise StartError(_too_long(escape(life.name), timeout))
        if isinstance(result, Failure):
            error = result.value
            why = str(error) if isinstance(error, UserError) else repr(error)
            raise StartError(f"--handler: {why}")
        return result

    return life.open().addBoth(over)
