"""The policy of the supervisor, with workers and time that the test plays."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from twisted.application.service import MultiService
from twisted.logger import ILogObserver
from twisted.python.components import Componentized

from echod.connections.shared_admission import AdmissionTable
from echod.daemon import ending
from echod.daemon.notify import Notifier
from echod.daemon.resolve import StartError
from echod.daemon.signals import GRACE, Signals
from echod.listening.endpoints import parse_listen
from echod.listening.shared import SharedSockets
from echod.log.observer import LogObserver
from echod.log.sinks import Line
from echod.settings.flags import Options
from echod.workers import supervisor as supervising
from echod.workers.child import LAST_LINES
from echod.workers.link import FIRST_SOCKET, LIMITS, LOG, MOMENT, SHOW_STACKS, STDOUT
from echod.workers.reload import READY_IN
from echod.workers.supervisor import (
    CATCH_UP,
    LAST_STACK,
    LOOK,
    PROVEN,
    SPARE,
    TURN,
    Supervisor,
    patience_for,
)
from tests.support.log import Log
from tests.support.needs import needs_root
from tests.support.reactor import reactor as real_reactor
from tests.support.service_manager import managing
from tests.support.serving import LOOPBACK
from tests.support.spawning import Spawned, SpawningReactor

DRAIN = 5


class Kept:
    """A target of the log that keeps its lines."""

    stamps = True

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def write(self, lines: list[Line]) -> int:
        self.lines += lines
        return len(lines)


class Supervision:
    """A supervisor of workers, and the test's hold on both.

    Attributes:
        reactor: its time and its processes.
        supervisor: the supervisor.
        file: its settings.
        lines: the log that the supervisor writes for its workers.
    """

    def __init__(self, file: Path, count: int, *flags: str) -> None:
        self.reactor = SpawningReactor()
        self.file = file
        file.write_text("max-connections = 10\n")
        options = Options()
        options.parseOptions(
            [
                *("--listen", LOOPBACK, "--config", str(file), "--workers", str(count)),
                *("--drain-timeout", str(DRAIN), "--worker-timeout", "10", *flags),
            ]
        )
        self.options = options
        self.sockets = SharedSockets(parse_listen(real_reactor, LOOPBACK).endpoint, count)
        kept = Kept()
        self.lines = kept.lines
        self.observer = LogObserver(kept)
        reactor: Any = self.reactor
        self.supervisor = Supervisor(reactor, options, [(LOOPBACK, self.sockets)], self.observer)

    @property
    def processes(self) -> list[Spawned]:
        return self.reactor.spawned

    @property
    def described(self) -> str:
        return self.supervisor.describe()

    def serve(self) -> list[Spawned]:
        """Start, let each worker become ready, and run."""
        self.supervisor.privilegedStartService()
        self.reactor.steps.append(lambda: [each.tell("ready") for each in self.processes])
        self.supervisor.startService()
        self.reactor.run()
        return self.processes

    def pass_by(self, seconds: float) -> None:
        """Let time pass while each worker that has not ended is heard of."""
        for _ in range(round(seconds / LOOK)):
            for each in self.processes:
                if not each.has_ended:
                    each.tell("beat")
            self.reactor.advance(LOOK)


class Unwilling(socket.socket):
    """A socket whose port another one listens on."""

    refuses = True

    def listen(self, backlog: int = 1) -> None:
        if self.refuses:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        super().listen(backlog)


class Make(Protocol):
    def __call__(self, count: int = 2, *flags: str) -> Supervision: ...


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make supervisors, and close what they hold."""
    made: list[Supervision] = []
    tables: list[AdmissionTable] = []
    create = AdmissionTable.create

    def kept(blocks: int) -> AdmissionTable:
        tables.append(create(blocks))
        return tables[-1]

    def supervision(count: int = 2, *flags: str) -> Supervision:
        made.append(Supervision(tmp_path / "echod.toml", count, *flags))
        own_time = SimpleNamespace(monotonic=made[-1].reactor.seconds)
        monkeypatch.setattr(supervising, "time", own_time)
        return made[-1]

    monkeypatch.setattr(AdmissionTable, "create", kept)
    yield supervision
    for each in made:
        each.sockets.close()
        each.observer.close()
    for table in tables:
        table.close()


@pytest.fixture
def two(make: Make) -> Supervision:
    """Two workers that serve."""
    supervision = make()
    supervision.serve()
    return supervision


def errors(log: Log) -> list[str]:
    """Take the errors off the log, without times and levels."""
    return [error.partition("] ")[2] for error in log.take_errors()]


# The start.


def test_workers_start_with_their_orders_and_their_sockets(make: Make) -> None:
    served = make()
    one, other = served.serve()
    assert not one.done
    assert one.orders[0] == {
        "pid": os.getpid(),
        "count": 2,
        "blocks": 24,
        "key": served.supervisor._key,
        "arguments": served.options.arguments,
        "uid": None,
        "folder": str(Path.cwd()),
        "first_text": "max-connections = 10\n",
        "rundir": str(Path.cwd()),
        "reactor": "spawning",
        "stamps": True,
        "ends": [True],
        "files": {},
        "folders": {},
        "block": 0,
        "number": 1,
        "text": "max-connections = 10\n",
        "sockets": [[FIRST_SOCKET]],
    }
    assert other.orders[0]["number"] == 2
    assert other.orders[0]["block"] == 1
    sockets = [each.descriptors[FIRST_SOCKET] for each in (one, other)]
    assert sockets == [served.sockets.descriptors_of(number)[0] for number in (1, 2)]
    assert sockets[0] != sockets[1]
    assert one.descriptors[LIMITS] == other.descriptors[LIMITS]


def test_a_worker_accepts_once_it_is_ready(make: Make) -> None:
    served = make()
    served.supervisor.privilegedStartService()
    seen: list[list[bool]] = []

    def look() -> None:
        seen.append([each.accepts for each in served.processes])

    served.reactor.steps += [
        look,
        lambda: served.processes[0].tell("ready"),
        look,
        lambda: served.processes[1].tell("ready"),
        look,
    ]
    served.supervisor.startService()
    served.reactor.run()
    look()
    assert seen[0] == [False, False]
    assert seen[1] == [True, False]
    assert seen[-1] == [True, True]


def test_no_worker_that_starts_in_a_suspended_service_accepts(make: Make, log: Log) -> None:
    """Fault 202: A worker that starts before the service is suspended, and serves only then,
    accepts no client; nor does a successor, nor the worker that it replaces, from the queue.
    """
    served = make(1)
    operations: Any = SimpleNamespace(suspended=False, told=lambda *_: None, ended=lambda _: None)
    served.supervisor.operations = operations
    (first,) = served.serve()
    served.pass_by(PROVEN)
    assert first.accepts
    first.end(1)
    successor = served.processes[1]
    operations.suspended = True
    successor.tell("ready")
    assert not successor.accepts
    served.supervisor.renew()
    served.processes[2].tell("ready")
    assert not served.processes[2].accepts
    assert successor.orders[-1] == {"do": "stop", "whole": False}
    operations.suspended = False
    successor.end()
    served.supervisor.renew()
    served.processes[3].tell("ready")
    assert served.processes[3].accepts
    assert served.supervisor.stopService() is not None
    assert served.processes[3].orders[-1] == {"do": "stop", "whole": True}
    for each in served.processes[2:]:
        each.end()
    errors(log)


def test_the_service_is_ready_once_each_worker_serves(make: Make, tmp_path: Path) -> None:
    served = make()
    supervisor = served.supervisor
    with managing(str(tmp_path / "manager")) as manager:
        supervisor.notifier = Notifier(
            served.reactor, supervisor.describe, address=manager.address
        )
        supervisor.privilegedStartService()
        states: list[str] = []

        def begin() -> None:
            served.processes[0].tell("starting", text="Loading", seconds=7)
            served.processes[0].tell("ready")
            states.append(supervisor.state)

        served.reactor.steps += [begin, lambda: served.processes[1].tell("ready")]
        supervisor.startService()
        assert states == ["starting"]
        assert manager.hear() == [["STATUS=Loading", "EXTEND_TIMEOUT_USEC=7000000"]]
        served.reactor.run()
        assert supervisor.state == "ready"
        assert "STATUS=Serving; workers: 2 of 2" in manager.hear()[0]
        supervisor.reload()
        assert manager.hear()[0][0] == "RELOADING=1"
        for each in served.processes:
            each.answer()
        assert manager.hear()[0][0] == "READY=1"
        supervisor.stopService()
        assert manager.hear()[0] == ["STOPPING=1", "STATUS=Draining; workers: 2 of 2"]
        for each in served.processes:
            each.end()


def test_the_start_fails_with_the_reason_if_no_worker_can(make: Make, log: Log) -> None:
    served = make()
    served.supervisor.privilegedStartService()

    def fail() -> None:
        for each in served.processes:
            each.tell("failed", why="no\nhandler")
            each.end(1)

    served.reactor.steps.append(fail)
    with pytest.raises(StartError, match=r"^no\\nhandler$"):
        served.supervisor.startService()
    assert errors(log) == [r"no\nhandler"]
    assert not served.sockets._sockets
    assert len(served.processes) == 2


def test_a_worker_that_ends_in_the_start_without_a_word_is_the_reason(
    make: Make, log: Log
) -> None:
    served = make(1)
    served.supervisor.privilegedStartService()
    served.reactor.steps.append(lambda: served.processes[0].end(None, signal.SIGKILL))
    reason = "worker 1 was ended by SIGKILL before it served"
    with pytest.raises(StartError, match=reason):
        served.supervisor.startService()
    assert errors(log) == [reason]


def test_a_system_without_room_for_processes_is_the_reason(make: Make, log: Log) -> None:
    served = make(1)
    served.reactor.refusal = OSError(errno.EAGAIN, "no more processes")
    served.supervisor.privilegedStartService()
    with pytest.raises(StartError, match="worker 1 cannot be started: no more processes"):
        served.supervisor.startService()
    assert errors(log)


def test_a_python_that_the_user_of_the_workers_cannot_enter_is_named(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    needs_root("become another user")
    served = make(1)
    (closed := tmp_path / "closed").mkdir(0o700)
    (python := Path(tempfile.mkdtemp(), "python")).symlink_to(closed / "python")
    served.reactor.refusal = PermissionError(errno.EACCES, "Permission denied")
    served.supervisor.privilegedStartService()
    monkeypatch.setattr(sys, "executable", str(python))
    python.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(StartError, match="worker 1 cannot be started: the user ") as raised:
            served.supervisor.startService()
    finally:
        os.seteuid(0)
        shutil.rmtree(python.parent)
    assert f", and so not run {python}: see its permissions" in str(raised.value)
    assert errors(log) == [str(raised.value)]


def test_without_memory_for_the_limits_the_start_says_what_to_do(
    make: Make, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    def refuse(blocks: int) -> AdmissionTable:
        raise OSError(errno.EFBIG, "File too large")

    served = make(2)
    served.supervisor.privilegedStartService()
    monkeypatch.setattr(AdmissionTable, "create", refuse)
    why = (
        "the 3073 KiB of memory in which workers count their connections cannot be made: File too "
        "large; raise the limit on the size of files: ulimit -f, or LimitFSIZE= in a unit"
    )
    with pytest.raises(StartError, match=f"^{re.escape(why)}$"):
        served.supervisor.startService()
    assert errors(log) == [why]
    assert not served.sockets._sockets
    assert not served.processes


def test_one_worker_that_serves_is_enough_for_the_start(make: Make, log: Log) -> None:
    served = make()
    served.supervisor.privilegedStartService()
    served.reactor.steps += [
        lambda: served.processes[0].end(1),
        lambda: served.processes[1].tell("ready"),
    ]
    served.supervisor.startService()
    served.reactor.run()
    assert served.supervisor.state == "starting"
    assert served.described == "Serving; workers: 1 of 2"
    served.processes[2].tell("ready")
    assert served.processes[2].orders[0]["number"] == 1
    assert served.supervisor.state == "ready"


def test_a_port_that_the_system_chooses_is_told_before_a_worker_serves(
    make: Make, log: Log
) -> None:
    served = make()
    served.supervisor.privilegedStartService()
    port = served.sockets.port
    assert log.text.endswith(f"{LOOPBACK} has port {port}")
    known = make()
    # Free there: nothing else uses this address, or can take the port on all while it is taken.
    description = f"tcp:{port}:interface=127.77.0.2"
    sockets = SharedSockets(parse_listen(real_reactor, description).endpoint, 2)
    known.supervisor._listeners = [(description, sockets)]
    known.supervisor.privilegedStartService()
    assert "127.77.0.2 has port" not in log.text
    sockets.close()


def test_an_address_in_use_ends_the_start(make: Make, log: Log) -> None:
    served = make()
    served.supervisor.privilegedStartService()
    description = f"tcp:{served.sockets.port}:interface=127.0.0.1"
    other = make()
    taken = SharedSockets(parse_listen(real_reactor, description).endpoint, 2)
    other.supervisor._listeners = [(description, taken)]
    with pytest.raises(StartError, match=f"{re.escape(description)}: Bind failed"):
        other.supervisor.privilegedStartService()
    assert errors(log)
    assert not other.processes


def test_a_signal_ends_the_start_and_its_workers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(ending, "end_by_signal", ends.append)
    served = make()
    supervisor = served.supervisor
    supervisor.signals = handled(served)
    answered: list[bool] = []
    monkeypatch.setattr(supervisor.signals, "answer", lambda: answered.append(True))
    supervisor.privilegedStartService()

    def interrupt() -> None:
        assert supervisor.signals is not None
        assert supervisor.signals.starting is not None
        served.processes[0].tell("ready")
        supervisor.signals.starting(signal.SIGTERM)

    served.reactor.steps += [interrupt, lambda: [each.end() for each in served.processes]]
    with pytest.raises(StartError, match="SIGTERM came while the workers started"):
        supervisor.startService()
    assert ends == [signal.SIGTERM]
    assert supervisor.signals.starting is None
    assert answered == [True]
    assert [each.done for each in served.processes] == [["stop"], ["stop"]]
    # The second reads no orders yet.
    assert [each.signals for each in served.processes] == [[], [signal.SIGTERM]]
    assert not served.sockets._sockets


def test_a_signal_in_the_turn_in_which_the_last_worker_serves_drains(make: Make, log: Log) -> None:
    """Its clients may have been served already."""
    served = make()
    supervisor = served.supervisor
    signals = supervisor.signals = handled(served)
    passed: list[int] = []
    signals.pass_on = passed.append  # type: ignore[method-assign, assignment]
    supervisor.privilegedStartService()

    def serve_and_interrupt() -> None:
        assert signals.starting is not None
        for each in served.processes:
            each.tell("ready")
        signals.starting(signal.SIGTERM)

    served.reactor.steps.append(serve_and_interrupt)
    supervisor.startService()
    assert passed == [signal.SIGTERM]
    assert signals.starting is None
    assert [each.done for each in served.processes] == [[], []]


def test_a_worker_that_does_not_end_with_the_start_is_killed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "end_by_signal", lambda number: None)
    served = make(1)
    supervisor = served.supervisor
    supervisor.signals = handled(served)
    supervisor.privilegedStartService()
    began = served.reactor.seconds()
    patient = int((DRAIN + GRACE) / TURN)

    def end_if_killed() -> None:
        (process,) = served.processes
        if signal.SIGKILL in process.signals and not process.has_ended:
            process.end(None, signal.SIGKILL)

    served.reactor.steps.append(lambda: supervisor.signals.starting(signal.SIGINT))
    served.reactor.steps += [end_if_killed] * (patient + 5)
    with pytest.raises(StartError, match="SIGINT"):
        supervisor.startService()
    assert DRAIN + GRACE <= served.reactor.seconds() - began < DRAIN + GRACE + 0.1


def handled(served: Supervision) -> Signals:
    """Return the signals of a supervisor, without any handler."""
    supervisor = served.supervisor
    return Signals(served.reactor, abort=supervisor.abort, reload=supervisor.reload, patience=1)


def test_the_application_gets_the_log_from_the_supervisor(make: Make) -> None:
    class Application(MultiService, Componentized):
        def __init__(self) -> None:
            MultiService.__init__(self)
            Componentized.__init__(self)

    served = make()
    application = Application()
    served.supervisor.setServiceParent(application)
    assert ILogObserver(application) is served.observer


# Workers that end.


def test_a_worker_that_ends_is_replaced_at_once(two: Supervision, log: Log) -> None:
    two.pass_by(PROVEN)
    one, other = two.processes
    one.end(None, signal.SIGSEGV)
    assert len(two.processes) == 3
    successor = two.processes[2]
    assert successor.orders[0]["number"] == 1
    assert successor.descriptors[FIRST_SOCKET] == one.descriptors[FIRST_SOCKET]
    assert two.described == "Serving; workers: 1 of 2"
    successor.tell("ready")
    assert two.described == "Serving; workers: 2 of 2"
    assert not other.done
    assert errors(log) == [
        f"worker 1 (process {one.pid}) was ended by SIGSEGV; its successor starts now"
    ]


def test_a_worker_that_ends_again_and_again_waits_twice_as_long_each_time(
    two: Supervision, log: Log
) -> None:
    two.processes[0].end(3)
    assert "its successor starts now" in errors(log)[-1]
    for wait in (0.1, 0.2, 0.4):
        count = len(two.processes)
        two.processes[-1].tell("ready")
        two.processes[-1].end(3)
        assert f"its successor starts in {wait} s" in errors(log)[-1]
        two.reactor.advance(wait - 0.01)
        assert len(two.processes) == count
        two.reactor.advance(0.02)
        assert len(two.processes) == count + 1
    two.processes[-1].tell("ready")
    two.pass_by(PROVEN)
    two.processes[-1].end(3)
    assert "its successor starts now" in errors(log)[-1]


def test_a_successor_that_cannot_start_is_tried_again_later(two: Supervision, log: Log) -> None:
    two.pass_by(PROVEN)
    two.processes[0].end(1)
    two.processes[2].tell("failed", why="the handler has gone")
    two.processes[2].end(1)
    assert errors(log)[-1] == "the handler has gone; its successor starts in 0.1 s"
    assert len(two.processes) == 3
    two.reactor.advance(0.1)
    assert len(two.processes) == 4


def test_a_worker_that_ends_frees_its_block_and_its_counts(two: Supervision, log: Log) -> None:
    table = two.supervisor._table
    assert table is not None
    block = len(table.counters) // 24
    table.counters[0] = table.counters[block] = 7
    two.processes[0].end(1)
    assert table.counters[0] == 0
    assert table.counters[block] == 7
    assert two.supervisor._free_blocks[-1] == 0
    assert errors(log)


def test_too_many_predecessors_that_drain_hold_a_successor_back(
    two: Supervision, log: Log
) -> None:
    free = two.supervisor._free_blocks
    kept = list(free)
    free.clear()
    two.processes[0].tell("draining")
    two.reactor.advance(MOMENT)
    why = "worker 1 cannot be started: too many of its predecessors drain"
    assert errors(log)[0].startswith(why)
    assert len(two.processes) == 2
    free.extend(kept)
    two.reactor.advance(1)
    assert two.processes[2].orders[0]["number"] == 1


def test_starts_that_fail_use_up_no_room_for_later_ones(two: Supervision, log: Log) -> None:
    two.reactor.refusal = OSError(errno.EAGAIN, "no more processes")
    two.processes[0].end(1)
    free = len(two.supervisor._free_blocks)
    for _ in range(40):
        two.pass_by(30)
    assert len(two.supervisor._free_blocks) == free
    two.reactor.refusal = None
    two.pass_by(30)
    assert two.processes[2].orders[0]["number"] == 1
    late = "worker 1 cannot be started: no more processes; its successor starts in 30 s"
    assert set(errors(log)[1:]) >= {f"{late}, and the others have its clients"}


def test_a_socket_that_cannot_listen_again_is_tried_with_the_next_successor(
    two: Supervision, log: Log
) -> None:
    two.reactor.refusal = OSError(errno.EAGAIN, "no more processes")
    two.processes[0].end(1)
    two.pass_by(5)
    assert "the others have its clients" in errors(log)[-1]
    two.reactor.refusal = None
    shared = two.sockets._sockets[0] = Unwilling(fileno=two.sockets._sockets[0].detach())
    two.pass_by(10)
    assert len(two.processes) == 2
    assert errors(log)[-1].startswith("worker 1 cannot be started: Address already in use; its")
    shared.refuses = False
    two.pass_by(30)
    assert two.processes[2].orders[0]["number"] == 1
    assert shared.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_a_worker_that_drains_by_itself_has_a_successor_meanwhile(
    two: Supervision, log: Log
) -> None:
    one = two.processes[0]
    one.tell("draining")
    assert two.described == "Serving; workers: 1 of 2"
    assert len(two.processes) == 2
    two.reactor.advance(MOMENT)
    assert two.processes[2].orders[0]["number"] == 1
    two.processes[2].tell("ready")
    assert not one.done
    one.end(0)
    assert f"worker 1 (process {one.pid}) has ended with exit code 0" in log.text
    assert len(two.processes) == 3


def test_sigterm_to_the_whole_group_starts_no_successor(two: Supervision) -> None:
    for each in two.processes:
        each.tell("draining")
    stopped = two.supervisor.stopService()
    two.reactor.advance(1)
    for each in two.processes:
        each.end()
    assert len(two.processes) == 2
    assert stopped.called
    assert not two.reactor.getDelayedCalls()


# Heartbeats.


def test_a_worker_that_stands_still_shows_its_stack_and_is_killed(
    two: Supervision, log: Log
) -> None:
    one, other = two.processes
    killed_after = 0.0
    while signal.SIGKILL not in one.signals:
        other.tell("beat")
        two.reactor.advance(LOOK)
        killed_after += LOOK
        if one.signals == [SHOW_STACKS]:
            assert killed_after < 10 + LAST_STACK
    assert one.signals == [SHOW_STACKS, signal.SIGKILL]
    assert killed_after == 10 + LAST_STACK
    assert not other.signals
    assert errors(log) == [f"{one.child} has stood still for 10 s; it is killed, and was at:"]


def test_a_worker_that_is_heard_in_time_is_not_killed(two: Supervision, log: Log) -> None:
    one, other = two.processes
    while not one.signals:
        other.tell("beat")
        two.reactor.advance(LOOK)
    one.tell("beat")
    two.pass_by(30)
    assert one.signals == [SHOW_STACKS]
    assert errors(log)


def test_with_no_limit_a_worker_may_stand_still(make: Make) -> None:
    served = make(1, "--worker-timeout", "0")
    (one,) = served.serve()
    for _ in range(100):
        served.reactor.advance(LOOK)
    assert not one.signals


def test_a_supervisor_that_slept_itself_kills_no_worker(two: Supervision) -> None:
    two.pass_by(3)
    two.reactor.advance(3600)
    two.reactor.advance(LOOK)
    assert not any(each.signals for each in two.processes)


# New settings.


def test_new_settings_are_used_once_each_worker_has_made_them_ready(
    two: Supervision, log: Log
) -> None:
    one, other = two.processes
    two.supervisor.signals = handled(two)
    two.file.write_text("max-connections = 20\nlog-level = 'debug'\n")
    two.supervisor.reload()
    for each in (one, other):
        assert each.done == ["prepare"]
        assert each.orders[-1]["text"] == two.file.read_text()
    one.answer()
    assert one.done == ["prepare"]
    other.answer()
    assert one.done == other.done == ["prepare", "commit"]
    assert one.child.text == two.file.read_text()
    assert "Reloaded in every worker; changed: " in log.text
    assert "max-connections" in log.text
    assert two.observer._lowest == 0
    assert two.supervisor.signals.patience == DRAIN + 2 * (GRACE + SPARE)
    two.processes[0].end(1)
    assert two.processes[2].orders[0]["text"] == two.file.read_text()
    # From this it takes what only a restart changes.
    assert two.processes[2].orders[0]["first_text"] == "max-connections = 10\n"
    assert errors(log)


def test_one_worker_that_refuses_keeps_new_settings_from_all(two: Supervision, log: Log) -> None:
    one, other = two.processes
    two.file.write_text("max-connections = 20\n")
    two.supervisor.reload()
    one.answer()
    other.answer("no\ncertificate")
    assert one.done == other.done == ["prepare", "forget"]
    assert one.child.text == "max-connections = 10\n"
    refused = r"no\ncertificate"
    assert errors(log) == [f"Reload refused, nothing has changed: {refused}"]
    assert two.described.endswith(f"; the last reload was refused: {refused}")
    two.supervisor.reload()
    for each in (one, other):
        each.answer()
    assert two.described == "Serving; workers: 2 of 2"


def test_a_file_with_an_error_is_refused_before_a_worker_is_asked(
    two: Supervision, log: Log
) -> None:
    two.file.write_text("max-connections = 'many'\n")
    two.supervisor.reload()
    assert not any(each.done for each in two.processes)
    (said,) = errors(log)
    assert "max-connections" in said


def test_a_worker_that_does_not_answer_in_time_keeps_new_settings_from_all(
    two: Supervision, log: Log
) -> None:
    one, other = two.processes
    two.supervisor.reload()
    one.answer()
    two.pass_by(READY_IN - LOOK)
    assert one.done == ["prepare"]
    two.pass_by(LOOK)
    assert one.done == other.done == ["prepare", "forget"]
    assert "a worker does not answer" in errors(log)[0]
    other.answer()  # too late
    assert one.done == other.done == ["prepare", "forget"]


def test_a_worker_that_goes_on_reading_files_gets_more_time(two: Supervision) -> None:
    """Fault 192: Workers may take as long for them as they need, if they show that they live."""
    one, other = two.processes
    two.supervisor.reload()
    one.answer()
    for _ in range(3):
        two.pass_by(READY_IN - LOOK)
        one.tell("alive", preparing=False)
        other.tell("alive", preparing=True)
    assert one.done == ["prepare"]
    other.answer()
    assert one.done == other.done == ["prepare", "commit"]


def test_a_late_answer_is_not_taken_for_that_of_the_next_reload(
    two: Supervision, log: Log
) -> None:
    one, other = two.processes
    two.supervisor.reload()
    number = other.orders[-1]["number"]
    one.answer("refused")
    two.supervisor.reload()
    one.answer()
    other.tell("prepared", why="", number=number)
    assert one.done == ["prepare", "forget", "prepare"]
    other.answer()
    assert one.done[-1] == "commit"
    assert errors(log)


def test_a_reload_for_which_the_supervisor_lacks_a_module_is_refused(
    two: Supervision, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "echod.faults", None)
    two.file.write_text('fault = "drip"\n')
    two.supervisor.reload()
    assert two.processes[0].done == []
    (line,) = errors(log)
    assert line.startswith("Reload refused, nothing has changed: import of echod.faults halted")
    two.file.write_text("max-connections = 20\n")
    two.supervisor.reload()
    assert two.processes[0].done == ["prepare"]


def test_a_reload_does_not_wait_for_a_worker_that_ends_and_its_successor_catches_up(
    two: Supervision, log: Log
) -> None:
    one, other = two.processes
    two.pass_by(PROVEN)
    two.file.write_text("max-connections = 20\n")
    two.supervisor.reload()
    other.answer()
    one.end(1)
    assert other.done == ["prepare", "commit"]
    successor = two.processes[2]
    successor.tell("ready")
    # It may have started with the old settings, or with the new ones.
    text = successor.orders[0]["text"]
    assert text == two.file.read_text() or successor.done == ["prepare", "commit"]
    assert successor.child.text == two.file.read_text()
    assert errors(log)


def test_a_successor_that_started_before_the_reload_gets_its_settings(
    two: Supervision, log: Log
) -> None:
    two.processes[0].end(1)
    successor = two.processes[2]
    two.file.write_text("max-connections = 20\n")
    two.supervisor.reload()
    two.processes[1].answer()
    assert not successor.done
    successor.tell("ready")
    assert successor.done == ["prepare", "commit"]
    assert successor.orders[1]["text"] == two.file.read_text()
    successor.answer()  # this answer has no reload that waits for it
    assert errors(log)


def test_a_successor_that_serves_before_the_reload_is_decided_gets_its_settings(
    two: Supervision, log: Log
) -> None:
    """Fault 188: A worker that begins to serve during a reload gets the new settings, too."""
    one, other = two.processes
    one.end(1)
    successor = two.processes[2]
    two.file.write_text("max-connections = 20\n")
    two.supervisor.reload()
    successor.tell("ready")
    assert not successor.done  # nothing is decided yet
    other.answer()
    assert other.done == successor.done == ["prepare", "commit"]
    assert successor.orders[-2]["text"] == two.file.read_text()
    assert errors(log)


def test_a_worker_that_drains_in_a_reload_answers_it_and_its_successor_has_its_settings(
    two: Supervision, log: Log
) -> None:
    one, other = two.processes
    two.file.write_text("max-connections = 20\n")
    two.supervisor.reload()
    one.tell("draining")
    two.reactor.advance(MOMENT)
    successor = two.processes[2]
    assert successor.orders[0]["text"] == "max-connections = 10\n"
    other.answer()
    assert not log.text.count("Reloaded")
    successor.tell("ready")
    one.answer()
    for each in (one, other, successor):
        assert each.done == ["prepare", "commit"]
        assert each.child.text == two.file.read_text()
    one.end()
    assert two.described == "Serving; workers: 2 of 2"


def test_a_reload_while_the_workers_are_renewed_is_used_by_old_and_new_ones(
    two: Supervision, log: Log
) -> None:
    """Fault 188: A reload while workers are replaced holds for old workers and for new ones."""
    one, other = two.processes
    two.supervisor.renew()
    two.file.write_text("max-connections = 20\n")
    two.supervisor.reload()
    successor = two.processes[2]
    successor.tell("ready")  # its predecessor drains, and is asked all the same
    assert one.done == ["prepare", "stop"]
    one.tell("draining")
    one.answer()
    other.answer()
    assert successor.done == ["prepare", "commit"]
    assert one.done == ["prepare", "stop", "commit"]
    one.end()
    assert two.processes[3].orders[0]["text"] == two.file.read_text()
    two.processes[3].tell("ready")
    assert two.processes[3].done == []
    other.end()
    assert "The workers have been replaced" in log.text


def test_a_reload_that_comes_while_each_worker_drains_is_in_force_for_their_successors(
    two: Supervision, log: Log
) -> None:
    for each in two.processes[:2]:
        each.tell("draining")
    two.file.write_text("max-connections = 20\n")
    two.supervisor.reload()
    assert not any(each.done for each in two.processes)
    two.reactor.advance(MOMENT)
    texts = [each.orders[0]["text"] for each in two.processes[2:]]
    assert texts == [two.file.read_text()] * 2
    assert "Reloaded in every worker" in log.text


def test_a_successor_that_cannot_use_the_settings_in_force_is_replaced(
    two: Supervision, log: Log
) -> None:
    two.pass_by(PROVEN)
    two.processes[0].end(1)
    successor = two.processes[2]
    two.file.write_text("max-connections = 20\n")
    two.supervisor.reload()
    two.processes[1].answer()
    successor.tell("ready")
    assert successor.done == ["prepare", "commit"]
    assert successor.orders[1]["number"] == CATCH_UP
    successor.answer("no certificate")
    assert successor.done == ["prepare", "commit", "stop"]
    why = f"{successor.child} cannot use the settings in force: no certificate"
    assert errors(log)[-1] == f"{why}; its successor starts"
    successor.tell("draining")
    two.reactor.advance(MOMENT)
    assert two.processes[3].orders[0]["text"] == two.file.read_text()


def test_a_second_reload_waits_for_the_first(two: Supervision) -> None:
    one, other = two.processes
    two.supervisor.reload()
    two.file.write_text("max-connections = 30\n")
    two.supervisor.reload()
    two.supervisor.reload()
    assert one.done == ["prepare"]
    for each in (one, other):
        each.answer()
    assert one.done == ["prepare", "commit", "prepare"]
    assert one.orders[-1]["text"] == "max-connections = 30\n"
    for each in (one, other):
        each.answer()
    assert one.done == ["prepare", "commit"] * 2


def test_a_reload_without_any_worker_is_in_force_for_their_successors(
    make: Make, log: Log
) -> None:
    served = make(1)
    served.serve()[0].end(1)
    served.processes[1].end(1)
    served.file.write_text("max-connections = 40\n")
    served.supervisor.reload()
    served.reactor.advance(0.1)
    assert served.processes[2].orders[0]["text"] == "max-connections = 40\n"
    assert errors(log)


# New code.


def test_workers_are_renewed_one_at_a_time(two: Supervision, log: Log) -> None:
    one, other = two.processes
    two.supervisor.renew()
    assert len(two.processes) == 3
    assert not one.done
    two.processes[2].tell("ready")
    assert one.done == ["stop"]
    assert len(two.processes) == 3  # the second waits until the first has drained
    one.tell("draining")
    one.end()
    assert len(two.processes) == 4
    assert two.processes[3].orders[0]["number"] == 2
    assert two.described == "Serving; workers: 2 of 2"
    two.processes[3].tell("ready")
    assert other.done == ["stop"]
    assert "The workers have been replaced" not in log.text
    other.end()
    assert "The workers have been replaced" in log.text
    assert len(two.processes) == 4


def test_a_successor_that_cannot_start_ends_the_renewal(two: Supervision, log: Log) -> None:
    two.supervisor.renew()
    two.supervisor.renew()
    two.processes[2].tell("failed", why="a syntax error")
    two.processes[2].end(1)
    assert errors(log) == ["a syntax error: the workers that serve go on, with their code"]
    two.pass_by(60)
    assert len(two.processes) == 3
    assert not any(each.done for each in two.processes[:2])
    two.supervisor.renew()
    assert len(two.processes) == 4


def test_a_renewal_that_is_asked_for_in_the_start_begins_after_it(make: Make, log: Log) -> None:
    served = make(1)

    def begin() -> None:
        served.processes[0].tell("ready")
        served.supervisor.renew()

    served.supervisor.privilegedStartService()
    served.reactor.steps.append(begin)
    served.supervisor.startService()
    assert len(served.processes) == 1
    served.reactor.run()
    assert len(served.processes) == 2
    served.processes[1].tell("failed", why="a syntax error")
    served.processes[1].end(1)
    assert errors(log) == ["a syntax error: the workers that serve go on, with their code"]
    served.supervisor.renew()
    assert len(served.processes) == 3


def test_a_second_renewal_waits_for_the_first(make: Make) -> None:
    served = make(1)
    (one,) = served.serve()
    served.supervisor.renew()
    served.supervisor.renew()
    assert len(served.processes) == 2
    served.processes[1].tell("ready")
    one.end()
    assert len(served.processes) == 3
    served.processes[2].tell("ready")
    assert served.processes[1].done == ["stop"]
    served.processes[1].end()
    assert len(served.processes) == 3


@pytest.mark.parametrize("goes", ["dies", "drains by itself"])
def test_a_worker_that_goes_while_its_successor_starts_does_not_hold_the_renewal(
    two: Supervision, log: Log, goes: str
) -> None:
    one, other = two.processes
    two.supervisor.renew()
    if goes == "dies":
        one.end(None, signal.SIGKILL)
    else:
        one.tell("draining")
    two.reactor.advance(MOMENT)
    assert len(two.processes) == 3
    two.processes[2].tell("ready")
    assert two.described == "Serving; workers: 2 of 2"
    assert len(two.processes) == 4
    two.processes[3].tell("ready")
    assert other.done == ["stop"]
    other.end()
    assert "The workers have been replaced" in log.text
    two.supervisor.renew()
    assert len(two.processes) == 5


def test_a_renewal_goes_on_only_while_each_worker_serves(two: Supervision, log: Log) -> None:
    one, other = two.processes
    two.supervisor.renew()
    two.processes[2].tell("ready")
    two.pass_by(PROVEN)
    other.end(1)
    two.processes[3].tell("ready")
    assert len(two.processes) == 4  # the first still drains
    two.processes[2].end(1)
    one.end()
    assert len(two.processes) == 5
    two.processes[4].tell("ready")
    assert len(two.processes) == 6
    assert two.processes[5].orders[0]["number"] == 2
    assert errors(log)


# The end.


def test_a_stop_drains_each_worker_and_ends_with_the_last(two: Supervision, log: Log) -> None:
    one, other = two.processes
    stopped = two.supervisor.stopService()
    assert one.done == other.done == ["stop"]
    assert not one.signals
    assert two.described == "Draining; workers: 2 of 2"
    assert two.supervisor.state == "draining"
    assert not two.sockets._sockets
    one.end()
    assert not stopped.called
    assert two.supervisor.children == [other.child]
    other.end()
    assert stopped.called
    assert log.text.endswith("Stopped")
    assert not two.reactor.getDelayedCalls()
    assert len(two.processes) == 2


def test_the_end_waits_for_the_last_lines(two: Supervision) -> None:
    stopped = two.supervisor.stopService()
    for each in two.processes:
        each.exit()
    text = b"a last line"
    two.processes[0].child.childDataReceived(LOG, struct.pack(">IB", len(text), 1) + text)
    assert not stopped.called
    two.reactor.advance(LAST_LINES)
    assert stopped.called
    two.observer.close()
    assert Line("a last line", "info") in two.lines


def test_a_worker_that_has_not_ended_in_time_is_killed(two: Supervision, log: Log) -> None:
    one, other = two.processes
    two.supervisor.stopService()
    other.end()
    two.pass_by(DRAIN)
    assert not one.signals
    two.pass_by(GRACE + SPARE)
    assert one.signals == [signal.SIGKILL]
    assert errors(log) == [f"{one.child} has not ended in time: it is killed"]
    one.end(None, signal.SIGKILL)


def test_an_abort_hurries_the_workers_and_then_kills_them_sooner(
    two: Supervision, log: Log
) -> None:
    one, other = two.processes
    two.supervisor.stopService()
    two.supervisor.abort()
    assert one.done == other.done == ["stop", "hurry"]
    other.end()
    two.pass_by(GRACE + SPARE)
    assert one.signals == [signal.SIGKILL]
    one.end(None, signal.SIGKILL)
    assert errors(log)


def test_a_worker_that_starts_meanwhile_is_stopped_by_a_signal_and_an_order(
    two: Supervision, log: Log
) -> None:
    two.processes[0].end(1)
    two.supervisor.stopService()
    starting = two.processes[2]
    assert starting.signals == [signal.SIGTERM]
    starting.tell("ready")
    assert starting.done == ["stop"]
    assert errors(log)


def test_a_start_that_waits_is_given_up_by_a_stop(two: Supervision, log: Log) -> None:
    for number in (0, 2):
        two.processes[number].end(1)
    two.processes[1].end(0)
    two.processes[3].end(0)
    assert len(two.processes) == 4
    assert two.supervisor.stopService().called
    two.reactor.advance(60)
    assert len(two.processes) == 4
    assert errors(log)


def test_a_stop_gives_up_the_reload_and_takes_no_further_orders(two: Supervision) -> None:
    one, other = two.processes
    two.supervisor.reload()
    two.supervisor.stopService()
    two.supervisor.reload()
    two.supervisor.renew()
    one.answer()
    assert one.done == other.done == ["prepare", "stop"]
    for each in (one, other):
        each.end()
    assert not two.reactor.getDelayedCalls()
    assert len(two.processes) == 2


def test_an_answer_that_comes_after_a_stop_decides_nothing(two: Supervision, log: Log) -> None:
    two.supervisor.reload()
    two.supervisor.stopService()
    two.processes[0].answer("refused")
    assert two.processes[0].done == ["prepare", "stop"]
    assert "refused" not in two.described


def test_the_supervisor_has_longer_for_its_end_than_its_workers(make: Make) -> None:
    served = make()
    kill_after = DRAIN + GRACE + SPARE
    assert patience_for(served.options.settings) > kill_after


# Lines.


def test_lines_that_a_worker_prints_are_in_the_log_with_its_number(
    two: Supervision, log: Log
) -> None:
    two.processes[1].child.childDataReceived(STDOUT, b"hello\x1b[1m\n\nagain\n")
    printed = [event for event in log.events if event.get("log_worker") == 2]
    assert [event["text"] for event in printed] == [r"hello\x1b[1m", "again"]
    assert {event["log_kind"] for event in printed} == {"printed by worker 2"}


def test_figures_go_to_the_status(two: Supervision, log: Log) -> None:
    told: list[tuple[object, ...]] = []
    two.processes[0].tell("figures", figures={"cpu": 1}, number=4)  # no status asked
    two.supervisor.figures = SimpleNamespace(  # type: ignore[assignment]
        told=lambda *figures: told.append(figures), ended=lambda child: told.append((child,))
    )
    one = two.processes[0]
    one.tell("figures", figures={"cpu": 2}, number=5)
    one.end(1)
    assert told == [(one.child, {"cpu": 2}, 5), (one.child,)]
    assert errors(log)
