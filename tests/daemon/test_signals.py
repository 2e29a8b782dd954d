from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echod.concurrency.thread_socket import INTERRUPT
from echod.daemon import ending, signals
from echod.daemon.signals import Signals
from tests.support.log import Log

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, INTERRUPT)


class FakeReactor:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.triggers: list[Any] = []
        self._exitSignal: int | None = None
        self.stopped_by: list[int] = []

    def callFromThread(self, function: Any) -> None:
        self.calls.append(function)

    def addSystemEventTrigger(self, *arguments: Any) -> None:
        self.triggers.append(arguments)

    def removeSystemEventTrigger(self, trigger: Any) -> None:
        pass

    def sigTerm(self, number: int, frame: object = None) -> None:
        self.stopped_by.append(number)

    sigInt = sigTerm


def abort() -> None:
    pass


def reload() -> None:
    pass


@pytest.fixture
def looped() -> FakeReactor:
    return FakeReactor()


@pytest.fixture(autouse=True)
def process_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installed handlers are removed; otherwise pytest itself would end by a signal."""
    kept = {number: signal.getsignal(number) for number in HANDLED}
    at_exit: list[Any] = []
    monkeypatch.setattr(signals.atexit, "register", at_exit.append)  # type: ignore[attr-defined]
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where os._exit would have ended the process."""
    codes: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", codes.append)  # type: ignore[attr-defined]
    monkeypatch.setattr(signals, "GRACE", 0.05)
    return codes


def make(looped: FakeReactor, patience: float = 20, **options: Any) -> Signals:
    return Signals(looped, abort=abort, reload=reload, patience=patience, **options)


def join_stopper() -> None:
    for thread in threading.enumerate():
        if thread.name == "echod-stopper":
            thread.join(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_goes_to_the_reactor_and_the_second_aborts(
    looped: FakeReactor, exits: list[int], number: int
) -> None:
    make(looped).install()
    os.kill(os.getpid(), number)
    assert looped.stopped_by == [number]
    assert looped.calls == []
    os.kill(os.getpid(), number)
    assert looped.stopped_by == [number]
    assert looped.calls == [abort]
    join_stopper()
    assert exits == [128 + number]


def test_a_reactor_that_begins_to_run_installs_the_same_handlers(
    looped: FakeReactor, exits: list[int]
) -> None:
    handlers = make(looped, patience=0)
    handlers.install()
    assert looped.sigTerm == signal.getsignal(signal.SIGTERM)
    handlers.uninstall()
    assert looped.sigTerm != signal.getsignal(signal.SIGTERM)
    looped.sigTerm(signal.SIGTERM)  # type: ignore[call-arg]
    assert looped.stopped_by == [signal.SIGTERM]
    assert not exits


def test_sighup_reloads_in_the_reactor_thread(looped: FakeReactor) -> None:
    reloads: list[None] = []
    Signals(looped, abort=abort, reload=lambda: reloads.append(None), patience=20).install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not reloads
    looped.calls.pop()()
    assert len(reloads) == 1


def test_while_a_reload_waits_more_of_them_ask_for_the_same(looped: FakeReactor) -> None:
    reloads: list[None] = []

    def reload_once_more() -> None:
        reloads.append(None)
        if len(reloads) == 1:  # a signal during one is another
            os.kill(os.getpid(), signal.SIGHUP)

    Signals(looped, abort=abort, reload=reload_once_more, patience=20).install()
    for _ in range(100):  # more at once would be more than the test's own loop has room for
        os.kill(os.getpid(), signal.SIGHUP)
    assert len(looped.calls) == 1
    while looped.calls:
        looped.calls.pop()()
    assert len(reloads) == 2


@pytest.mark.parametrize(
    ("number", "handled"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, True)]
)
def test_a_signal_that_is_ignored_stays_ignored_unless_it_is_sighup(
    looped: FakeReactor, number: int, handled: bool
) -> None:
    signal.signal(number, signal.SIG_IGN)
    make(looped).install()
    assert (signal.getsignal(number) is not signal.SIG_IGN) is handled


def test_a_process_that_does_not_end_in_time_is_ended_and_its_pidfile_removed(
    looped: FakeReactor, exits: list[int], tmp_path: Path
) -> None:
    pidfile = tmp_path / "twistd.pid"
    pidfile.write_text(str(os.getpid()))
    make(looped, patience=0.05, pidfile=str(pidfile)).install()
    os.kill(os.getpid(), signal.SIGTERM)
    join_stopper()
    assert exits == [128 + signal.SIGTERM]
    assert not pidfile.exists()


@pytest.mark.parametrize("content", ["1", "", "many\x1b"])
def test_the_pidfile_of_somebody_else_is_left_alone(tmp_path: Path, content: str) -> None:
    pidfile = tmp_path / "twistd.pid"
    pidfile.write_text(content)
    signals.remove_pidfile(str(pidfile))
    signals.remove_pidfile(str(tmp_path / "none.pid"))
    assert pidfile.exists()


def test_signals_are_left_alone_outside_the_main_thread(looped: FakeReactor) -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    thread = threading.Thread(target=make(looped).install)
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in HANDLED] == before


STORM = """
import os, signal, sys, time
from echod.daemon import signals

class Reactor:
    callFromThread = sigTerm = sigInt = addSystemEventTrigger = staticmethod(
        lambda *arguments: None
    )

def send(*_):
    if left:
        left.pop()
        os.kill(os.getpid(), signal.SIGTERM)

left = [None] * 20
signals.GRACE = 0.05
signals.Signals(Reactor(), abort=str, reload=str, patience=0.2).install()
os.kill(os.getpid(), signal.SIGTERM)
sys.setprofile(send)
os.kill(os.getpid(), signal.SIGTERM)
sys.setprofile(None)
time.sleep(60)
"""


def test_signals_that_come_while_one_is_handled_do_not_keep_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", STORM], timeout=20, check=False)
    assert ended.returncode == 128 + signal.SIGTERM


THREADLESS = """
import os, signal, sys, threading, time
from echod.daemon import signals

class Reactor:
    callFromThread = addSystemEventTrigger = staticmethod(lambda *arguments: None)
    sigTerm = sigInt = staticmethod(lambda *arguments: print("stopped", flush=True))

def refuse(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = refuse
signals.GRACE = 0.05
signals.Signals(Reactor(), abort=str, reload=str, patience=float(sys.argv[1])).install()
for _ in sys.argv[1:]:
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.parametrize("arguments", [["0.2"], ["30", "twice"]])
def test_where_no_thread_can_be_started_the_kernels_timer_ends_the_process(
    arguments: list[str],
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", THREADLESS, *arguments],
        stdout=subprocess.PIPE,
        timeout=20,
        check=False,
    )
    assert ended.stdout == b"stopped\n"
    assert ended.returncode == -signal.SIGALRM


ORDERED = """
import _thread, threading, time
from echod.daemon import signals

class Reactor:
    addSystemEventTrigger = sigTerm = sigInt = staticmethod(lambda *arguments: None)
    callFromThread = staticmethod(lambda *arguments: print("stopping", flush=True))

def refuse(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = refuse
handlers = signals.Signals(Reactor(), abort=str, reload=str, patience=0.2, supervised=True)
handlers.install()
_thread.start_new_thread(handlers.stop, ())
time.sleep(60)
"""


def test_an_order_to_stop_is_obeyed_where_no_thread_can_be_started() -> None:
    """Fault 216: A worker at the system's limit of threads stops when it is told to."""
    ended = subprocess.run(
        [sys.executable, "-c", ORDERED], capture_output=True, timeout=20, check=False
    )
    assert (ended.stdout, ended.stderr) == (b"stopping\n", b"")
    assert ended.returncode == -signal.SIGALRM


def test_under_a_supervisor_only_its_order_hurries(looped: FakeReactor, exits: list[int]) -> None:
    handlers = make(looped, supervised=True, grace=0.05)
    handlers.install()
    os.kill(os.getpid(), signal.SIGINT)  # which a terminal sends to the supervisor, too
    assert (looped.stopped_by, handlers.code) == ([], 0)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert (looped.stopped_by, looped.calls) == ([signal.SIGTERM], [])
    handlers.hurry()
    assert looped.calls == [abort]
    join_stopper()
    assert exits == [128 + signal.SIGTERM]


def test_an_order_to_stop_from_any_thread_stops_once_in_the_reactor(
    looped: FakeReactor, exits: list[int]
) -> None:
    handlers = make(looped, patience=0.05, supervised=True)
    handlers.install()
    for _ in range(2):
        thread = threading.Thread(target=handlers.stop)
        thread.start()
        thread.join()
    assert looped.stopped_by == []
    while looped.calls:
        looped.calls.pop()()
    assert looped.stopped_by == [signal.SIGTERM]
    join_stopper()
    assert exits == [128 + signal.SIGTERM]


def test_a_signal_during_the_start_goes_to_who_starts(
    looped: FakeReactor, exits: list[int]
) -> None:
    handlers = make(looped, patience=0)
    handlers.install()
    taken: list[int] = []
    handlers.starting = taken.append
    os.kill(os.getpid(), signal.SIGINT)
    assert (taken, looped.stopped_by) == ([signal.SIGINT], [])
    join_stopper()
    assert exits == [128 + signal.SIGINT]


@pytest.mark.parametrize("answered", [False, True])
def test_only_a_loop_that_has_not_seen_the_signal_does_not_answer(
    looped: FakeReactor,
    exits: list[int],
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    answered: bool,
) -> None:
    monkeypatch.setattr(signals, "NOTICE", 0.02)
    handlers = make(looped, patience=0.1)
    handlers.install()
    handlers.starting = lambda number: handlers.answer() if answered else None
    os.kill(os.getpid(), signal.SIGTERM)
    join_stopper()
    assert exits == [128 + signal.SIGTERM]
    assert ("does not answer" in log.text) is not answered


def test_a_fork_blocks_the_signals_until_the_child_handles_none(
    looped: FakeReactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks: dict[str, Any] = {}
    monkeypatch.setattr(os, "register_at_fork", hooks.update)
    monkeypatch.setattr(looped, "callLater", lambda *call: looped.calls.append(call), False)
    woken: list[int] = []
    monkeypatch.setattr(signal, "set_wakeup_fd", woken.append)
    handlers = make(looped)
    handlers.install()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    hooks["before"]()
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} <= signal.pthread_sigmask(
        signal.SIG_BLOCK, ()
    )
    hooks["after_in_parent"]()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    hooks["before"]()
    hooks["after_in_child"]()  # twistd goes into the background: the child is the daemon
    assert signal.getsignal(signal.SIGTERM) == looped.sigTerm
    handlers.serve()
    hooks["before"]()
    hooks["after_in_child"]()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert woken == [-1]
    assert looped.calls == [(0, os._exit, 0)]  # the child does not go on with the event loop


def test_the_interpreter_ends_before_the_signal_ends_the_process(
    looped: FakeReactor, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[object] = []
    monkeypatch.setattr(ending, "end_by_signal", ended.append)
    monkeypatch.setattr(ending, "keep_deadline", lambda *words: ended.append(words))
    handlers = make(looped, patience=0.05)
    handlers.install()
    (_, _, begin), (_, _, reactor_ended) = looped.triggers
    reactor_ended()
    handlers._leave_to_kernel()
    assert ended == []  # neither a signal nor a deadline
    handlers.code = 1
    begin()
    looped._exitSignal = signal.SIGTERM
    reactor_ended()
    assert ended == [signal.SIGTERM]
    assert looped._exitSignal is None
    handlers._leave_to_kernel()
    assert ended[1:] == [(1, handlers._deadline)]
    join_stopper()
    assert exits == [1]
