"""The control of a service in the test's own reactor, in every model, by real requests."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from echod.awaiting import loop_of
from echod.control import ControlServer
from echod.control.description import describe
from echod.control.operations import SHARE, Operations
from echod.control.site import Call
from echod.daemon.build import build_service
from echod.daemon.resolve import StartError
from echod.daemon.service import EchoService
from echod.handlers.command import Command
from echod.handlers.lookup import parse
from echod.handlers.script import Script
from echod.listening.endpoints import parse_listen
from echod.reasons import EndReason
from echod.settings.definitions import Settings
from echod.status.snapshot import state_of
from echod.tls import TLSFactory
from echod.tls.mistakes import Mistakes
from tests.support.daemon import MODELS
from tests.support.log import Log
from tests.support.needs import not_here
from tests.support.proxy_headers import SOURCE, line
from tests.support.reactor import reactor
from tests.support.serving import LOOPBACK, ClientContext, Talker, eventually, turns

TOKEN = "0123456789abcdef"
HELLO = b"Hello\n"

Answer = tuple[int, Any]


class Controlled:
    """A running service with a control, its clients, and a client of the control."""

    def __init__(self, service: EchoService) -> None:
        self.service = service
        self.clients: list[Talker] = []

    async def ask(self, method: str, path: str, body: object = None, token: str = TOKEN) -> Answer:
        """Return the status, and the answer's value."""
        assert self.service.control is not None
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nContent-Length: {len(data)}\r\n"
        client = await connected(self.service.control.address, Talker())
        client.send(f"{head}Authorization: Bearer {token}\r\n\r\n".encode() + data)
        answer = await client.receive_all()
        head_, _, value = answer.partition(b"\r\n\r\n")
        return int(head_.split()[1]), json.loads(value)

    async def connect(self, listener: int = 0) -> Talker:
        """Connect to a listener, and wait for the greeting."""
        client = await self.knock(listener)
        await client.receive(HELLO)
        return client

    async def knock(self, listener: int = 0) -> Talker:
        """Connect to a listener."""
        found, talker = self.service.listeners[listener], Talker()
        self.clients.append(talker)
        if found.description.startswith("tls:"):
            endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{port_of(found)}")
            factory = Factory.forProtocol(lambda: talker)
            await endpoint.connect(TLSFactory(factory, ClientContext(), reactor))
        else:
            await connected(found.address, talker)
        if found.description.startswith("proxy:"):
            talker.send(line())
        return talker

    @property
    def open(self) -> int:
        return sum(len(one.factory.connections) for one in self.service.listeners)


def port_of(listener: Any) -> int:
    return int(listener.address.port)


async def connected(address: Any, talker: Talker) -> Talker:
    name = getattr(address, "name", None)
    text = f"unix:{name.decode()}" if name else f"tcp:127.0.0.1:{address.port}"
    await connectProtocol(clientFromString(reactor, text), talker)
    return talker


@asynccontextmanager
async def running(
    folder: Path, given: object = None, **settings: Any
) -> AsyncIterator[Controlled]:
    """Run a service with a control on a UNIX socket."""
    wanted = Settings(
        **{
            "listen": (LOOPBACK,),
            "control": f"unix:{folder / 'control'}",
            "journal": 100,
            "banner": HELLO,
            **settings,
        }
    )
    service = build_service(wanted, reactor, given)
    service.startService()
    controlled = Controlled(service)
    try:
        yield controlled
    finally:
        for client in controlled.clients:
            if client.reason is None:
                client.transport.abortConnection()
        service.resume()
        await service.stopService()
        await eventually(lambda: all(client.reason for client in controlled.clients))


def every_way(certificate: Path, tmp_path: Path) -> tuple[str, ...]:
    """Return a listener of each kind."""
    return (
        LOOPBACK,
        f"tls:0:interface=127.0.0.1:certificate={certificate}",
        f"proxy:{LOOPBACK}",
        f"unix:{tmp_path / 's'}",
    )


def of_model(model: str) -> dict[str, Any]:
    """Return settings under which a client of this model is greeted."""
    return {"concurrency": model, **({"banner": None} if model == "serial" else {})}


in_models = pytest.mark.parametrize("model", MODELS[:3])


@in_models
@pytest_twisted.ensureDeferred
async def test_connections_are_listed_with_what_is_known_of_them(
    model: str, certificate: Path, tmp_path: Path
) -> None:
    listen = every_way(certificate, tmp_path)
    async with running(tmp_path, listen=listen, journal_bytes=3, **of_model(model)) as controlled:
        for listener in range(4):
            client = await controlled.connect(listener)
            client.send(b"happy")
            await client.receive(b"OK...happy")
        client.finish()
        await client.receive_all()
        await eventually(lambda: controlled.open == 3)
        status, answer = await controlled.ask("GET", "/connections")
        assert status == 200
        assert answer["journal"] == {"most": 100, "bytes": 3}
        clear, tls, proxy, unix = answer["connections"]
        assert [one["id"] for one in answer["connections"]] == [1, 2, 3, 4]
        assert [one["state"] for one in answer["connections"]] == ["open"] * 3 + ["ended"]
        assert {one["received"] for one in answer["connections"]} == {"hap"}
        assert {one["bytes_in"] for one in answer["connections"]} == {5}
        assert clear["peer"].startswith("127.0.0.1:")
        assert (clear["tls"], clear["proxy"], clear["reason"]) == (None, None, None)
        assert tls["tls"]["version"] == "TLSv1.3"
        assert proxy["peer"] == proxy["proxy"]["source"] == f"{SOURCE[0]}:{SOURCE[1]}"
        assert (unix["peer"], unix["reason"]) == ("", "client closed")
        for query, numbers in {
            "state=ended": [4],
            "state=open&after=1": [2, 3],
            "address=127.0.0.0/8": [1, 2],
            "address=203.0.113.7": [3],
            "listener=4": [4],
            f"listener={LOOPBACK}": [1],
            "reason=client+closed": [4],
            "fault=reset": [],
            "limit=2": [1, 2],
        }.items():
            _, found = await controlled.ask("GET", f"/connections?{query}")
            assert [one["id"] for one in found["connections"]] == numbers, query
            assert found["more"] is (query == "limit=2")
        assert await controlled.ask("GET", "/connections/4") == (200, unix)
        assert (await controlled.ask("GET", "/connections/5"))[0] == 404
        for nonsense in (
            *("state=x", "nosuch=1", "limit=0", "after=-1", "after=1&after=2"),
            *("address=x", "reason=x", "fault=x"),
        ):
            assert (await controlled.ask("GET", f"/connections?{nonsense}"))[0] == 400
        assert (await controlled.ask("GET", "/connections?listener=5"))[0] == 404


@pytest.mark.parametrize("how", ["reset", "drain"])
@pytest.mark.parametrize("listener", range(4))
@in_models
@pytest_twisted.ensureDeferred
async def test_a_connection_is_ended(
    model: str, listener: int, how: str, certificate: Path, tmp_path: Path
) -> None:
    listen = every_way(certificate, tmp_path)
    async with running(tmp_path, listen=listen, **of_model(model)) as controlled:
        one, other = await controlled.connect(listener), await controlled.connect(listener)
        assert await controlled.ask("DELETE", f"/connections/1?how={how}") == (
            200,
            {"disconnected": 1},
        )
        assert await one.receive_all() == b""
        if how == "drain" or listener != 3:  # a UNIX socket has no reset
            assert one.clean is (how == "drain")
        await eventually(lambda: controlled.open == 1)
        other.send(b"days")
        await other.receive(b"OK...days")
        _, record = await controlled.ask("GET", "/connections/1")
        assert record["reason"] == {"reset": "disconnected", "drain": "drained"}[how]
        assert (await controlled.ask("DELETE", "/connections/1"))[0] == 404
        assert (await controlled.ask("DELETE", "/connections/2?how=x"))[0] == 400
        assert controlled.open == 1


class Upper(Protocol):
    """A Twisted protocol."""

    def connectionMade(self) -> None:
        self.transport.write(HELLO)


class AsyncioUpper(asyncio.Protocol):
    """The same for asyncio."""

    def connection_made(self, transport: Any) -> None:
        transport.write(HELLO)


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HELLO)
    await reader.read()


@pytest.mark.parametrize("how", ["reset", "drain"])
@pytest.mark.parametrize("kind", ["protocol", "asyncio", "stream", "exec", "script"])
@pytest_twisted.ensureDeferred
async def test_connections_of_handlers_of_each_kind_are_ended(
    kind: str, how: str, certificate: Path, tmp_path: Path
) -> None:
    if kind in ("asyncio", "stream") and loop_of(reactor) is None:
        not_here("this reactor has no asyncio loop, so such a handler is refused at the start")
    (tmp_path / "talk").write_text("> Hello\\n\nwait 60\n")
    (tmp_path / "run").write_text("#!/bin/sh\necho Hello\nexec cat\n")
    (tmp_path / "run").chmod(0o700)
    given = {
        "protocol": Factory.forProtocol(Upper),
        "asyncio": AsyncioUpper,
        "stream": stream,
        "exec": Command(command=str(tmp_path / "run")),
        "script": Script(file=str(tmp_path / "talk")),
    }[kind]
    listen = every_way(certificate, tmp_path)
    settings = {"listen": listen, "banner": None, "handler": parse("exec")}
    if kind != "exec":
        del settings["handler"]
    async with running(tmp_path, given, **settings) as controlled:
        clients = []
        for listener in range(4):
            clients.append(await controlled.knock(listener))
            await clients[-1].until(lambda client=clients[-1]: client.data.startswith(b"Hello"))
        answer = await controlled.ask("DELETE", f"/connections?how={how}")
        assert answer == (200, {"disconnected": 4})
        for client in clients:
            await client.receive_all()
        await eventually(lambda: controlled.open == 0)
        _, listed = await controlled.ask("GET", "/connections")
        reasons = {one["reason"] for one in listed["connections"]}
        assert reasons == {"drained" if how == "drain" else "disconnected"}


@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_connections_are_ended_by_address_and_all(
    model: str, certificate: Path, tmp_path: Path
) -> None:
    listen = every_way(certificate, tmp_path)
    async with running(tmp_path, listen=listen, **of_model(model)) as controlled:
        for listener in range(4):
            await controlled.knock(listener)
        for nonsense, status in (
            ("address=127.0.0.l", 400),
            ("address=", 400),
            ("listener=5", 404),
        ):
            refused = await controlled.ask("DELETE", f"/connections?{nonsense}")
            assert refused[0] == status
        assert refused[1]["error"].startswith(
            f"there is no such listener; there are: 1 ({listen[0]}"
        )
        silent = await connected(controlled.service.listeners[2].address, Talker())
        controlled.clients.append(silent)  # its PROXY header has not come
        await eventually(lambda: controlled.open == 5)
        journal = controlled.service.journal
        assert journal is not None
        await eventually(lambda: len(journal.open()) == 4)
        for query, count in (
            ("?address=192.0.2.1", 0),
            ("?address=203.0.113.0/24", 1),
            ("?listener=4", 1),
            ("?address=127.0.0.1&listener=1", 1),
            ("", 2),
        ):
            assert await controlled.ask("DELETE", f"/connections{query}") == (
                200,
                {"disconnected": count},
            )
        await eventually(lambda: controlled.open == 0)
        for client in controlled.clients:
            await client.receive_all()
        metrics = [one.factory.metrics.ended for one in controlled.service.listeners]
        assert all(ended == {EndReason.DISCONNECTED.value: 1} for ended in metrics)


@pytest_twisted.ensureDeferred
async def test_many_connections_are_ended_in_shares(tmp_path: Path) -> None:
    """Fault 149: Others are served while many connections are ended: each turn ends a few."""
    count = 4 * SHARE + 1
    async with running(tmp_path) as controlled:
        for _ in range(count):
            await controlled.connect()
        connections: list[Any] = list(controlled.service.listeners[0].factory.connections)
        ended: list[int] = []

        def pause() -> Deferred[None]:
            ended.append(sum(one.is_closing for one in connections))
            return deferLater(reactor, 0)

        operations = Operations(controlled.service, pause, lambda: "ready")
        answer = await operations.disconnect_all(Call(b"", 0))
        assert json.loads(answer.body) == {"disconnected": count}
        assert ended == [SHARE, 2 * SHARE, 3 * SHARE, 4 * SHARE]
        await eventually(lambda: not controlled.open)


@pytest_twisted.ensureDeferred
async def test_many_connections_are_listed_in_shares(tmp_path: Path) -> None:
    """Fault 149: Others are served while many connections are listed: each turn lists a few."""
    async with running(tmp_path) as controlled:
        for _ in range(2 * SHARE):
            await controlled.connect()
        pauses: list[None] = []

        def pause() -> Deferred[None]:
            pauses.append(None)
            return deferLater(reactor, 0)

        operations = Operations(controlled.service, pause, lambda: "ready")
        answer = await operations.list(Call(b"", 0))
        assert len(json.loads(answer.body)["connections"]) == 2 * SHARE
        assert len(pauses) == 2


@pytest.mark.parametrize("leaves", [False, True])
@pytest_twisted.ensureDeferred
async def test_the_faults_of_many_connections_change_in_shares(
    tmp_path: Path, leaves: bool
) -> None:
    """Fault 149: Others are served while the faults of many connections change: each turn changes
    a few; all of them change, even if the client of the control leaves.
    """
    count = 3 * SHARE + 1
    async with running(tmp_path) as controlled:
        for _ in range(count):
            await controlled.connect()
        plan = controlled.service.faults
        assert plan is not None
        (faults,) = plan._listeners
        changed: list[int] = []

        def pause() -> Deferred[None]:
            changed.append(sum(bool(one.picks) for one in faults.open.values()))
            return deferLater(reactor, 0)

        operations = Operations(controlled.service, pause, lambda: "ready")
        body = {"faults": [f"truncate:first={count}"]}
        request: Any = SimpleNamespace(query=b"")
        call: Any = SimpleNamespace(query=b"", request=request, body=lambda: body)
        asked = Deferred.fromCoroutine(operations.set_faults(call))
        new = (
            await controlled.connect()
        )  # it comes behind those that are open, and is one too many
        if leaves:
            asked.addErrback(lambda failure: failure.trap(CancelledError))
            asked.cancel()
        await asked
        await eventually(lambda: len(changed) == 3)
        assert changed == [SHARE, 2 * SHARE, 3 * SHARE]
        await eventually(lambda: sum(bool(one.picks) for one in faults.open.values()) == count)
        new.send(b"x")
        await new.receive(b"OK...x")


@pytest_twisted.ensureDeferred
async def test_a_test_authority_is_made_in_a_thread_when_a_fault_first_needs_it(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    make = Mistakes.__init__

    def note(mistakes: Mistakes) -> None:
        threads.append(threading.current_thread())
        make(mistakes)

    monkeypatch.setattr(Mistakes, "__init__", note)
    listen = every_way(certificate, tmp_path)
    async with running(tmp_path, listen=listen) as controlled:
        for _ in range(2):
            status, _ = await controlled.ask("PUT", "/faults", {"faults": ["wrong-certificate"]})
            assert status == 200
    (thread,) = threads
    assert thread is not threading.main_thread()


@in_models
@pytest_twisted.ensureDeferred
async def test_faults_change_for_new_connections_and_open_ones(
    model: str, certificate: Path, tmp_path: Path, log: Log
) -> None:
    listen = every_way(certificate, tmp_path)
    async with running(tmp_path, listen=listen, **of_model(model)) as controlled:
        for listener in range(4):
            client = await controlled.connect(listener)
            fault = f"truncate:listener={listener + 1}"
            status, shown = await controlled.ask("PUT", "/faults", {"faults": [fault], "seed": 7})
            assert (status, shown["faults"], shown["seed"]) == (200, [fault], 7)
            happened = controlled.service.listeners[listener].factory.metrics.faults
            client.send(b"days")
            await eventually(lambda happened=happened: happened["truncate"] == 1)
            new = await controlled.knock(listener)
            await eventually(lambda happened=happened: happened["truncate"] == 2)
            assert not new.data
            assert not client.data
            assert (await controlled.ask("DELETE", "/faults"))[1]["faults"] == []
            client.send(b"again")
            await client.receive(b"OK...again")
        assert (await controlled.ask("GET", "/faults"))[1]["happened"] == {"truncate": 8}
    assert "Faults on purpose, seed 7: truncate:listener=1" in log.text


@pytest_twisted.ensureDeferred
async def test_faults_are_added_and_removed_one_by_one(tmp_path: Path) -> None:
    async with running(tmp_path) as controlled:
        assert (await controlled.ask("PUT", "/faults", {"faults": ["delay:time=0"]}))[0] == 200
        kept = controlled.service.faults.rules[0]
        body = {"faults": ["reset:first=2", "stall:p=0.1"]}
        assert (await controlled.ask("POST", "/faults", body))[1]["faults"] == [
            "delay:time=0",
            *body["faults"],
        ]
        _, left = await controlled.ask("DELETE", "/faults?fault=reset:first%3D2")
        assert left["faults"] == ["delay:time=0", "stall:p=0.1"]
        assert controlled.service.faults.rules[0] is kept
        assert (await controlled.ask("DELETE", "/faults?fault=nosuch"))[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"faults": "reset"},
        {"faults": [1]},
        {"faults": ["nosuch"]},
        {"faults": ["reset:p=2"]},
        {"faults": ["no-close-notify"]},  # no listener has TLS
        {"faults": ["reset:listener=2"]},
        {"faults": ["drip"] * 101},
        {"faults": [], "seed": -1},
        {"faults": [], "seed": True},
        {"faults": [], "seed": 2**60},
        {"faults": [], "more": 1},
    ],
)
@pytest_twisted.ensureDeferred
async def test_faults_that_make_no_sense_change_nothing(body: object, tmp_path: Path) -> None:
    async with running(tmp_path, fault=()) as controlled:
        await controlled.ask("PUT", "/faults", {"faults": ["drip"], "seed": 3})
        for method in ("PUT", "POST"):
            status, answer = await controlled.ask(method, "/faults", body)
            assert (status, list(answer)) == (400, ["error"])
        _, answer = await controlled.ask("GET", "/faults")
        assert (answer["faults"], answer["seed"]) == (["drip"], 3)


@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_a_suspended_service_accepts_no_client_and_serves_on(
    model: str, certificate: Path, tmp_path: Path
) -> None:
    listen = every_way(certificate, tmp_path)
    async with running(tmp_path, listen=listen, **of_model(model)) as controlled:
        served = await controlled.knock()
        await eventually(lambda: controlled.open == 1)
        for _ in range(2):  # calling it again is harmless
            assert await controlled.ask("POST", "/suspend") == (200, {"state": "suspended"})
        assert state_of(controlled.service) == "suspended"
        assert controlled.service.describe().startswith("Suspended; connections: 1")
        waiting = [Talker(), Talker()]
        controlled.clients += waiting
        for client, listener in zip(waiting, (0, 3), strict=True):
            await connected(controlled.service.listeners[listener].address, client)
        for client in (*waiting, served):
            client.send(b"happy")
        await served.until(lambda: b"OK...happy" in served.data)
        await turns(20)
        metrics = [one.factory.metrics for one in controlled.service.listeners]
        assert [one.accepted for one in metrics] == [1, 0, 0, 0]
        assert not any(client.data for client in waiting)
        assert await controlled.ask("POST", "/resume") == (200, {"state": "ready"})
        assert (await controlled.ask("POST", "/resume"))[0] == 200
        for client in waiting:
            await client.until(lambda client=client: b"OK...happy" in client.data)


@pytest_twisted.ensureDeferred
async def test_a_draining_service_is_neither_suspended_nor_resumed(tmp_path: Path) -> None:
    async with running(tmp_path) as controlled:
        client = await controlled.connect()
        client.transport.pauseProducing()
        drained = controlled.service.stopService()
        client.transport.resumeProducing()
        if not drained.called:
            assert (await controlled.ask("POST", "/suspend"))[0] == 409
        await drained
        assert not controlled.service.suspended


@pytest_twisted.ensureDeferred
async def test_its_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    """Fault 145: The UNIX socket of the control has the mode 600."""
    async with running(tmp_path):
        assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o600
    async with running(tmp_path, control=f"unix:{tmp_path / 'control'}:mode=660"):
        assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o660


@pytest_twisted.ensureDeferred
async def test_over_tcp_it_needs_the_token_which_a_reload_exchanges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    with pytest.raises(StartError, match=r"^--control .* needs a token: give"):
        build_service(Settings(listen=(LOOPBACK,), control=LOOPBACK), reactor)
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    async with running(tmp_path, control=LOOPBACK, control_token_file=str(file)) as controlled:
        assert (await controlled.ask("GET", "/faults"))[0] == 200
        assert (await controlled.ask("GET", "/faults", token="0123456789abcdeX"))[0] == 401
        file.write_text("fedcba9876543210")
        controlled.service.reload()
        assert (await controlled.ask("GET", "/faults"))[0] == 401
        assert (await controlled.ask("GET", "/faults", token="fedcba9876543210"))[0] == 200
        file.write_text("short")
        controlled.service.reload()
        assert "token has 5 characters" in log.take_errors()[0]
        assert (await controlled.ask("GET", "/faults", token="fedcba9876543210"))[0] == 200
    monkeypatch.setenv("ECHOD_CONTROL_TOKEN", TOKEN)
    async with running(tmp_path, control=LOOPBACK) as controlled:
        assert (await controlled.ask("GET", "/faults"))[0] == 200
    monkeypatch.setenv("ECHOD_CONTROL_TOKEN", "short")
    with pytest.raises(StartError, match=r"^ECHOD_CONTROL_TOKEN: the token has 5 characters"):
        build_service(Settings(listen=(LOOPBACK,), control=LOOPBACK), reactor)


@pytest_twisted.ensureDeferred
async def test_a_passed_socket_of_tcp_without_a_token_is_told_of(log: Log) -> None:
    control = ControlServer(
        reactor,
        "systemd:name=control",
        parse_listen(reactor, LOOPBACK),
        {},
        token=None,
    )
    await control.listen()
    await control.stop()
    assert "--control systemd:name=control refuses every request: there is no token" in log.text


@pytest.mark.parametrize("control", ["nosuch:1", "proxy:tcp:1", "starttls:1"])
def test_an_endpoint_that_makes_no_sense_is_the_flags_error(control: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=f"--control {control}: "):
        build_service(Settings(control=control), reactor)


def test_the_description_has_each_path_and_method() -> None:
    routes = Operations(None, None, None).routes
    described = describe()["paths"]
    assert {path: {name.upper() for name in methods} for path, methods in described.items()} == {
        path: set(methods) for path, methods in routes.items()
    }
