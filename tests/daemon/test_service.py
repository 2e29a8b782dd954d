from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from echod.awaiting import loop_of
from echod.concurrency.models import InPool, InReactor, Serial, ThreadPerConnection
from echod.daemon import build, ending, file_limit, process
from echod.daemon.build import build_service, make_model
from echod.daemon.choose_reactor import name_of
from echod.daemon.file_limit import SPARE, fit_limits
from echod.daemon.process import Options
from echod.daemon.resolve import StartError
from echod.daemon.service import EchoService
from echod.daemon.signals import Signals
from echod.entry import makeService
from echod.errors import UserError
from echod.handlers.contract import ConcurrencyModel, Handler
from echod.handlers.kinds import KINDS
from echod.handlers.lookup import adopt
from echod.handlers.naming import Catalogue, Spec
from echod.listening.socket_activation import InheritedSockets
from echod.settings.definitions import SETTINGS
from tests.daemon.services import connect, settings
from tests.support.clients import BANNER
from tests.support.log import Log
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.serving import LOOPBACK, SlowEndpoint, eventually, in_thread


@pytest_twisted.ensureDeferred
async def test_the_service_listens_says_so_and_serves(log: Log) -> None:
    service = build_service(settings(listen=(LOOPBACK, LOOPBACK)), reactor)
    service.privilegedStartService()
    service.startService()
    assert [line for line in log.text.splitlines() if line.startswith("Socket")] == [
        "Socket created",
        "Socket bind complete",
        "Socket now listening",
    ] * 2
    clients = [await connect(service, number) for number in (0, 1)]
    for client in clients:
        await client.receive(BANNER)
        client.finish()
        await client.receive_all()
    await service.stopService()
    assert service.listeners[0].address is None


@pytest_twisted.ensureDeferred
async def test_start_alone_listens_too() -> None:
    service = build_service(settings(), reactor)
    service.startService()
    client = await connect(service)
    await client.receive(BANNER)
    await service.stopService()
    assert await client.receive_all() == b""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("reactor", InReactor),
        ("defer-to-thread", InPool),
        ("thread-per-connection", ThreadPerConnection),
        ("serial", Serial),
    ],
)
def test_the_concurrency_model_is_the_one_that_was_asked_for(name: str, kind: type) -> None:
    model = make_model(settings(concurrency=name), reactor)
    assert type(model) is kind
    assert model.name == name
    model.stop()


@pytest_twisted.ensureDeferred
async def test_a_port_that_is_taken_stops_the_start(log: Log) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        endpoint = f"tcp:{port}:interface=127.0.0.1"
        service = build_service(settings(listen=(LOOPBACK, endpoint)), reactor)
        line = "Bind failed. Error Code : 98 Message Address already in use"
        with pytest.raises(StartError, match=f"{endpoint}: {line}"):
            service.privilegedStartService()
        assert f"{endpoint}: {line}" in log.take_errors()[0]
        await eventually(lambda: service.listeners[0].address is None)


@pytest_twisted.ensureDeferred
async def test_a_client_that_waits_while_the_start_fails_is_not_served(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """Fault 201: No handler is made for it."""
    service = build_service(settings(), reactor)
    service.privilegedStartService()
    address = service.listeners[0].address

    def fails() -> None:
        raise StartError("--handler: cannot run as this user")

    monkeypatch.setattr(service, "try_handler", fails)
    with socket.create_connection((address.host, address.port)) as client:
        with pytest.raises(StartError, match="as this user"):
            service.startService()
        with contextlib.suppress(ConnectionResetError):
            assert await in_thread(lambda: client.recv(100)) == b""
    assert not service.metrics.accepted
    assert "Connected" not in log.text


def talk(conn: socket.socket) -> None:
    """A connection handler."""


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"handler": Spec("nosuch")}, "--handler: no handler is named 'nosuch'"),
        ({"prefix": "x", "handler": Spec("upper")}, "upper takes no argument 'prefix'"),
        (
            {
                "handler": Spec("tests.daemon.test_service:talk"),
                "concurrency": ConcurrencyModel.THREAD_PER_CONNECTION,
                "max_message": 10,
            },
            "--max-message has no effect",
        ),
        (
            {"framing": Spec("lines")},
            "--framing: no framing is named 'lines'; .*did you mean line",
        ),
        ({"framing": Spec("fixed")}, "--framing: fixed needs the argument 'size': fixed:size=..."),
        (
            {"framing": Spec("length", {"bytes": "1"}), "banner": b"x" * 300},
            "--banner: a length of 1 byte announces at most 255 bytes, not 301",
        ),
        ({"listen": ("nosuch:1",)}, "--listen nosuch:1: there is no kind of listener 'nosuch'"),
        ({"listen": ("tcp:http",)}, "--listen tcp:http: "),
        ({"listen": ("tcp",)}, "--listen tcp: "),
        ({"status": "proxy:tcp:0"}, "--status proxy:tcp:0: no PROXY header is read here"),
    ],
)
def test_what_cannot_start_says_why(values: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        build_service(settings(**values), reactor)


@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_fails_late_stops_the_daemon(log: Log) -> None:
    class StoppableReactor(Clock):
        triggers: list[tuple[Any, ...]] = []  # noqa: RUF012
        stopped = False

        def addSystemEventTrigger(self, *arguments: Any) -> None:
            self.triggers.append(arguments)

        def stop(self) -> None:
            self.stopped = True

    service = build_service(settings(), reactor)
    stoppable, endpoint = StoppableReactor(), SlowEndpoint()
    service.reactor = stoppable  # type: ignore[assignment]
    service.listeners[0]._endpoint = endpoint  # type: ignore[assignment]
    service.privilegedStartService()
    assert not stoppable.stopped
    endpoint.listening.errback(OSError(errno.EADDRINUSE, "x"))
    assert stoppable.stopped
    assert stoppable.triggers == [("after", "shutdown", ending.end_with_code, 1)]
    assert "Bind failed" in log.take_errors()[0]


@pytest_twisted.ensureDeferred
async def test_a_drain_has_a_deadline(log: Log) -> None:
    leave = threading.Event()
    entered = threading.Event()

    def handler(message: bytes) -> bytes:
        entered.set()
        leave.wait(50)
        return message

    service = build_service(
        settings(concurrency="defer-to-thread", drain_timeout=0.3, no_banner=True), reactor
    )
    service.listeners[0].factory.handler = adopt(handler, service._model.name)
    service.startService()
    client = await connect(service)
    client.send(b"happy\n")
    await eventually(entered.is_set)
    began = time.monotonic()
    await service.stopService()
    assert 0.2 < time.monotonic() - began < 40
    await client.receive_all()
    assert "Draining, for 0.3 s at most; open connections: 1" in log.text
    assert "Drain time-out: aborting all; open connections: 1" in log.text
    leave.set()


@pytest.mark.parametrize("model", ["reactor", "serial"])
@pytest.mark.parametrize("kind", ["coroutine", "stream"])
@pytest_twisted.ensureDeferred
async def test_what_a_handler_waits_for_at_its_end_has_a_moment_after_the_deadline(
    log: Log, kind: str, model: str
) -> None:
    begun: list[str] = []
    ended: list[str] = []

    async def wait() -> None:
        begun.append(kind)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            # As a rollback, or a goodbye to another server, would. Turns, because twenty
            # milliseconds take longer than the moment where the machine is busy.
            await asyncio.sleep(0.001)
            for _ in range(20):
                await asyncio.sleep(0)
            ended.append(kind)

    async def coroutine(message: bytes) -> bytes:
        await wait()
        return message

    async def stream(message: bytes) -> AsyncIterator[bytes]:
        yield message
        await wait()

    if asyncio._get_running_loop() is None:
        not_here("this reactor has no asyncio loop")
    service = build_service(settings(concurrency=model, drain_timeout=0.1), reactor)
    handler = coroutine if kind == "coroutine" else stream
    service.listeners[0].factory.handler = adopt(handler, service._model.name)
    service.startService()
    client = await connect(service)
    client.send(b"happy\n")
    await eventually(lambda: begun)
    await service.stopService()
    assert ended == [kind]
    await client.receive_all()
    assert "Drain time-out: aborting all; open connections: 1" in log.text


@pytest.mark.parametrize("model", ["reactor", "serial"])
@pytest_twisted.ensureDeferred
async def test_a_handler_that_does_not_end_does_not_hold_up_the_end(log: Log, model: str) -> None:
    begun: list[bytes] = []

    async def stubborn(message: bytes) -> None:
        begun.append(message)
        while not leave:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    leave: list[bool] = []
    if asyncio._get_running_loop() is None:
        not_here("this reactor has no asyncio loop")
    service = build_service(settings(concurrency=model, drain_timeout=0.1), reactor)
    service.listeners[0].factory.handler = adopt(stubborn, service._model.name)
    service.startService()
    client = await connect(service)
    client.send(b"happy\n")
    await eventually(lambda: begun)
    await service.stopService()
    leave.append(True)
    await client.receive_all()
    await eventually(lambda: not service._model.under_way())


@pytest_twisted.ensureDeferred
async def test_a_drain_waits_for_the_handlers_last_calls() -> None:
    closing, leave, closed = threading.Event(), threading.Event(), threading.Event()

    class Tidy(Handler):
        def received(self, message: bytes) -> bytes:
            return message

        def closed(self, reason: str) -> None:
            closing.set()
            leave.wait(10)
            closed.set()

    service = build_service(settings(concurrency="defer-to-thread"), reactor)
    service.listeners[0].factory.handler = adopt(Tidy, service._model.name)
    service.startService()
    client = await connect(service)
    client.send(b"happy\n")
    await client.receive(b"happy\n")
    ends: list[str] = []
    stopped = service.stopService().addCallback(lambda _: ends.append("stopped"))
    await client.receive_all()
    await eventually(closing.is_set)
    assert not ends
    leave.set()
    await stopped
    assert closed.is_set()


@pytest_twisted.ensureDeferred
async def test_an_abort_ends_a_drain() -> None:
    service = build_service(settings(drain_timeout=20.0), reactor)
    service.startService()
    client = await connect(service)
    await client.receive(BANNER)
    client.transport.pauseProducing()
    client.send(b"x" * 10_000_000)
    (connection,) = service.listeners[0].factory.connections
    await eventually(lambda: getattr(connection._session, "blocked", False))  # type: ignore[attr-defined]
    stopped = service.stopService()
    service.abort()
    await stopped
    client.transport.resumeProducing()
    await client.receive_all()


@pytest.fixture
def globals_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Changes of makeService to the process are undone."""
    installed: list[Signals] = []

    class Recorded(Signals):
        def install(self) -> None:
            installed.append(self)
            super().install()

    monkeypatch.setattr(process, "Signals", Recorded)
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    for name in ("sigTerm", "sigInt"):
        monkeypatch.setattr(reactor, name, getattr(reactor, name))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(reactor, "seconds", reactor.seconds, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    for each in installed:
        each.uninstall()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("globals_kept")
def test_make_service_builds_what_the_flags_ask_for(tmp_path: Path, log: Log) -> None:
    (tmp_path / "beside_me.py").write_text("def shout(message: bytes): return message.upper()\n")
    options = Options()
    options.parseOptions(["--listen", LOOPBACK, "--handler", "beside_me:shout"])
    service = makeService(options)
    assert f"Running on the {name_of(reactor)} reactor" in log.text
    assert isinstance(service, EchoService)
    assert service.signals is not None
    assert signal.getsignal(signal.SIGTERM) == reactor.sigTerm
    assert sys.path[-1] == str(tmp_path)
    assert service.listeners[0].factory.handler.message_handler().received(b"a") == b"A"
    makeService(options)
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.usefixtures("globals_kept")
@pytest.mark.parametrize(("model", "more"), [("reactor", 0), ("thread-per-connection", 300)])
def test_there_is_room_for_what_relayed_threads_need(
    monkeypatch: pytest.MonkeyPatch, model: str, more: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(file_limit, "make_room", lambda n: asked.append(n) or n)
    concurrency = ConcurrencyModel(model)
    fit_limits(settings(max_connections=100, max_threads=100, concurrency=concurrency))
    assert asked == [100 + SPARE + more]


@pytest.mark.usefixtures("globals_kept")
def test_the_start_warns_of_each_setting_without_effect_and_names_its_place(
    tmp_path: Path, log: Log
) -> None:
    file = tmp_path / "echod.toml"
    file.write_text("threads = 3")
    options = Options()
    options.parseOptions(["--listen", LOOPBACK, "--config", str(file), "--max-threads=3"])
    makeService(options)
    said = [line for line in log.text.splitlines() if "has no effect" in line]
    assert said == [
        f"{file}: --threads has no effect: it needs --concurrency defer-to-thread",
        "--max-threads has no effect: it needs --concurrency thread-per-connection",
    ]


NO_MESSAGES = [
    ("twisted.protocols.wire:Echo", "a Twisted protocol"),
    ("asyncio:Protocol", "an asyncio protocol"),
]


@pytest.mark.parametrize(("handler", "words"), NO_MESSAGES)
@pytest.mark.usefixtures("globals_kept")
def test_the_start_and_a_check_warn_of_limits_that_the_handlers_kind_ignores(
    handler: str, words: str, log: Log, capfd: pytest.CaptureFixture[str]
) -> None:
    if words.startswith("an asyncio") and loop_of(reactor) is None:
        not_here("this reactor has no asyncio loop, so such a handler is refused at the start")
    flags = ["--listen", LOOPBACK, "--handler", handler]
    flags += ["--max-pending=3", "--handler-timeout=3"]
    options = Options()
    options.parseOptions(flags)
    makeService(options)
    said = [line for line in log.text.splitlines() if "has no effect" in line]
    assert said == [
        f"--max-pending has no effect: {handler} is {words}",
        f"--handler-timeout has no effect: {handler} is {words}",
    ]
    with pytest.raises(SystemExit):
        Options().parseOptions([*flags, "--check-config"])
    assert capfd.readouterr().err.splitlines()[:2] == [f"echod: {line}" for line in said]


def test_a_kind_ignores_only_settings_that_there_are() -> None:
    names = {one.name for one in SETTINGS}
    assert all(names.issuperset(traits.ignores) for traits in KINDS.values())


def test_make_service_refuses_in_one_line() -> None:
    options = Options()
    options.parseOptions(["--handler", "nosuch"])
    with pytest.raises(SystemExit, match=r"^echod: --handler: no handler is named 'nosuch'"):
        makeService(options)


@pytest.mark.parametrize(
    ("flags", "where"),
    [([], "{file}: --handler: no handler"), (["--handler", "no"], "--handler: no handler")],
)
def test_what_the_file_names_and_nobody_has_is_said_with_the_file(
    tmp_path: Path, flags: list[str], where: str
) -> None:
    file = tmp_path / "echod.toml"
    file.write_text("handler = 'nosuch'")
    options = Options()
    options.parseOptions(["--config", str(file), *flags])
    with pytest.raises(SystemExit, match=re.escape(f"echod: {where.format(file=file)}")):
        makeService(options)


@pytest.mark.usefixtures("globals_kept")
def test_a_start_error_is_shown_without_a_traceback(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: seen.append(kind))
    process.show_start_errors_in_one_line()
    sys.excepthook(StartError, StartError("tcp:1: Bind failed."), None)
    assert capfd.readouterr().err == "echod: tcp:1: Bind failed.\n"
    sys.excepthook(ValueError, ValueError(), None)
    assert seen == [ValueError]


def test_what_is_scarce_is_beside_what_is_in_use_of_it() -> None:
    for model, names in {
        "reactor": set(),
        "serial": {"serial-queue"},
        "defer-to-thread": {"threads", "max-queue"},
        "thread-per-connection": {"max-threads"},
    }.items():
        service = build_service(settings(concurrency=model), reactor)
        levels = {level.limit: level for level in service.levels}
        always = {"max-connections", "max-connections-per-address", "descriptors"}
        assert set(levels) == always | names
        assert levels["descriptors"].used > 3
        assert all(level.used < level.most for level in service.levels)
        service._model.stop()
    service = build_service(settings(max_connections=0), reactor)
    assert "max-connections" not in {level.limit for level in service.levels}


def test_a_passed_socket_that_the_status_uses_is_not_called_unused(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        names = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "status"}
        inherited = InheritedSockets(names, first=passed.fileno())
        monkeypatch.setattr(build, "InheritedSockets", lambda environment: inherited)
        build_service(settings(status="systemd:name=status"), reactor)
    assert "systemd passed" not in log.text


class Resisting:
    def __getattr__(self, name: str) -> object:
        raise ValueError("no good")

    def __call__(self, message: bytes) -> bytes:
        return message


def test_a_handler_whose_attributes_raise_is_an_error_of_one_line() -> None:
    with pytest.raises(StartError) as caught:
        build_service(settings(), reactor, given=Resisting())
    said = str(caught.value)
    assert said.startswith("--handler: it cannot be used: ValueError: no good (")
    assert "test_service.py, line " in said


def test_the_name_of_a_handler_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    find = Catalogue.find

    def noted(catalogue: Catalogue, name: str) -> Any:
        found.append(name)
        return find(catalogue, name)

    monkeypatch.setattr(Catalogue, "find", noted)
    build_service(settings(handler=Spec("upper")), reactor)
    assert found.count("upper") == 1
