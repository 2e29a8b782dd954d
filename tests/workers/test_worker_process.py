"""A worker in the test's own process: the test is its supervisor, at the other ends of its pipes.

The parts that would change the process for good are replaced: the end of the event loop, the
handlers of signals, and the log.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.application import reactors
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.task import Clock, LoopingCall

from echod.connections.shared_admission import AdmissionTable
from echod.daemon import choose_reactor
from echod.daemon.capture import Capture
from echod.daemon.signals import GRACE
from echod.errors import UserError
from echod.settings.definitions import Settings
from echod.workers import process as worker_process
from echod.workers.link import SHOW_STACKS, Link, LinkSink, Messages, encode
from echod.workers.process import (
    HEARTBEAT,
    Worker,
    WorkerOptions,
    _follow_the_supervisor,
    _install_reactor,
)
from tests.support.clients import BANNER
from tests.support.reactor import reactor
from tests.support.serving import Talker, eventually
from tests.support.waiting import PATIENCE

CONFIG = "echod.toml"


class Supervisor:
    """The other ends of a worker's pipes.

    Attributes:
        link: the worker's end.
        news: what the worker has told.
    """

    def __init__(self) -> None:
        orders, self._orders = os.pipe()
        self._news, news = os.pipe()
        os.set_blocking(self._news, False)
        self.link = Link(orders, news)
        self.news: list[dict[str, Any]] = []
        self._messages = Messages()
        self._theirs = news
        self._gone = False

    def order(self, **message: object) -> None:
        """Send an order."""
        os.write(self._orders, encode(message))

    def hear(self, kind: str) -> list[dict[str, Any]]:
        """Return all news of a kind."""
        with contextlib.suppress(BlockingIOError):
            self.news += self._messages.feed(os.read(self._news, 1 << 20))
        return [each for each in self.news if each["news"] == kind]

    async def heard(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many news of a kind, and return them."""
        await eventually(lambda: len(self.hear(kind)) >= count)
        return self.hear(kind)

    def vanish(self) -> None:
        """Close the pipe of the orders, as the end of the supervisor does."""
        if not self._gone:
            self._gone = True
            os.close(self._orders)

    def end(self) -> None:
        """Wait for the threads of the link, and close the pipes."""
        self.vanish()
        self.link.finish(20)
        for thread in threading.enumerate():
            if thread.name == "echod-orders":
                thread.join(20)
        self.link._orders.close()
        os.close(self._news)
        os.close(self._theirs)


class FakeSignals:
    """Keeps what the worker asks of `Signals`."""

    def __init__(self, _: object, **options: Any) -> None:
        self.options = options
        self.patience = options["patience"]
        self.asked: list[str] = []
        self.threads: set[str] = set()
        self.code = 0

    def install(self) -> None:
        self._note("install")

    def stop(self) -> None:
        self._note("stop")

    def hurry(self) -> None:
        self._note("hurry")

    def serve(self) -> None:
        pass

    def reconfigure(self, patience: float) -> None:
        self.patience = patience

    def _note(self, name: str) -> None:
        self.asked.append(name)
        self.threads.add(threading.current_thread().name)


@dataclass
class Held:
    """Keeps what a worker would have changed in the process.

    Attributes:
        clock: of the heartbeats.
        table: of the admission.
        at_exit: what the interpreter would call at its end.
        triggers: what the reactor would call at its end.
    """

    clock: Clock
    table: AdmissionTable
    at_exit: list[tuple[Any, ...]] = field(default_factory=list)
    triggers: list[tuple[Any, ...]] = field(default_factory=list)
    runs: int = 0


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor()
    yield made
    made.end()


_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2


def signal_of_the_parents_end() -> int:
    """Return the signal that the kernel sends to this process when its parent ends."""
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_PDEATHSIG, ctypes.byref(number))
    return number.value


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Held]:
    """Keep the process as it is."""
    table = AdmissionTable.create(4)
    kept = Held(Clock(), table)
    captures: list[Capture] = []
    beats: list[LoopingCall] = []
    tables = [table]

    class Captured(Capture):
        def begin(self) -> None:
            captures.append(self)
            super().begin()

        def take_logging(self) -> None:
            pass

    def beating(*arguments: Any, **options: Any) -> LoopingCall:
        made = LoopingCall(*arguments, **options)
        made.clock = kept.clock
        beats.append(made)
        return made

    def mapped(descriptor: int, blocks: int) -> AdmissionTable:
        made = AdmissionTable(os.dup(descriptor), blocks)
        tables.append(made)
        return made

    def run() -> None:
        kept.runs += 1

    log_reader, log_writer = os.pipe()
    before = signal_of_the_parents_end()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(reactor, "seconds", reactor.seconds, raising=False)
    monkeypatch.setattr(reactor, "run", run)
    monkeypatch.setattr(
        reactor, "addSystemEventTrigger", lambda *words: kept.triggers.append(words)
    )
    monkeypatch.setattr(atexit, "register", lambda *words: kept.at_exit.append(words))
    monkeypatch.setattr(worker_process, "Capture", Captured)
    monkeypatch.setattr(worker_process, "LoopingCall", beating)
    monkeypatch.setattr(worker_process, "AdmissionTable", mapped)
    monkeypatch.setattr(worker_process, "LIMITS", table.descriptor)
    monkeypatch.setattr(worker_process, "LinkSink", partial(LinkSink, log_writer))
    monkeypatch.setattr(worker_process, "Signals", FakeSignals)
    no_log = SimpleNamespace(beginLoggingTo=lambda observers, **options: None)
    monkeypatch.setattr(worker_process, "globalLogBeginner", no_log)
    monkeypatch.setattr(worker_process, "log_through", lambda observer: None)
    yield kept
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, before)
    for capture in captures:
        capture.end()
    for beat in beats:
        beat.running = False
    for each in tables:
        each.close()
    os.close(log_reader)
    os.close(log_writer)


class Running:
    """A worker that serves one socket.

    Attributes:
        worker: the worker.
        supervisor: its supervisor.
        port: the socket's port.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.worker: Any = None

    def order(self, *flags: str, **changes: object) -> dict[str, object]:
        """Return a first order."""
        return {
            "pid": os.getppid(),
            "number": 2,
            "count": 2,
            "blocks": 4,
            "block": 1,
            "key": "00" * 16,
            "arguments": ["--listen", "tcp:0:interface=127.0.0.1", "--config", CONFIG, *flags],
            "uid": None,
            "folder": os.getcwd(),
            "rundir": os.getcwd(),
            "reactor": "uvloop",
            "stamps": False,
            "ends": [True],
            "files": {},
            "folders": {},
            "first_text": "",
            "text": "",
            **changes,
        }

    def start(self, *flags: str, accept: bool = True, **changes: object) -> None:
        """Run the worker.

        Args:
            accept: whether it is told to accept.
        """
        passed = os.dup(self._socket.fileno())  # which the worker closes
        self.supervisor.order(**self.order(*flags, sockets=[[passed]], **changes))
        if accept:
            self.supervisor.order(do="accept")
        link = self.supervisor.link
        self.worker = Worker(link, link.first())
        self.worker.run()

    @property
    def signals(self) -> FakeSignals:
        signals: FakeSignals = self.worker._signals
        return signals

    async def greeting(self) -> bytes:
        """Return what a new client gets before it has sent anything but its end."""
        client = await connectProtocol(
            clientFromString(reactor, f"tcp:127.0.0.1:{self.port}"), Talker()
        )
        client.finish()
        return await client.receive_all()

    @property
    def has_waiting_client(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def accept_one(self) -> None:
        """Accept a client that the worker has left in the queue, and close it."""
        self._socket.accept()[0].close()

    async def stop(self) -> None:
        """Drain."""
        if self.worker is not None and self.worker._service is not None:
            await self.worker._service.stopService()
            self.worker._service.log_observer.close()
        self._socket.close()


@pytest.fixture
def running(supervisor: Supervisor, held: Held) -> Iterator[Running]:
    made = Running(supervisor)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.stop()))


@pytest_twisted.ensureDeferred
async def test_a_worker_serves_its_passed_socket_and_says_when_it_is_ready(
    running: Running, supervisor: Supervisor, held: Held, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "rundir"
    elsewhere.mkdir()
    running.start(rundir=str(elsewhere))
    assert held.runs == 1
    await supervisor.heard("ready")
    assert await running.greeting() == BANNER
    assert Path.cwd() == elsewhere
    service = running.worker._service
    assert service.is_worker
    assert ("before", "shutdown", running.worker._stop) in held.triggers
    assert running.signals.asked == ["install"]
    assert running.signals.options["supervised"]
    assert not os.get_inheritable(held.table.descriptor)
    assert signal_of_the_parents_end() == signal.SIGTERM


@pytest_twisted.ensureDeferred
async def test_a_successor_has_the_settings_that_a_reload_changes_and_else_those_of_the_start(
    running: Running, supervisor: Supervisor
) -> None:
    """Its predecessors go on with those that need a restart, too."""
    running.start(
        first_text='banner = "one"\nthreads = 8\n',
        text='banner = "two"\nthreads = 20\nframing = "line"\nlisten = ["tcp:1", "tcp:2"]\n',
    )
    await supervisor.heard("ready")
    assert await running.greeting() == b"two\n"
    settings = running.worker._options.settings
    assert (settings.framing.name, settings.threads) == ("chunk", 4)
    assert len(running.worker._service.listeners) == 1


@pytest_twisted.ensureDeferred
async def test_each_heartbeat_of_the_event_loop_is_told(
    running: Running, supervisor: Supervisor, held: Held
) -> None:
    running.start()
    await supervisor.heard("alive", 1)  # the first comes at once
    for _ in range(3):
        held.clock.advance(HEARTBEAT)
    held.clock.advance(HEARTBEAT / 2)
    running.worker._link.send(news="end")
    await supervisor.heard("end")
    assert len(supervisor.hear("alive")) == 4


@pytest_twisted.ensureDeferred
async def test_prepared_settings_hold_once_they_are_committed(
    running: Running, supervisor: Supervisor
) -> None:
    running.start()
    await supervisor.heard("ready")
    supervisor.order(do="prepare", number=7, text="banner = 'new'\ndrain-timeout = 3")
    (told,) = await supervisor.heard("prepared")
    assert told == {"news": "prepared", "number": 7, "why": ""}
    assert await running.greeting() == BANNER
    supervisor.order(do="commit")
    await eventually(lambda: running.signals.patience == 3 + GRACE)
    assert (await running.greeting()).startswith(b"new")


@pytest_twisted.ensureDeferred
async def test_forgotten_settings_never_hold(running: Running, supervisor: Supervisor) -> None:
    running.start()
    await supervisor.heard("ready")
    supervisor.order(do="prepare", number=1, text="banner = 'new'")
    supervisor.order(do="forget")
    supervisor.order(do="commit")
    # The answer to a later order shows that these were obeyed.
    supervisor.order(do="prepare", number=2, text="")
    await supervisor.heard("prepared", 2)
    assert await running.greeting() == BANNER


@pytest_twisted.ensureDeferred
async def test_orders_that_come_while_files_are_read_are_obeyed_in_their_order(
    running: Running, supervisor: Supervisor, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 192: A worker that reads them tells its supervisor so, and goes on to serve."""
    running.start()
    await supervisor.heard("ready")
    assert running.worker._service is not None
    prepare, read = running.worker._service.reloading.prepare, Deferred[None]()

    async def prepare_later(wanted: Settings) -> object:
        await read
        return await prepare(wanted)

    monkeypatch.setattr(running.worker._service.reloading, "prepare", prepare_later)
    supervisor.order(do="prepare", number=1, text="banner = 'new'")
    supervisor.order(do="commit")
    supervisor.order(do="prepare", number=2, text="banner = 'newest'")
    supervisor.order(do="forget")
    await eventually(lambda: len(running.worker._later) == 3)
    assert await running.greeting() == BANNER
    held.clock.advance(HEARTBEAT)
    assert [one["preparing"] for one in await supervisor.heard("alive", 2)] == [False, True]
    read.callback(None)
    assert [one["number"] for one in await supervisor.heard("prepared", 2)] == [1, 2]
    assert (await running.greeting()).startswith(b"new\n")


@pytest_twisted.ensureDeferred
async def test_settings_that_are_refused_are_told_in_one_line_and_change_nothing(
    running: Running, supervisor: Supervisor, tmp_path: Path
) -> None:
    text = "drain-timeout = 4"
    running.start(text=text)
    await supervisor.heard("ready")
    supervisor.order(do="prepare", number=1, text="banner = 'new'\nmax-connections = -1")
    supervisor.order(do="prepare", number=2, text="banner = 'new'\nnosuch = 1")
    supervisor.order(do="commit")
    first, second = await supervisor.heard("prepared", 2)
    assert first["why"].startswith(f"{tmp_path / CONFIG}:2: max-connections: '-1'")
    assert "nosuch: there is no such key" in second["why"]
    assert "\n" not in first["why"] + second["why"]
    assert await running.greeting() == BANNER
    assert running.worker._options.text == text


@pytest_twisted.ensureDeferred
async def test_a_fault_in_a_program_refuses_new_settings_and_the_service_goes_on(
    running: Running, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.start()
    await supervisor.heard("ready")

    def fail(wanted: Settings) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(running.worker._service.reloading, "prepare", fail)
    supervisor.order(do="prepare", number=1, text="banner = 'new'")
    (told,) = await supervisor.heard("prepared")
    assert told["why"].startswith(r"ZeroDivisionError: by\nzero (")
    assert await running.greeting() == BANNER


WAITS = """
from twisted.internet.defer import Deferred

from echod import message_handler

gates = []


@message_handler(banner=b"")
def waits(message):
    gates.append(Deferred())
    return gates[-1]
"""


@pytest_twisted.ensureDeferred
async def test_a_worker_that_drains_takes_new_settings_as_the_others_do(
    running: Running, supervisor: Supervisor, tmp_path: Path
) -> None:
    (tmp_path / "waits_in_a_worker.py").write_text(WAITS)
    running.start("--handler", "waits_in_a_worker:waits")
    await supervisor.heard("ready")
    gates = sys.modules["waits_in_a_worker"].gates
    client = await connectProtocol(
        clientFromString(reactor, f"tcp:127.0.0.1:{running.port}"), Talker()
    )
    client.send(b"hello")
    await eventually(lambda: gates)
    ends: list[object] = []
    drained = running.worker._service.stopService().addCallback(ends.append)
    supervisor.order(do="prepare", number=3, text="drain-timeout = 3")
    (told,) = await supervisor.heard("prepared")
    assert told["why"] == ""
    supervisor.order(do="commit")
    await eventually(lambda: running.signals.patience == 3 + GRACE)
    assert not ends
    gates[0].callback(b"done")
    assert await client.receive_all() == b"done"
    await drained


@pytest_twisted.ensureDeferred
async def test_orders_to_end_need_no_turn_of_the_event_loop(
    running: Running, supervisor: Supervisor
) -> None:
    running.start()
    await supervisor.heard("ready")
    running.signals.threads.clear()
    supervisor.order(do="stop", whole=True)
    supervisor.order(do="hurry")
    supervisor.vanish()  # which is an order to stop, too
    for thread in threading.enumerate():
        if thread.name == "echod-orders":
            thread.join(20)  # meanwhile the event loop stands still
    assert running.signals.asked == ["install", "stop", "stop", "hurry", "stop"]
    assert running.signals.threads == {"echod-orders"}


@pytest_twisted.ensureDeferred
async def test_the_supervisor_gets_the_figures_that_it_asks_for_and_the_last_ones(
    running: Running, supervisor: Supervisor
) -> None:
    running.start("--status", "tcp:0:interface=127.0.0.1")
    await supervisor.heard("ready")
    await running.greeting()
    supervisor.order(do="figures", number=5)
    (told,) = await supervisor.heard("figures")
    assert told["number"] == 5
    assert told["figures"]["state"] == "ready"
    assert told["figures"]["listeners"][0]["accepted"] == 1
    await running.greeting()
    await running.worker._service.stopService()
    _, last = await supervisor.heard("figures", 2)
    assert last["number"] == 0
    assert last["figures"]["listeners"][0]["accepted"] == 2
    kinds = [each["news"] for each in supervisor.news if each["news"] != "alive"]
    assert kinds == ["ready", "figures", "draining", "figures"]


@pytest_twisted.ensureDeferred
async def test_without_a_status_an_order_for_figures_is_passed_over(
    running: Running, supervisor: Supervisor
) -> None:
    running.start()
    supervisor.order(do="figures", number=5)
    supervisor.order(do="prepare", number=6, text="")
    await supervisor.heard("prepared")
    assert supervisor.hear("figures") == []


SLOW_TO_OPEN = """
from echod import service


@service
async def opening(service):
    yield lambda message: message
"""


@pytest_twisted.ensureDeferred
async def test_a_service_that_opens_asks_the_supervisor_for_time(
    running: Running, supervisor: Supervisor, tmp_path: Path
) -> None:
    (tmp_path / "opens_in_a_worker.py").write_text(SLOW_TO_OPEN)
    running.start("--handler", "opens_in_a_worker:opening", "--start-timeout", "9")
    await supervisor.heard("ready")
    (told,) = supervisor.hear("starting")
    assert told["seconds"] == 9
    assert "opening" in told["text"]
    kinds = [each["news"] for each in supervisor.news if each["news"] != "alive"]
    assert kinds == ["starting", "ready"]


# The settings of a worker.


@pytest.mark.parametrize(("count", "share"), [(1, 5), (2, 3), (3, 2), (5, 1), (9, 1)])
def test_a_worker_has_an_even_share_of_threads_and_never_none(count: int, share: int) -> None:
    options = WorkerOptions()
    options.count = count
    options.parseOptions(["--concurrency", "defer-to-thread", "--threads", "5"])
    assert options.settings.threads == share
    # The limit on connections holds over all workers, by the shared admission.
    assert options.settings.max_connections == Settings().max_connections


@pytest.mark.parametrize(
    ("wanted", "fitting", "factor"),
    [(0, 0, 4.0), (100, 100, 1.0), (100, 50, 2.0), (100, 10, 4.0)],
)
def test_the_workers_together_admit_no_more_than_the_limit(
    wanted: int, fitting: int, factor: float, held: Held
) -> None:
    order = {"count": 4, "blocks": 4, "block": 1, "key": "ab"}
    worker = Worker(Link.__new__(Link), order)
    made: Any = worker._admission(
        held.table, Settings(max_connections=wanted), Settings(max_connections=fitting)
    )
    assert made.keywords["factor"] == factor
    assert made.keywords["key"] == b"\xab"


# The control.


async def asked(
    supervisor: Supervisor, number: int, method: str, path: str, query: str = "", of: int = 0
) -> tuple[int, dict[str, Any]]:
    """Let the worker perform a request; return the status and the value."""
    supervisor.order(do="control", number=number, method=method, path=path, query=query, id=of)
    (told,) = [
        each for each in await supervisor.heard("control", number) if each["number"] == number
    ]
    return told["status"], json.loads(told["body"])


@pytest_twisted.ensureDeferred
async def test_a_worker_performs_the_requests_to_the_control_for_its_own_connections(
    running: Running, supervisor: Supervisor, held: Held
) -> None:
    last = next(held.table.numbers(0))
    running.start("--control", "unix:control.sock", "--journal", "9", "--journal-bytes", "9")
    await supervisor.heard("ready")
    assert running.worker._service.control is None
    assert not Path("control.sock").exists()
    assert running.worker._options.settings.journal == 5  # its share of 9
    talker = await connectProtocol(
        clientFromString(reactor, f"tcp:127.0.0.1:{running.port}"), Talker()
    )
    await talker.receive(BANNER)
    status, found = await asked(supervisor, 1, "GET", "/connections", "after=0&limit=7")
    (one,) = found["connections"]
    assert (status, one["state"], found["more"]) == (200, "open", False)
    assert one["id"] > last
    assert held.table.block_of(one["id"]) == 1  # the order says so
    status, shown = await asked(supervisor, 2, "GET", "/connections/{id}", of=one["id"])
    assert (status, shown["peer"]) == (200, one["peer"])
    status, found = await asked(supervisor, 3, "DELETE", "/connections/{id}", of=one["id"] + 4)
    assert status == 404
    assert "no connection" in found["error"]
    assert (await asked(supervisor, 4, "DELETE", "/connections", "how=slowly"))[0] == 400
    done = await asked(supervisor, 5, "DELETE", "/connections", "how=drain")
    assert done == (200, {"disconnected": 1})
    assert await talker.receive_all() == b""
    assert await asked(supervisor, 6, "POST", "/suspend") == (200, {"state": "suspended"})
    assert await asked(supervisor, 7, "POST", "/resume") == (200, {"state": "ready"})
    assert not running.worker._service.suspended
    assert not supervisor.hear("ended")
    held.clock.advance(HEARTBEAT)  # a killed worker would lose no more than those since
    (handed_on,) = await supervisor.heard("ended")
    await running.worker._service.stopService()
    running.worker._link.send(news="last")
    await supervisor.heard("last")
    assert len(supervisor.hear("ended")) == 1
    assert handed_on["connection"]["reason"] == "drained"
    assert handed_on["connection"]["id"] == one["id"]


@pytest_twisted.ensureDeferred
async def test_a_worker_lets_clients_wait_until_it_is_told_to_accept(
    running: Running, supervisor: Supervisor
) -> None:
    running.start("--control", "unix:control.sock", accept=False)
    await supervisor.heard("ready")
    waits = Deferred.fromCoroutine(running.greeting())
    assert await asked(supervisor, 1, "GET", "/connections") == (
        200,
        {"connections": [], "more": False, "journal": {"most": 0, "bytes": 0}},
    )
    assert not waits.called
    supervisor.order(do="accept")
    assert await waits == BANNER
    assert await asked(supervisor, 2, "POST", "/suspend") == (200, {"state": "suspended"})
    assert await asked(supervisor, 3, "POST", "/resume") == (200, {"state": "ready"})
    assert await running.greeting() == BANNER


@pytest.mark.parametrize(("whole", "ends"), [(True, True), (False, True), (True, False)])
@pytest_twisted.ensureDeferred
async def test_a_worker_serves_its_queue_at_the_end_of_the_service_and_else_leaves_it(
    running: Running, supervisor: Supervisor, whole: bool, ends: bool
) -> None:
    """Fault 202: A suspended worker that is replaced leaves the clients that wait to its
    successor, as a socket of systemd's to the next daemon; else they are served at the end.
    """
    running.start(accept=False, ends=[ends])
    await supervisor.heard("ready")
    waits = Deferred.fromCoroutine(running.greeting())
    await eventually(lambda: running.has_waiting_client)
    supervisor.order(do="stop", whole=whole)
    await eventually(lambda: "stop" in running.signals.asked)
    await running.worker._service.stopService()
    served = whole and ends
    assert running.has_waiting_client is not served
    if not served:
        running.accept_one()
    assert await waits == (BANNER if served else b"")


@pytest_twisted.ensureDeferred
async def test_a_worker_that_gets_a_signal_serves_until_it_is_told_what_follows(
    running: Running, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "MOMENT", PATIENCE)
    running.start()
    await supervisor.heard("ready")
    stopped = running.worker._stop()
    assert await running.greeting() == BANNER
    assert not supervisor.hear("draining")
    supervisor.order(do="stop", whole=True)
    await stopped
    assert await supervisor.heard("draining")  # a thread tells it


@pytest_twisted.ensureDeferred
async def test_a_worker_that_alone_gets_a_signal_drains_soon(
    running: Running, supervisor: Supervisor
) -> None:
    running.start()
    await supervisor.heard("ready")
    await running.worker._stop()
    assert await supervisor.heard("draining")


# The process.


def test_a_worker_whose_supervisor_has_ended_before_does_not_start(held: Held) -> None:
    with pytest.raises(SystemExit) as caught:
        _follow_the_supervisor(os.getpid())  # which is no parent of this process
    assert caught.value.code == 1


def test_a_worker_runs_on_the_reactor_of_its_supervisor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed: list[str] = []
    monkeypatch.setattr(reactors, "installReactor", installed.append)
    monkeypatch.setattr(choose_reactor, "choose", lambda: installed.append("echod's own"))
    _install_reactor("epoll")
    _install_reactor("uvloop")
    assert installed == ["epoll", "echod's own"]


@pytest.fixture
def handlers_kept() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGHUP)
    kept = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, kept, strict=True):
        signal.signal(number, handler)
    faulthandler.unregister(SHOW_STACKS)


def main_with(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> None:
    monkeypatch.setattr(worker_process, "Link", lambda: supervisor.link)
    worker_process.main()


@pytest.mark.usefixtures("handlers_kept")
def test_a_worker_that_cannot_start_says_why_and_ends_with_code_1(
    running: Running, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.order(**running.order("--handler", "nosuch", sockets=[]))
    with pytest.raises(SystemExit) as caught:
        main_with(monkeypatch, supervisor)
    assert caught.value.code == 1
    (told,) = supervisor.hear("failed")
    assert told["why"].startswith("--handler: no handler is named 'nosuch'")


@pytest.mark.usefixtures("handlers_kept")
@pytest.mark.parametrize("thread", ["echod-orders", "echod-news"])
def test_a_worker_without_a_thread_for_its_link_says_what_to_do(
    running: Running, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    start = threading.Thread.start

    def refuse(one: threading.Thread) -> None:
        if one.name == thread:
            raise RuntimeError("can't start new thread")
        start(one)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    supervisor.order(**running.order(sockets=[]))
    with pytest.raises(SystemExit) as caught:
        main_with(monkeypatch, supervisor)
    assert caught.value.code == 1
    supervisor.link.finish(PATIENCE)
    (told,) = supervisor.hear("failed")
    assert told["why"].startswith(
        "no thread can be started for the orders of the supervisor (can't"
    )


@pytest.mark.usefixtures("handlers_kept")
def test_a_worker_imports_no_web_server_even_for_its_figures() -> None:
    """That would take a tenth of the time of its start, for which its clients wait."""
    code = (
        "import sys, echod.workers.process, echod.status, echod.status.several; "
        "print('twisted.web' in sys.modules, 'twisted.internet.reactor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr


def test_a_worker_without_a_first_order_ends_without_a_word(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.vanish()
    with pytest.raises(SystemExit) as caught:
        main_with(monkeypatch, supervisor)
    assert caught.value.code == 1
    assert supervisor.hear("failed") == []


@pytest.mark.usefixtures("handlers_kept")
def test_signals_of_a_terminal_are_left_to_the_supervisor(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(worker: Worker) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
        raise UserError("this is reached")

    monkeypatch.setattr(Worker, "run", run)
    supervisor.order(pid=1)
    with pytest.raises(SystemExit):
        main_with(monkeypatch, supervisor)
    (told,) = supervisor.hear("failed")
    assert told["why"] == "this is reached"
