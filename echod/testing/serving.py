"""Serve a handler on a free port, within this process: the daemon without twistd.

The service is the daemon's own, with every setting; the log of the process, signals, and the
service manager are left alone. It records each connection, and its faults on purpose may change
while it runs. For that, all bytes pass through the event loop, also those of a handler with a
thread of its own; `direct=True` does without.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from echod.addresses import reachable_here
from echod.connections.clients import log_failure
from echod.connections.kernel import client_ended, queued, unsent
from echod.connections.lifecycle import ConnectionProtocol
from echod.connections.transport_layers import holds
from echod.daemon.build import build_service
from echod.daemon.resolve import find_framing
from echod.handlers.client import Client
from echod.handlers.framings import adopt_framing
from echod.handlers.naming import Spec
from echod.reasons import EndReason
from echod.settings.definitions import SETTINGS, Settings
from echod.settings.schema import SettingError
from echod.testing.client import Connection
from echod.testing.reactor_thread import call, installed_reactor, is_own_thread, running_reactor

if TYPE_CHECKING:
    from echod.daemon.service import EchoService
    from echod.faults import Rule
    from echod.journal import Journal, Record
    from echod.messages.framing import Framing

T = TypeVar("T")

# The settings of a test, where they differ from the daemon's: a free port on this machine, no
# watch over the process, and an end within a test's patience.
DEFAULTS: dict[str, Any] = {
    "listen": ("tcp:0:interface=127.0.0.1",),
    "stall_threshold": 0.0,
    "slow_handler": 0.0,
    "drain_timeout": 5.0,
}
# A test looks at fewer connections than the journal keeps, and at less of what they sent.
RECORDS: dict[str, Any] = {"journal": 10_000, "journal_bytes": 64 * 1024}

# For how long `Server.connections` lets the server catch up with its clients, in seconds.
PATIENCE = 5.0
# The same before its end; and how often, in seconds, it then cuts off those that are left.
LAST_PATIENCE = 1.0
HURRY = 0.05
# After so many turns of the loop, uvloop has made the connection of each accepted client.
TURNS = 10


def serving(
    handler: object = "echo",
    *,
    tls: bool = False,
    unix: bool = False,
    direct: bool = False,
    **settings: Any,
) -> Server:
    """Return a server for a handler; `with` starts it, and ends it with a drain.

    Args:
        handler: a handler of any kind, `functools.partial` of one for its arguments, or the text
            of `--handler`.
        tls: whether it listens by `badtls:`, with a good certificate for localhost and 127.0.0.1,
            and ones with mistakes for other names; `Server.ca` is the file of their authority. It
            needs the package cryptography.
        unix: whether it listens on a UNIX socket, of which `Server.address` is the path.
        direct: whether connections go the daemon's shortest way: `Server.connections` has nothing
            of what clients have sent, and the faults cannot change.
        **settings: the daemon's settings by their names, as in `framing="line"`,
            `framing=MyFraming(100)`, `idle_timeout=1`, `concurrency="defer-to-thread"` or
            `listen="unix:/tmp/sock"`: texts as on the command line, or values.

    Returns:
        The server. Use it by `with`; or by `async with` in a test that the reactor itself runs
        (pytest-twisted), where blocking calls would stop the server too.

    Raises:
        SettingError: there is no such setting, its value is not valid, two contradict, or it is
            `workers`.
        StartError, UnusableFraming: the framing cannot be used.
    """
    framing = None
    if (tls or unix) and (own := {"listen", "port"} & settings.keys()):
        raise SettingError(f"{own.pop()}: tls=True and unix=True say where to listen")
    if not direct:
        settings = RECORDS | settings
    if not isinstance(settings.get("framing", ""), str | Spec):
        framing = adopt_framing(settings.pop("framing"))
        if own := {"delimiter", "max_message"} & settings.keys():
            raise SettingError(f"{own.pop()}: give it to the framing itself")
    if isinstance(handler, str):
        made = make_settings({"handler": handler, **settings})
        handler = None
    else:
        made = make_settings(settings)
    if made.workers:
        raise SettingError(
            "workers: the server runs in the process of the test; start `echod serve` for several"
        )
    return Server(handler, made, framing, tls=tls, unix=unix, direct=direct)


def _ask(function: Callable[..., T], *arguments: object) -> T:
    """Call `function` in the reactor's thread, which may be this one."""
    return function(*arguments) if is_own_thread() else call(function, *arguments)


def _import_ahead(rules: Iterable[Rule], *, tls: bool = False) -> None:
    """Import, in the test's thread, what makes certificates: that takes 70 ms, in which the
    reactor would serve no client of the test's other servers.
    """
    if tls or any(getattr(rule.fault, "ca", None) is not None for rule in rules):
        with suppress(ImportError):  # the server says so
            import echod.tls.mistakes  # noqa: F401


def _connections_of(service: EchoService) -> list[ConnectionProtocol]:
    owned = [one for listener in service.listeners for one in listener.factory.connections]
    return [one for one in owned if isinstance(one, ConnectionProtocol)]


def _cut_off_those_left(service: EchoService) -> None:
    """End connections for which a drain would wait in vain."""
    for one in _connections_of(service):
        stream = one.transport
        if holds(stream) or (one.is_closing and not unsent(stream) and not queued(stream)):
            one.abort(EndReason.ABORTED)


def make_settings(given: dict[str, object]) -> Settings:
    """Return settings from texts or values by name, with a test's defaults.

    Raises:
        SettingError: there is no such setting, or its value is not valid.
    """
    known = {one.name: one for one in SETTINGS}
    values = dict(DEFAULTS)
    if "port" in given:
        del values["listen"]
    for name, value in given.items():
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingError(f"serving takes no setting {name!r}{hint}")
        one = known[name]
        try:
            if type(value) is str and one.native in (int, float):
                value = one.from_flag(value)
            elif type(value) in (str, int, float, bool, list):
                value = one.from_file(value)
        except SettingError as error:
            raise SettingError(f"{name}: {error}") from None
        values[name] = value
    return Settings(**values)


class Server:
    """A handler that is served.

    Attributes:
        framing: how messages and replies are framed.
        service: the daemon's service, for all that is not here; None while it does not run.
    """

    def __init__(
        self,
        handler: object,
        settings: Settings,
        framing: Framing | None = None,
        *,
        tls: bool = False,
        unix: bool = False,
        direct: bool = False,
    ) -> None:
        """Set up, without listening; see `serving`."""
        self._errors: list[BaseException] = []
        self._errors_seen = False
        self.service: EchoService | None = None
        self._handler = handler
        self._settings = settings
        self._tls = tls
        self._unix = unix
        self._direct = direct
        # For its socket, and the authority's certificate.
        self._folder: TemporaryDirectory[str] | None = None
        self._rules: list[Rule] = list(settings.fault)
        self._journal: Journal[ConnectionProtocol] | None = None
        self._given_framing = framing
        self.framing = framing or find_framing(settings)
        self._connections: list[Connection] = []
        self._drained: Deferred[None] | None = None

    # In a test's own thread.

    def __enter__(self) -> Self:
        if self.service is not None:  # pytest's fixture has started it
            return self
        if is_own_thread():
            raise RuntimeError(
                "the reactor runs in this thread, so a blocking client would wait for ever: "
                "use `async with serving(...)` (if pytest-twisted runs it, and your tests need no "
                "reactor: `pytest -p no:twisted`)"
            )
        running_reactor()
        _import_ahead(self._rules, tls=self._tls)
        call(self._start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._raise_unseen(error)

    def drain(self) -> None:
        """Begin to end, as at SIGTERM: answer all that was received, and close."""
        call(self._drain)

    def stop(self) -> None:
        """End, as at SIGTERM, and wait for the end; harmless if it has ended.

        Unlike a daemon, it waits for no connection that a fault holds, nor for a client that has
        everything and does not close.
        """
        if self._journal is not None:  # clients that have closed before this are no drained ones
            self._catch_up(LAST_PATIENCE)
        self._close_clients()
        call(self._stop)

    def connect(
        self,
        *,
        tls: ssl.SSLContext | bool | None = None,
        server_name: str = "",
        timeout: float = 5.0,
    ) -> Connection:
        """Connect a client, which closes with the server at the latest.

        Args:
            tls: the client's TLS, or True for one that trusts `ca`; None to connect in clear, and
                perhaps to `begin_tls` later.
            server_name: the name that the certificate has to be for; "localhost" by default, if
                `tls` checks names.
            timeout: how long each wait of the client may take, in seconds.

        Raises:
            RuntimeError: the reactor runs in this thread, so a blocking client would stop it.
            OSError: the server cannot be reached.
        """
        if is_own_thread():
            raise RuntimeError(
                "the reactor runs in this thread, so a blocking client would wait for ever: "
                f"connect by Twisted, as in clientFromString(reactor, {self.endpoint!r})"
            )
        address = self.address
        if isinstance(address, str):
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(timeout)
            connected.connect(address)
        else:
            connected = socket.create_connection(address, timeout)
        connection = Connection(connected, self.framing, self._last_error)
        self._connections.append(connection)
        if tls:
            trusting = ssl.create_default_context(cafile=self.ca) if tls is True else tls
            connection.begin_tls(trusting, server_name=server_name)
        return connection

    # In a test that the reactor runs.

    async def __aenter__(self) -> Self:
        if not is_own_thread():  # an asyncio test, say: its reactor runs in another thread
            return self.__enter__()
        await maybeDeferred(self._start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if is_own_thread():
            await self._stop()
        else:
            self.stop()
        self._raise_unseen(error)

    # Faults on purpose.

    def fault(self, *faults: str) -> Self:
        """Add faults on purpose, before the start, or for open connections and new ones.

        A new fault counts connections, bytes and seconds from now on; the open connections come
        first, in the order in which they came.

        Args:
            *faults: texts as `--fault` takes them, as in `"reset:after=10,first=2"`; the first
                of all is nearest to the client.

        Raises:
            FaultError: there is no such fault, or it takes no such key or value.
            RuntimeError: the server runs, and is `direct`.
        """
        from echod.faults import parse_fault

        return self._use_faults([*self._rules, *map(parse_fault, faults)])

    def unfault(self, *faults: str) -> Self:
        """Take faults away, all of them by default; bytes that they alone held pass at once.

        Args:
            *faults: their names, or their texts as they were added.

        Raises:
            ValueError: there is no such fault here.
            RuntimeError: the server runs, and is `direct`.
        """
        for text in faults:
            if not any(text in (str(rule), rule.fault.name) for rule in self._rules):
                has = ", ".join(self.faults) or "none"
                raise ValueError(f"the server has no fault {text!r}; it has: {has}")
        kept = [
            rule
            for rule in self._rules
            if faults and not {str(rule), rule.fault.name} & set(faults)
        ]
        return self._use_faults(kept)

    @property
    def faults(self) -> list[str]:
        """The faults on purpose, as `--fault` takes them."""
        return [str(rule) for rule in self._rules]

    def _use_faults(self, rules: list[Rule]) -> Self:
        if self.service is not None:
            _import_ahead(rules)
            _ask(self.service.change_faults, rules)
        self._rules = rules
        return self

    # The state of the server.

    @property
    def errors(self) -> list[BaseException]:
        """The exceptions of the handler, in order.

        A test that does not look at them fails at the end of `with`, if there is one.
        """
        self._errors_seen = True
        return self._errors

    def _last_error(self) -> BaseException | None:
        return self._errors[-1] if self._errors else None

    def _raise_unseen(self, error: BaseException | None) -> None:
        """Fail a test that has not looked at the handler's errors."""
        if error is None and self._errors and not self._errors_seen:
            first = self._errors[0]
            self._errors_seen = True  # the fixture ends a server that `with` has ended before
            raise AssertionError(f"the handler has raised {first!r}") from first

    @property
    def address(self) -> tuple[str, int] | str:
        """The address of the first listener: host and port, or the path of a UNIX socket."""
        listener = self._running.listeners[0]
        found: Any = listener.address
        if isinstance(found, UNIXAddress):
            return cast("bytes", found.name).decode()
        return reachable_here(found.host), found.port

    @property
    def ca(self) -> str:
        """The path of the authority's certificate, for clients to trust, with `tls=True`."""
        if not self._tls:
            raise RuntimeError("the server has no authority: it was made without tls=True")
        return f"{self._own_folder}/ca.pem"

    @property
    def _own_folder(self) -> str:
        if self._folder is None:
            raise RuntimeError("the server does not run: use `with serving(...) as server:`")
        return self._folder.name

    @property
    def host(self) -> str:
        """The host of the first listener."""
        address = self.address
        return address if isinstance(address, str) else address[0]

    @property
    def port(self) -> int:
        """The port of the first listener; 0 for a UNIX socket."""
        address = self.address
        return 0 if isinstance(address, str) else address[1]

    @property
    def endpoint(self) -> str:
        """The endpoint string of a Twisted client."""
        address = self.address
        return f"unix:{address}" if isinstance(address, str) else f"tcp:{self.host}:{self.port}"

    @property
    def connections(self) -> list[Record]:
        """A record of each connection, in the order in which they came, open or ended.

        It is there after the end, too. First the server catches up with its clients, for up to 5
        seconds: it accepts those that wait, and notices which have ended their stream. (It does
        not wait where a fault holds the end, or in a test that the reactor itself runs.)
        """
        self._catch_up(PATIENCE)
        journal = self._journal
        if journal is None:
            raise RuntimeError("the server has not run, or its setting `journal` is 0")
        return _ask(lambda: list(journal.records()))

    def _catch_up(self, timeout: float) -> None:
        """Let the server notice which clients have come, and which have ended their stream."""
        if self.service is not None and not is_own_thread():
            with suppress(TimeoutError):
                self.wait_until(lambda: call(self._has_caught_up), timeout)

    @property
    def open(self) -> int:
        """How many connections are open, by the server's count."""
        return sum(len(one.factory.connections) for one in self._running.listeners)

    @property
    def closing(self) -> int:
        """How many of them the server has begun to close."""
        return call(lambda: sum(one.is_closing for one in self._connections_of_the_service()))

    @property
    def accepted(self) -> int:
        """How many connections there have been."""
        return sum(one.factory.metrics.accepted for one in self._running.listeners)

    @property
    def messages(self) -> int:
        """How many messages the handler has got."""
        return call(self._count_messages)

    def wait_until(self, condition: Callable[[], object], timeout: float = 5.0) -> None:
        """Wait until a condition about the server holds; it is tried again and again.

        Raises:
            TimeoutError: it has not held for `timeout` seconds.
        """
        deadline, pause = time.monotonic() + timeout, 0.0005
        while not condition():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"this has not come true in {timeout:g} s: {condition}")
            time.sleep(pause)
            pause = min(0.01, pause * 2)

    @property
    def _running(self) -> EchoService:
        if self.service is None:
            raise RuntimeError("the server does not run: use `with serving(...) as server:`")
        return self.service

    # In the reactor's thread.

    def _start(self) -> Deferred[None]:
        reactor = installed_reactor()
        assert reactor is not None
        try:
            service = build_service(
                replace(self._settings, fault=tuple(self._rules), **self._own_endpoint()),
                reactor,
                self._handler,
                self._given_framing,
                faults_change=not self._direct,
            )
        except BaseException:
            self._remove_folder()
            raise
        self._journal = service.journal
        for listener in service.listeners:
            listener.factory.report = self._failed
        service.privilegedStartService()
        ready: Deferred[None] = Deferred()
        service.when_ready = partial(ready.callback, None)
        service.when_not_opened = ready.errback
        self.service = service
        service.startService()
        ready.addCallback(self._is_ready).addErrback(self._cannot_start)
        return ready

    def _own_endpoint(self) -> dict[str, Any]:
        """Return the setting of the listener, if that is the server's own choice."""
        if not (self._tls or self._unix):
            return {}
        self._folder = TemporaryDirectory(prefix="echod-")
        folder = self._folder.name
        place = f"unix:{folder}/socket" if self._unix else "tcp:0:interface=127.0.0.1"
        return {"listen": (f"badtls:{place}:ca={folder}/ca.pem" if self._tls else place,)}

    def _is_ready(self, _: object) -> None:
        # A service's handler may ask for a framing.
        self.framing = self._running.listeners[0].factory.framing

    def _cannot_start(self, failure: Failure) -> Deferred[None]:
        return self._stop().addCallback(lambda _: failure.raiseException())

    def _drain(self) -> None:
        if self._drained is None and self.service is not None:
            self._drained = maybeDeferred(self.service.stopService)

    def _stop(self) -> Deferred[None]:
        self._drain()
        service, drained = self.service, self._drained
        self._drained = self.service = None
        if service is None or drained is None:
            self._remove_folder()
            return succeed(None)
        hurry = LoopingCall(_cut_off_those_left, service)
        hurry.clock = service.reactor
        hurry.start(HURRY, now=False)

        def end(result: T) -> T:
            hurry.stop()
            self._remove_folder()
            return result

        return drained.addBoth(end)

    def _remove_folder(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    def _count_messages(self) -> int:
        ended = sum(one.factory.metrics.messages for one in self._running.listeners)
        return ended + sum(one.figures[0] for one in self._connections_of_the_service())

    async def _has_caught_up(self) -> bool:
        """Return whether the server has noticed all clients that have come, and all ends."""
        for _ in range(TURNS):
            if self._is_behind():
                return False
            await deferLater(self._running.reactor, 0)
        return not self._is_behind()

    def _is_behind(self) -> bool:
        """Return whether the server will soon notice clients, or their ends, by itself."""
        listeners = self._running.listeners
        return any(one.has_waiting_clients for one in listeners) or any(
            client_ended(one.transport) and not holds(one.transport)
            for one in self._connections_of_the_service()
        )

    def _connections_of_the_service(self) -> list[ConnectionProtocol]:
        return _connections_of(self._running)

    def _failed(self, failure: Failure, client: Client) -> None:
        assert failure.value is not None
        self._errors.append(failure.value)
        log_failure(failure, client)

    def _close_clients(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()
