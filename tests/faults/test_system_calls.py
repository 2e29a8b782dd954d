"""System calls that fail: the connection concerned may end, all others are served."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.faults.injection import ACCEPT, RECEIVE, SEND, WAIT, injecting
from tests.faults.scale import Scale
from tests.support.clients import (
    BANNER,
    PREFIX,
    connect,
    greeted,
    is_served,
    receive,
    serves,
    warm_up,
)
from tests.support.daemon import CONCURRENT, Daemon, Start, nothing_kept, starting
from tests.support.needs import not_here


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    with starting(tmp_path_factory.mktemp("system-calls")) as start:
        started = {model: start("--concurrency", model) for model in CONCURRENT}
        warm_up(*started.values())
        yield started


# Every call, every error, sooner and later.


class Fault(NamedTuple):
    """One fault: the calls, what they return, when (as strace counts), and in which model."""

    calls: str
    error: str
    when: str
    model: str

    @property
    def waits(self) -> int:
        """How many calls fail before strace may detach: all of those that wait for events.

        strace leaves a call that it is at when it detaches with ENOSYS, which libuv, at a wait,
        takes for its own mistake.
        """
        first, _, last = self.when.partition("..")
        return int(last) - int(first) + 1 if self.calls == WAIT and last else 1


# After these errors the same call is made again, without any effect.
PASSING = ("EINTR", "EAGAIN")

ACCEPT_ERRORS = (
    *("ECONNABORTED", "EPROTO", "ENETDOWN", "EPERM", "EHOSTUNREACH", "EINTR"),
    *("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"),
)
RECEIVE_ERRORS = ("ECONNRESET", "ETIMEDOUT", "ENOMEM", "ENOBUFS", "EHOSTUNREACH", "EIO")
SEND_ERRORS = ("EPIPE", "ECONNRESET", "ENOMEM", "ETIMEDOUT", "EHOSTUNREACH", "ENETDOWN")

FAULTS = [
    Fault(calls, error, when, model)
    for calls, errors, whens in (
        (ACCEPT, ACCEPT_ERRORS, ("1", "2", "1..3")),
        (RECEIVE, RECEIVE_ERRORS, ("1", "2", "3", "2+")),
        (RECEIVE, PASSING, ("1", "2", "1..3")),
        (SEND, SEND_ERRORS, ("1", "2", "3", "2+")),
        (SEND, (*PASSING, "ENOBUFS"), ("1", "2", "1..3")),
        (WAIT, ("EINTR",), ("1", "2", "1..5")),
    )
    for error, when, model in itertools.product(errors, whens, CONCURRENT)
    # A thread's socket blocks: there is no "again" on it.
    if (error, model) != ("EAGAIN", "thread-per-connection")
]

MESSAGES = [b"%d" % number for number in range(4)]
REPLIES = [PREFIX + message for message in MESSAGES]


def talk(connection: socket.socket) -> list[bytes]:
    """Exchange some messages, as far as it goes; return the replies."""
    replies = []
    with contextlib.suppress(ConnectionError):
        for message in MESSAGES:
            connection.sendall(message)
            if not (reply := connection.recv(100)):
                break
            replies.append(reply)
    return replies


def assert_no_traceback(lines: list[str]) -> None:
    assert not any("Traceback" in line for line in lines), "\n".join(lines)


def endure(fault: Fault, running: Daemon) -> None:
    """Do it to one connection; check that it ends correctly, and that all others are served."""
    lines = len(running.lines)
    with greeted(running) as survivor, greeted(running) as victim:
        on = None if fault.calls in (ACCEPT, WAIT) else victim
        how = f"error={fault.error}:when={fault.when}"
        with injecting(running, fault.calls, how, on=on) as injection:
            if fault.calls == ACCEPT:
                for _ in range(3):
                    with contextlib.suppress(ConnectionError), connect(running) as newcomer:
                        receive(newcomer, len(BANNER))
            replies = talk(victim)
            assert is_served(survivor)
            injection.wait_for(fault.waits)
        assert replies == REPLIES[: len(replies)]
        if on is None or fault.error in PASSING:
            assert replies == REPLIES
        assert is_served(survivor)
        assert serves(running)
    # Twisted's own reactors show a traceback for an accept that fails.
    if fault.calls != ACCEPT or running.on_uvloop:
        assert_no_traceback(running.lines[lines:])


def test_a_system_call_that_fails_harms_one_connection_at_most(
    daemons: dict[str, Daemon], scale: Scale
) -> None:
    """Faults 19, 20 and 22: A failure of any system call, with any error, ends one connection at
    most; all others are served, and so are new ones.
    """
    chance = random.Random(1)
    order = [fault for _ in range(10) for fault in chance.sample(FAULTS, len(FAULTS))]
    with nothing_kept(*daemons.values()):
        for number in scale(ci=40, soak=len(order)):
            fault = order[number]
            try:
                endure(fault, daemons[fault.model])
            except (AssertionError, OSError) as error:
                raise AssertionError(f"{fault}") from error


# Accepting.


@pytest.fixture
def on_uvloop(daemon: Start) -> Daemon:
    """A daemon on echod's own reactor; Twisted defines how the other reactors accept."""
    running = daemon()
    if not running.on_uvloop:
        not_here("a promise of echod's own reactor, and this is another")
    return running


@pytest.mark.alone
@pytest.mark.parametrize("error", ["ENFILE", "EMFILE", "ENOBUFS"])
def test_accepting_that_fails_for_long_costs_little(on_uvloop: Daemon, error: str) -> None:
    """Fault 18: While accepting fails, the daemon uses less than 5% of a processor, logs fewer
    than ten lines a second, and serves the connected clients. Waiting clients are served
    afterwards.
    """
    with greeted(on_uvloop) as survivor, connect(on_uvloop) as warm:
        receive(warm, len(BANNER))
        with injecting(on_uvloop, ACCEPT, f"error={error}:when=1+") as injection:
            newcomer = connect(on_uvloop)
            injection.wait_for(1)
            assert is_served(survivor)
            lines, spent, began = len(on_uvloop.lines), on_uvloop.cpu, time.monotonic()
            time.sleep(1)  # a rate is measured
            seconds = time.monotonic() - began
            assert (on_uvloop.cpu - spent) / seconds < 0.05
            assert (len(on_uvloop.lines) - lines) / seconds < 10
            assert is_served(survivor)
        with newcomer:
            assert receive(newcomer, len(BANNER)) == BANNER
            assert is_served(newcomer)


@pytest.mark.parametrize("error", ["ECONNABORTED", "EPROTO", "ENETDOWN", "EPERM"])
def test_a_client_that_cannot_be_accepted_costs_one_line(on_uvloop: Daemon, error: str) -> None:
    """Fault 19: The daemon keeps listening, and logs one line."""
    with greeted(on_uvloop):
        lines = len(on_uvloop.lines)
        with injecting(on_uvloop, ACCEPT, f"error={error}:when=1..5") as injection:
            with greeted(on_uvloop) as newcomer:
                assert is_served(newcomer)
            assert injection.faults == 5
        on_uvloop.wait_for("Disconnected from")
        new = on_uvloop.lines[lines:]
        assert sum("accept failed" in line for line in new) == 1
        assert_no_traceback(new)


# Sending.

VOLUME = 1_000_000


def echo_much(connection: socket.socket) -> bytes:
    """Send much and shut down writing; return all bytes until the end."""

    def send() -> None:
        with contextlib.suppress(OSError):
            connection.sendall(b"x" * VOLUME)
            connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    came = bytearray()
    try:
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(1 << 16):
                came += piece
    finally:
        sender.join()
    return bytes(came)


@pytest.mark.parametrize("model", CONCURRENT[:2])
@pytest.mark.parametrize("error", ["EAGAIN", "EINTR"])
def test_sending_that_has_to_be_repeated_loses_nothing(
    daemons: dict[str, Daemon], model: str, error: str
) -> None:
    """Fault 20: After EAGAIN and EINTR sending continues, and nothing is lost."""
    running = daemons[model]
    with greeted(running) as connection:
        with injecting(running, SEND, f"error={error}:when=1+2", on=connection) as injection:
            came = echo_much(connection)
            assert injection.faults > 1
        assert came.replace(PREFIX, b"") == b"x" * VOLUME


@pytest.mark.parametrize("model", CONCURRENT)
@pytest.mark.parametrize("error", ["ENOMEM", "ENOBUFS"])
def test_sending_that_is_impossible_ends_the_connection(
    daemons: dict[str, Daemon], model: str, error: str
) -> None:
    """Fault 20: After ENOMEM the connection ends and its descriptor is closed; no other is harmed.
    ENOBUFS, which Linux never returns for TCP, may also end it.
    """
    running = daemons[model]
    lines = len(running.lines)
    with nothing_kept(running), greeted(running) as survivor, greeted(running) as connection:
        with injecting(running, SEND, f"error={error}:when=3", on=connection) as injection:
            came = echo_much(connection)
            injection.wait_for(1)
        assert set(came.replace(PREFIX, b"")) <= set(b"x")
        assert is_served(survivor)
    assert_no_traceback(running.lines[lines:])


# Waiting.


@pytest.mark.parametrize("model", CONCURRENT)
def test_waiting_that_is_interrupted_has_no_effect(daemons: dict[str, Daemon], model: str) -> None:
    """Fault 22: Every second wait for events is interrupted, without any effect on clients."""
    running = daemons[model]
    lines = len(running.lines)
    with (
        greeted(running) as connection,
        # They have an end before strace detaches: see `Fault.waits`.
        injecting(running, WAIT, "error=EINTR:when=1..99+2") as injection,
    ):
        while injection.faults < 50:
            for number in range(10):
                assert is_served(connection, b"%d" % number)
            assert serves(running)
    assert_no_traceback(running.lines[lines:])
