"""One program: its pipes, and its end, without a connection."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st

from echod.concurrency.process import LONGEST_LINE, Process, _Lines
from tests.support.reactor import reactor
from tests.support.serving import eventually

PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


class Recorder:
    """Notes what its program does."""

    def __init__(self) -> None:
        self.data = b""
        self.lines: list[bytes] = []
        self.events: list[str] = []
        self.status: int | None = None
        self.reaped = False

    def program_wrote(self, data: bytes) -> None:
        self.data += data

    def program_complained(self, line: bytes) -> None:
        self.lines.append(line)

    def program_is_behind(self) -> None:
        self.events.append("behind")

    def program_caught_up(self) -> None:
        self.events.append("caught up")

    def program_output_ended(self) -> None:
        self.events.append("output ended")

    def program_exited(self, status: int) -> None:
        self.status = status

    def start(self, script: str) -> Process:
        def reaped(process: Process) -> None:
            self.reaped = True

        words = ["sh", "-c", script]
        return Process(reactor, words, "/bin/sh", {"PATH": os.environ["PATH"]}, self, reaped)


@pytest_twisted.ensureDeferred
async def test_a_program_that_reads_late_is_told_of_once_and_gets_all() -> None:
    recorder = Recorder()
    process = recorder.start("read go; cat | wc -c")
    process.write(b"go\n" + bytes(200_000))
    process.write(bytes(100_000))
    process.end_input()
    await eventually(lambda: recorder.status == 0)
    assert recorder.data.split() == [b"300000"]
    assert recorder.events == ["behind", "caught up", "output ended"]
    process.end(0.1)
    assert recorder.reaped


@pytest_twisted.ensureDeferred
async def test_a_program_that_reads_no_more_lets_its_client_go_on() -> None:
    recorder = Recorder()
    process = recorder.start("sleep 0.1; exec 0<&-; read never </dev/null; sleep 0.1")
    process.write(bytes(200_000))
    await eventually(lambda: recorder.events[:2] == ["behind", "caught up"])
    process.write(b"dropped")
    assert process.unread == 0
    await eventually(lambda: recorder.status is not None)
    process.end(0.1)


@pytest_twisted.ensureDeferred
async def test_the_last_words_of_a_program_are_read_before_its_exit_is_told() -> None:
    recorder = Recorder()
    process = recorder.start("printf last >&2; kill -KILL $$")
    await eventually(lambda: recorder.status is not None)
    assert recorder.status == -signal.SIGKILL
    assert recorder.lines == [b"last"]
    process.end(0.1)


@pytest_twisted.ensureDeferred
async def test_an_end_is_by_sigterm_which_a_program_may_catch() -> None:
    recorder = Recorder()
    process = recorder.start(
        "trap 'echo caught >&2; exit 0' TERM; echo ready; while :; do :; done"
    )
    await eventually(lambda: recorder.data)
    process.end(10.0)
    process.end(10.0)
    await eventually(lambda: recorder.reaped)
    assert recorder.lines == [b"caught"]
    assert recorder.status is None  # the connection has gone before


@pytest_twisted.ensureDeferred
async def test_a_stopped_program_ends_too() -> None:
    recorder = Recorder()
    process = recorder.start("echo ready; kill -STOP $$; sleep 1000")
    await eventually(lambda: recorder.data)
    process.end(10.0)
    await eventually(lambda: recorder.reaped)


@pytest_twisted.ensureDeferred
async def test_a_program_may_be_killed_twice_and_after_its_end() -> None:
    recorder = Recorder()
    process = recorder.start("trap '' TERM; echo ready; while :; do :; done")
    await eventually(lambda: recorder.data)
    process.end(1000.0)
    process.kill()
    process.kill()
    await eventually(lambda: recorder.reaped)
    process.kill()
    process.end(1.0)


LEAVES = "(trap '' TERM; echo ready; while :; do sleep 0.01; done) & "


@pytest_twisted.ensureDeferred
async def test_what_a_program_leaves_may_be_killed_before_its_time() -> None:
    recorder = Recorder()
    process = recorder.start(LEAVES)
    await eventually(lambda: recorder.data)
    process.end(1000.0)
    await eventually(lambda: process._popen.returncode is not None)
    assert not recorder.reaped
    process.kill()
    process.kill()
    await eventually(lambda: recorder.reaped)


@pytest.fixture
def as_process_1() -> Iterator[None]:
    """Let this process be the parent of what other processes leave, as process 1 is."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


@pytest_twisted.ensureDeferred
async def test_a_program_is_gone_as_soon_as_the_last_of_its_group_is(as_process_1: None) -> None:
    recorder = Recorder()
    process = recorder.start("(trap '' TERM; echo ready; sleep 0.2) & exec sleep 1000")
    await eventually(lambda: recorder.data)
    process.end(1000.0)
    await eventually(lambda: recorder.reaped)


@pytest.mark.parametrize("leaves", [LEAVES, "(echo ready) & "], ids=["stays", "ends"])
@pytest.mark.parametrize("ends", ["before", "with it"])
@pytest_twisted.ensureDeferred
async def test_as_process_1_no_zombie_stays_of_what_a_program_leaves(
    as_process_1: None, leaves: str, ends: str
) -> None:
    """Fault 212: The daemon reaps each process that a program has started, and not waited for."""
    recorder = Recorder()
    process = recorder.start(leaves + ("cat" if ends == "with it" else ":"))
    await eventually(lambda: recorder.data)
    process.end(0.1)
    await eventually(lambda: recorder.reaped)
    with pytest.raises(ChildProcessError):
        os.waitpid(-process.pid, os.WNOHANG)


@given(st.lists(st.binary(max_size=3 * LONGEST_LINE), max_size=8))
def test_however_a_line_comes_it_is_told_whole_or_in_pieces_and_none_is_lost(
    pieces: list[bytes],
) -> None:
    told: list[bytes] = []
    lines = _Lines(told.append)
    for piece in pieces:
        lines.add(piece)
        assert len(lines._begun) < LONGEST_LINE
    lines.finish()
    assert all(0 < len(line) <= LONGEST_LINE for line in told)
    assert b"".join(told) == b"".join(pieces).replace(b"\n", b"")


class Trigger:
    """Acts on its event, the first of those that the reactor has got together."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._reading, self.writing = os.pipe()

    def fileno(self) -> int:
        return self._reading

    def logPrefix(self) -> str:
        return "trigger"

    def doRead(self) -> None:
        reactor.removeReader(self)
        self._act()
        os.close(self._reading)
        os.close(self.writing)


@pytest_twisted.ensureDeferred
async def test_an_event_of_a_program_that_ends_is_not_taken_for_one_of_the_next() -> None:
    """Fault 211: The next program is served, and its end is seen."""
    first, second = Recorder(), Recorder()
    ended = first.start("read never")
    processes: list[Process] = []

    def end_and_start() -> None:
        output = ended._output.fileno()
        ended.end(0.1)
        taken = [os.dup(0)]
        while taken[-1] < output:
            taken.append(os.dup(0))
        os.close(taken.pop())
        processes.append(second.start("cat"))  # by that number its exit would be watched
        for descriptor in taken:
            os.close(descriptor)

    trigger = Trigger(end_and_start)
    reactor.addReader(trigger)
    os.write(trigger.writing, b"!")
    os.kill(ended.pid, signal.SIGKILL)
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    await eventually(lambda: processes)
    processes[0].write(b"happy")
    await eventually(lambda: second.data == b"happy")
    processes[0].end(0.1)
    await eventually(lambda: first.reaped and second.reaped)
