"""A listener with faults on purpose: refused, without an answer, accepted late."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from echod.connections.factory import EchoFactory
from echod.faults import FaultPlan, parse_fault
from echod.listening.backlog import backlog_of
from echod.listening.endpoints import parse_listen
from echod.listening.listener import Listener
from echod.listening.socket_activation import InheritedSockets
from echod.settings.definitions import LOOPBACK as TRUSTED
from tests.support.clients import BANNER, receive
from tests.support.log import Log
from tests.support.proxy_headers import line
from tests.support.reactor import reactor
from tests.support.serving import eventually, in_thread, turns
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE
from tests.support.wire import ACK, RST, SYN, watched

KINDS = ["tcp", "tcp6", "unix", "proxy", "tls", "passed tcp", "passed unix"]


class Serving:
    """A listener, its faults, and clients of it."""

    def __init__(self, kind: str, certificate: Path, directory: Path) -> None:
        self.kind = kind
        self.is_unix = "unix" in kind
        self.passed: socket.socket | None = None
        path = directory / "s"
        text = {
            "tcp": "tcp:0:interface=127.0.0.1:backlog=77",
            "tcp6": r"tcp6:0:interface=\:\:1",
            "unix": f"unix:{path}",
            "proxy": "proxy:tcp:0:interface=127.0.0.1",
            "tls": f"tls:tcp:0:interface=127.0.0.1:certificate={certificate}",
        }.get(kind, "systemd:name=given")
        inherited = None
        if kind.startswith("passed"):
            self.passed = socket.socket(socket.AF_UNIX if self.is_unix else socket.AF_INET)
            self.passed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.passed.bind(str(path) if self.is_unix else ("127.0.0.1", 0))
            self.passed.listen(9)
            given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "given"}
            inherited = InheritedSockets(given, os.dup(self.passed.fileno()))
        wanted = parse_listen(reactor, text, inherited)
        self.plan = FaultPlan([], 1, changeable=True)
        faults = self.plan.for_listener(1, text)
        assert faults is not None
        self.factory = EchoFactory(reactor, faults=faults)
        self.listener = Listener(reactor, text, wanted, self.factory, TRUSTED)
        self.listener.add_faults(faults, self.factory.note_fault)

    def change(self, *faults: str) -> None:
        self.plan.change([parse_fault(fault) for fault in faults])

    @property
    def listening(self) -> socket.socket:
        found: socket.socket = self.listener._ports[0].socket
        return found

    def connect(self, timeout: float | None = PATIENCE) -> socket.socket:
        """Return a client's socket, in clear."""
        client = socket.socket(self.listening.family)
        client.settimeout(timeout)
        try:
            client.connect(self.listening.getsockname())
        except BaseException:
            client.close()
            raise
        return client

    def greeted(self) -> bytes:
        """Return the greeting of a client."""
        with closing(self.connect()) as client:
            if self.kind == "proxy":
                client.sendall(line())
            if self.kind == "tls":
                with client_context().wrap_socket(client) as encrypted:
                    return receive(encrypted, len(BANNER))
            return receive(client, len(BANNER))

    async def by_client(self, talk: Callable[[], Any]) -> Any:
        """Return the result of a client in a thread of its own."""
        results: list[Any] = []

        def work() -> None:
            results.append(talk())

        await in_thread(work)
        return results[0]

    async def is_served(self) -> bool:
        return bool(await self.by_client(self.greeted) == BANNER)


@asynccontextmanager
async def serving(kind: str, certificate: Path, directory: Path) -> AsyncIterator[Serving]:
    made = Serving(kind, certificate, directory)
    await made.listener.listen()
    try:
        yield made
    finally:
        await made.listener.stop()
        made.factory.abort()
        await eventually(lambda: not made.factory.connections)
        if made.passed is not None:
            made.passed.close()


def error_of(connect: Callable[[], socket.socket]) -> str:
    """Return the error that a client gets."""
    try:
        connect().close()
    except OSError as error:
        return type(error).__name__
    return "connected"


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_a_listener_refuses_and_accepts_again(
    kind: str, certificate: Path, tmp_path: Path, log: Log
) -> None:
    """Fault 139: The client gets ECONNREFUSED; afterwards everything is as it was."""
    async with serving(kind, certificate, tmp_path) as made:
        assert await made.is_served()
        before = backlog_of(made.listening)
        own = {"tcp": 77, "passed tcp": 9, "passed unix": 9}
        assert before == own.get(kind, socket.SOMAXCONN)
        name = made.listening.getsockname()
        open_one = await made.by_client(made.connect)
        for _ in range(2):
            made.change("refuse")
            assert await made.by_client(lambda: error_of(made.connect)) == "ConnectionRefusedError"
            if kind in ("tcp", "tcp6"):
                open_one.sendall(b"x")
            made.change()
            assert await made.is_served()
            assert made.listening.getsockname() == name
        assert backlog_of(made.listening) == before
        if kind in ("tcp", "tcp6"):
            reply = await made.by_client(lambda: receive(open_one, len(BANNER) + 10))
            assert reply.startswith(BANNER + b"OK...x")
        open_one.close()
        assert made.factory.metrics.faults["refuse"] == 2
    assert log.text.count("Began a fault on purpose") == 2
    assert log.text.count("Ended a fault on purpose") == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_a_listener_does_not_answer_and_accepts_again(
    kind: str, certificate: Path, tmp_path: Path
) -> None:
    """Fault 139: The client's SYN gets no answer; afterwards everything is as it was."""

    async with serving(kind, certificate, tmp_path) as made:
        assert await made.is_served()
        before = backlog_of(made.listening)
        own = {"tcp": 77, "passed tcp": 9, "passed unix": 9}
        assert before == own.get(kind, socket.SOMAXCONN)
        accepted = made.factory.metrics.accepted
        for _ in range(2):
            made.change("connect-timeout")
            timeout = await made.by_client(lambda: error_of(lambda: made.connect(0.3)))
            if made.is_unix:  # a socket with a time-out does not block
                assert timeout == "BlockingIOError"
                waiting = in_thread(lambda: made.connect(None).close())
                await turns(20)
                assert not waiting.called
                made.change()
                await waiting
            else:
                assert timeout == "TimeoutError"
            made.change()
            assert await made.is_served()
        assert backlog_of(made.listening) == before
        # Our own connection was none of its clients.
        assert made.factory.metrics.accepted == accepted + (4 if made.is_unix else 2)
        assert made.factory.metrics.faults["connect-timeout"] == 2


@pytest_twisted.ensureDeferred
async def test_no_syn_is_answered_on_the_wire(certificate: Path, tmp_path: Path) -> None:
    """Fault 139: No SYN-ACK is sent, and a refusal is an RST."""
    async with serving("tcp", certificate, tmp_path) as made:
        port = made.listening.getsockname()[1]
        made.change("connect-timeout")
        with watched(port) as wire:
            assert error_of(lambda: made.connect(0.3)) == "TimeoutError"
            packets = list(wire.packets())
        assert {packet.flags for packet in packets} == {SYN}
        assert {packet.destination for packet in packets} == {port}
        made.change("refuse")
        with watched(port) as wire:
            assert error_of(made.connect) == "ConnectionRefusedError"
            packets = list(wire.packets())
        assert [packet.flags for packet in packets] == [SYN, RST | ACK]


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_a_client_is_accepted_late(
    kind: str, certificate: Path, tmp_path: Path, log: Log
) -> None:
    """Fault 139: The client connects at once, and is served not before the time."""
    async with serving(kind, certificate, tmp_path) as made:
        made.change("slow-accept:time=0.2")
        began = reactor.seconds()
        assert await made.is_served()
        assert reactor.seconds() - began >= 0.2
        assert made.factory.metrics.faults["slow-accept"] == 1
        await eventually(lambda: "faults: slow-accept)" in log.text)
        made.change("slow-accept:time=1000")
        waiting = await made.by_client(made.connect)
        gone = await made.by_client(made.connect)
        await eventually(lambda: made.factory.metrics.faults["slow-accept"] == 3)
        gone.close()
        if kind == "proxy":
            waiting.sendall(line())
        made.change()  # the waiting clients are served at once
        if kind == "tls":
            waiting.close()
        else:
            assert await made.by_client(lambda: receive(waiting, len(BANNER))) == BANNER
            waiting.close()
        assert await made.is_served()


@pytest.mark.parametrize("fault", ["refuse", "connect-timeout", "slow-accept:time=1000"])
@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_a_listener_can_stop_in_the_middle_of_a_fault(
    kind: str, fault: str, certificate: Path, tmp_path: Path
) -> None:
    async with serving(kind, certificate, tmp_path) as made:
        made.change(fault)
        held = None
        if fault.startswith("slow"):
            held = await made.by_client(made.connect)
            await eventually(lambda: made.factory.metrics.faults["slow-accept"])
        await made.listener.stop()
        if made.passed is not None:
            # The service manager's socket takes clients again, as many as before.
            with closing(socket.socket(made.passed.family)) as client:
                client.settimeout(PATIENCE)
                client.connect(made.passed.getsockname())
        if kind == "unix":
            assert list(tmp_path.iterdir()) == []
        if held is not None:
            held.close()


@pytest_twisted.ensureDeferred
async def test_faults_of_a_listener_have_their_times(certificate: Path, tmp_path: Path) -> None:
    async with serving("tcp", certificate, tmp_path) as made:
        began = time.monotonic()
        made.change("refuse:after=0.1s,for=0.2", "connect-timeout:after=0.2s,for=0.3")
        metrics = made.factory.metrics.faults
        await eventually(lambda: metrics["refuse"])
        assert time.monotonic() - began >= 0.1
        await eventually(lambda: metrics["connect-timeout"])
        assert time.monotonic() - began >= 0.3  # the first that was given has precedence
        assert await made.is_served()
        assert time.monotonic() - began >= 0.5


@pytest_twisted.ensureDeferred
async def test_a_paused_listener_stays_paused_after_a_fault(
    certificate: Path, tmp_path: Path
) -> None:
    async with serving("tcp", certificate, tmp_path) as made:
        made.listener.pause("suspended")
        for fault in ("refuse", "connect-timeout"):
            made.change(fault)
            assert error_of(lambda: made.connect(0.2)) != "connected"
            made.change()
            with closing(made.connect()) as client:  # by the kernel
                client.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    client.recv(1)
        made.listener.resume("suspended")
        assert await made.is_served()


@pytest_twisted.ensureDeferred
async def test_a_socket_that_could_lose_its_port_says_that_it_cannot_refuse(
    certificate: Path, tmp_path: Path, log: Log
) -> None:
    async with serving("tcp", certificate, tmp_path) as made:
        made.listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        made.change("refuse")
        assert "could lose its port" in log.take_errors()[0]
        assert await made.is_served()
        assert made.factory.metrics.faults["refuse"] == 0


@pytest_twisted.ensureDeferred
async def test_a_socket_without_a_file_says_that_it_cannot_refuse(
    certificate: Path, tmp_path: Path, log: Log
) -> None:
    made = Serving("unix", certificate, tmp_path)
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0echod-{os.getpid()}")
    abstract.listen(1)
    with closing(abstract):
        given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "given"}
        inherited = InheritedSockets(given, os.dup(abstract.fileno()))
        wanted = parse_listen(reactor, "systemd:name=given", inherited)
        made.listener._endpoint = wanted.endpoint
        await made.listener.listen()
        made.change("refuse")
        said = log.take_errors()[0]
        assert "Fault on purpose refuse cannot be on " in said
        assert "a UNIX socket without a file cannot refuse" in said
        assert await made.is_served()
        await made.listener.stop()
        made.factory.abort()
        await eventually(lambda: not made.factory.connections)
