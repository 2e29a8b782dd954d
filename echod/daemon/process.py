"""The process that twistd runs: flags in, a running service out.

It takes what is global, changes it, and passes it on: the reactor, the environment, `sys.path`,
`sys.excepthook`, the log, and SIGUSR1.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from twisted.application.app import ServerOptions
from twisted.logger import Logger
from twisted.python import usage

from echod.connections.admission import Admission
from echod.daemon import checks, choose_reactor, file_limit
from echod.daemon.background import end_with_the_child, teller, why_not_forked, write_error
from echod.daemon.build import build_service, make_shared
from echod.daemon.capture import Capture, capturing
from echod.daemon.file_limit import fit_limits
from echod.daemon.notify import Notifier
from echod.daemon.reload import Part
from echod.daemon.resolve import ignored_by
from echod.daemon.service import EchoService
from echod.daemon.signals import GRACE, Signals
from echod.errors import UserError
from echod.handlers.importing import ModulesOnly
from echod.handlers.kinds import Kind
from echod.listening.socket_activation import InheritedSockets, started_with
from echod.log.observer import LogObserver
from echod.log.sinks import DescriptorSink, FileSink, Sink, SyslogSink
from echod.permissions import ROOT
from echod.settings.definitions import Settings
from echod.settings.flags import Options as SettingsOptions
from echod.text import escape

if TYPE_CHECKING:
    from echod.interfaces import Reactor
    from echod.limits import Limits
    from echod.listening.shared import PassedSockets

log = Logger("echod")


class Options(SettingsOptions):
    """The flags; `--check-config` checks the files and objects that they name.

    After the flags are read it is too late to choose a reactor.

    Attributes:
        reload: whether new code replaces the old one when its files change.
        takes_reload: whether this command has `--reload`.
    """

    reload = False
    takes_reload = False

    def opt_reload(self) -> None:
        """Start again with the new code when a file of the handler's, or of the settings, changes:
        for development.
        """
        if not self.takes_reload:
            raise usage.UsageError("--reload is for development: echod serve has it")
        self.reload = True

    def configure_from(self, text: str) -> Settings:
        settings = super().configure_from(text)
        if self.reload and not settings.workers and not self.only_prints:
            settings.check_workers("--reload")
            return replace(settings, workers=1)
        return settings

    def postOptions(self) -> None:
        taken = file_limit.fill_standard_streams()  # before a reactor opens anything
        if taken and not twistd_options(self).get("nodaemon", True):
            raise SystemExit(
                f"echod: {taken[0]} is closed, and --reactor has opened a file in its place, "
                "which would not survive going into the background: leave out --reactor, or open "
                "it, as by </dev/null >/dev/null 2>&1"
            )
        # `twistd` and `twist` note the reactor that was asked for by the same name.
        choose_reactor.choose(asked_for=not self.parent or bool(self.parent.get("reactor")))
        super().postOptions()
        _settle_pidfile(self.parent)

    @property
    def other_user(self) -> str:
        """How this program is run as another user."""
        if "uid" in twistd_options(self):
            return "Start twistd with --uid, or from a unit with User= or DynamicUser="
        return "Run it as another user, or from a unit with User= or DynamicUser="  # twist

    def check(self) -> list[str]:
        """Look up the handler, and read the endpoint strings and the files that they name."""
        service = prepare_service(self, starting=False)
        try:
            if self.settings.workers:
                make_shared(self.settings, service.reactor, InheritedSockets(started_with()))
            service.try_handler()
        except UserError as error:
            raise SystemExit(f"echod: {self.placed(str(error))}") from None
        return ignored_by(service.handler, self.settings)

    @property
    def proviso(self) -> str:
        return checks.proviso(os.geteuid())


def make_daemon(options: Options, log_observer: LogObserver | None) -> EchoService:
    """Return the service of one process; an error is one line, with exit code 1.

    Args:
        options: the options.
        log_observer: writes the log; None if twistd does.
    """
    capture = None if log_observer is None else Capture(log_observer.write_now)
    with capturing(capture):
        for useless in options.settings.without_effect:
            log.warn("{useless}", useless=escape(options.placed(useless)))
        options.settings = fit_limits(options.settings)
        service = prepare_service(options)
    reactor = service.reactor
    service.log_observer = log_observer
    service.capture = capture
    if capture is not None:
        reactor.addSystemEventTrigger("after", "shutdown", capture.withdraw)
    service.reloading.configure = options.configure
    service.reloading.placed = options.placed
    service.other_user = options.other_user
    service.tell_error = teller_of(options, reactor)
    service.notifier = Notifier.from_environment(reactor, service.describe, os.environ)
    service.signals = Signals(
        reactor,
        abort=service.abort,
        reload=service.reload,
        patience=options.settings.drain_timeout + GRACE,
        pidfile=twistd_options(options).get("pidfile") or "",
        flush=log_observer.writer.flush if log_observer is not None else lambda _: None,
    )
    service.signals.install()
    service.reloading.parts.append(reload_of_signals(service.signals))
    if log_observer is not None:
        service.reloading.parts.append(reload_of_log(log_observer))
    return service


def reload_of_signals(signals: Signals) -> Part:
    """Return the part that gives `signals` the drain's time at a reload."""
    return lambda wanted: partial(signals.reconfigure, wanted.drain_timeout + GRACE)


def reload_of_log(observer: LogObserver) -> Part:
    """Return the part that gives `observer` its settings at a reload."""
    return lambda wanted: partial(
        observer.reconfigure,
        level=wanted.log_level,
        rate=wanted.log_rate,
        files=wanted.log_files,
    )


def prepare_service(
    options: Options,
    *,
    starting: bool = True,
    passed: PassedSockets | None = None,
    admit: Callable[[Limits, Callable[[], float]], Admission] = Admission,
    numbers: Iterator[int] | None = None,
) -> EchoService:
    """Return the service before it takes over log, signals and the service manager.

    Args:
        options: the options.
        starting: whether the daemon starts; otherwise only a named pidfile is checked.
        passed: the sockets to listen on, in a worker.
        admit: makes the admission, of the limits and the clock.
        numbers: of the connections in the journal; None: from 1 on.
    """
    from twisted.internet import reactor

    twistd = twistd_options(options)
    if not starting and twistd.get("pidfile") == checks.PIDFILE:
        twistd = {**twistd, "pidfile": ""}
    take_precautions(twistd)
    _import_from_current_directory()
    show_start_errors_in_one_line()
    choose_reactor.follow_the_monotonic_clock(reactor)
    log.info("Running on the {name} reactor", name=choose_reactor.name_of(reactor))
    try:
        service = build_service(
            options.settings, reactor, passed=passed, admit=admit, numbers=numbers
        )
    except UserError as error:
        raise SystemExit(f"echod: {options.placed(str(error))}") from None
    if twistd.get("chroot"):
        _import_what_comes_late(service)
    if service.authority is not None and os.geteuid() == ROOT:
        service.authority.owner = twistd.get("uid")
    danger = checks.refusal_of_programs(twistd, uid=os.geteuid())
    if danger and service.handler.kind is Kind.PROGRAM:
        raise SystemExit(f"echod: --handler: {danger}")
    return service


def _import_what_comes_late(service: EchoService) -> None:
    """Import what Python and cryptography import when they first use it."""
    import encodings.ascii  # of certificates with mistakes
    import encodings.idna  # noqa: F401 - of the name of a host

    if service.authority is not None:
        with contextlib.suppress(UserError):  # it comes again with a fault that needs it
            service.authority.get_mistakes().certificate  # noqa: B018


def teller_of(options: Options, reactor: Reactor) -> Callable[[UserError], object]:
    """Return what tells of an error of the start, if it goes into the background."""
    # Else the excepthook does; `twist` stays in the foreground.
    stays = twistd_options(options).get("nodaemon", True)
    if stays:
        return lambda _: None
    end_with_the_child()
    return teller(reactor)


def twistd_options(options: Options) -> Mapping[str, Any]:
    """Return the options before `echod` on the command line; those of `twist` differ."""
    return options.parent or {}


def make_log_observer(options: Options) -> LogObserver | None:
    """Return the observer that writes the log; None under `twist`, or with `twistd --logger`."""
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
    if settings.log_files != Settings.log_files and not isinstance(sink, FileSink):
        log.warn("--log-files has no effect: the log does not go to a file (twistd --logfile)")
    observer = LogObserver(
        sink, format=settings.log_format, level=settings.log_level, rate=settings.log_rate
    )
    log_through(observer)
    return observer


def sink_for(twistd: Mapping[str, Any], stdout: IO[str], *, keep: int = 0) -> Sink | None:
    """Return the sink that twistd's options ask for.

    Args:
        twistd: twistd's own options.
        stdout: standard output.
        keep: how many old files to keep, if the log goes to a file; 0: all.

    Returns:
        None if twistd has to decide: it was given an observer, or refuses to start.

    Raises:
        OSError: the log file cannot be opened.
    """
    path, in_foreground = twistd["logfile"], twistd["nodaemon"] or twistd["debug"]
    if twistd["logger"] or (path == "-" and not in_foreground):
        return None
    if twistd.get("syslog"):
        return SyslogSink(twistd["prefix"])
    if path == "-" or (in_foreground and not path):
        return DescriptorSink(stdout.fileno())
    return FileSink(path or "twistd.log", keep=keep)


def take_precautions(twistd: Mapping[str, Any]) -> None:
    """Refuse what is dangerous in twistd's own options, and warn of the rest."""
    if danger := checks.refusal(twistd, uid=os.geteuid()):
        raise SystemExit(f"echod: {escape(danger)}")
    folders = [*checks.plugin_folders(), os.getcwd()]
    for danger in checks.warnings(twistd, folders, uid=os.geteuid()):
        log.warn("{danger}", danger=escape(danger))


def _settle_pidfile(twistd: Any) -> None:
    """Remove a stale pidfile; let twistd look for the pidfile where it writes it.

    Args:
        twistd: twistd's own options, if there are any.
    """
    if not twistd or not twistd.get("pidfile"):
        return
    pidfile = Path(twistd.get("rundir") or ".", twistd["pidfile"]).absolute()
    twistd["pidfile"] = str(pidfile)
    try:
        if pidfile.is_symlink():
            return  # which is refused
        if not stat.S_ISREG(pidfile.stat().st_mode):
            raise SystemExit(
                escape(
                    f"echod: --pidfile {pidfile} is not a file: name another, or none: "
                    "twistd --pidfile= echod"
                )
            )
        if why := checks.why_stale(pidfile):
            log.warn(
                "Removing the pidfile {pidfile}: {why}", pidfile=escape(str(pidfile)), why=why
            )
            pidfile.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SystemExit(escape(f"echod: --pidfile {error.filename}: {error.strerror}")) from None


def _import_from_current_directory() -> None:
    """Let `--handler module:object` find a module in the current folder.

    The folder is at the end of the path, so no file there can replace an installed module. Package
    metadata there does not count as installed: it offers no handlers.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(ModulesOnly(here))


def show_start_errors_in_one_line() -> None:
    """Let an error that an operator can mend end the process with one line."""
    # twistd removes its pidfile only after an Exception, not after a SystemExit; and an Exception
    # reaches the interpreter, which would print a traceback.
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, UserError):
            write_error(2, error)  # sys.stderr is the log
        elif why := why_not_forked(error, trace):
            log.critical("{why}", why=str(why))
            write_error(2, why)
        else:
            previous(kind, error, trace)

    sys.excepthook = show


def log_through(observer: LogObserver) -> None:
    """Write the log to its last line at any end of the process; rotate its file on SIGUSR1."""
    from twisted.internet import reactor

    def rotate(*_: object) -> None:
        observer.writer.rotate()

    # Lines of the interpreter's end come between the two, and are written at once.
    reactor.addSystemEventTrigger("after", "shutdown", observer.finish)
    atexit.register(observer.close)
    os.register_at_fork(after_in_child=observer.restart)
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, rotate)
