"""The composition root: settings in, a running service out.

The only place where the parts meet, and the only one that touches what is global: the reactor,
the environment, `sys.path` and `sys.excepthook`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from twisted.application.app import ServerOptions
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from echod import default_reactor, descriptors, ending, precautions
from echod.concurrency.model import Model
from echod.concurrency.models import InPool, InReactor, Serial, ThreadPerConnection
from echod.concurrency.pool import WorkerPool
from echod.connections.admission import Admission
from echod.connections.factory import EchoFactory
from echod.draining import Drain
from echod.handlers import (
    ConcurrencyModel,
    HandlerError,
    Kind,
    ModulesOnly,
    ResolvedHandler,
    check_name,
    resolve,
)
from echod.limits import Level
from echod.listening.endpoints import ListenError, Listening, parse_listen
from echod.listening.listener import Listener
from echod.listening.socket_activation import InheritedSockets, started_with
from echod.listening.validity import ValidityWatch, tell_validity
from echod.log.observer import LogObserver
from echod.log.sinks import sink_for
from echod.logcapture import Capture, capturing
from echod.metrics import Metrics
from echod.settings.definitions import Settings, differences, reloaded
from echod.settings.flags import Options as SettingsOptions
from echod.settings.schema import SettingError
from echod.signals import GRACE, Signals
from echod.slow import SlowCalls
from echod.stalls import StallWatch
from echod.systemd import Notifier
from echod.text import clipped, escape
from echod.tls import FilesError
from echod.turns import Turns

if TYPE_CHECKING:
    from echod.status import HandlerTimer, StatusServer
    from echod.tls import ServedCertificate, ServerContext

__all__ = ["EchoService", "Options", "StartError", "build_service", "makeService"]

log = Logger("echod")


class StartError(Exception):
    """The daemon cannot start; the text says where and why, in one line."""


class Options(SettingsOptions):
    """The flags; `--check-config` tries all that they name.

    To read them is the last moment at which to choose a reactor.
    """

    def postOptions(self) -> None:
        taken = descriptors.fill_standard_streams()  # before a reactor opens anything
        if taken and not twistd_options(self).get("nodaemon", True):
            raise SystemExit(
                f"echod: {taken[0]} is closed, and --reactor has put a file in its place, which "
                "would not survive the way into the background: leave out --reactor, or open it, "
                "as by </dev/null >/dev/null 2>&1"
            )
        default_reactor.choose()
        super().postOptions()
        _settle_pidfile(self.parent)

    def check(self) -> None:
        """Look up the handler, and read the endpoint strings and the files that they name."""
        service = prepare_service(self, starting=False)
        try:
            service.try_handler()
        except StartError as error:
            raise SystemExit(f"echod: {self.placed(str(error))}") from None

    @property
    def proviso(self) -> str:
        return precautions.proviso(os.geteuid())


def makeService(options: Options) -> EchoService:
    """Return the service that `options` ask for; what is wrong with them is one line, exit 1."""
    # First to be registered, last to be called: the handler's functions may write, too.
    atexit.register(ending.flush_files)
    log_observer = make_log_observer(options)
    capture = None if log_observer is None else Capture(log_observer.write_now)
    with capturing(capture):
        options.settings = _make_room(options.settings)
        service = prepare_service(options)
    reactor = service.reactor
    service.log_observer = log_observer
    service.capture = capture
    if capture is not None:
        reactor.addSystemEventTrigger("after", "shutdown", capture.withdraw)
    service.configure = options.configure
    service.placed = options.placed
    service.notifier = Notifier.from_environment(reactor, service.describe, os.environ)
    service.signals = Signals(
        reactor,
        abort=service.abort,
        reload=service.reload,
        patience=options.settings.drain_timeout + GRACE,
        pidfile=twistd_options(options).get("pidfile") or "",
    )
    service.signals.install()
    return service


def prepare_service(options: Options, *, starting: bool = True) -> EchoService:
    """Return the service as it is before it takes over log, signals and the service manager.

    Args:
        options: what was asked for.
        starting: whether the daemon starts; else no pidfile will be written but one that is named.
    """
    from twisted.internet import reactor

    twistd = twistd_options(options)
    if not starting and twistd.get("pidfile") == precautions.PIDFILE:
        twistd = {**twistd, "pidfile": ""}
    _take_precautions(twistd)
    _import_from_current_directory()
    _show_start_errors_in_one_line()
    default_reactor.follow_the_monotonic_clock(reactor)
    log.info("Running on the {name} reactor", name=default_reactor.name_of(reactor))
    try:
        return build_service(options.settings, reactor)
    except StartError as error:
        raise SystemExit(f"echod: {options.placed(str(error))}") from None


def twistd_options(options: Options) -> Mapping[str, Any]:
    """Return the options before `echod` on the command line; `twist` has others than `twistd`."""
    return options.parent or {}


def build_service(settings: Settings, reactor: Any) -> EchoService:
    """Return the service for `settings`, not started.

    Args:
        settings: what was asked for.
        reactor: where it runs.

    Raises:
        StartError: the handler cannot be had or an endpoint string is wrong.
    """
    handler = find_handler(settings)
    model = make_model(settings, reactor)
    timer = make_timer(model) if settings.status else None
    inherited = InheritedSockets(started_with())
    timed = timer.timed(handler) if timer else handler
    listeners = make_listeners(settings, reactor, timed, model, inherited)
    log.info(
        "Serving the {kind} handler {handler}, concurrency model {model}",
        kind=handler.kind,
        handler=escape(handler.name),
        model=model.name,
    )
    service = EchoService(reactor, settings, listeners, model, Metrics())
    if timer is not None:
        service.status = make_status(service, settings, inherited, timer)
    if unused := inherited.unused:
        log.warn(
            "systemd passed sockets that neither --listen nor --status uses: {names}",
            names=escape(", ".join(unused)),
        )
    return service


def find_handler(settings: Settings) -> ResolvedHandler:
    """Return the handler that `settings` ask for.

    Raises:
        StartError: it cannot be had, or other settings are of no use to it.
    """
    try:
        handler = resolve(settings.handler_spec, settings.concurrency)
    except HandlerError as error:
        raise StartError(f"--handler: {error}") from error
    if exchanged := precautions.exchanged():
        raise StartError(
            f"--handler: {escape(handler.name)}: its module has exchanged {', '.join(exchanged)} "
            "of Python's library, as gevent and eventlet do: no client would be answered; "
            "import it without monkey-patching"
        )
    if handler.kind is Kind.CONNECTION and (useless := settings.about_messages):
        raise StartError(
            f"{useless[0]} has no effect: {escape(handler.name)} is a connection handler, "
            "which reads the socket itself"
        )
    return handler


def make_listeners(
    settings: Settings,
    reactor: Any,
    handler: ResolvedHandler,
    model: Model,
    inherited: InheritedSockets,
) -> list[Listener[EchoFactory]]:
    """Return what listens where `settings` say, with limits that hold over all together.

    Raises:
        StartError: an endpoint string is wrong, or what it names cannot be used.
    """
    framing = settings.make_framing()
    limits = settings.make_limits()
    admission = Admission(limits, reactor.seconds)
    turns = Turns(reactor, time.monotonic)

    def make_factory(description: str) -> EchoFactory:
        return EchoFactory(
            reactor,
            handler=handler,
            framing=framing,
            model=model,
            limits=limits,
            banner=settings.make_banner(framing),
            metrics=Metrics(),
            admission=admission,
            turns=turns,
            listener=description,
        )

    return [
        Listener(
            reactor,
            description,
            listening(reactor, description, inherited),
            make_factory(description),
            settings.proxy_trust,
        )
        for description in settings.endpoints
    ]


def make_timer(model: Model) -> HandlerTimer:
    """Return what times the calls of handlers in `model`."""
    from echod.status import HandlerTimer  # takes its time to import, and few ask for it

    return HandlerTimer(in_threads=isinstance(model, InPool))


def make_status(
    service: EchoService, settings: Settings, inherited: InheritedSockets, timer: HandlerTimer
) -> StatusServer:
    """Return what serves the status of `service` where `settings` say, not listening.

    Raises:
        StartError: the endpoint string is wrong, or what it names cannot be used.
    """
    from echod.status import StatusServer

    wanted = status_listening(service.reactor, settings.status, inherited)
    return StatusServer(
        service.reactor, settings.status, wanted, service, timer, hosts=settings.status_host
    )


def make_log_observer(options: Options) -> LogObserver | None:
    """Return what is to write the log, or None where somebody else does: under `twist`, or with
    `twistd --logger`.
    """
    twistd, settings = options.parent, options.settings
    if not isinstance(twistd, ServerOptions):
        return None
    try:
        sink = sink_for(twistd, sys.stdout, keep=settings.log_files)
    except OSError as error:
        where = f"--logfile {error.filename}" if error.filename else "the log"
        raise SystemExit(escape(f"echod: {where}: {error.strerror}")) from None
    if sink is None:
        return None
    observer = LogObserver(
        sink, format=settings.log_format, level=settings.log_level, rate=settings.log_rate
    )
    _log_through(observer)
    return observer


def make_model(settings: Settings, reactor: Any) -> Model:
    """Return the concurrency model that `settings` ask for."""
    match settings.concurrency:
        case ConcurrencyModel.REACTOR:
            return InReactor()
        case ConcurrencyModel.SERIAL:
            limits = settings.make_limits()
            return Serial(
                reactor.seconds,
                patience=limits.serial_timeout,
                queue_size=limits.serial_queue,
                shared=limits.bounds_addresses,
            )
        case ConcurrencyModel.DEFER_TO_THREAD:
            pool = WorkerPool(settings.threads, reactor.callFromThread)
            return InPool(pool, max_queue=settings.max_queue)
        case ConcurrencyModel.THREAD_PER_CONNECTION:
            pool = WorkerPool(settings.max_threads, reactor.callFromThread, queues=False)
            return ThreadPerConnection(pool, shared=settings.make_limits().bounds_addresses)


def listening(
    reactor: Any, description: str, inherited: InheritedSockets, flag: str = "--listen"
) -> Listening:
    """Return what a `--listen` asks for, or another `flag` of its kind.

    Raises:
        StartError: it makes no sense, or what it names cannot be used.
    """
    try:
        return parse_listen(reactor, description, inherited)
    except ListenError as error:
        where = escape(clipped(description, 200))
        raise StartError(f"{flag} {where}: {escape(str(error))}") from error


def status_listening(reactor: Any, description: str, inherited: InheritedSockets) -> Listening:
    """Return what `--status` asks for.

    Raises:
        StartError: it makes no sense, or what it names cannot be used.
    """
    wanted = listening(reactor, description, inherited, "--status")
    if wanted.proxied:
        raise StartError(f"--status {escape(description)}: no PROXY header is read here")
    return wanted


def check_for_restart(running: Settings, wanted: Settings, reactor: Any) -> None:
    """Refuse what the next start would refuse, as far as a daemon that runs can tell.

    No handler is imported: code that is new has no business in this process.  Sockets that
    systemd passes are not looked for: the next start gets its own.

    Raises:
        StartError: no handler has that name, or an endpoint string is wrong.
    """
    inherited = InheritedSockets({})
    if wanted.handler != running.handler:
        try:
            check_name(wanted.handler.name)
        except HandlerError as error:
            raise StartError(f"--handler: {error}") from error
    for description in wanted.endpoints:
        if description not in running.endpoints and "systemd:" not in description:
            listening(reactor, description, inherited)
    if wanted.status not in ("", running.status) and "systemd:" not in wanted.status:
        status_listening(reactor, wanted.status, inherited)


class EchoService(Service):
    """Listens, and at the end drains.

    Attributes:
        reactor: where it runs.
        listeners: where it listens, in the order given.
        metrics: how often the event loop stood still; the rest is each listener's.
        configure: returns the settings as they are now to be; what `reload` asks.
        placed: adds to an error about such settings where each was given.
        notifier: tells the service manager.
        signals: what turns signals into drain and abort; None where somebody else does.
        ready: whether new clients are welcome: it listens, and does not drain.
        draining: whether it is on its way to the end.
        log_observer: writes the log of the process; None where somebody else does.
        capture: leads what is printed into the log; None where there is none of ours.
        status: shows how it is doing; None where nobody asked for it.
    """

    name = "echod"

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        listeners: list[Listener[EchoFactory]],
        model: Model,
        metrics: Metrics,
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: for timers.
            settings: how to drain, and what to watch.
            listeners: where to listen.
            model: what to stop at the end.
            metrics: where stalls of the event loop are counted.
        """
        self.listeners = listeners
        self.metrics = metrics
        self.configure = lambda: settings
        self.placed: Callable[[str, Settings], str] = lambda error, _: error
        self.notifier = Notifier(reactor, self.describe)
        self.signals: Signals | None = None
        self.ready = False
        self.draining = False
        self.log_observer: LogObserver | None = None
        self.capture: Capture | None = None
        self.status: StatusServer | None = None
        self.reactor = reactor
        self._settings = settings
        self._model = model
        self._validity = ValidityWatch(reactor, lambda: self.certificates)
        self._watch: StallWatch | None = None
        self._slow = SlowCalls(reactor, model, settings.slow_handler)
        self._drain: Drain | None = None
        self._listening: Deferred[Any] | None = None
        self._failures: list[Failure] = []
        self._refused = ""

    def setServiceParent(self, parent: Any) -> None:
        """Join an application; twistd asks the application what observes its log."""
        super().setServiceParent(parent)
        if self.log_observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.log_observer)

    def privilegedStartService(self) -> None:
        """Listen, while low ports and protected paths are still allowed.

        Raises:
            StartError: a listener cannot.
        """
        super().privilegedStartService()
        if self.signals is not None:
            self.signals.serve()
        if self.log_observer is not None:
            self.log_observer.writer.start()
        if self.capture is not None:
            self.capture.publish()
        attempts = [
            self._listen(listener).addErrback(self._cannot_listen) for listener in self.listeners
        ]
        if self.status is not None:
            attempts.append(self.status.listen().addErrback(self._cannot_listen))
        self._listening = DeferredList(attempts)
        if self._failures:
            self._undo_listening()
            raise StartError(str(self._failures[0].value))

    def _undo_listening(self) -> None:
        self._stop_listening()
        if self.status is not None:
            self.status.stop()

    def try_handler(self) -> None:
        """Make a handler, as for a client, where the constructor is one that has to be quick.

        Raises:
            StartError: none will ever be made.
        """
        if self._model.name is ConcurrencyModel.THREAD_PER_CONNECTION:
            return  # it runs in a thread, where it may wait for anything, the event loop too
        try:
            self.listeners[0].factory.handler.try_constructor()
        except HandlerError as error:
            raise StartError(f"--handler: {error}") from error

    def _listen(self, listener: Listener[EchoFactory]) -> Deferred[Any]:
        """Say what every first server says."""

        def tell(_: object) -> None:
            if listener.address is not None:
                log.info("Socket bind complete")
                log.info("Socket now listening")

        log.info("Socket created")
        return listener.listen().addCallback(tell)

    @property
    def levels(self) -> list[Level]:
        """What is scarce, and how much of it is taken; what has no limit is left out."""
        admission = self.listeners[0].factory.admission.levels if self.listeners else ()
        levels = [*admission, *self._model.levels, descriptors.level()]
        return [level for level in levels if level.most]

    @property
    def pool(self) -> WorkerPool | None:
        """The threads that handlers run in; None where they do not."""
        return self._model.pool if isinstance(self._model, InPool) else None

    @property
    def oldest_call(self) -> float:
        """For how long the oldest call of the handler has lasted, in seconds."""
        return self._slow.oldest()

    def _cannot_listen(self, failure: Failure) -> None:
        self._failures.append(failure)
        if self._listening is not None:  # an endpoint that took its time: nobody waits for it
            if self.signals is not None:
                self.signals.code = 1
            self.reactor.addSystemEventTrigger("after", "shutdown", ending.end_with_code, 1)
            self.reactor.stop()

    def startService(self) -> None:
        """Listen, if that has not been done with privileges: `twist` has no such step."""
        super().startService()
        if self._listening is None:
            self.privilegedStartService()
        try:
            self.try_handler()  # not before the fork, nor as root where another user is to run it
        except StartError:
            self._undo_listening()
            raise
        self.reactor.callWhenRunning(self._when_running)

    def _when_running(self) -> None:
        if danger := precautions.warning_once_started(os.geteuid()):
            log.warn("{danger}", danger=danger)
        if self.running:
            self._watch_for_stalls()
            self._slow.start()
            self._validity.start()
        if self._listening is not None:
            self._listening.addCallback(lambda _: self._when_listening())

    def _watch_for_stalls(self) -> None:
        threshold = self._settings.stall_threshold
        if self._watch is not None and self._watch.threshold != threshold:
            self._watch.stop()
            self._watch = None
        if self._watch is None and threshold:
            self._watch = StallWatch(self.reactor, threshold, self.metrics)
            self._watch.start()

    def _when_listening(self) -> None:
        if self.running and not self._failures:
            self.ready = True
            self.notifier.ready()

    def stopService(self) -> Deferred[Any]:
        """Drain.

        Returns:
            Fires when the last connection is closed, at the drain's deadline at the latest.
        """
        super().stopService()
        self.ready = False
        self.draining = True
        self.notifier.stopping()
        return self._stop_listening().addCallback(self._begin_drain).addCallback(self._stopped)

    def abort(self) -> None:
        """Close every connection at once; a drain under way ends."""
        (self._drain or self._make_drain()).abort()

    def reload(self) -> None:
        """Take into use what the settings are now, or change nothing and say why."""
        if self.draining:
            return
        if self.ready:  # else the manager waits for the start, and is told of that alone
            self.notifier.reloading()
        try:
            self._take(self.configure())
            self._refused = ""
        except Exception as error:  # whatever it is, the service goes on as it was
            self._refused = escape(clipped(_what_went_wrong(error), 500))
            log.error("Reload refused, nothing has changed: {why}", why=self._refused)
        finally:
            if self.ready:
                self.notifier.ready()

    def _take(self, wanted: Settings) -> None:
        """Take new settings into use.

        Raises:
            SettingError: they cannot be used; nothing has changed.
            FilesError: a certificate cannot be used; nothing has changed.
            StartError: the next start would fail on them; nothing has changed.
            Exception: nobody has thought of it; nothing has changed.
        """
        wanted = _make_room(wanted)
        try:
            check_for_restart(self._settings, wanted, self.reactor)
        except StartError as error:
            raise StartError(self.placed(str(error), wanted)) from error
        changed = differences(self._settings, wanted)
        settings = reloaded(self._settings, wanted)
        limits = settings.make_limits()
        contexts = self._contexts()
        certificates = [context.reread() for context in contexts]
        before = self.certificates
        factories = [listener.factory for listener in self.listeners]
        banners = [settings.make_banner(factory.framing) for factory in factories]
        # From here on nothing fails.
        self._settings = settings
        for take_into_use in certificates:
            take_into_use()
        for factory, banner in zip(factories, banners, strict=True):
            factory.limits = limits
            factory.admission.limits = limits
            factory.banner = banner
        if isinstance(self._model, Serial):
            self._model.patience = limits.serial_timeout
        if isinstance(self._model, Serial | ThreadPerConnection):
            self._model.shared = limits.bounds_addresses
        if self.signals is not None:
            self.signals.patience = settings.drain_timeout + GRACE
        if self.log_observer is not None:
            self.log_observer.configure(
                level=settings.log_level, rate=settings.log_rate, files=settings.log_files
            )
        self._watch_for_stalls()
        self._slow.take(settings.slow_handler)
        exchanged = [each for each in self.certificates if each not in before]
        taken = ", ".join(
            [one.key for one in changed if one.text.reload]
            + [f"certificate {escape(each.path)} (serial {each.serial})" for each in exchanged]
        )
        # Whatever the level: somebody has asked for it, and waits to hear.
        log.info("Reloaded; changed: {taken}", taken=taken or "nothing", log_always=True)
        for certificate in self.certificates:
            tell_validity(certificate)
        if fixed := ", ".join(one.key for one in changed if not one.text.reload):
            log.warn("Ignored until restart: {fixed}", fixed=fixed)

    @property
    def certificates(self) -> list[ServedCertificate]:
        """The certificates in use, each once."""
        return list(dict.fromkeys(context.served for context in self._contexts()))

    def _contexts(self) -> list[ServerContext]:
        """Return what has certificates."""
        found = [listener.tls for listener in self.listeners]
        if self.status is not None:
            found.append(self.status.tls)
        return [each for each in found if each is not None]

    def describe(self) -> str:
        """Return what it is doing, in a few words, for the service manager."""
        count = sum(len(listener.factory.connections) for listener in self.listeners)
        refused = f"; the last reload was refused: {self._refused}" if self._refused else ""
        return f"{'Draining' if self.draining else 'Serving'}; connections: {count}{refused}"

    def _make_drain(self) -> Drain:
        return Drain(
            self.reactor,
            [listener.factory for listener in self.listeners],
            self._model,
            timeout=self._settings.drain_timeout,
            spread=self._settings.drain_spread,
            still_there=self._slow.left_behind,
        )

    def _stop_listening(self) -> Deferred[Any]:
        self._listening = None
        return DeferredList([listener.stop() for listener in self.listeners])

    def _begin_drain(self, _: object) -> Deferred[Any]:
        self._drain = self._make_drain()
        return self._drain.begin()

    def _stopped(self, _: object) -> Deferred[Any] | None:
        self._model.stop()
        self._validity.stop()
        if self._watch is not None:
            self._watch.stop()
        self._slow.stop()
        self.notifier.close()
        log.info("Stopped")
        # Last of all: whoever asks shall hear for as long as there is something to say.
        return self.status.stop() if self.status is not None else None


def _what_went_wrong(error: Exception) -> str:
    """Return an error's words; of one that is a fault in the program, the place too."""
    if isinstance(error, (SettingError, FilesError, StartError)):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"


def _take_precautions(twistd: Mapping[str, Any]) -> None:
    if danger := precautions.refusal(twistd, uid=os.geteuid()):
        raise SystemExit(f"echod: {escape(danger)}")
    folders = [*precautions.plugin_folders(), os.getcwd()]
    for danger in precautions.warnings(twistd, folders, uid=os.geteuid()):
        log.warn("{danger}", danger=escape(danger))


def _settle_pidfile(twistd: Any) -> None:
    """Remove a pidfile that is of no daemon; let twistd look for it where it writes it.

    Args:
        twistd: twistd's own options, where there are any.
    """
    if not twistd or not twistd.get("pidfile"):
        return
    pidfile = Path(twistd.get("rundir") or ".", twistd["pidfile"]).absolute()
    twistd["pidfile"] = str(pidfile)
    if pidfile.is_symlink():
        return  # which is refused
    try:
        if why := precautions.why_stale(pidfile):
            log.warn(
                "Removing the pidfile {pidfile}: {why}", pidfile=escape(str(pidfile)), why=why
            )
            pidfile.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SystemExit(escape(f"echod: --pidfile {error.filename}: {error.strerror}")) from None


def _make_room(settings: Settings) -> Settings:
    """Let there be as many connections as the limits say, as far as the system permits.

    Returns:
        The settings, with limits that fit: above them clients are told so, and counted, where
        without descriptors nobody could be told anything.
    """
    threaded = settings.concurrency is ConcurrencyModel.THREAD_PER_CONNECTION
    wanted = settings.max_connections or descriptors.MOST_CONNECTIONS
    threads = settings.max_threads if threaded else 0
    needed = wanted + threads * descriptors.MOST_OF_A_THREAD + descriptors.SPARE
    allowed = descriptors.make_room(needed)
    if allowed >= needed and settings.max_connections:
        return settings
    connections, fitting = descriptors.fit(allowed, wanted, threads)
    changes: dict[str, Any] = {"max_connections": connections}
    if settings.max_connections_per_address:
        share = max(1, connections * 3 // 4)
        changes["max_connections_per_address"] = min(settings.max_connections_per_address, share)
    if threaded:
        changes["max_threads"] = max(1, fitting)
    changed = ", ".join(f"{name.replace('_', '-')} is {most}" for name, most in changes.items())
    if settings.max_connections:
        log.warn(
            "This process may open {allowed} files and sockets, too few for {connections} "
            "connections: raise its limit (ulimit -n, LimitNOFILE=); until then {changed}",
            allowed=allowed,
            connections=wanted,
            changed=changed,
        )
    else:
        log.info(
            "This process may open {allowed} files and sockets, so {changed}",
            allowed=allowed,
            changed=changed,
        )
    return replace(settings, **changes)


def _import_from_current_directory() -> None:
    """Let `--handler module:object` find a module beside the user.

    At the end of the path: no file that lies there can stand in for an installed module.  Nor does
    what lies there count as installed: it offers no handlers.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(ModulesOnly(here))


def _show_start_errors_in_one_line() -> None:
    # twistd removes its pidfile only if an Exception passes, not a SystemExit; and what passes
    # through it ends at the interpreter, which would print a traceback.
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, StartError):
            # sys.stderr is the log.  At once: the log's thread may write to the same terminal.
            with contextlib.suppress(OSError):
                os.write(2, f"echod: {error}\n".encode(errors="backslashreplace"))
        else:
            previous(kind, error, trace)

    sys.excepthook = show


def _log_through(observer: LogObserver) -> None:
    """Write the log to its last line, however the process ends; rotate its file on SIGUSR1."""
    from twisted.internet import reactor

    def rotate(*_: object) -> None:
        observer.writer.rotate()

    # What the interpreter's end has to say comes between the two, and is written at once.
    reactor.addSystemEventTrigger("after", "shutdown", observer.finish)
    atexit.register(observer.close)
    os.register_at_fork(after_in_child=observer.restart)
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, rotate)
