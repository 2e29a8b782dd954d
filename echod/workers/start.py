"""The start of the supervisor: flags in, a supervisor out, which twistd runs as its service."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from echod.daemon import choose_reactor
from echod.daemon.build import make_control_server, make_shared, reload_token
from echod.daemon.notify import Notifier
from echod.daemon.process import (
    Options,
    show_start_errors_in_one_line,
    take_precautions,
    teller_of,
    twistd_options,
)
from echod.daemon.resolve import named, resolve_status
from echod.daemon.signals import GRACE, Signals
from echod.errors import UserError
from echod.handlers.lookup import check_name
from echod.listening.socket_activation import InheritedSockets, started_with
from echod.log.observer import LogObserver
from echod.permissions import ROOT
from echod.settings.definitions import Settings
from echod.text import escape
from echod.tls import Copies
from echod.workers.code_reload import CodeReload
from echod.workers.supervisor import SPARE, Supervisor, patience_for

log = Logger("echod")


def make_supervisor(options: Options, log_observer: LogObserver | None) -> Supervisor:
    """Return the supervisor of the workers; an error is one line, with exit code 1."""
    from twisted.internet import reactor

    twistd = twistd_options(options)
    if log_observer is None:
        raise SystemExit("echod: --workers needs twistd without --logger, or echod serve")
    if twistd.get("chroot"):
        raise SystemExit(
            "echod: --chroot and --workers: workers are new processes of Python, which could not "
            "start there: leave out one of the two"
        )
    take_precautions(twistd)
    show_start_errors_in_one_line()
    choose_reactor.follow_the_monotonic_clock(reactor)
    for useless in options.settings.without_effect:
        log.warn("{useless}", useless=escape(options.placed(useless)))
    log.info("Running on the {name} reactor", name=choose_reactor.name_of(reactor))
    inherited = InheritedSockets(started_with())
    # A worker may not read the keys that root reads here.
    copies = inherited.copies = Copies()
    try:
        listeners = make_shared(options.settings, reactor, inherited)
        supervisor = Supervisor(reactor, options, listeners, log_observer)
        if options.reload:
            with named("--handler"):  # no file mends a name that is not installed
                check_name(options.settings.handler.name)
            supervisor.code_reload = CodeReload(reactor, options, supervisor.replace)
        if options.settings.status:
            add_status(supervisor, options.settings, inherited)
        if options.settings.control:
            add_control(supervisor, options.settings, inherited)
    except UserError as error:
        raise SystemExit(f"echod: {options.placed(str(error))}") from None
    if os.geteuid() == ROOT and twistd.get("uid") is not None:
        supervisor.copies = copies
    supervisor.other_user = options.other_user
    supervisor.tell_error = teller_of(options, reactor)
    supervisor.notifier = Notifier.from_environment(reactor, supervisor.describe, os.environ)
    supervisor.signals = Signals(
        reactor,
        abort=supervisor.abort,
        reload=supervisor.reload,
        patience=patience_for(options.settings),
        pidfile=twistd.get("pidfile") or "",
        flush=log_observer.writer.flush,
        grace=GRACE + 2 * SPARE,
    )
    supervisor.signals.install()
    _renew_on_sigusr2(supervisor)
    return supervisor


def _renew_on_sigusr2(supervisor: Supervisor) -> None:
    call = IReactorFromThreads(supervisor.reactor).callFromThread

    def renew(*_: object) -> None:
        call(supervisor.renew)

    signal.signal(signal.SIGUSR2, renew)


def add_status(supervisor: Supervisor, settings: Settings, inherited: InheritedSockets) -> None:
    """Give the supervisor of workers the status of all.

    Raises:
        StartError: the endpoint string is wrong, or a file or socket that it names cannot be used.
    """
    from echod.status.server import StatusServer
    from echod.workers.look import WorkersLook

    reactor = supervisor.reactor
    wanted = resolve_status(reactor, settings.status, inherited)
    look = supervisor.figures = WorkersLook(
        reactor,
        lambda: supervisor.children,
        lambda: supervisor.state,
        supervisor.log_observer,
        choose_reactor.name_of(reactor),
    )
    supervisor.status = StatusServer(
        reactor, settings.status, wanted, look, hosts=settings.status_host
    )


def add_control(supervisor: Supervisor, settings: Settings, inherited: InheritedSockets) -> None:
    """Give the supervisor of workers the control of all.

    Raises:
        StartError: see `make_control_server`.
    """
    from echod.workers.control import WorkersControl

    operations = supervisor.operations = WorkersControl(
        supervisor.reactor,
        lambda: supervisor.children,
        lambda: supervisor.state,
        supervisor.block_of,
        (settings.journal, settings.journal_bytes),
        settings.endpoints,
    )
    control = supervisor.control = make_control_server(
        supervisor.reactor, settings, inherited, operations.routes
    )
    # twistd may change to another folder after this.
    supervisor.parts.append(partial(reload_token, control, Path.cwd()))
