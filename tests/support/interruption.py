"""SIGTERM and SIGINT end pytest: no other test begins, and what this one has made is cleaned up.

Left to itself, the reactor that the tests share would take SIGTERM as its own end: pytest would go
on, and each test after that would fail for want of a reactor.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

import greenlet
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from tests.support.reactor import reactor


class Interrupted(KeyboardInterrupt):
    """A signal has asked for the end."""


class Interruption:
    """The plugin; it is told of signals in the main thread, whichever greenlet runs there.

    It passes SIGTERM on to the workers, which then have the ten seconds that pytest-xdist gives
    them to clean up. By itself, pytest-xdist interrupts a test only when half of them are over.
    Ctrl-C reaches the workers without it: the terminal sends SIGINT to the whole group.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Set up.

        Args:
            config: of pytest; the other plugins of this suite take it, too.
        """
        self._workers: list[subprocess.Popen[bytes]] = []
        self._session: pytest.Session | None = None
        self._main: greenlet.greenlet | None = None
        self._number = 0
        self._plain = False  # a test that is a plain function runs
        self._test: Deferred[Any] | None = None  # the Deferred of a test that is a coroutine

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        self._session = session
        self._main = greenlet.getcurrent()
        # When the reactor starts it sets handlers of its own: so ours are set after that.
        pytest_twisted.blockon(deferLater(reactor, 0))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        return (yield)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        self._workers.append(node.gateway._io.popen)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second one ends pytest at once
        if number == signal.SIGTERM:
            for worker in self._workers:
                worker.send_signal(number)
            if "PYTEST_XDIST_WORKER" in os.environ:
                # That of pytest-xdist comes after five seconds: the test may be cleaning up.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._number = number
        assert self._session is not None
        # For where an exception is lost, in a test or beneath the reactor.
        self._session.shouldstop = self._name
        # A plain test is called by the reactor too, which passes its exceptions on; where the
        # reactor itself is at work an exception would end it, and cleaning up needs it.
        if self._plain or greenlet.getcurrent() is self._main:
            raise Interrupted(self._name)
        reactor.callFromThread(self._cancel)

    def _cancel(self) -> None:
        """In the reactor: end the test that waits there, if one does."""
        if self._test is not None:
            self._test.cancel()

    @property
    def _name(self) -> str:
        return signal.Signals(self._number).name

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Iterator[None]:
        if inspect.iscoroutinefunction(pyfuncitem.obj):
            pyfuncitem.obj = self._cancellable(pyfuncitem.obj)
        else:
            self._plain = True
        try:
            return (yield)
        except CancelledError:
            if self._number:
                raise Interrupted(self._name) from None
            raise
        finally:
            self._plain, self._test = False, None

    def _cancellable(
        self, test: Callable[..., Coroutine[Any, Any, None]]
    ) -> Callable[..., Coroutine[Any, Any, None]]:
        @functools.wraps(test)
        async def cancellable(**arguments: Any) -> None:
            self._test = Deferred.fromCoroutine(test(**arguments))
            await self._test

        return cancellable

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._number:
            session.exitstatus = 128 + self._number
