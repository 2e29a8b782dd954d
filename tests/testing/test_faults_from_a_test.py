"""A misbehaving server from a test: its faults, which change, and its record of connections."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.task import deferLater

import echod.tls
from echod import Handler, connection_handler, message_handler
from echod.errors import UserError
from echod.faults import FaultError
from echod.journal import Record
from echod.testing import Server, serving
from tests.support.daemon import CONCURRENT, MODELS
from tests.support.reactor import reactor
from tests.support.serving import Talker, eventually
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE
from tests.testing.test_serving import blocking, shout

PLACES = ["clear", "TLS", "UNIX"]


def listen(way: str, folder: Path, certificate: Path) -> dict[str, str]:
    match way:
        case "TLS":
            return {"listen": f"tls:0:interface=127.0.0.1:certificate={certificate}"}
        case "UNIX":
            return {"listen": f"unix:{folder}/sock"}
    return {}


def fetch(server: Server, way: str = "clear") -> bytes:
    """Ask once, as a client that tries again when the connection is reset."""
    for _ in range(3):
        try:
            with server.connect(tls=client_context() if way == "TLS" else None) as client:
                client.sendall(b"hello")
                return client.receive_exactly(5)
        except (ConnectionError, EOFError):  # a UNIX socket has no reset, only an end
            pass
    raise AssertionError("three connections have failed")


@pytest.mark.parametrize("way", PLACES)
@pytest.mark.parametrize("model", MODELS)
def test_a_client_that_tries_again_is_seen_to(
    model: str, way: str, tmp_path: Path, certificate: Path
) -> Any:
    """Fault 158: The test sees each connection, how it ended, and what the client has sent."""

    @blocking
    def run() -> None:
        server = serving(
            message_handler(shout), concurrency=model, **listen(way, tmp_path, certificate)
        ).fault("reset:after=3,first=2")
        with server:
            assert fetch(server, way) == b"HELLO"
            reasons = [one.reason for one in server.connections]
            last = "served" if model == "serial" else "client closed"
            assert reasons == ["fault", "fault", last]
            assert [one.received for one in server.connections] == [b"hello"] * 3
            assert [one.faults for one in server.connections] == [("reset",)] * 2 + [()]
            assert [one.number for one in server.connections] == [1, 2, 3]
        assert len(server.connections) == 3

    return run()


@pytest.mark.parametrize("way", PLACES)
@pytest.mark.parametrize("model", CONCURRENT)
def test_faults_change_while_the_server_runs(
    model: str, way: str, tmp_path: Path, certificate: Path
) -> Any:
    """Fault 158: The test adds faults and takes them away, for open connections too."""

    @blocking
    def run() -> None:
        options = listen(way, tmp_path, certificate)
        tls = client_context() if way == "TLS" else None
        handler = message_handler(shout)
        with serving(handler, concurrency=model, **options) as server:
            client = server.connect(tls=tls)
            client.sendall(b"one")
            assert client.receive_exactly(3) == b"ONE"
            server.fault("stall", "corrupt:rate=1,first=9")
            assert server.faults == ["stall", "corrupt:rate=1,first=9"]
            client.sendall(b"two")
            server.wait_until(lambda: len(server.connections[0].faults) == 2, PATIENCE)
            client.socket.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
            server.unfault("corrupt:rate=1,first=9")
            assert server.faults == ["stall"]
            server.unfault()
            client.socket.settimeout(PATIENCE)
            held = client.receive_exactly(3)
            assert held != b"TWO"  # it was corrupted before it was held
            client.sendall(b"three")
            assert client.receive_exactly(5) == b"THREE"
            assert set(server.connections[0].faults) == {"stall", "corrupt"}
            assert server.connections[0].is_open

    return run()


@blocking
def test_what_is_no_fault_is_refused_and_changes_nothing() -> None:
    with serving("plain-echo").fault("delay:time=0.001") as server:
        with pytest.raises(FaultError, match="no fault is named 'rest'; did you mean reset"):
            server.fault("reset", "rest")
        with pytest.raises(ValueError, match=r"no fault .stall.; it has: delay:time=0\.001"):
            server.unfault("stall")
        with pytest.raises(UserError, match="listener=2 is none of the listeners"):
            server.fault("reset:listener=2")
        with pytest.raises(UserError, match="alert needs a listener with TLS"):
            server.fault("alert")
        assert server.faults == ["delay:time=0.001"]
        assert fetch(server) == b"hello"


@blocking
def test_faults_of_the_settings_and_the_seed_are_the_daemons() -> None:
    received = []
    for _ in range(2):
        given = serving("plain-echo", fault=["corrupt:rate=0.5"], fault_seed=7)
        with given.fault("duplicate:rate=0.5") as server, server.connect() as client:
            client.sendall(bytes(1000))
            client.finish()
            received.append(client.receive_all())
    assert received[0] == received[1]
    assert len(received[0]) > 1000


@blocking
def test_a_direct_server_records_its_connections_and_no_bytes_and_keeps_its_faults() -> None:
    seen: list[type] = []

    @connection_handler
    def copy(conn: socket.socket) -> None:
        seen.append(type(conn))
        conn.sendall(conn.recv(100))

    given = serving(copy, concurrency="thread-per-connection", direct=True, journal=5)
    with given as server:
        assert fetch(server) == b"hello"
        with pytest.raises(RuntimeError, match="not set up to change"):
            server.fault("reset")
        assert server.faults == []
        (record,) = server.connections
        assert (record.received, record.bytes_in) == (b"", 5)
    with serving(copy, concurrency="thread-per-connection", direct=True) as server:
        assert fetch(server) == b"hello"
        with pytest.raises(RuntimeError, match="`journal` is 0"):
            _ = server.connections


@blocking
def test_a_server_that_has_not_run_has_no_connections() -> None:
    with pytest.raises(RuntimeError, match="has not run"):
        _ = serving("echo").connections


@blocking
def test_the_record_catches_up_with_clients_that_have_come_and_gone() -> None:
    with serving("plain-echo") as server:
        for count in range(1, 51):
            socket.create_connection(server.address).close()
            records = server.connections
            assert [one.reason for one in records] == ["client closed"] * count


@blocking
def test_the_record_does_not_wait_for_an_end_that_a_fault_holds() -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        serving("plain-echo").fault("stall:direction=in") as server,
    ):
        # With patience, the test would not end in time.
        patch.setattr(sys.modules["echod.testing.serving"], "PATIENCE", 1000.0)
        with server.connect() as client:
            client.sendall(b"x")
        (record,) = server.connections
        assert record.is_open


class Slow(Handler):
    """Answers late."""

    async def received(self, message: bytes) -> bytes:
        await deferLater(reactor, 0.05)
        return message


@blocking
def test_the_record_waits_for_a_reply_on_its_way() -> None:
    with serving(Slow) as server, server.connect() as client:
        client.sendall(b"x")
        client.finish()
        (record,) = server.connections
        assert record.reason == "client closed"


@pytest_twisted.ensureDeferred
async def test_a_test_that_the_reactor_runs_changes_faults_too() -> None:
    async with serving("plain-echo") as server:
        server.fault("reset:after=2")
        client: Any = Talker()
        await connectProtocol(clientFromString(reactor, server.endpoint), client)
        client.send(b"hello")
        assert await client.receive_all() == b"he"
        await eventually(lambda: server.connections[0].reason)
        assert server.connections[0].received == b"hello"
        server.unfault("reset")


@blocking
def test_a_server_starts_in_less_than_fifty_milliseconds_once_the_process_has_served() -> None:
    """Fault 158: A server starts in less than 50 ms once the process has served before."""
    with serving("echo"):
        pass
    took = []
    for _ in range(20):
        began = time.perf_counter()
        with serving("echo").fault("delay"):
            took.append(time.perf_counter() - began)
    assert min(took) < 0.05  # the others may have waited for the machine


@blocking
@pytest.mark.parametrize("unix", [False, True])
def test_a_server_that_lets_no_client_in_does_again_later(unix: bool) -> None:
    family = socket.AF_UNIX if unix else socket.AF_INET
    with serving("plain-echo", unix=unix) as server:
        server.fault("refuse")
        with socket.socket(family) as client, pytest.raises(ConnectionRefusedError):
            client.connect(server.address)
        server.unfault("refuse").fault("connect-timeout")
        with socket.socket(family) as client:
            client.settimeout(0.2)
            with pytest.raises((TimeoutError, BlockingIOError)):
                client.connect(server.address)
        assert server.connections == []
        server.unfault()
        assert fetch(server) == b"hello"
        assert [one.reason for one in server.connections] == ["client closed"]


@blocking
def test_the_end_waits_for_no_stall_and_for_no_client_that_stays() -> None:
    # By the drain's deadline, the test would not end in time.
    with serving("plain-echo", drain_timeout=1000).fault("stall:first=1") as server:
        clients = [socket.create_connection(server.address) for _ in range(2)]
        for client in clients:
            client.sendall(b"hello")
        assert clients[1].recv(100) == b"hello"
        server.wait_until(lambda: [one.received for one in server.connections] == [b"hello"] * 2)
    assert [one.reason for one in server.connections] == ["drained", "drained"]
    assert clients[1].recv(100) == b""
    for client in clients:
        client.close()


@blocking
def test_a_running_server_may_be_used_by_with() -> None:
    with serving("plain-echo") as server:
        port = server.port
        with server as same:
            assert same is server
            assert server.port == port
            assert fetch(server) == b"hello"
        assert [one.reason for one in server.connections] == ["client closed"]
    record: Record = server.connections[0]
    assert record.peer.startswith("127.0.0.1:")


@blocking
@pytest.mark.parametrize("model", MODELS)
def test_tls_and_unix_sockets_need_no_file_of_the_test(model: str) -> None:
    for unix in (False, True):
        for tls in (None, True):
            folder = None
            server = serving("plain-echo", tls=bool(tls), unix=unix, concurrency=model)
            with server.fault("reset:after=3,first=1"):
                folder = Path(server.address).parent if unix else None
                with server.connect(tls=tls) as client:
                    client.sendall(b"hello")
                    with suppress(ConnectionError):  # a UNIX socket has no reset
                        assert client.receive_all() == b"hel"
                with server.connect(tls=tls, timeout=20) as client:
                    client.sendall(b"hello")
                    assert client.receive_exactly(5) == b"hello"
                assert [bool(one.tls) for one in server.connections] == [bool(tls)] * 2
            assert folder is None or not folder.exists()


@blocking
def test_a_client_meets_certificates_with_mistakes_by_their_names() -> None:
    with serving("plain-echo", tls=True) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
            server.connect(tls=True, server_name="expired.localhost")
        with server.connect(tls=ssl.create_default_context(cafile=server.ca)) as client:
            assert client.socket.getpeercert()["subject"]  # type: ignore[union-attr,index]
            # A client that closes with unread bytes, as tickets of TLS are, resets.
            assert client.ask(b"hello") == b"hello"
        refused, accepted = server.connections
        assert refused.reason == "handshake error"
        assert accepted.reason == "client closed"
    with pytest.raises(RuntimeError, match="does not run"):
        _ = server.ca


@pytest.mark.parametrize("way", ["at the start", "later", "tls=True"])
@blocking
def test_what_makes_certificates_is_imported_by_the_tests_thread(
    way: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 193: The import, the longest part, is in the test's thread, not in the reactor's."""
    name = "echod.tls.mistakes"

    importers: list[threading.Thread] = []

    class Noting:
        def find_spec(self, wanted: str, *_: object) -> None:
            if wanted == name:
                importers.append(threading.current_thread())

    monkeypatch.setattr(echod.tls, "mistakes", sys.modules.get(name), raising=False)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Noting(), *sys.meta_path])
    listen = f"tls:0:interface=127.0.0.1:certificate={certificate}"
    server = serving("echo", tls=True) if way == "tls=True" else serving("echo", listen=listen)
    if way == "at the start":
        server.fault("wrong-certificate")
    with server:
        if way == "later":
            assert not importers
            server.fault("wrong-certificate")
    assert importers == [threading.current_thread()]


def test_where_a_server_listens_is_said_once() -> None:
    for given in ({"port": 8888}, {"listen": "tcp:0"}):
        with pytest.raises(UserError, match="tls=True and unix=True say where to listen"):
            serving("echo", tls=True, **given)
    with pytest.raises(RuntimeError, match="made without tls=True"):
        _ = serving("echo").ca
