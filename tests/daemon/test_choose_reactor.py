from __future__ import annotations

import subprocess
import sys
import time

import pytest
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IReactorTime
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.python import runtime

from echod.daemon.choose_reactor import choose, follow_the_monotonic_clock, name_of
from echod.reactor import UvloopReactor
from tests.support.log import Log


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (UvloopReactor, "uvloop"),
        (EPollReactor, "epoll"),
        (PollReactor, "poll"),
        (SelectReactor, "select"),
        (AsyncioSelectorReactor, "asyncio"),
    ],
)
def test_a_reactor_is_named_as_twistd_names_it(kind: type, name: str) -> None:
    assert name_of(kind.__new__(kind)) == name


def test_a_reactor_that_is_in_place_stays() -> None:
    before = sys.modules["twisted.internet.reactor"]
    choose()
    assert sys.modules["twisted.internet.reactor"] is before


def test_without_uvloop_nothing_is_installed_and_the_reason_is_logged(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor")
    monkeypatch.delattr("echod.reactor")
    monkeypatch.setitem(sys.modules, "echod.reactor", None)
    choose()
    assert "twisted.internet.reactor" not in sys.modules
    assert "The uvloop reactor is not available: " in log.text


def test_with_uvloop_it_is_installed() -> None:
    code = (
        "from echod.daemon.choose_reactor import choose, name_of\n"
        "choose()\n"
        "from twisted.internet import reactor\n"
        "print(name_of(reactor))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.stdout, done.stderr) == ("uvloop\n", "")


class WallClock(Clock):
    """A wall clock, as Twisted's own reactors have."""

    seconds = staticmethod(runtime.seconds)  # type: ignore[assignment]


def test_timers_follow_the_monotonic_clock_once_it_is_safe() -> None:
    clock = WallClock()
    follow_the_monotonic_clock(clock)
    assert clock.seconds is time.monotonic
    busy = WallClock()
    busy.callLater(1, str)
    follow_the_monotonic_clock(busy)
    assert busy.seconds is runtime.seconds


def test_a_clock_of_a_reactors_own_is_left_alone() -> None:
    clock = Clock()
    assert IReactorTime.providedBy(clock)
    follow_the_monotonic_clock(clock)
    assert clock.seconds() == 0.0
