"""How the daemon stops: it finishes its work, and it does stop."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import BANNER, connect, numbered, receive, receive_all, unacknowledged
from tests.support.daemon import CONCURRENT, MODELS, TERMINATED, Daemon, Start

HANDLERS = """
import threading
import time
from pathlib import Path

from twisted.internet import reactor, task

from echod import message_handler


def wait_for_gate():
    print("a handler is at work")
    while not Path("gate").exists():
        time.sleep(0.01)


@message_handler
def gated(message):
    wait_for_gate()
    return b"done: " + message


async def gated_in_the_loop(message):
    print("a handler is at work")
    while not Path("gate").exists():
        await task.deferLater(reactor, 0.01)
    return b"done: " + message


class Leaving:
    def received(self, message):
        return message

    async def closed(self, reason):
        print("closed waits:", reason)
        try:
            while not Path("gate").exists():
                await task.deferLater(reactor, 0.01)
            print("closed is done:", reason)
        finally:
            print("closed is over:", reason)


@message_handler
def blocked(message):
    print("a handler is at work")
    threading.Event().wait()


def blocked_with_the_socket(conn):
    conn.recv(1024)
    print("a handler is at work")
    threading.Event().wait()


@message_handler
def endless(message):
    print("a handler is at work")
    try:
        while True:
            yield bytes(65536)
            time.sleep(0.001)  # it may be within here at the deadline
    finally:
        time.sleep(0.005)
        print("the generator is closed")


@message_handler
def bulk(message):
    print("a handler is at work")
    return b"x" * int(message) if message.isdigit() else None


@message_handler
def spinning(message):
    print("a handler is at work")
    while True:
        pass


@message_handler
def flooding(message):
    print("a handler is at work")
    return b"x" * 50_000_000
"""


# The exit status of a process that a signal has ended, directly or through a shell.
INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)


@pytest.fixture(autouse=True)
def served(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(HANDLERS)


def open_gate(directory: Path) -> None:
    (directory / "gate").touch()


# Work that was begun is finished.


def test_sigint_stops_it_as_sigterm_does(daemon: Start, tmp_path: Path) -> None:
    flags = ("--concurrency", "defer-to-thread", "--drain-timeout", "600")
    running = daemon(*flags, "--handler", "served:gated")
    with connect(running) as idle, connect(running) as busy:
        busy.sendall(b"happy")
        running.wait_for("a handler is at work")
        running.signal(signal.SIGINT)
        assert receive_all(idle) == b""
        open_gate(tmp_path)
        assert receive_all(busy) == b"done: happy"
    running.wait()
    assert running.process.returncode in INTERRUPTED


def test_a_handler_that_blocks_the_event_loop_is_named_while_the_daemon_stops(
    daemon: Start,
) -> None:
    running = daemon("--handler", "served:blocked", "--drain-timeout", "600")
    with connect(running) as connection:
        connection.sendall(b"happy")
        running.wait_for("The event loop has been blocked for", 3)
        running.signal(signal.SIGINT)
        running.wait_for(
            r"The event loop does not answer the signal; it is at: .*served\.py:\d+ in blocked.*; "
            "a second signal ends the process at once"
        )
        running.signal(signal.SIGINT)
        running.wait()
    assert running.process.returncode in INTERRUPTED
    running.wait_for(r"Not stopped in time: ending the process; .* is at: .* in blocked, ")


def test_the_drain_says_that_a_second_signal_ends_it(daemon: Start, tmp_path: Path) -> None:
    running = daemon("--concurrency", "defer-to-thread", "--handler", "served:gated")
    with connect(running) as busy:
        busy.sendall(b"happy")
        running.wait_for("a handler is at work")
        running.signal()
        running.wait_for("Draining, for .*; open connections: 1; a second signal ends it at once")
        open_gate(tmp_path)
        assert receive_all(busy) == b"done: happy"


GATED = {
    "reactor": "gated_in_the_loop",
    "serial": "gated_in_the_loop",
    "defer-to-thread": "gated",
    "thread-per-connection": "gated",
}


@pytest.mark.parametrize("model", MODELS)
def test_messages_in_flight_are_answered_while_the_idle_see_the_end_and_no_one_is_let_in(
    daemon: Start, tmp_path: Path, model: str
) -> None:
    handler = f"served:{GATED[model]}"
    flags = ("--concurrency", model, "--framing", "line", "--drain-timeout", "600")
    running = daemon(*flags, "--handler", handler)
    with contextlib.ExitStack() as stack:
        idle, *busy = [stack.enter_context(connect(running)) for _ in range(4)]
        if model == "serial":  # there, the others only wait for their turn
            idle, busy = busy[-1], [idle]
        for number, connection in enumerate(busy):
            connection.sendall(b"%d\nanother\n" % number)
        running.wait_for("a handler is at work", len(busy))
        running.wait_for("Connected with", 4)
        running.signal()
        if model != "serial":
            assert receive_all(idle) == b""  # while the others wait for the gate
        running.wait_for("Draining")
        with pytest.raises(ConnectionRefusedError):
            connect(running)
        open_gate(tmp_path)
        for number, connection in enumerate(busy):
            expected = b"done: %d\n" % number
            expected += b"" if model == "serial" else b"done: another\n"
            assert receive_all(connection) == expected
        assert receive_all(idle) == b""
    running.wait()
    assert running.process.returncode in TERMINATED
    assert "Server Shut Down" in running.log
    assert "Traceback" not in running.log


@pytest.mark.parametrize("model", ["reactor", "serial"])
def test_an_async_closed_is_waited_for_until_the_deadline(
    daemon: Start, tmp_path: Path, model: str
) -> None:
    """Fault 90: The daemon waits for `closed` until the drain's deadline, then cancels it."""
    options = ("--concurrency", model, "--handler", "served:Leaving", "--drain-timeout")
    for patience, done in (("30", 2), ("1", 0)):
        (tmp_path / "gate").unlink(missing_ok=True)
        running = daemon(*options, patience)
        connect(running).close()
        running.wait_for("closed waits: client closed")
        with connect(running) as other:
            running.wait_for("Connected with", 2)
            running.signal()
            assert receive_all(other) == b""
        running.wait_for("closed waits: drained")
        if done:
            assert running.process.poll() is None
            open_gate(tmp_path)
        else:
            running.wait_for("which is gone: the handler is at served.py:.* in closed", 2)
        running.wait()
        assert running.process.returncode in TERMINATED
        assert running.log.count("closed is done") == done
        assert running.log.count("closed is over") == 2
        assert "Traceback" not in running.log


def test_messages_that_wait_for_a_pool_thread_are_answered(daemon: Start, tmp_path: Path) -> None:
    """Fault 7: Messages that wait for a thread are answered within the drain's deadline."""
    running = daemon(
        *("--concurrency", "defer-to-thread", "--threads", "2", "--handler", "served:gated")
    )
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(running)) for _ in range(30)]
        for number, connection in enumerate(connections):
            connection.sendall(b"%d" % number)
        running.wait_for("a handler is at work", 2)
        running.wait_for("Connected with", len(connections))
        running.signal()
        running.wait_for("Draining")
        open_gate(tmp_path)
        for number, connection in enumerate(connections):
            assert receive_all(connection) == b"done: %d" % number


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_slow_reader_gets_the_answer_to_all_that_was_received(daemon: Start, model: str) -> None:
    running = daemon("--concurrency", model, "--drain-timeout", "20")
    with connect(running) as connection:
        sent = send_all_it_takes(connection, numbered(8_000_000))
        assert sent > 1_000_000
        received = sent - unacknowledged(connection)
        running.signal()
        running.wait_for("Draining")
        came = read_slowly(connection, seconds=1)
        assert came.startswith(BANNER)
        answered = came[len(BANNER) :].replace(b"OK...", b"")
        assert answered == numbered(8_000_000)[: len(answered)]
        assert len(answered) >= received
    running.wait()
    assert running.process.returncode in TERMINATED


@pytest.mark.parametrize("model", CONCURRENT)
def test_who_goes_on_sending_loses_nothing_of_the_answer_to_what_was_received(
    daemon: Start, model: str
) -> None:
    running = daemon("--concurrency", model, "--handler", "served:bulk")
    with connect(running) as connection:
        connection.sendall(b"300000")
        running.wait_for("a handler is at work")
        running.signal()
        running.wait_for("Draining")
        for _ in range(10):
            connection.send(b"more")
            time.sleep(0.02)  # the pace of this client, not a wait
        assert receive_all(connection) == b"x" * 300_000
    running.wait()


def test_a_very_slow_reader_gets_it_too(daemon: Start) -> None:
    running = daemon("--drain-timeout", "20")
    with connect(running) as connection:
        sent = send_all_it_takes(connection, numbered(8_000_000))
        received = sent - unacknowledged(connection)
        running.signal()
        answered = read_slowly(connection, seconds=4)[len(BANNER) :].replace(b"OK...", b"")
        assert answered == numbered(8_000_000)[: len(answered)]
        assert len(answered) >= received


def test_in_serial_those_who_wait_for_their_turn_are_answered(daemon: Start) -> None:
    timeouts = ("--serial-timeout", "0", "--drain-timeout", "600")  # no test waits for that
    running = daemon("--concurrency", "serial", *timeouts)
    with connect(running) as silent, connect(running) as second, connect(running) as third:
        second.sendall(b"second\n")
        third.sendall(b"third\n")
        running.wait_for("Connected with", 3)
        running.signal()
        assert receive_all(silent) == b""
        assert receive_all(second) == b"OK...second\n"
        assert receive_all(third) == b"OK...third\n"
    running.wait()


def test_a_client_that_never_stops_sending_does_not_keep_it_from_stopping(daemon: Start) -> None:
    # A deadline that no test waits for.
    running = [daemon("--concurrency", model, "--drain-timeout", "600") for model in CONCURRENT]
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(endless(each)) for each in running]
        for each in running:
            each.signal()
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                receive_all(connection)
        # It reads on for a while, so that nothing on its way is lost to a reset.
        for each in running:
            each.wait()
    assert all(each.process.returncode in TERMINATED for each in running)


@contextlib.contextmanager
def endless(running: Daemon) -> Iterator[socket.socket]:
    """A client that reads, and sends until its data is no longer accepted."""

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(numbered(65536))

    with connect(running) as connection:
        sender = threading.Thread(target=send)
        sender.start()
        try:
            assert len(receive(connection, 100_000)) == 100_000
            yield connection
        finally:
            with contextlib.suppress(OSError):  # the daemon has done that
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()


def read_slowly(connection: socket.socket, *, seconds: float) -> bytes:
    """Read to the end of the stream, at the rate of 4 MB in this many seconds."""
    came = bytearray()
    while piece := receive(connection, 65536):
        came += piece
        time.sleep(seconds * len(piece) / 4_000_000)
    return bytes(came)


def send_all_it_takes(connection: socket.socket, data: bytes) -> int:
    """Send until nothing was accepted for a while; return how much was."""
    sent = 0
    connection.setblocking(False)
    while sent < len(data) and select.select([], [connection], [], 0.3)[1]:
        sent += connection.send(data[sent : sent + 65536])
    connection.settimeout(20)
    return sent


# It stops in any situation.


@contextlib.contextmanager
def talking(running: Daemon, clients: int = 1) -> Iterator[None]:
    """Clients that have sent a message each, and neither read nor leave."""
    with contextlib.ExitStack() as stack:
        for _ in range(clients):
            stack.enter_context(connect(running)).sendall(b"happy\n")
        running.wait_for("Connected with", clients)
        running.wait_for("a handler is at work")
        yield


SITUATIONS = {
    "every pool thread is blocked for ever": (
        ["--concurrency", "defer-to-thread", "--threads", "2", "--handler", "served:blocked"],
        5,
    ),
    "threads that own a connection are blocked outside it for ever": (
        ["--concurrency", "thread-per-connection", "--handler", "served:blocked_with_the_socket"],
        3,
    ),
    "a handler spins in the event loop": (["--handler", "served:spinning"], 1),
    "a handler spins in a pool thread": (
        ["--concurrency", "defer-to-thread", "--handler", "served:spinning"],
        1,
    ),
} | {
    f"a client never reads, in {model}": (
        ["--concurrency", model, "--handler", "served:flooding"],
        1,
    )
    for model in ("reactor", "thread-per-connection")
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_it_ends_within_drain_timeout_and_at_once_at_a_second_signal_although(
    daemon: Start, situation: str
) -> None:
    """Faults 6, 7 and 60: The process ends at the drain's deadline, or at once at a second signal,
    no matter what its handlers, threads and clients do.
    """
    arguments, clients = SITUATIONS[situation]
    patient = daemon(*arguments, "--drain-timeout", "0.5")
    hurried = daemon(*arguments, "--drain-timeout", "600")  # which no test waits for
    with talking(patient, clients), talking(hurried, clients):
        hurried.signal()
        hurried.wait_for("Received SIGTERM")
        hurried.signal()
        hurried.wait()
        patient.signal()
        patient.wait()
    for ended in (patient, hurried):
        assert ended.process.returncode in TERMINATED
        assert "Traceback" not in ended.log


@pytest.mark.parametrize("model", ["defer-to-thread", "thread-per-connection"])
def test_a_generator_in_a_thread_is_closed_at_the_drains_deadline(
    daemon: Start, model: str
) -> None:
    flags = ("--handler", "served:endless", "--concurrency", model, "--drain-timeout", "0.3")
    running = daemon(*flags, *(["--threads", "2"] if model == "defer-to-thread" else []))
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(connect(running.port))
            client.sendall(b"go")
            client.recv(1)
        running.signal()
        running.wait()
    assert running.log.count("the generator is closed") == 2
