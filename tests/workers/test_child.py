"""A worker's process as its supervisor sees it, with a process that the test plays."""

from __future__ import annotations

import os
import signal
import struct
import sys

import pytest

from echod.log.sinks import Line
from echod.text import LONGEST
from echod.workers.child import LAST_LINES, Child, backoff
from echod.workers.link import (
    FIRST_SOCKET,
    LIMITS,
    LOG,
    NEWS,
    ORDERS,
    STDERR,
    STDOUT,
    Message,
    encode,
)
from tests.support.spawning import Spawned, SpawningReactor


class Notes:
    """An owner that notes all it is told, in order."""

    def __init__(self) -> None:
        self.taken: list[object] = []

    def child_told(self, child: Child, news: Message) -> None:
        self.taken.append(news["news"])

    def child_printed(self, child: Child, text: str) -> None:
        self.taken.append(text)

    def child_logged(self, line: Line) -> None:
        self.taken.append(line)

    def child_exited(self, child: Child) -> None:
        self.taken.append("exited")

    def child_is_over(self, child: Child) -> None:
        self.taken.append("over")


@pytest.fixture
def reactor() -> SpawningReactor:
    return SpawningReactor()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def process(reactor: SpawningReactor, notes: Notes) -> Spawned:
    Child(notes, reactor, 2, "threads = 3").start({"count": 2}, [[40], [41, 42]], 50)
    return reactor.spawned[0]


def framed(text: str, rank: int) -> bytes:
    return struct.pack(">IB", len(text), rank) + text.encode()


def test_a_process_gets_its_pipes_its_sockets_and_the_table(process: Spawned) -> None:
    given = dict(process.descriptors)
    nothing = given.pop(0)
    assert process.open_to == os.devnull
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(int(nothing))
    assert given == {
        STDOUT: "r",
        STDERR: "r",
        LOG: "r",
        ORDERS: "w",
        NEWS: "r",
        LIMITS: 50,
        FIRST_SOCKET: 40,
        FIRST_SOCKET + 1: 41,
        FIRST_SOCKET + 2: 42,
    }


def test_the_first_order_has_the_settings_and_numbers_the_sockets(process: Spawned) -> None:
    sockets = [[FIRST_SOCKET], [FIRST_SOCKET + 1, FIRST_SOCKET + 2]]
    first = {"count": 2, "number": 2, "text": "threads = 3", "sockets": sockets}
    assert process.orders == [first]


def test_a_process_runs_this_interpreter_with_its_path(process: Spawned) -> None:
    assert process.command[0] == sys.executable
    assert "-P" in process.command
    assert process.command[-1] == "worker 2"
    assert set(process.environment["ECHOD_WORKER_PATH"].split(os.pathsep)) == set(sys.path)
    assert process.environment["PATH"] == os.environ["PATH"]


def test_a_process_that_cannot_start_leaves_no_descriptor(
    reactor: SpawningReactor, notes: Notes
) -> None:
    reactor.refusal = OSError(11, "no room")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    child = Child(notes, reactor, 1, "")
    with pytest.raises(OSError, match="no room"):
        child.start({}, [], 50)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    child.order(do="stop")
    child.signal(signal.SIGTERM)
    assert not notes.taken


def test_its_name_has_the_worker_and_the_process(process: Spawned) -> None:
    assert str(process.child) == f"worker 2 (process {process.pid})"


def test_news_change_its_state(process: Spawned, notes: Notes, reactor: SpawningReactor) -> None:
    child = process.child
    assert child.state == "starting"
    reactor.advance(3)
    process.tell("ready")
    assert child.state == "ready"
    assert child.since == child.heard == reactor.seconds()
    reactor.advance(2)
    process.tell("beat")
    assert (child.heard, child.since) == (reactor.seconds(), reactor.seconds() - 2)
    process.tell("draining")
    process.tell("ready")
    assert child.state == "draining"
    assert notes.taken == ["ready", "beat", "draining", "ready"]


def test_news_may_come_in_pieces(process: Spawned, notes: Notes) -> None:
    data = encode({"news": "failed", "why": "no such handler"}) + encode({"news": "beat"})
    for at in range(len(data)):
        process.child.childDataReceived(NEWS, data[at : at + 1])
    assert notes.taken == ["failed", "beat"]
    assert process.child.why == "no such handler"


def test_lines_of_its_log_arrive_whole(process: Spawned, notes: Notes) -> None:
    data = framed("first", 1) + framed("second", 3)
    process.child.childDataReceived(LOG, data[:7])
    process.child.childDataReceived(LOG, data[7:])
    assert notes.taken == [Line("first", "info"), Line("second", "error")]


def test_lines_that_it_prints_arrive_whole_by_their_pipe(process: Spawned, notes: Notes) -> None:
    process.child.childDataReceived(STDOUT, b"one\ntw")
    process.child.childDataReceived(STDERR, b"\xff wrong\n")
    process.child.childDataReceived(STDOUT, b"o\n")
    assert notes.taken == ["one", "\\xff wrong", "two"]


def test_a_printed_line_without_an_end_takes_bounded_room(process: Spawned, notes: Notes) -> None:
    process.child.childDataReceived(STDOUT, b"x" * LONGEST)
    assert not notes.taken
    process.child.childDataReceived(STDOUT, b"x")
    assert notes.taken == ["x" * (LONGEST + 1)]


class LogPipe:
    """The pipe of a worker's log, with bytes that the reactor has not read yet."""

    def __init__(self, child: Child, *reads: bytes) -> None:
        self.child = child
        self.reads = list(reads)

    def doRead(self) -> None:
        if self.reads:
            self.child.childDataReceived(LOG, self.reads.pop(0))


def test_the_lines_of_its_start_come_before_the_news_that_it_serves(
    process: Spawned, notes: Notes
) -> None:
    line = framed("starting on 8888", 1)
    process.pipes[LOG] = LogPipe(process.child, line[:7], line[7:])
    process.tell("ready")
    assert notes.taken == [Line("starting on 8888", "info"), "ready"]
    process.pipes[LOG].reads.append(line)
    process.tell("alive")  # other news is in no such order
    assert notes.taken[2:] == ["alive"]


def test_a_flood_of_lines_keeps_no_worker_from_being_ready(process: Spawned, notes: Notes) -> None:
    process.pipes[LOG] = LogPipe(process.child, *[framed("x", 1)] * 1000)
    process.tell("ready")
    assert notes.taken[-1] == "ready"
    assert len(notes.taken) < 100


def test_it_is_told_to_stop_once(process: Spawned) -> None:
    process.child.stop(whole=True)
    process.child.stop(whole=True)
    assert process.done == ["stop"]


def test_one_that_has_ended_gets_no_order_and_no_signal(process: Spawned) -> None:
    process.child.signal(signal.SIGTERM)
    process.end()
    process.child.stop(whole=True)
    process.child.signal(signal.SIGKILL)
    assert process.done == []
    assert process.signals == [signal.SIGTERM]


ENDS = [
    ((0, None), "ended with exit code 0"),
    ((3, None), "ended with exit code 3"),
    ((None, signal.SIGKILL), "ended by SIGKILL"),
]


@pytest.mark.parametrize(("end", "words"), ENDS)
def test_its_end_is_put_in_words(
    process: Spawned, end: tuple[int | None, int | None], words: str
) -> None:
    process.end(*end)
    assert process.child.ending == words


def test_last_lines_may_come_after_its_end(
    process: Spawned, notes: Notes, reactor: SpawningReactor
) -> None:
    process.child.childDataReceived(STDERR, b"half of a li")
    process.exit(1)
    process.child.childDataReceived(LOG, framed("last", 4))
    assert notes.taken == ["exited", Line("last", "critical")]
    process.child.childConnectionLost(LOG)
    assert notes.taken[2:] == ["half of a li", "over"]
    process.child.processEnded(None)  # type: ignore[arg-type]
    assert notes.taken[4:] == []
    assert not reactor.getDelayedCalls()


def test_last_news_may_come_after_its_end(
    process: Spawned, notes: Notes, reactor: SpawningReactor
) -> None:
    """Each has a pipe of its own; the counters of its last moments are among the news."""
    process.child.childConnectionLost(LOG)
    process.begin_end(1)
    process.tell("figures")
    assert notes.taken == ["figures"]
    assert process.child.state != "ended"
    process.child.childConnectionLost(NEWS)
    assert notes.taken == ["figures", "exited", "over"]
    assert not reactor.getDelayedCalls()


def test_news_that_its_programs_could_still_write_is_not_waited_for(
    process: Spawned, notes: Notes, reactor: SpawningReactor
) -> None:
    process.begin_end()
    reactor.advance(LAST_LINES - 0.01)
    assert notes.taken == []
    reactor.advance(0.01)
    assert notes.taken == ["exited", "over"]


def test_a_process_that_reads_no_more_orders_gets_none(process: Spawned) -> None:
    process.child.childConnectionLost(ORDERS)
    process.child.order(do="figures")
    assert process.done == []


def test_last_lines_that_do_not_come_are_not_waited_for(
    process: Spawned, notes: Notes, reactor: SpawningReactor
) -> None:
    process.exit()  # a program that it has started keeps its pipes open
    reactor.advance(LAST_LINES - 0.01)
    assert notes.taken == ["exited"]
    reactor.advance(0.01)
    assert notes.taken == ["exited", "over"]
    process.child.childConnectionLost(LOG)
    assert notes.taken == ["exited", "over"]


def test_the_wait_doubles_up_to_the_longest() -> None:
    waits = [backoff(failures) for failures in range(13)]
    assert waits[:5] == [0, 0, 0.1, 0.2, 0.4]
    assert waits[2:11] == [0.1 * 2**doubled for doubled in range(9)]
    assert waits[-2:] == [30.0, 30.0]
    assert backoff(10_000) == 30.0
