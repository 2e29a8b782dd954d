"""Time, threads, signals, starting and stopping."""

from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.interfaces import (
    IDelayedCall,
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

from echod.reactor import UvloopReactor, install
from echod.reactor import reactor as reactor_module
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE, block_until

from .harness import Echo, Harness, dial, program

TWISTD = "from twisted.scripts.twistd import run; run()"


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
    assert 0.2 <= reactor.seconds() - before < 60
    # Still near the time of day, for callers that format it as a date.
    assert abs(reactor.seconds() - real()) < 60


def test_timed_calls(harness: Harness) -> None:
    reactor = harness.reactor
    order: list[str] = []
    later = reactor.callLater(50, order.append, "sooner")

    def begin() -> None:
        # Each is due later than those before it, however long this takes.
        before = len(reactor.getDelayedCalls())
        later.reset(0.01)
        cancelled = reactor.callLater(0.01, order.append, "cancelled")
        reactor.callLater(0.02, order.append, "second")
        reactor.callLater(0.03, order.append, "third")
        delayed = reactor.callLater(0.02, order.append, "delayed")
        cancelled.cancel()
        delayed.delay(0.05)
        assert len(reactor.getDelayedCalls()) == before + 3
        reactor.callLater(0.1, reactor.stop)

    reactor.callLater(0, begin)
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
            datagrams.settimeout(PATIENCE)
            for number in range(100):
                message = b"%d" % number
                datagrams.sendto(message, ("127.0.0.1", datagram_port))
                s.sendall(message)
                assert datagrams.recv(100) == message
                assert s.recv(100) == message

    harness.run(client)


def test_a_timed_call_may_remove_the_last_descriptor_that_is_ready(harness: Harness) -> None:
    """Fault 213: The event of a descriptor that was removed meanwhile is dropped."""
    reactor = harness.reactor
    reading, writing = os.pipe()

    class Reader:
        def fileno(self) -> int:
            return reading

        def doRead(self) -> None:
            raise AssertionError("it is removed")

    reader = Reader()

    def remove() -> None:
        reactor.removeReader(reader)
        reactor.callLater(0, reactor.stop)

    def begin() -> None:
        reactor.addReader(reader)
        due = reactor.callLater(0.01, remove)
        # The loop looks for events right after this, and only then for what is due.
        reactor.loop.call_soon(be_late, due)

    def be_late(due: IDelayedCall) -> None:
        os.write(writing, b"x")
        while reactor.seconds() < due.getTime():
            pass

    reactor.callLater(0, begin)
    harness.run_until_stopped()
    os.close(reading)
    os.close(writing)
    assert harness.failures == []


def test_what_is_removed_is_the_reactors_no_more(either: Harness) -> None:
    """One test that leaves something open must not taint all that follow: trial uses this."""
    reactor = either.reactor
    seen: dict[str, Any] = {}
    transports: dict[str, Any] = {}

    class Keeps(Echo):
        def dataReceived(self, data: bytes) -> None:
            if looked.is_set():
                super().dataReceived(data)
                return
            transports[data.decode()] = self.transport
            if data == b"paused":
                self.transport.pauseProducing()
            if data == b"writing":
                self.transport.pauseProducing()
                self.transport.write(b"x" * 8_000_000)
            if len(transports) == 3:
                reactor.callLater(0.05, look)

    def look() -> None:
        port = either.port
        seen["before"] = set(reactor.getReaders()) >= {port, transports["reading"]}
        removed = set(reactor.removeAll())
        seen["removed"] = removed == {port, transports["reading"], transports["writing"]}
        seen["again"] = reactor.removeAll()
        left = {*reactor.getReaders(), *reactor.getWriters()}
        seen["left"] = left & {port, *transports.values()}
        transports["reading"].startReading()
        seen["back"] = transports["reading"] in reactor.getReaders()
        reactor.addReader(port)
        looked.set()

    looked = threading.Event()
    number = either.listen(Keeps)

    def client() -> None:
        with dial(number) as reading, dial(number) as paused, dial(number) as writing:
            reading.sendall(b"reading")
            paused.sendall(b"paused")
            writing.sendall(b"writing")
            assert looked.wait(20)
            reading.sendall(b"again")
            assert reading.recv(12) == b"again"
            assert dial(number)
            for transport in transports.values():
                reactor.callFromThread(transport.abortConnection)

    either.run(client)
    assert seen == {"before": True, "removed": True, "again": [], "left": set(), "back": True}


# For code that looks for asyncio's reactor


def test_it_is_an_asyncio_reactor_by_name_alone(harness: Harness) -> None:
    """Scrapy and others ask so whether there is an asyncio loop; the methods stay our own."""
    assert isinstance(harness.reactor, AsyncioSelectorReactor)
    assert harness.reactor._asyncioEventloop is harness.reactor.loop  # type: ignore[attr-defined]
    of_its_own = {
        *("_readOrWrite", "_unregisterFDInAsyncio"),  # its way of watching descriptors
        *("_onTimer", "_reschedule"),  # and of timed calls
    }
    taken = {
        name
        for name, attribute in vars(AsyncioSelectorReactor).items()
        if callable(attribute) and getattr(UvloopReactor, name, None) is attribute
    }
    assert taken == of_its_own
    code = Path(inspect.getfile(UvloopReactor)).read_text()
    assert not [name for name in of_its_own if name in code]


def test_install_is_beside_the_class() -> None:
    """Given the name of a reactor's class, Twisted's tools and others look for it there."""
    assert reactor_module.install is install


# As a program


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
    assert done.returncode == 0, done
    block_until((tmp_path / "socket").exists)
    pid = int((tmp_path / "pid").read_text())
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(tmp_path / "socket"))
            client.sendall(b"hello")
            assert client.recv(100) == b"hello", (tmp_path / "log").read_text()
    finally:
        os.kill(pid, signal.SIGTERM)
    block_until(lambda: not (tmp_path / "pid").exists())
    assert "UvloopReactor" in (tmp_path / "log").read_text()


EXITS = """
import asyncio, sys
import echod.reactor
echod.reactor.install()
from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver
globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)

async def leaves():
    sys.exit(7)

def begin():
    tasks.append(asyncio.ensure_future(leaves()))
    reactor.callLater(0.01, go_on)

def go_on():
    asyncio.get_running_loop().call_soon(sys.exit, 8)
    reactor.callLater(0.01, end)

def end():
    print("still there")
    reactor.stop()

tasks = []
reactor.callLater(0, begin)
reactor.run()
print("stopped", tasks[0].exception())
"""


def test_an_exit_in_a_task_or_a_callback_of_asyncios_ends_that_one_only() -> None:
    """Fault 10: Nor does `sys.exit` in a task or a callback of asyncio's."""
    done = program(EXITS)
    assert done.returncode == 0, done
    assert "still there\n" in done.stdout
    assert done.stdout.endswith("stopped 7\n")
    assert done.stdout.count("sys.exit() in a task or callback of asyncio's ended that one") == 2
    assert re.search(r"<string>, line \d+", done.stdout)
