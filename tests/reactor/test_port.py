"""Listening ports go on, whatever accept says."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from echod.reactor import port as port_module

from .conftest import Echo, Harness, dial


def echoes(connection: socket.socket) -> bool:
    connection.sendall(b"x")
    return connection.recv(1) == b"x"


@contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        if str(event.get("log_namespace", "")).startswith("echod.reactor"):
            events.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observe)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Leave this process without a single descriptor to open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 20, hard))
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    try:
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


exhausting = pytest.mark.skipif(
    "TEST_EXHAUSTION" not in os.environ,
    reason="takes every descriptor of the process: test_without_descriptors runs it in another",
)


def test_without_descriptors() -> None:
    """Run the tests marked so in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-k", "out_of", __file__],
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "TEST_EXHAUSTION": "1"},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "3 passed" in done.stdout


@exhausting
def test_out_of_descriptors(harness: Harness) -> None:
    """Clients are turned away, nothing spins or floods the log, and then it goes on."""
    number = harness.listen(Echo)
    spent: list[float] = []

    def client() -> None:
        before = dial(number)
        assert echoes(before)
        waiting = [socket.socket() for _ in range(10)]
        with no_descriptors():
            for connection in waiting:
                connection.settimeout(5)
                connection.connect(("127.0.0.1", number))
                assert connection.recv(1) == b""
            assert echoes(before)
            started = time.process_time()
            time.sleep(1)
            spent.append(time.process_time() - started)
        assert echoes(dial(number))
        for connection in waiting:
            connection.close()

    with logged() as events:
        harness.run(client)
    assert spent[0] < 0.05
    assert 0 < len(events) < 10


@exhausting
def test_out_of_descriptors_in_a_storm(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who come again as soon as they are turned away do not keep the port busy."""
    harness.listen(Echo)
    tries: list[int] = []

    def never(listener: socket.socket) -> Any:
        tries.append(1)
        if len(tries) % 2:
            raise OSError(errno.EMFILE, "no descriptor")
        return os.dup(listener.fileno()), None

    def client() -> None:
        dial(harness.port.getHost().port)
        time.sleep(1)

    monkeypatch.setattr(port_module, "_accept", never)
    with logged() as events:
        harness.run(client)
    assert port_module.BATCH < len(tries) < 15 * 2 * port_module.BATCH
    assert 0 < len(events) < 10


@exhausting
def test_out_of_descriptors_without_a_reserve(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then clients wait, and are served once there is a descriptor."""
    number = harness.listen(Echo)
    spent: list[float] = []

    def client() -> None:
        waiting = socket.socket()
        with no_descriptors():
            waiting.connect(("127.0.0.1", number))
            started = time.process_time()
            time.sleep(1)
            spent.append(time.process_time() - started)
        waiting.settimeout(5)
        assert echoes(waiting)
        waiting.close()

    monkeypatch.setattr(port_module._reserve, "take", lambda: False)
    with logged() as events:
        harness.run(client)
    assert spent[0] < 0.05
    assert 0 < len(events) < 10


@pytest.mark.parametrize(
    "number",
    [
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.EPERM,
        errno.ENFILE,
        errno.EMFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EINVAL,
    ],
)
def test_keeps_listening(harness: Harness, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    port = harness.listen(Echo)
    left = [number] * 3
    accept = port_module._accept

    def failing(listener: socket.socket) -> Any:
        if left:
            raise OSError(left.pop(), os.strerror(number))
        return accept(listener)

    monkeypatch.setattr(port_module, "_accept", failing)

    def client() -> None:
        for _ in range(4):  # those who are turned away come again
            try:
                if echoes(dial(port)):
                    return
            except ConnectionResetError:
                pass
        pytest.fail("no echo")

    with logged() as events:
        harness.run(client)
    assert left == []
    assert 0 < len(events) < 10


def test_resting_can_be_cut_short(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_module, "REST", 10.0)
    number = harness.listen(Echo)
    harness.port._rest()
    harness.port.stopReading()
    assert harness.port not in harness.reactor.getReaders()
    harness.port.startReading()
    started = time.monotonic()
    harness.run(lambda: None if echoes(dial(number)) else pytest.fail("no echo"))
    assert time.monotonic() - started < port_module.REST


def test_a_resting_port_is_closed_with_the_reactor(harness: Harness) -> None:
    harness.listen(Echo)
    listener = harness.port.socket
    harness.port._rest()
    harness.reactor.callLater(0, harness.reactor.stop)
    harness.run_until_stopped()
    assert listener.fileno() == -1


def test_a_burst_is_accepted(harness: Harness) -> None:
    port = harness.listen(Echo)

    def client() -> None:
        connections = [dial(port) for _ in range(300)]
        for connection in connections:
            assert echoes(connection)
            connection.close()

    harness.run(client)
