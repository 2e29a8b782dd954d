from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from echod.daemon import process
from echod.daemon.build import build_service
from echod.daemon.notify import Notifier
from echod.daemon.service import EchoService
from echod.daemon.signals import GRACE, Signals
from echod.errors import UserError
from echod.handlers.naming import Spec
from echod.limits import Limits
from echod.settings.definitions import SETTINGS, Settings
from echod.tls import Files, ServerContext
from tests.daemon.services import connect, settings
from tests.support.certificates import Authority
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.service_manager import managing
from tests.support.serving import LOOPBACK, SlowEndpoint, eventually, in_thread

AUTHORITY = Authority()


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
        service.reloading.configure = Configured(drain_timeout=1.0, drain_spread=2.0)
        service.reload()
        log.take_errors()
        await deferLater(reactor, 0)
        assert manager.hear() == []
        await endpoint.begin()
        await eventually(lambda: bool(manager.hear()))
        await service.stopService()
        manager.hear()
    assert [message[0] for message in manager.heard] == ["READY=1", "STOPPING=1"]


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
    service.reloading.parts.append(process.reload_of_signals(service.signals))
    service.startService()
    client = await connect(service)
    await eventually(lambda: service.listeners[0].factory.connections)
    service.reloading.configure = Configured(
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
        service.reloading.configure = Configured(
            concurrency=concurrency, max_connections_per_address=most
        )
        service.reload()
        shared.append(service._model.shared)  # type: ignore[attr-defined]
    assert shared == [True, False, True]
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_reload_greets_new_clients_with_the_new_banner() -> None:
    service = build_service(settings(), reactor)
    service.startService()
    service.reloading.configure = Configured(banner=b"Good day")
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
    service.reloading.configure = Configured(**wanted)
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
    service.reloading.configure = Configured(idle_timeout=1.0, **values)
    service.reload()
    assert f"Reload refused, nothing has changed: {why}" in log.take_errors()[0]
    assert service.listeners[0].factory.limits == settings().make_limits()


def test_a_reload_shows_an_error_of_the_operators_without_a_place_in_the_program(log: Log) -> None:
    class NewError(UserError):
        """An error that the service does not know."""

    def configure() -> Settings:
        raise NewError("there is no such file\nand more")

    service = build_service(settings(), reactor)
    service.reloading.configure = configure
    service.reload()
    (line,) = log.take_errors()
    assert line.endswith(r"Reload refused, nothing has changed: there is no such file\nand more")


def test_a_reload_whose_modules_cannot_be_imported_asks_for_a_restart(log: Log) -> None:
    def configure() -> Settings:
        from echod import nonesuch  # type: ignore[attr-defined]

        raise AssertionError(nonesuch)

    service = build_service(settings(), reactor)
    service.reloading.configure = configure
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
    service.reloading.configure = Configured(
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
    "echod.daemon.reload.check_for_restart",
    "echod.daemon.reload.reloaded",
    "echod.daemon.reload.differences",
    "echod.daemon.reload.fit_limits",
    "echod.settings.definitions.Settings.make_limits",
    "echod.settings.definitions.Settings.make_banner",
    "echod.tls.files.validity",
    "tests.daemon.test_reload.Configured.__call__",
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
        service.reloading.configure = Configured(
            banner=b"Good day", idle_timeout=1.0, log_level="warn"
        )
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
    """A service with a folder of certificates, for one listener, or one for each.

    Attributes:
        folder: the folder.
        service: the service, which has started.
        turns: in which turn of the event loop each certificate of a reload was loaded.
        seen: the serial numbers that were served then.
        after_two: called in the turn after the second one was loaded.
    """

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, listener_for_each: bool
    ) -> None:
        self.folder = folder
        self.issue()
        files = [f"{folder}/{n}.pem" for n in range(HOSTS)] if listener_for_each else [f"{folder}"]
        listen = tuple(f"tls:{LOOPBACK}:certificate={file}" for file in files)
        self.service = build_service(settings(listen=listen), reactor)
        self.service.startService()
        self.service.reloading.configure = Configured(listen=listen)
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
def many(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ManyCertificates]:
    listener_for_each = getattr(request, "param", False)
    made = ManyCertificates(tmp_path, monkeypatch, listener_for_each=listener_for_each)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.end()))


@pytest.mark.parametrize("many", [False, True], indirect=True)
@pytest_twisted.ensureDeferred
async def test_a_reload_loads_one_certificate_in_a_turn_and_applies_all_at_once(
    many: ManyCertificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 192: No turn of the event loop loads more than one of them, and all are served from
    the same turn on.
    """
    monkeypatch.setattr("echod.daemon.reload.NAMED", 2)
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
    many.service.reloading.configure.values["idle_timeout"] = 7.0  # type: ignore[attr-defined]
    (many.folder / f"{HOSTS - 1}.pem").write_text("damaged")
    many.service.reload()
    await eventually(lambda: many.service.reloading.refused)
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
    listen = many.service.reloading.configure.values["listen"]  # type: ignore[attr-defined]
    many.service.reloading.configure = Configured(listen=(*listen, added))
    many.service.reload()
    await eventually(lambda: log.has("Reloaded"))
    assert len(many.turns) == len(set(many.turns)) == 2 * HOSTS
    assert "Ignored until restart: listen" in log.text
    (many.folder / f"{HOSTS - 1}.pem").write_text("damaged")
    many.turns.clear()
    many.service.reload()
    await eventually(lambda: many.service.reloading.refused)
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
    service.reloading.configure = Configured(drain_timeout=1.0, drain_spread=2.0, idle_timeout=1.0)
    service.reload()
    why = "--drain-spread (2) must be shorter than --drain-timeout (1)"
    assert log.take_errors()[0].endswith(f"Reload refused, nothing has changed: {why}")
    assert service.listeners[0].factory.limits is limits
    assert service.describe() == f"Serving; connections: 0; the last reload was refused: {why}"
    service.reloading.configure = Configured()
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
