"""The composition root: settings in, a service out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import deferLater
from twisted.logger import Logger

from echod.awaiting import loop_of
from echod.concurrency.life import Life
from echod.concurrency.model import Model
from echod.concurrency.models import InPool, InReactor, Serial, ThreadPerConnection
from echod.concurrency.pool import WorkerPool
from echod.connections.admission import Admission
from echod.connections.factory import EchoFactory
from echod.daemon.choose_reactor import name_of
from echod.daemon.reload import Part
from echod.daemon.resolve import (
    check_reactor,
    find_framing,
    find_handler,
    find_target,
    find_token,
    ignored_by,
    looking_at_handler,
    named,
    resolve_control,
    resolve_listen,
    resolve_status,
)
from echod.daemon.service import EchoService
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.kinds import Kind, defaults_of
from echod.handlers.lookup import ResolvedHandler
from echod.listening.endpoints import Listening
from echod.listening.listener import Listener
from echod.listening.socket_activation import InheritedSockets, started_with
from echod.metrics import Metrics
from echod.settings.definitions import Settings, is_bad_tls
from echod.text import clipped, escape
from echod.turns import Turns

if TYPE_CHECKING:
    from echod.connections.lifecycle import ConnectionProtocol
    from echod.control import ControlServer
    from echod.control.site import Routes
    from echod.faults import FaultPlan, Faults
    from echod.interfaces import Reactor
    from echod.journal import Journal
    from echod.limits import Limits
    from echod.listening.badtls import SharedMistakes
    from echod.listening.shared import PassedSockets, SharedSockets
    from echod.messages.framing import Framing
    from echod.status import HandlerTimer, Look
    from echod.status.server import StatusServer

log = Logger("echod")


def build_service(
    settings: Settings,
    reactor: Reactor,
    given: object = None,
    framing: Framing | None = None,
    *,
    faults_change: bool = False,
    passed: PassedSockets | None = None,
    admit: Callable[[Limits, Callable[[], float]], Admission] = Admission,
    numbers: Iterator[int] | None = None,
) -> EchoService:
    """Return the service for `settings`, not started.

    Args:
        settings: the settings.
        reactor: the reactor.
        given: a handler that is used instead of the one that they name; None: no other.
        framing: the same for the framing.
        faults_change: whether `EchoService.change_faults` may be called.
        passed: the sockets to listen on, in a worker; None if this process has its own.
        admit: makes the admission, of the limits and the clock.
        numbers: of the connections in the journal; None: from 1 on.

    Raises:
        StartError: the handler or the framing cannot be loaded, or an endpoint string is wrong.
    """
    target = find_target(settings) if given is None else given
    with looking_at_handler():
        defaults = defaults_of(target)
        settings, taken = settings.with_defaults(defaults)
    handler = find_handler(settings, target, is_named=given is None)
    if taken:
        log.info("The handler asks for: {settings}", settings=", ".join(taken))
    check_reactor(handler, reactor)
    model = make_model(settings, reactor, handler.kind)
    timer = make_timer(model) if settings.status else None
    inherited = InheritedSockets(started_with()) if passed is None else passed
    life = make_life(handler, model, reactor)
    journal = make_journal(settings, reactor, numbers)
    timed = timer.timed(handler) if timer and life is None else handler
    plan = make_faults(settings, changeable=faults_change or settings.faults_change)
    cut = framing or find_framing(settings)
    authority = make_authority(settings, changeable=plan is not None and plan.changeable)
    listeners = make_listeners(
        settings, reactor, timed, model, inherited, cut, plan, journal, authority, admit
    )
    service = EchoService(reactor, settings, listeners, model, Metrics(), life, plan)
    service.authority = authority
    service.journal = journal
    if life is None:
        _log_handler(handler, model, settings)
    else:
        service.serve = partial(_serve, listeners, timer, model, settings)
    service.reloading.adapt = lambda wanted: wanted.with_defaults(defaults)[0]
    service.reloading.parts += [_reload_of(listener.factory) for listener in listeners]
    service.reloading.parts.append(lambda wanted: partial(model.reconfigure, wanted.make_limits()))
    if timer is not None and passed is not None:
        service.look = make_look(service, timer)  # for the supervisor, which has the status
    elif timer is not None:
        service.status = make_status(service, settings, inherited, timer)
    if settings.control and passed is None:  # that of workers is their supervisor's
        service.control = make_control(service, settings, inherited)
        # twistd may change to another folder after this.
        service.reloading.parts.append(partial(reload_token, service.control, Path.cwd()))
    if unused := inherited.unused:
        log.warn(
            "systemd passed sockets that no --listen, --status or --control uses: {names}",
            names=escape(", ".join(unused)),
        )
    return service


def make_life(handler: ResolvedHandler, model: Model, reactor: Reactor) -> Life | None:
    """Return the life of a service; None for any other handler."""
    if handler.kind is not Kind.SERVICE:
        return None
    call_from_thread = IReactorFromThreads(reactor).callFromThread
    return Life(handler, model, call_from_thread, loop_of(reactor))


def _serve(
    listeners: list[Listener[EchoFactory]],
    timer: HandlerTimer | None,
    model: Model,
    settings: Settings,
    handler: ResolvedHandler,
) -> None:
    """Use the handler that a service has yielded."""
    timed = timer.timed(handler) if timer else handler
    for listener in listeners:
        listener.factory.serve(timed)
    _log_handler(handler, model, settings)


def _log_handler(handler: ResolvedHandler, model: Model, settings: Settings) -> None:
    log.info(
        "Serving the {kind} handler {handler}, concurrency model {model}",
        kind=handler.kind,
        handler=escape(handler.name),
        model=model.name,
    )
    for useless in ignored_by(handler, settings):
        log.warn("{useless}", useless=escape(useless))


def _reload_of(factory: EchoFactory) -> Part:
    def part(wanted: Settings) -> Callable[[], None]:
        banner = wanted.make_banner(factory.framing)
        return partial(factory.reconfigure, wanted.make_limits(), banner)

    return part


def make_listeners(
    settings: Settings,
    reactor: Reactor,
    handler: ResolvedHandler,
    model: Model,
    inherited: InheritedSockets,
    framing: Framing,
    plan: FaultPlan | None,
    journal: Journal[ConnectionProtocol] | None,
    authority: SharedMistakes | None,
    admit: Callable[[Limits, Callable[[], float]], Admission],
) -> list[Listener[EchoFactory]]:
    """Return the listeners that `settings` ask for, with limits over all of them together.

    Raises:
        StartError: an endpoint string is wrong, or a file or socket that it names cannot be used.
    """
    limits = settings.make_limits()
    admission = admit(limits, reactor.seconds)
    turns = Turns(reactor, time.monotonic)

    def make_factory(description: str, wanted: Listening, faults: Faults | None) -> EchoFactory:
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
            starttls=wanted.tls if wanted.starts_clear else None,
            faults=faults,
            mistakes=authority.get_mistakes if authority else None,
            journal=journal,
        )

    def make_listener(description: str, faults: Faults | None) -> Listener[EchoFactory]:
        wanted = resolve_listen(reactor, description, inherited, authority=authority)
        if paths := trust.pop(description, None):
            assert authority is not None
            with named("--fault wrong-certificate"):
                wanted = wanted._replace(endpoint=authority.trusted(wanted.endpoint, paths))
        factory = make_factory(description, wanted, faults)
        listener = Listener(reactor, description, wanted, factory, settings.proxy_trust)
        if faults is not None and (faults.arrivals or faults.changeable):
            listener.add_faults(faults, factory.note_fault)
        return listener

    endpoints = settings.endpoints
    trust = settings.trust_files
    faults = (plan.for_listener(*one) if plan else None for one in enumerate(endpoints, 1))
    return list(map(make_listener, endpoints, faults))


def make_shared(
    settings: Settings, reactor: Reactor, inherited: InheritedSockets
) -> list[tuple[str, SharedSockets]]:
    """Return the endpoint strings to listen on, each with the sockets for all workers.

    Raises:
        StartError: an endpoint string is wrong, or workers cannot share its kind.
    """
    from echod.listening.shared import SharedSockets  # only some daemons need it

    shared = []
    for description in settings.endpoints:
        wanted = resolve_listen(reactor, description, inherited)
        with named(f"--listen {clipped(description, 200)}"):
            shared.append((description, SharedSockets(wanted.endpoint, settings.worker_count)))
    return shared


def make_faults(settings: Settings, *, changeable: bool) -> FaultPlan | None:
    """Return the faults on purpose; None if there are none, and never will be."""
    if not settings.fault and not changeable:
        return None
    import secrets

    from echod.faults import FaultPlan  # slow to import, and rarely needed

    seed = secrets.randbelow(2**32) if settings.fault_seed is None else settings.fault_seed
    return FaultPlan(settings.fault, seed, changeable=changeable)


def make_journal(
    settings: Settings, reactor: Reactor, numbers: Iterator[int] | None = None
) -> Journal[ConnectionProtocol] | None:
    """Return the record of connections; None if it was not asked for.

    The control needs it for the numbers of the open connections, even if it keeps no others.
    """
    if not settings.journal and not settings.control:
        return None
    from echod.connections.recording import facts_of
    from echod.journal import Journal

    return Journal(
        settings.journal,
        settings.journal_bytes,
        facts_of=facts_of,
        now=time.time,
        seconds=reactor.seconds,
        numbers=numbers,
    )


def make_authority(settings: Settings, *, changeable: bool) -> SharedMistakes | None:
    """Return the authority of `badtls:` and of wrong certificates; None if there are none."""
    listens = any(map(is_bad_tls, settings.endpoints))
    if not (listens or changeable or settings.trust_files):
        return None
    from echod.listening.badtls import SharedMistakes  # rarely needed

    authority = SharedMistakes(announced=listens or bool(settings.trust_files))
    if settings.trust_files:
        with named("--fault wrong-certificate"):
            authority.get_mistakes()
    return authority


def make_timer(model: Model) -> HandlerTimer:
    """Return the timer for the calls of handlers in `model`."""
    from echod.status import HandlerTimer  # slow to import, and rarely needed

    return HandlerTimer(in_threads=isinstance(model, InPool))


def make_status(
    service: EchoService, settings: Settings, inherited: InheritedSockets, timer: HandlerTimer
) -> StatusServer:
    """Return the server of the status of `service`, not listening yet.

    Raises:
        StartError: the endpoint string is wrong, or a file or socket that it names cannot be used.
    """
    from echod.status.server import StatusServer

    wanted = resolve_status(service.reactor, settings.status, inherited)
    look = make_look(service, timer)
    return StatusServer(service.reactor, settings.status, wanted, look, hosts=settings.status_host)


def make_look(service: EchoService, timer: HandlerTimer) -> Look:
    """Return the source of the figures of `service`."""
    from echod.status import Look

    return Look(service.reactor, service, timer, reactor_name=name_of(service.reactor))


def make_control(
    service: EchoService, settings: Settings, inherited: InheritedSockets
) -> ControlServer:
    """Return the control of `service`, not listening yet.

    Raises:
        StartError: the endpoint string is wrong, a file or socket that it names cannot be used, or
            the token is missing.
    """
    from echod.control import Operations  # slow to import, and rarely needed
    from echod.status.snapshot import state_of

    reactor = service.reactor
    operations = Operations(service, lambda: deferLater(reactor, 0), partial(state_of, service))
    return make_control_server(reactor, settings, inherited, operations.routes)


def make_control_server(
    reactor: Reactor, settings: Settings, inherited: InheritedSockets, routes: Routes
) -> ControlServer:
    """Return the server of these operations, not listening yet.

    Raises:
        StartError: see `make_control`.
    """
    from echod.control import ControlServer

    return ControlServer(
        reactor,
        settings.control,
        resolve_control(reactor, settings.control, inherited),
        routes,
        token=find_token(settings, os.environ, Path.cwd()),
        hosts=settings.control_host,
    )


def reload_token(control: ControlServer, folder: Path, wanted: Settings) -> Callable[[], None]:
    """Return the part that gives `control` its token at a reload."""
    return partial(control.use_token, find_token(wanted, os.environ, folder))


def make_model(settings: Settings, reactor: Reactor, kind: Kind = Kind.MESSAGE) -> Model:
    """Return the concurrency model that `settings` ask for, for a handler of this kind."""
    from_threads = IReactorFromThreads(reactor).callFromThread
    if kind is Kind.PROGRAM:
        from echod.concurrency.processes import Processes  # only for programs

        shared = settings.make_limits().bounds_addresses
        return Processes(reactor, settings.max_processes, shared=shared)
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
            pool = WorkerPool(settings.threads, from_threads)
            return InPool(pool, max_queue=settings.max_queue)
        case ConcurrencyModel.THREAD_PER_CONNECTION:
            pool = WorkerPool(settings.max_threads, from_threads, queues=False)
            return ThreadPerConnection(pool, shared=settings.make_limits().bounds_addresses)
