"""The service: listen, serve, drain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from twisted.application.service import IServiceCollection, Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from echod.concurrency.life import Life
from echod.concurrency.model import Model
from echod.concurrency.models import InPool
from echod.concurrency.pool import WorkerPool
from echod.connections.factory import EchoFactory
from echod.daemon import checks, ending, file_limit, opening
from echod.daemon.background import telling
from echod.daemon.capture import Capture
from echod.daemon.drain import Drain
from echod.daemon.freezing import Freezer
from echod.daemon.notify import Notifier
from echod.daemon.reload import Reloading
from echod.daemon.resolve import StartError, check_yielded, named
from echod.daemon.signals import Signals
from echod.daemon.slow import SlowCalls
from echod.daemon.stalls import StallWatch
from echod.errors import UserError
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.kinds import Kind
from echod.handlers.lookup import ResolvedHandler
from echod.limits import Level
from echod.listening.listener import Listener
from echod.listening.validity import ValidityWatch
from echod.log.observer import LogObserver
from echod.metrics import Metrics
from echod.settings.definitions import Settings
from echod.text import escape

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from echod.connections.lifecycle import ConnectionProtocol
    from echod.connections.owner import Owned
    from echod.control import ControlServer
    from echod.faults import FaultPlan, Rule
    from echod.interfaces import Reactor
    from echod.journal import Journal
    from echod.listening.badtls import SharedMistakes
    from echod.status import Look
    from echod.status.server import StatusServer
    from echod.tls import ServedCertificate, ServerSide

log = Logger("echod")

# Why a listener may let clients wait: the service is not open yet; the control has said so.
_OPENING, _SUSPENDED = "opening", "suspended"


class EchoService(Service):
    """Listens, and drains at the end.

    Attributes:
        reactor: the reactor.
        listeners: the listeners, in the order given.
        metrics: the stalls of the event loop; each listener counts the rest.
        reloading: takes new settings and certificates into use.
        notifier: notifies the service manager.
        signals: turns signals into drain and abort; None if another part does.
        ready: whether it takes new clients: it listens, and does not drain.
        draining: whether it drains, or has ended.
        suspended: whether it accepts no clients, but serves the open connections: see `suspend`.
        log_observer: writes the log of the process; None if another part does.
        capture: redirects printed lines to the log; None if the log is not echod's.
        status: the status; None if it was not asked for.
        look: the source of the figures that a worker's supervisor asks for; None if there is none.
        control: the control; None if it was not asked for.
        journal: the record of connections; None if it was not asked for.
        authority: of certificates with mistakes; None if there are none, and never will be.
        other_user: how this program is run as another user, for the log.
        tell_error: tells of an error of the start, before twistd does.
        life: the life of the service that it opens at the start; None without one.
        faults: the faults on purpose, see `change_faults`; None if it has none, and never will.
        serve: takes the handler that the service has yielded.
        is_worker: whether it is a worker: its supervisor has logged what holds for all.
        when_ready: is called once, when it takes clients.
        when_not_opened: gets the error of a service that cannot be opened while the reactor runs;
            by default it ends the process.
    """

    name = "echod"

    def __init__(
        self,
        reactor: Reactor,
        settings: Settings,
        listeners: list[Listener[EchoFactory]],
        model: Model,
        metrics: Metrics,
        life: Life | None = None,
        faults: FaultPlan | None = None,
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: for timers.
            settings: the settings.
            listeners: the listeners.
            model: the model to stop at the end.
            metrics: counts stalls of the event loop.
            life: of the handler, if it is a service: it is opened at the start.
            faults: the faults on purpose; None if there are none.
        """
        self.listeners = listeners
        self.faults = faults
        self.metrics = metrics
        self.reloading = Reloading(reactor, settings, self._contexts)
        self.reloading.parts.append(lambda _: self._reconfigure)
        self.reloading.began, self.reloading.ended = self._reload_began, self._reload_ended
        self.notifier = Notifier(reactor, self.describe)
        self.is_worker = False
        self.signals: Signals | None = None
        self.ready = False
        self.draining = False
        self.suspended = False
        self.log_observer: LogObserver | None = None
        self.capture: Capture | None = None
        self.status: StatusServer | None = None
        self.look: Look | None = None
        self.control: ControlServer | None = None
        self.journal: Journal[ConnectionProtocol] | None = None
        self.authority: SharedMistakes | None = None
        self.other_user = "Run the program as another user"
        self.tell_error: Callable[[UserError], object] = lambda _: None
        self.reactor = reactor
        self._model = model
        self.life = life
        self.serve: Callable[[ResolvedHandler], None] = lambda _: None
        self._is_open = life is None
        self.when_ready: Callable[[], object] = lambda: None
        self.when_not_opened: Callable[[Failure], object] = self._cannot_open
        self._validity = ValidityWatch(reactor, lambda: self.certificates)
        self._watch: StallWatch | None = None
        self._slow = SlowCalls(
            reactor, model, settings.slow_handler, conversing=self._with_streams
        )
        self._freezer = Freezer(
            reactor, lambda: [listener.factory.metrics for listener in self.listeners]
        )
        self._drain: Drain | None = None
        self._listening: Deferred[None] | None = None
        self._failures: list[Failure] = []

    def setServiceParent(self, parent: IServiceCollection | None) -> None:
        """Join an application; twistd gets the log observer from the application."""
        super().setServiceParent(parent)
        if self.log_observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.log_observer)

    @telling
    def privilegedStartService(self) -> None:
        """Listen, while low ports and protected paths are still allowed.

        Raises:
            StartError: a listener cannot.
        """
        super().privilegedStartService()
        self._log_faults()
        if self.signals is not None:
            self.signals.serve()
        if self.log_observer is not None:
            self.log_observer.writer.start()
        if self.capture is not None:
            self.capture.publish()
        if not self._is_open:
            for listener in self.listeners:
                listener.pause(_OPENING)
        attempts = [
            self._listen(listener).addErrback(self._cannot_listen) for listener in self.listeners
        ]
        attempts += [one.listen().addErrback(self._cannot_listen) for one in self._sites]
        self._listening = DeferredList(attempts).addCallback(lambda _: None)
        if self._failures:
            self._undo_listening()
            raise StartError(str(self._failures[0].value))

    def _undo_listening(self) -> None:
        for listener in self.listeners:
            listener.pause(_OPENING)  # else a client that waits would be served, and fail
        self._stop_listening()
        for site in self._sites:
            site.stop()

    @property
    def _settings(self) -> Settings:
        return self.reloading.settings

    @property
    def _sites(self) -> list[StatusServer | ControlServer]:
        """The listeners that are not for clients."""
        return [one for one in (self.status, self.control) if one is not None]

    @property
    def handler(self) -> ResolvedHandler:
        """The handler, which all listeners have."""
        return self.listeners[0].factory.handler

    def try_handler(self) -> None:
        """Make a handler, as for a client, if its constructor runs in the event loop.

        Raises:
            StartError: the constructor always fails.
        """
        if self._model.name is ConcurrencyModel.THREAD_PER_CONNECTION:
            return  # it runs in a thread, where it may wait, even for the event loop
        with named("--handler"):
            self.handler.try_constructor()

    def _listen(self, listener: Listener[EchoFactory]) -> Deferred[None]:
        """Start one listener, and log the three classic lines."""
        if self.is_worker:
            return listener.listen()

        def tell(_: object) -> None:
            if listener.address is not None:
                log.info("Socket bind complete")
                log.info("Socket now listening")

        log.info("Socket created")
        return listener.listen().addCallback(tell)

    @property
    def levels(self) -> list[Level]:
        """The limits, and how much of each is in use; without those that are unlimited."""
        admission = self.listeners[0].factory.admission.levels if self.listeners else ()
        levels = [*admission, *self._model.levels, file_limit.level()]
        return [level for level in levels if level.most]

    @property
    def pool(self) -> WorkerPool | None:
        """The pool of the handlers' threads; None if the model has none."""
        return self._model.pool if isinstance(self._model, InPool) else None

    @property
    def own_metrics(self) -> CollectorRegistry | None:
        """The metrics of the handler's own; None if it has none."""
        return None if self.life is None else self.life.service.own_metrics

    @property
    def oldest_call(self) -> float:
        """The age of the handler's oldest call, in seconds."""
        return self._slow.oldest()

    def _with_streams(self) -> Iterator[Owned]:
        """Yield the connections whose handlers have asyncio streams."""
        for listener in self.listeners:
            if listener.factory.handler.kind is Kind.STREAMS:
                yield from listener.factory.connections

    def _cannot_listen(self, failure: Failure) -> None:
        self._failures.append(failure)
        if self._listening is not None:  # a slow endpoint: no caller waits for it
            self._end_with_error()

    @telling
    def startService(self) -> None:
        """Listen, unless that was done with privileges already: `twist` has no such step."""
        super().startService()
        if self._listening is None:
            self.privilegedStartService()
        try:  # after the fork, and as the user that runs it
            if self.life is not None:
                self._open_service(self.life)
            else:
                self.try_handler()
        except UserError:
            self._undo_listening()
            raise
        self.reactor.callWhenRunning(self._when_running)

    def _open_service(self, life: Life) -> None:
        """Open the service: at once, or while the reactor runs, if it does already.

        Raises:
            StartError: it cannot be opened.
        """
        life.on_failure = self._service_failed
        self.notifier.starting(f"Opening {escape(life.name)}", self._settings.start_timeout)
        if self.reactor.running:
            late = opening.open_running(self.reactor, life, self._settings.start_timeout)
            late.addCallback(self._service_opened).addErrback(self.when_not_opened)
        else:
            handler = opening.open_before_running(
                self.reactor,
                life,
                self._settings.start_timeout,
                self._settings.drain_timeout,
                self.signals,
            )
            self._service_opened(handler)

    def _service_opened(self, handler: ResolvedHandler) -> None:
        """Serve with the handler that the service has yielded."""
        check_yielded(self._settings, handler, self.reactor)
        self.serve(handler)
        self.try_handler()
        self._is_open = True
        for listener in self.listeners:
            listener.resume(_OPENING)
        if self.running and self.reactor.running:
            self._when_listening()

    def _cannot_open(self, failure: Failure) -> None:
        log.critical("{why}", why=str(failure.value))
        self._end_with_error()

    def _service_failed(self, failure: Failure) -> None:
        """Stop, because the service has ended while it should serve, or has not ended well."""
        assert self.life is not None
        log.failure("The service {name} has failed", failure, name=escape(self.life.name))
        if not self.draining:
            self._end_with_error()

    def _end_with_error(self) -> None:
        """Stop the process with exit code 1."""
        if self.signals is not None:
            self.signals.code = 1
        self.reactor.addSystemEventTrigger("after", "shutdown", ending.end_with_code, 1)
        self.reactor.stop()

    def _when_running(self) -> None:
        danger = checks.warning_once_started(os.geteuid(), self.other_user)
        if danger and not self.is_worker:
            log.warn("{danger}", danger=danger)
        if self.running:
            self._watch_for_stalls()
            self._slow.start()
            self._validity.start()
            self._freezer.start()
        if self._listening is not None:
            self._listening.addCallback(lambda _: self._when_listening())

    def _reconfigure(self) -> None:
        self._watch_for_stalls()
        self._slow.reconfigure(self._settings.slow_handler)

    def _watch_for_stalls(self) -> None:
        threshold = self._settings.stall_threshold
        if self._watch is not None and self._watch.threshold != threshold:
            self._watch.stop()
            self._watch = None
        if self._watch is None and threshold:
            self._watch = StallWatch(IReactorTime(self.reactor), threshold, self.metrics)
            self._watch.start()

    def _when_listening(self) -> None:
        if self.running and not self._failures and self._is_open and not self.ready:
            self.ready = True
            self.notifier.ready()
            self.when_ready()

    def stopService(self) -> Deferred[None]:
        """Drain.

        Returns:
            Fires when the last connection is closed, at the drain's deadline at the latest.
        """
        super().stopService()
        self.ready = False
        self.draining = True
        self.reloading.stop()
        self.notifier.stopping()
        for listener in self.listeners:  # the clients that wait are served, as at every stop
            if listener.takes_queue:
                listener.resume(_SUSPENDED)
        return self._stop_listening().addCallback(self._begin_drain).addCallback(self._stopped)

    def abort(self) -> None:
        """Close every connection at once; this ends a running drain."""
        (self._drain or self._make_drain()).abort()

    def suspend(self) -> None:
        """Accept no client until `resume`; open connections are served on.

        Clients that connect wait in the kernel's queue, and none that was accepted is lost.
        """
        if not self.suspended and not self.draining:
            self.hold()
            log.info("Suspended: new clients wait until it is resumed")

    def resume(self) -> None:
        """Accept clients again, those that wait first."""
        if self.suspended:
            self.accept()
            log.info("Resumed: accepting clients")

    def hold(self) -> None:
        """Suspend, without a line in the log: a worker begins so, until its supervisor lets it
        accept.
        """
        self.suspended = True
        for listener in self.listeners:
            listener.pause(_SUSPENDED)

    def accept(self) -> None:
        """Resume, without a line in the log."""
        self.suspended = False
        for listener in self.listeners:
            listener.resume(_SUSPENDED)

    def change_faults(self, rules: Iterable[Rule], seed: int | None = None) -> None:
        """Use these faults on purpose from now on, for new connections and open ones.

        See `begin_to_change_faults`.
        """
        for _ in self.begin_to_change_faults(rules, seed):
            pass

    def begin_to_change_faults(
        self, rules: Iterable[Rule], seed: int | None = None
    ) -> Iterator[None]:
        """Use these faults on purpose for new connections.

        Rules of `faults.rules` that are among them go on as they are.

        Args:
            rules: the faults.
            seed: the new seed, for rules that begin; None: as before.

        Returns:
            Uses them in one more open connection at each step.

        Raises:
            RuntimeError: the service was not built with `faults_change`.
            UserError: a fault can hit no connection, or what it needs is not there; nothing has
                changed.
        """
        if self.faults is None:
            raise RuntimeError("the faults of this service were not set up to change")
        wanted, before = tuple(rules), self.faults.rules
        replace(self._settings, fault=wanted)  # this checks them
        self._announce(rule for rule in wanted if rule not in before)
        steps = self.faults.begin_change(wanted, seed)
        if not self.faults.rules:
            log.info("No faults on purpose")
        self._log_faults()
        return steps

    def prepare_faults(self, rules: Iterable[Rule]) -> Deferred[None]:
        """Make ahead what takes long: then `change_faults` does not hold the event loop."""
        needs = any(getattr(rule.fault, "ca", None) is not None for rule in rules)
        if not needs or self.authority is None:
            return succeed(None)
        return self.authority.make_ahead(IReactorFromThreads(self.reactor))

    def _announce(self, rules: Iterable[Rule]) -> None:
        """Write what clients need for new faults, for which no listener has written it."""
        for rule in rules:
            path = getattr(rule.fault, "ca", None)
            if path:
                raise StartError(
                    f"--fault {rule.fault.name}: ca= is for the start; leave it out: the log "
                    "names the file"
                )
            if path is not None and self.authority is not None:
                self.authority.announce()

    def _log_faults(self) -> None:
        if self.faults is not None and self.faults.rules:
            faults = escape(" ".join(map(str, self.faults.rules)))
            seed = self.faults.seed
            log.info("Faults on purpose, seed {seed}: {faults}", seed=seed, faults=faults)

    def reload(self) -> None:
        """Apply the new settings, or change nothing and log why."""
        if not self.draining:
            self.reloading.reload()

    def _reload_began(self) -> None:
        if self.ready:  # otherwise the manager waits for the start, and expects no other message
            self.notifier.reloading()

    def _reload_ended(self) -> None:
        if self.ready:
            self.notifier.ready()

    @property
    def certificates(self) -> list[ServedCertificate]:
        """The certificates in use, each once."""
        return self.reloading.certificates

    def _contexts(self) -> list[ServerSide]:
        """Return the TLS contexts."""
        found = [listener.tls for listener in self.listeners]
        found += [site.tls for site in self._sites]
        return [each for each in found if each is not None]

    def describe(self) -> str:
        """Describe the current state in a few words, for the service manager."""
        count = sum(len(listener.factory.connections) for listener in self.listeners)
        why = self.reloading.refused
        refused = f"; the last reload was refused: {why}" if why else ""
        doing = "Suspended" if self.suspended else "Serving"
        return f"{'Draining' if self.draining else doing}; connections: {count}{refused}"

    def _make_drain(self) -> Drain:
        return Drain(
            self.reactor,
            [listener.factory for listener in self.listeners],
            self._model,
            timeout=self._settings.drain_timeout,
            spread=self._settings.drain_spread,
            still_there=self._slow.left_behind,
            life=self.life,
        )

    def _stop_listening(self) -> Deferred[None]:
        self._listening = None
        stopped = DeferredList([listener.stop() for listener in self.listeners])
        return stopped.addCallback(lambda _: None)

    def _begin_drain(self, _: object) -> Deferred[None]:
        self._drain = self._make_drain()
        return self._drain.begin()

    def _stopped(self, _: object) -> Deferred[None] | None:
        self._model.stop()
        if self.authority is not None:
            self.authority.withdraw()
        self._validity.stop()
        if self._watch is not None:
            self._watch.stop()
        self._slow.stop()
        self._freezer.stop()
        self.notifier.close()
        log.info("Stopped")
        # They stop last, so that they answer as long as possible.
        return DeferredList([site.stop() for site in self._sites]).addCallback(lambda _: None)
