from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.task import Clock, deferLater

from echod.awaiting import loop_of
from echod.concurrency.models import InPool, InReactor, Serial, ThreadPerConnection
from echod.daemon import build, ending, file_limit, process, service
from echod.daemon.build import build_service, make_model
from echod.daemon.choose_reactor import name_of
from echod.daemon.file_limit import SPARE, fit_limits
from echod.daemon.notify import Notifier
from echod.daemon.process import Options
from echod.daemon.resolve import StartError
from echod.daemon.service import EchoService
from echod.daemon.signals import GRACE, Signals
from echod.entry import makeService
from echod.errors import UserError
from echod.handlers.contract import ConcurrencyModel, Handler
from echod.handlers.kinds import KINDS
from echod.handlers.lookup import adopt
from echod.handlers.naming import Catalogue, Spec
from echod.limits import Limits
from echod.listening.socket_activation import InheritedSockets
from echod.settings.definitions import SETTINGS, Settings
from echod.tls import Files, ServerContext
from tests.support.certificates import Authority
from tests.support.clients import BANNER
from tests.support.log import Log
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.service_manager import managing
from tests.support.serving import LOOPBACK, SlowEndpoint, Talker, eventually, in_thread

AUTHORITY = Authority()


def settings(**values: Any) -> Settings:
    return Settings(**{"listen": (LOOPBACK,), **values})


async def connect(service: EchoService, listener: int = 0) -> Talker:
    address = service.listeners[listener].address
    endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{address.port}")
    return await connectProtocol(endpoint, Talker())


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
async def test_the_manager_hears_of_no_reload_before_everybody_listens(
    tmp_path: Path, log: Log
) -> None:
    service = build_service(settings(listen=(LOOPBACK, LOOPBACK)), reactor)
    endpoint = SlowEndpoint()
    service.listeners[1]._endpoint = endpoint  # type: ignore[assignment]
    with managing(str(tmp_path / "notify")) as manager:
        service.notifier = Notifier(reactor, service.describe, address=manager.address)
        service.startService()
        service.reload()
        service.configure = Configured(drain_timeout=1.0, drain_spread=2.0)
        service.reload()
        log.take_errors()
        await deferLater(reactor, 0)
        assert manager.hear() == []
        await endpoint.begin()
        await eventually(lambda: bool(manager.hear()))
        await service.stopService()
        manager.hear()
    assert [message[0] for message in manager.heard] == ["READY=1", "STOPPING=1"]


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


class Configured:
    """Settings that can be read again."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def __call__(self) -> Settings:
        return settings(**self.values)


@pytest_twisted.ensureDeferred
async def test_a_reload_changes_what_it_can_for_open_connections_too(log: Log) -> None:
    service = build_service(settings(concurrency="serial"), reactor)
    service.signals = Signals(reactor, abort=str, reload=str, patience=1)
    service.parts.append(process.reload_of_signals(service.signals))
    service.startService()
    client = await connect(service)
    await eventually(lambda: service.listeners[0].factory.connections)
    service.configure = Configured(
        concurrency="serial",
        idle_timeout=0.1,
        serial_timeout=3.0,
        drain_timeout=5.0,
        stall_threshold=0.0,
        slow_handler=5.0,
        handler_timeout=7.0,
        threads=3,
    )
    service.reload()
    assert (
        "Reloaded; changed: drain-timeout, idle-timeout, serial-timeout, stall-threshold, "
        "slow-handler, handler-timeout" in log.text
    )
    assert service._slow.threshold == 5.0
    assert service.listeners[0].factory.limits.handler_timeout == 7.0
    assert "Ignored until restart: threads" in log.text
    assert service.signals.patience == 5.0 + GRACE
    assert service._model.patience == 3.0  # type: ignore[attr-defined]
    assert await client.receive_all() == b""
    await service.stopService()


@pytest.mark.parametrize("concurrency", ["serial", "thread-per-connection"])
@pytest_twisted.ensureDeferred
async def test_a_reload_says_anew_whether_addresses_have_shares(concurrency: str) -> None:
    service = build_service(settings(concurrency=concurrency), reactor)
    service.startService()
    shared = [service._model.shared]  # type: ignore[attr-defined]
    for most in (0, 7):
        service.configure = Configured(concurrency=concurrency, max_connections_per_address=most)
        service.reload()
        shared.append(service._model.shared)  # type: ignore[attr-defined]
    assert shared == [True, False, True]
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_reload_greets_new_clients_with_the_new_banner() -> None:
    service = build_service(settings(), reactor)
    service.startService()
    service.configure = Configured(banner=b"Good day")
    service.reload()
    client = await connect(service)
    await client.receive(b"Good day\n")
    await service.stopService()
    await client.receive_all()


@pytest_twisted.ensureDeferred
async def test_a_reload_reads_the_certificate_of_the_status_again(
    tmp_path: Path, log: Log
) -> None:
    path = tmp_path / "status.pem"
    path.write_bytes(Authority().pem)
    wanted = {"status": f"tls:{LOOPBACK}:certificate={path}"}
    service = build_service(settings(**wanted), reactor)
    service.startService()
    assert service.status is not None
    address = ("127.0.0.1", service.status.address.port)
    shown: list[str] = []
    await in_thread(lambda: shown.append(ssl.get_server_certificate(address)))
    path.write_bytes(Authority().pem)
    service.configure = Configured(**wanted)
    service.reload()
    await in_thread(lambda: shown.append(ssl.get_server_certificate(address)))
    assert shown[0] != shown[1]
    (served,) = service.certificates
    assert f"Reloaded; changed: certificate {path} (serial {served.serial})" in log.text
    service.reload()
    assert "Reloaded; changed: nothing" in log.text
    path.write_bytes(path.read_bytes() + Authority().certificate)
    service.reload()
    chained = f"changed: key, chain or client-ca of certificate {path} (serial {served.serial})"
    assert chained in log.text
    assert service.certificates == [served]
    await service.stopService()


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


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"handler": Spec("nosuch")}, "--handler: no handler is named 'nosuch'"),
        ({"framing": Spec("nosuch")}, "--framing: no framing is named 'nosuch'"),
        ({"listen": (LOOPBACK, "tcp:99999999")}, "--listen tcp:99999999: 99999999 is not a port"),
        ({"status": "proxy:tcp:0"}, "--status proxy:tcp:0: no PROXY header is read here"),
        (
            {"status": "tls:0:certificate=none.pem"},
            "--status tls:0:certificate=none.pem: cannot read ",
        ),
    ],
)
def test_a_reload_refuses_what_the_next_start_would_refuse(
    values: dict[str, Any], why: str, log: Log
) -> None:
    service = build_service(settings(), reactor)
    service.configure = Configured(idle_timeout=1.0, **values)
    service.reload()
    assert f"Reload refused, nothing has changed: {why}" in log.take_errors()[0]
    assert service.listeners[0].factory.limits == settings().make_limits()


def test_a_reload_shows_an_error_of_the_operators_without_a_place_in_the_program(log: Log) -> None:
    class NewError(UserError):
        """An error that the service does not know."""

    def configure() -> Settings:
        raise NewError("there is no such file\nand more")

    service = build_service(settings(), reactor)
    service.configure = configure
    service.reload()
    (line,) = log.take_errors()
    assert line.endswith(r"Reload refused, nothing has changed: there is no such file\nand more")


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


def test_a_reload_whose_modules_cannot_be_imported_asks_for_a_restart(log: Log) -> None:
    def configure() -> Settings:
        from echod import nonesuch  # type: ignore[attr-defined]

        raise AssertionError(nonesuch)

    service = build_service(settings(), reactor)
    service.configure = configure
    service.reload()
    (line,) = log.take_errors()
    assert "cannot import name 'nonesuch'" in line
    assert line.endswith("may no longer read its modules, as after --chroot; a restart takes them")


@pytest_twisted.ensureDeferred
async def test_a_reload_imports_nothing_and_looks_for_no_sockets_that_are_not_passed_yet(
    log: Log,
) -> None:
    service = build_service(settings(), reactor)
    service.startService()
    service.configure = Configured(
        handler=Spec("nosuch:handler"),
        framing=Spec("nosuch:Framing"),
        listen=("systemd:name=echod",),
        status="systemd:name=status",
    )
    service.reload()
    assert "Ignored until restart: listen, handler, framing, status" in log.text
    await service.stopService()


def fail(*_: object, **__: object) -> Any:
    raise IndexError("list index out of range\nand more")


# Where a fault in the program could show itself.
FAULTS = [
    "echod.daemon.service.check_for_restart",
    "echod.daemon.service.reloaded",
    "echod.daemon.service.differences",
    "echod.daemon.service.fit_limits",
    "echod.settings.definitions.Settings.make_limits",
    "echod.settings.definitions.Settings.make_banner",
    "echod.tls.files.validity",
    "tests.daemon.test_service.Configured.__call__",
]


@pytest.mark.parametrize("where", FAULTS)
@pytest_twisted.ensureDeferred
async def test_whatever_goes_wrong_in_a_reload_changes_nothing(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Fault 80: If anything goes wrong in a reload, nothing changes, and one line says why, to the
    log and to the service manager.
    """
    path = tmp_path / "server.pem"
    path.write_bytes(Authority().pem)
    service = build_service(settings(listen=(f"tls:{LOOPBACK}:certificate={path}",)), reactor)
    with managing(str(tmp_path / "notify")) as manager:
        service.notifier = Notifier(reactor, service.describe, address=manager.address)
        service.startService()
        await eventually(lambda: bool(manager.hear()))
        before = state(service)
        service.configure = Configured(banner=b"Good day", idle_timeout=1.0, log_level="warn")
        with monkeypatch.context() as patch:
            patch.setattr(where, fail)
            service.reload()
        said = [line for line in log.take_errors() if "Reload refused" in line]
        why = r"IndexError: list index out of range\nand more ("
        assert [f"nothing has changed: {why}" in line for line in said] == [True]
        assert state(service) == before
        await eventually(lambda: bool(manager.hear()))
        assert [message[0] for message in manager.heard] == ["READY=1", "RELOADING=1", "READY=1"]
        assert any(why in line for line in manager.heard[-1])
        await service.stopService()


def state(service: EchoService) -> list[Any]:
    """Return all that a reload may change."""
    (listener,) = service.listeners
    assert isinstance(listener.tls, ServerContext)
    factory = listener.factory
    return [
        *(service._settings, listener.tls._loaded, service._watch),
        *(factory.limits, factory.admission.limits, factory.banner),
    ]


HOSTS = 6


class ManyCertificates:
    """A service with a folder of certificates.

    Attributes:
        folder: the folder.
        service: the service, which has started.
        turns: in which turn of the event loop each certificate of a reload was loaded.
        seen: the serial numbers that were served then.
        after_two: called in the turn after the second one was loaded.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.issue()
        listen = (f"tls:{LOOPBACK}:certificate={folder}",)
        self.service = build_service(settings(listen=listen), reactor)
        self.service.startService()
        self.service.configure = Configured(listen=listen)
        self.turns: list[int] = []
        self.seen: list[list[str]] = []
        self.after_two: Callable[[], object] = str
        self._turn = 0
        self._call: Any = None
        load = Files._load

        def noted(*arguments: Any) -> Any:
            self.turns.append(self._turn)
            self.seen.append(self.serials)
            if len(self.turns) == 2:
                reactor.callLater(0, self.after_two)
            return load(*arguments)

        monkeypatch.setattr(Files, "_load", noted)
        self._count()

    def _count(self) -> None:
        self._turn += 1
        self._call = reactor.callLater(0, self._count)

    def issue(self) -> None:
        """Write new certificates."""
        for number in range(HOSTS):
            host = f"{number}.example"
            (self.folder / f"{number}.pem").write_bytes(AUTHORITY.issue(host, hosts=[host]))

    @property
    def serials(self) -> list[str]:
        return [each.serial for each in self.service.certificates]

    async def end(self) -> None:
        await self.service.stopService()
        self._call.cancel()


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ManyCertificates]:
    made = ManyCertificates(tmp_path, monkeypatch)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.end()))


@pytest_twisted.ensureDeferred
async def test_a_reload_loads_one_certificate_in_a_turn_and_applies_all_at_once(
    many: ManyCertificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 192: No turn of the event loop loads more than one of them, and all are served from
    the same turn on.
    """
    monkeypatch.setattr(service, "NAMED", 2)
    before = many.serials
    many.issue()
    many.service.reload()
    await eventually(lambda: log.has("Reloaded"))
    (line,) = re.findall("Reloaded; changed: (.*)", log.text)
    assert line.count(" (serial ") == 2
    assert line.endswith(f"), {HOSTS - 2} more certificates")
    assert len(many.turns) == len(set(many.turns)) == HOSTS
    assert many.seen == [before] * HOSTS
    assert not set(many.serials) & set(before)
    await eventually(lambda: log.count(f"{many.folder}/", since="Reloaded") == HOSTS)


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_cannot_be_used_at_the_end_of_a_long_reload_changes_nothing(
    many: ManyCertificates, log: Log
) -> None:
    """Fault 192: One that cannot be used changes nothing, even if it is the last one."""
    before = many.serials
    many.issue()
    many.service.configure.values["idle_timeout"] = 7.0  # type: ignore[attr-defined]
    (many.folder / f"{HOSTS - 1}.pem").write_text("damaged")
    many.service.reload()
    await eventually(lambda: many.service._refused)
    assert len(many.turns) == HOSTS
    assert many.serials == before
    assert many.service.listeners[0].factory.limits.idle_timeout != 7.0
    assert f"{HOSTS - 1}.pem holds no certificate" in log.take_errors()[0]


@pytest_twisted.ensureDeferred
async def test_the_certificates_of_an_endpoint_that_a_reload_adds_are_loaded_one_in_a_turn(
    many: ManyCertificates, log: Log
) -> None:
    """Fault 192: Those of an endpoint that is new in the file are tried the same way, though only
    the next start listens there.
    """
    added = f"tls:1:certificate={many.folder}:alpn=x"
    listen = many.service.configure.values["listen"]  # type: ignore[attr-defined]
    many.service.configure = Configured(listen=(*listen, added))
    many.service.reload()
    await eventually(lambda: log.has("Reloaded"))
    assert len(many.turns) == len(set(many.turns)) == 2 * HOSTS
    assert "Ignored until restart: listen" in log.text
    (many.folder / f"{HOSTS - 1}.pem").write_text("damaged")
    many.turns.clear()
    many.service.reload()
    await eventually(lambda: many.service._refused)
    assert len(many.turns) == HOSTS
    why = f"--listen {added}: {many.folder}/{HOSTS - 1}.pem holds no certificate"
    assert why in log.take_errors()[0]


@pytest_twisted.ensureDeferred
async def test_a_reload_that_is_asked_for_during_another_one_follows_it(
    many: ManyCertificates, log: Log
) -> None:
    """Fault 192: SIGHUP in the middle of a reload takes what the files hold then."""

    def change() -> None:
        many.issue()
        for _ in range(3):
            many.service.reload()

    many.after_two = change
    many.service.reload()
    await eventually(lambda: log.count("Reloaded") == 2)
    assert len(many.turns) == 2 * HOSTS
    paths = [one.path for one in many.service.certificates]
    fresh = ServerContext(Files(str(many.folder))).served
    assert [(one.path, one.serial) for one in fresh] == list(zip(paths, many.serials, strict=True))


@pytest_twisted.ensureDeferred
async def test_a_drain_ends_a_reload(many: ManyCertificates, log: Log) -> None:
    """Fault 192: A drain ends the reload."""
    stopped = Deferred[None]()
    many.after_two = lambda: many.service.stopService().chainDeferred(stopped)
    for _ in range(2):
        many.service.reload()
    await stopped
    for _ in range(HOSTS):
        await deferLater(reactor, 0)
    assert len(many.turns) == 2
    assert "Reloaded" not in log.text


@pytest_twisted.ensureDeferred
async def test_a_reload_that_is_refused_changes_nothing_and_says_why(log: Log) -> None:
    service = build_service(settings(), reactor)
    service.startService()
    limits = service.listeners[0].factory.limits
    service.configure = Configured(drain_timeout=1.0, drain_spread=2.0, idle_timeout=1.0)
    service.reload()
    why = "--drain-spread (2) must be shorter than --drain-timeout (1)"
    assert log.take_errors()[0].endswith(f"Reload refused, nothing has changed: {why}")
    assert service.listeners[0].factory.limits is limits
    assert service.describe() == f"Serving; connections: 0; the last reload was refused: {why}"
    service.configure = Configured()
    service.reload()
    assert "Reloaded; changed: nothing" in log.text
    assert service.describe() == "Serving; connections: 0"
    await service.stopService()
    service.reload()
    assert log.text.count("Reloaded") == 1


def test_every_setting_that_is_said_to_reload_is_known_to_the_reload() -> None:
    limits = {one.name for one in fields(Limits)}
    assert {one.name for one in SETTINGS if one.text.reload} - limits == {
        *("banner", "no_banner", "drain_timeout", "drain_spread"),
        *("stall_threshold", "slow_handler", "worker_timeout"),
        *("log_level", "log_rate", "log_files"),
    }


def test_the_name_of_a_handler_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    find = Catalogue.find

    def noted(catalogue: Catalogue, name: str) -> Any:
        found.append(name)
        return find(catalogue, name)

    monkeypatch.setattr(Catalogue, "find", noted)
    build_service(settings(handler=Spec("upper")), reactor)
    assert found.count("upper") == 1
