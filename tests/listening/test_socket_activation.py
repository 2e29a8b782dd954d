from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory

from echod import EchoFactory
from echod.listening.socket_activation import (
    ActivatedEndpoint,
    ActivationError,
    InheritedSockets,
    started_with,
)
from tests.support.clients import BANNER
from tests.support.reactor import reactor
from tests.support.serving import Talker


class Passed:
    """Sockets as systemd passes them, from a descriptor of our own on."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self._kept: list[socket.socket] = []

    def add(self, kept: socket.socket) -> int:
        """Keep a socket, as systemd does; return the descriptor that is passed."""
        self._kept.append(kept)
        # Above all that are in use: they have to follow each other.
        least = self.descriptors[-1] + 1 if self.descriptors else 500
        passed = fcntl.fcntl(kept.fileno(), fcntl.F_DUPFD_CLOEXEC, least)
        self.descriptors.append(passed)
        return passed

    def close(self) -> None:
        for descriptor, kept in zip(self.descriptors, self._kept, strict=True):
            # Its new owner has closed it, and another file may have the number by now.
            with contextlib.suppress(OSError):
                if os.path.sameopenfile(descriptor, kept.fileno()):
                    os.close(descriptor)
            kept.close()


@pytest.fixture
def passed() -> Iterator[Passed]:
    made = Passed()
    yield made
    made.close()


def tcp(family: int = socket.AF_INET) -> socket.socket:
    made = socket.socket(family)
    made.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    made.listen()
    return made


def told(names: str | None = "a", count: object = 1, pid: object = None, first: int = 3) -> Any:
    environment = {"LISTEN_FDS": str(count), "LISTEN_PID": str(pid or os.getpid())}
    if names is not None:
        environment["LISTEN_FDNAMES"] = names
    return InheritedSockets(environment, first)


async def is_served(client: Talker) -> None:
    await client.receive(BANNER)
    client.send(b"happy\n")
    await client.receive(b"OK...happy\n")
    client.finish()
    await client.receive_all()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest_twisted.ensureDeferred
async def test_a_socket_is_served_and_left_open_at_the_end(passed: Passed, family: int) -> None:
    kept = tcp(family)
    descriptor = passed.add(kept)
    found = told(first=descriptor).take(name="a")
    assert found == [descriptor]
    port = await ActivatedEndpoint(reactor, found).listen(EchoFactory(reactor))
    address = kept.getsockname()
    assert port.getHost().port == address[1]  # type: ignore[attr-defined]
    with socket.create_connection(address[:2]) as connection:
        connection.setblocking(False)
        client = Talker()
        reactor.adoptStreamConnection(
            connection.fileno(), family, Factory.forProtocol(lambda: client)
        )
        await is_served(client)
    await port.stopListening()
    # A client that connects now is queued for the next daemon.
    socket.create_connection(address[:2], 5).close()


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_is_served_and_its_file_is_left(
    passed: Passed, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    kept = socket.socket(socket.AF_UNIX)
    kept.bind(path)
    kept.listen()
    Path(path).chmod(0o640)
    for _ in range(2):  # and again by the next daemon
        found = told(first=passed.add(kept)).take(name="a")
        port = await ActivatedEndpoint(reactor, found).listen(EchoFactory(reactor))
        await is_served(await connectProtocol(UNIXClientEndpoint(reactor, path), Talker()))
        await port.stopListening()
        assert Path(path).stat().st_mode & 0o777 == 0o640  # Twisted would let every user in
    with socket.socket(socket.AF_UNIX) as queued:
        queued.connect(path)


@pytest_twisted.ensureDeferred
async def test_two_sockets_of_one_name_are_both_served(passed: Passed) -> None:
    kept = [tcp(), tcp(socket.AF_INET6), tcp()]
    first = passed.add(kept[0])
    for each in kept[1:]:
        passed.add(each)
    assert passed.descriptors == [first, first + 1, first + 2]
    inherited = told("a:a:b", 3, first=first)
    found = inherited.take(name="a")
    assert found == [first, first + 1]
    assert inherited.unused == ["b"]
    port = await ActivatedEndpoint(reactor, found).listen(EchoFactory(reactor))
    port.startListening()
    for each in kept[:2]:
        with socket.create_connection(each.getsockname()[:2]) as connection:
            connection.setblocking(False)
            client = Talker()
            reactor.adoptStreamConnection(
                connection.fileno(), each.family, Factory.forProtocol(lambda made=client: made)
            )
            await is_served(client)
    await port.stopListening()


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, "no socket was passed (LISTEN_FDS is not set): start the daemon by its socket unit"),
        ({"LISTEN_FDS": "x"}, "LISTEN_FDS is 'x', which is not a number of sockets"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS is '-1', which is not a number"),
        ({"LISTEN_FDS": "99999"}, "which is not a number of sockets"),
        ({"LISTEN_FDS": "1\x1b"}, "LISTEN_FDS is '1\\\\x1b'"),
        ({"LISTEN_FDS": "1"}, "for process (LISTEN_PID is not set), and this is"),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, "the sockets are for process 1, and this is"),
        (
            {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a", "LISTEN_PID": str(os.getpid())},
            "LISTEN_FDS says 2 sockets, and LISTEN_FDNAMES names 1",
        ),
        (
            {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())},
            "there is: 2 without a name (LISTEN_FDNAMES is not set); use FileDescriptorName=, or",
        ),
        (
            {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "b:c\x1b", "LISTEN_PID": str(os.getpid())},
            "no socket a was passed; there is: b, c\\x1b; use one of these",
        ),
    ],
)
def test_what_is_not_there_is_said_with_what_is(environment: dict[str, str], why: str) -> None:
    inherited = InheritedSockets(environment)
    with pytest.raises(ActivationError) as caught:
        inherited.take(name="a")
    assert why in str(caught.value)


def test_without_names_a_number_will_do(passed: Passed) -> None:
    descriptor = passed.add(tcp())
    inherited = told(None, first=descriptor)
    with pytest.raises(ActivationError, match="no socket number 1 was passed"):
        inherited.take(index=1)
    assert inherited.take(index=0) == [descriptor]
    assert inherited.unused == []


def test_nothing_is_unused_where_nothing_was_passed() -> None:
    assert InheritedSockets({}).unused == []


def test_a_socket_serves_one_listener(passed: Passed) -> None:
    inherited = told(first=passed.add(tcp()))
    inherited.take(name="a")
    with pytest.raises(ActivationError, match="a is the socket of another listener already"):
        inherited.take(name="a")


def test_only_listening_stream_sockets_will_do(passed: Passed) -> None:
    connected, other = socket.socketpair()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    vsock = socket.socket(socket.AF_INET6)
    for each, why in (
        (connected, "does not listen: use Accept=no"),
        (datagrams, "is not a stream: use ListenStream="),
        (vsock, "does not listen"),
    ):
        inherited = told(first=passed.add(each))
        with pytest.raises(ActivationError, match=why):
            inherited.take(name="a")
    other.close()


def test_what_is_no_socket_is_refused() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(ActivationError, match="is not a socket: use ListenStream="):
            told(first=reading).take(name="a")
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(ActivationError, match="Bad file descriptor"):
        told(first=reading).take(name="a")


def test_the_environment_is_that_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOD_TEST_LATE", "1")
    assert "ECHOD_TEST_LATE" not in started_with()
    assert started_with()["PATH"] == os.environ["PATH"]
