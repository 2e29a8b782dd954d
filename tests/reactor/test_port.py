"""Listening ports go on after any error of accept."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from echod.reactor import port as port_module
from tests.support.waiting import block_until

from .harness import Echo, Harness, dial

HERE = Path(__file__).parent


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


def test_without_descriptors() -> None:
    """Run exhaustion.py, which takes every descriptor of its process, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", HERE / "exhaustion.py"],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-8000:]}"
    assert "3 passed" in done.stdout


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
        for _ in range(4):  # refused clients reconnect
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


def test_a_client_of_a_unix_socket_that_cannot_be_taken_is_named_by_the_socket(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(port_module, "UNIXServerTransport", failing)
    path = str(tmp_path / "socket")
    port = harness.reactor.listenUNIX(path, Factory.forProtocol(Echo))

    def client() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            assert connection.recv(1) == b""

    with logged() as events:
        harness.run(client)
    port.stopListening()
    said = f"cannot take the connection from a client of UNIXAddress({path!r})"
    assert said in map(formatEvent, events)


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


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_is_known_by_its_address_from_its_beginning_to_its_end(
    harness: Harness, reset: bool
) -> None:
    known: list[tuple[str, int]] = []

    class Knows(Protocol):
        def connectionMade(self) -> None:
            self.note()
            # Only now, when uvloop has the address.
            harness.reactor.callLater(0, self.note)

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            self.note()

        def note(self) -> None:
            peer = self.transport.getPeer()  # type: ignore[union-attr]
            known.append((peer.host, peer.port))

    connection = dial(harness.listen(Knows))
    address = connection.getsockname()
    if reset:  # before it is accepted: from then on the kernel does not know the address
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def client() -> None:
        if not reset:
            block_until(lambda: len(known) == 2)
            connection.close()
        block_until(lambda: len(known) == 3)

    harness.run(client)
    assert known == [address] * 3
    assert harness.failures == []
