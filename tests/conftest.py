"""Fixtures of every test: the log, and the proof that the test left nothing behind."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.application.reactors import installReactor

# Python keeps what it compiles: each of the hundreds of daemons starts in two thirds of the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Programs say what they say in English, in whichever language the tests were begun.
os.environ["LC_ALL"] = "C.UTF-8"

# The whole suite runs on any reactor: TEST_REACTOR=epoll make test.
installReactor(os.environ.get("TEST_REACTOR", "uvloop"))

from twisted.internet import endpoints, task
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher

from tests.support.certificates import self_signed_pem
from tests.support.daemon import Start, starting
from tests.support.interruption import Interruption
from tests.support.log import Log
from tests.support.matrices import Matrices
from tests.support.reactor import reactor
from tests.support.reports import Reports
from tests.support.time_limit import TimeLimit
from tests.support.waiting import PATIENCE
from tests.support.workers import Workers

# The reactor runs beside the test, so a slow example is the machine's doing; and a fixture that
# is shared by the examples of one test is meant to be.
settings.register_profile(
    "echod",
    deadline=None,
    max_examples=int(os.environ.get("EXAMPLES", "20")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("echod")

# In the background of a shell without job control SIGINT is ignored, and so it would be in every
# daemon that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # pytest keeps all the tests that it finds; `_warm` enables it
    config.pluginmanager.register(Interruption(config))
    config.pluginmanager.register(Workers(config))
    config.pluginmanager.register(Matrices(config))
    config.pluginmanager.register(Reports(config))
    config.pluginmanager.register(TimeLimit(config))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Keep the garbage collector from looking again and again at thousands of tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Spare pytest and hypothesis what takes them long."""
    with contextlib.suppress(AttributeError, ImportError):
        # The version of Twisted, from its metadata, before each test: a millisecond.
        plugin: Any = importlib.import_module("_pytest.unittest")
        plugin._get_twisted_version = functools.cache(plugin._get_twisted_version)
    with contextlib.suppress(AttributeError, ImportError):
        # The characters of UTF-8, by trying a million, in each new clone: three seconds.
        charmap: Any = importlib.import_module("hypothesis.internal.charmap")
        intervals: Any = importlib.import_module("hypothesis.internal.intervalsets").IntervalSet
        all_but_surrogates = intervals(((0, 0xD7FF), (0xE000, sys.maxunicode)))
        known = {"utf-8": (all_but_surrogates, intervals(()))}
        charmap.intervals_from_codec = known.__getitem__


@pytest.fixture
def log() -> Iterator[Log]:
    """The log of this test."""
    kept = Log()
    observer = kept.events.append
    globalLogPublisher.addObserver(observer)
    yield kept
    globalLogPublisher.removeObserver(observer)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Start]:
    """Start `twistd -n echod` with these arguments; `--port 0` unless others say where."""
    with starting(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for servers on 127.0.0.1, and its key."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(self_signed_pem())
    return path


_DESCRIPTORS = "/proc/self/fd"


def _descriptors() -> set[int]:
    listed = os.listdir(_DESCRIPTORS)  # noqa: PTH208 - each test does it twice
    lists = os.dup(0)  # the lowest number that is free: it was that of the list itself
    os.close(lists)
    return {*map(int, listed)} - {lists}


def _what(descriptor: int) -> str:
    """Return what a descriptor is open to."""
    with contextlib.suppress(OSError):
        return os.readlink(f"{_DESCRIPTORS}/{descriptor}")  # noqa: PTH115 - of a socket
    return "/proc: it was closed meanwhile"


def _left(before: tuple[set[int], set[threading.Thread], set[object]]) -> list[str]:
    descriptors, threads, calls = before
    left = [
        f"descriptor {number}: {what}"
        for number in _descriptors() - descriptors
        if not (what := _what(number)).startswith("/proc")
    ]
    left += [f"thread {thread.name}" for thread in threading.enumerate() if thread not in threads]
    left += [f"delayed call {call}" for call in reactor.getDelayedCalls() if call not in calls]
    return left


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    """Let hypothesis and the reactor open what they open once, before a test is watched."""
    given(st.binary())(lambda data: None)()
    factory = Factory.forProtocol(Protocol)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    endpoint = endpoints.clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}")
    client = pytest_twisted.blockon(endpoint.connect(factory))
    client.transport.abortConnection()
    pytest_twisted.blockon(port.stopListening())
    # No collection looks again at the thousands of tests that pytest has found, and all modules.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def nothing_left_behind(log: Log) -> Iterator[None]:
    """Fail a test that leaves an error in the log, a descriptor, a thread or a delayed call."""
    before = _descriptors(), set(threading.enumerate()), set(reactor.getDelayedCalls())
    yield
    deadline, pause = reactor.seconds() + PATIENCE, 0.005
    while (left := _left(before)) and reactor.seconds() < deadline:
        pytest_twisted.blockon(task.deferLater(reactor, pause))
        pause = min(1.5 * pause, 0.2)
        # Most of what is left ends by itself, sooner than a collection; calls, which are last in
        # the list, always do.
        if pause > 0.02 and not left[0].startswith("delayed call"):
            gc.collect()
    assert not left
    assert not log.errors
