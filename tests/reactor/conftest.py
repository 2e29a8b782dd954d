"""A reactor for each test, run in this process and never for long."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from twisted.internet.epollreactor import EPollReactor
from twisted.logger import globalLogPublisher

from echod.reactor import UvloopReactor

from .harness import Harness, hang_up


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Not watched here: Twisted has no way to close a reactor, so each leaves its epoll object.

    The reactor's own tests count the objects that the reactor must not leave.
    """


@pytest.fixture(autouse=True)
def no_loop_runs() -> Iterator[None]:
    """The tests' own reactor waits in a greenlet: for asyncio its loop runs all the same."""
    running = asyncio._get_running_loop()
    wake_up = signal.set_wakeup_fd(-1)
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(running)
    signal.set_wakeup_fd(wake_up)


def _uvloop() -> UvloopReactor:
    return UvloopReactor(uvloop.new_event_loop())


@pytest.fixture
def harness() -> Iterator[Harness]:
    """This reactor."""
    yield from _harness(_uvloop())


@pytest.fixture(params=[_uvloop, EPollReactor], ids=["uvloop", "epoll"])
def either(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """This reactor, and then Twisted's own, for behaviour that has to be the same."""
    yield from _harness(request.param())


def _harness(reactor: Any) -> Iterator[Harness]:
    made = Harness(reactor)
    globalLogPublisher.addObserver(made.observe)
    yield made
    globalLogPublisher.removeObserver(made.observe)
    made.close()
    hang_up()
