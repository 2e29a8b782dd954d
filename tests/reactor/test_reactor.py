"""Time, threads, signals, starting and stopping."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFDSet,
    IReactorProcess,
    IReactorSocket,
    IReactorSSL,
    IReactorTCP,
    IReactorThreads,
    IReactorTime,
    IReactorUDP,
    IReactorUNIX,
)
from twisted.internet.protocol import DatagramProtocol
from zope.interface.verify import verifyObject

from .conftest import Echo, Harness, dial

TWISTD = "from twisted.scripts.twistd import run; run()"
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    "interface",
    [
        IReactorCore,
        IReactorFDSet,
        IReactorProcess,
        IReactorSocket,
        IReactorSSL,
        IReactorTCP,
        IReactorThreads,
        IReactorTime,
        IReactorUDP,
        IReactorUNIX,
    ],
)
def test_interfaces(harness: Harness, interface: Any) -> None:
    assert verifyObject(interface, harness.reactor)


# Time


def test_a_clock_step_fires_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    fired: list[str] = []
    reactor = harness.reactor
    reactor.callLater(600, fired.append, "early")
    reactor.callLater(0.05, monkeypatch.setattr, time, "time", lambda: real() + 3600)
    reactor.callLater(0.1, fired.append, "on time")
    reactor.callLater(0.2, reactor.stop)
    before = reactor.seconds()
    harness.run_until_stopped()
    assert fired == ["on time"]
    assert 0.2 <= reactor.seconds() - before < 5
    # Still near the time of day, for those who make a date of it.
    assert abs(reactor.seconds() - real()) < 60


def test_timed_calls(harness: Harness) -> None:
    reactor = harness.reactor
    order: list[str] = []
    later = reactor.callLater(50, order.append, "sooner")
    cancelled = reactor.callLater(0.01, order.append, "cancelled")
    delayed = reactor.callLater(0.02, order.append, "delayed")
    reactor.callLater(0.03, order.append, "third")
    reactor.callLater(0.02, order.append, "second")
    reactor.callLater(0, later.reset, 0.01)
    cancelled.cancel()
    delayed.delay(0.05)
    assert len(reactor.getDelayedCalls()) == 5
    reactor.callLater(0.2, reactor.stop)
    harness.run_until_stopped()
    assert order == ["sooner", "second", "third", "delayed"]
    assert reactor.getDelayedCalls() == []


def test_no_call_is_early_and_waiting_is_no_spinning(harness: Harness) -> None:
    reactor = harness.reactor
    runs: list[int] = []
    lateness: list[float] = []
    run_pending = reactor._run_pending
    reactor._run_pending = lambda: (runs.append(1), run_pending())[1]  # type: ignore[method-assign,func-returns-value]

    def note(due: float) -> None:
        lateness.append(reactor.seconds() - due)

    for delay in (0.0104, 0.0206, 0.0309):
        reactor.callLater(delay, note, reactor.seconds() + delay)
    reactor.callLater(0.06, reactor.stop)
    reactor.run(installSignalHandlers=False)
    assert all(late >= 0 for late in lateness)
    # One run for each of the four calls, one for the start, one for the stop; and one more for
    # each call, as uvloop's clock counts whole milliseconds, so its timer may be early by one.
    assert len(runs) <= 10


def test_far_and_endless_calls(harness: Harness) -> None:
    harness.reactor.callLater(float("inf"), pytest.fail).cancel()
    harness.reactor.callLater(1e9, pytest.fail).cancel()
    harness.reactor.callLater(0.01, harness.reactor.stop)
    harness.run_until_stopped()


# Threads


def test_many_calls_from_threads_are_one_wake_up(harness: Harness) -> None:
    reactor = harness.reactor
    wake_ups: list[int] = []
    done: list[int] = []
    wake_up = reactor.wakeUp
    reactor.wakeUp = lambda: (wake_ups.append(1), wake_up())[1]  # type: ignore[method-assign,func-returns-value]

    def busy() -> None:
        """Keep the loop from its queue until the thread has made all its calls."""
        wake_ups.clear()
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    def call() -> None:
        for number in range(10_000):
            reactor.callFromThread(done.append, number)
        reactor.callFromThread(reactor.stop)

    reactor.callLater(0, busy)
    harness.run_until_stopped()
    assert done == list(range(10_000))
    # The second is reactor.stop's own.
    assert len(wake_ups) <= 2


def test_no_call_from_a_thread_is_lost(harness: Harness) -> None:
    reactor = harness.reactor
    done: list[int] = []

    def call() -> None:
        for number in range(5_000):
            reactor.callFromThread(done.append, number)

    harness.run(*[call] * 4)
    assert len(done) == 20_000


def test_an_error_from_a_thread_stops_no_other(harness: Harness) -> None:
    done: list[str] = []

    def call() -> None:
        harness.reactor.callFromThread(lambda: 1 / 0)
        harness.reactor.callFromThread(done.append, "next")

    harness.run(call)
    assert done == ["next"]
    assert len(harness.failures) == 1


# Descriptors


def test_udp_beside_streams(harness: Harness) -> None:
    class Replies(DatagramProtocol):
        def datagramReceived(self, datagram: bytes, address: Any) -> None:
            self.transport.write(datagram, address)

    stream_port = harness.listen(Echo)
    datagram_port = harness.reactor.listenUDP(0, Replies(), interface="127.0.0.1").getHost().port

    def client() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, dial(stream_port) as s:
            datagrams.settimeout(5)
            for number in range(100):
                message = b"%d" % number
                datagrams.sendto(message, ("127.0.0.1", datagram_port))
                s.sendall(message)
                assert datagrams.recv(100) == message
                assert s.recv(100) == message

    harness.run(client)


# As a program


def program(code: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        **more,
    )


def test_import_installs_nothing() -> None:
    done = program(
        "import echod.reactor, sys; assert 'twisted.internet.reactor' not in sys.modules"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_install_and_leave() -> None:
    done = program(
        "import asyncio, echod.reactor; echod.reactor.install()\n"
        "from twisted.internet import reactor\n"
        "assert type(reactor).__name__ == 'UvloopReactor'\n"
        "assert asyncio.get_event_loop_policy().get_event_loop() is reactor.loop\n"
        "reactor.callLater(0.1, reactor.stop); reactor.run()"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_it(number: int) -> None:
    done = program(
        "import echod.reactor, os; echod.reactor.install()\n"
        "from twisted.internet import reactor\n"
        f"reactor.callLater(0.1, os.kill, os.getpid(), {int(number)}); reactor.run()\n"
        f"assert reactor._exitSignal == {int(number)}"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_tools_know_it() -> None:
    done = program(TWISTD, "--help-reactors", cwd=ROOT)
    assert "uvloop" in done.stdout, done.stderr


def test_under_twistd_as_a_daemon(tmp_path: Path) -> None:
    """The loop is made before twistd forks, and runs after it."""
    (tmp_path / "application.py").write_text(
        "from twisted.application import service, strports\n"
        "from twisted.protocols.wire import Echo\n"
        "from twisted.internet.protocol import Factory\n"
        "application = service.Application('echo')\n"
        "strports.service('unix:address=socket', Factory.forProtocol(Echo))"
        ".setServiceParent(application)\n"
    )
    options = ("--reactor=uvloop", "--pidfile=pid", "--logfile=log", "-y", "application.py")
    done = program(TWISTD, *options, cwd=tmp_path)
    deadline = time.monotonic() + 10
    while not (tmp_path / "socket").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "pid").exists(), done
    pid = int((tmp_path / "pid").read_text())
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(tmp_path / "socket"))
            client.sendall(b"hello")
            assert client.recv(100) == b"hello", (tmp_path / "log").read_text()
    finally:
        os.kill(pid, signal.SIGTERM)
    while (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert done.returncode == 0
    assert "UvloopReactor" in (tmp_path / "log").read_text()
