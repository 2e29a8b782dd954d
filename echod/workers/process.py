"""A worker: one of several processes that serve the same listeners, below a supervisor.

It is the daemon as it is without workers, except that its listening sockets, its settings and its
orders come from the supervisor (`supervisor.py`), and its log and its state go there. It ends if
the supervisor ends.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from echod.awaiting import fire
from echod.connections.shared_admission import AdmissionTable, SharedAdmission
from echod.daemon import choose_reactor, ending
from echod.daemon.capture import Capture, capturing
from echod.daemon.file_limit import fit_limits
from echod.daemon.notify import Notifier
from echod.daemon.process import (
    Options,
    log_through,
    prepare_service,
    reload_of_log,
    reload_of_signals,
)
from echod.daemon.resolve import StartError, why_refused
from echod.daemon.signals import GRACE, Signals
from echod.errors import UserError
from echod.listening.shared import PassedSockets, close_on_exec
from echod.log.observer import LogObserver
from echod.log.tracebacks import traceback_of_start
from echod.settings.definitions import reloaded
from echod.text import escape
from echod.timers import cancel_timer
from echod.tls import Copies
from echod.workers.handover import Handover
from echod.workers.link import LIMITS, MOMENT, SHOW_STACKS, STDERR, Link, LinkSink, Message
from echod.workers.sources import Sources

if TYPE_CHECKING:
    from echod.connections.lifecycle import ConnectionProtocol
    from echod.daemon.service import EchoService
    from echod.settings.definitions import Settings
    from echod.status import Look
    from echod.web.site import Answer

log = Logger("echod")

# How often the event loop tells the supervisor that it runs, in seconds.
HEARTBEAT = 0.5

# How long the end waits for its last words to the supervisor, in seconds.
LAST_WORDS = 0.5

# The settings of which each worker has an even share, rounded up. The limits on connections hold
# over all: see `echod.connections.shared_admission`.
DIVIDED = (
    "journal",
    "threads",
    "max_queue",
    "max_threads",
    "max_processes",
)

_PR_SET_PDEATHSIG = 1


class WorkerOptions(Options):
    """The flags of the daemon, and the file's text as the supervisor has read it."""

    takes_reload = True
    # How many workers there are: at a reload the file may say another number.
    count = 1

    def read_file(self) -> str:
        return self.text

    def configure_from(self, text: str) -> Settings:
        """Return the settings, with this worker's share of what is for the whole service."""
        settings = super().configure_from(text)
        shares = {name: _share(getattr(settings, name), self.count) for name in DIVIDED}
        return replace(settings, **shares)


class LinkNotifier(Notifier):
    """Tells the supervisor what a daemon without workers tells the service manager."""

    def __init__(
        self,
        reactor: Any,
        service: EchoService,
        link: Link,
        handover: Handover[ConnectionProtocol] | None,
    ) -> None:
        """Set up.

        Args:
            reactor: for timers.
            service: the service.
            link: to the supervisor.
            handover: of the journal; None without one.
        """
        super().__init__(reactor, service.describe)
        self._link = link
        self._service = service
        self._handover = handover

    def starting(self, text: str, seconds: float) -> None:
        self._link.send(news="starting", text=text, seconds=seconds)

    def reloading(self) -> None:
        pass

    def ready(self) -> None:
        """Tell it after the lines of the start, which have a pipe of their own."""
        observer = self._service.log_observer
        assert observer is not None
        observer.writer.when_written(lambda: self._link.send(news="ready"))

    def stopping(self) -> None:
        self._link.send(news="draining")

    def close(self) -> None:
        super().close()
        if (look := self._service.look) is not None:
            look.stop()
            tell_figures(look, self._link, 0)  # no connection is open any more: at once
        if self._handover is not None:
            self._handover.finish()


def tell_figures(look: Look, link: Link, number: int) -> None:
    """Tell the supervisor this worker's figures.

    Args:
        look: their source.
        link: to the supervisor.
        number: of its question; 0 if it has not asked.
    """
    from echod.status.several import encoded  # only with --status

    def tell(figures: dict[str, Any]) -> None:
        link.send(news="figures", number=number, figures=figures)

    asked = Deferred.fromCoroutine(encoded(look))
    asked.addCallback(tell)
    asked.addErrback(lambda failure: log.failure("Collecting the figures failed", failure))


def _import_for_requests(settings: Settings) -> None:
    """Import what requests need: at the first of them, clients would wait for it."""
    if settings.status:
        import echod.status.several
    if settings.control:
        import echod.control.site
        import echod.status.snapshot  # noqa: F401


class Worker:
    """The process, once it has its first order."""

    def __init__(self, link: Link, order: Message) -> None:
        """Set up.

        Args:
            link: to the supervisor.
            order: the first one.
        """
        self._link = link
        self._order = order
        self._sources = Sources(lambda files: link.send(news="files", files=files))
        self._commit: Callable[[], None] | None = None
        # Whether settings are being made ready; and the orders about them that came since.
        self._preparing = False
        # Fires once the supervisor has told this process to stop.
        self._told: Deferred[None] = Deferred()
        self._later: deque[Message] = deque()
        self._options = WorkerOptions()
        self._reactor: Any = None
        self._service: EchoService | None = None
        self._signals: Signals | None = None
        self._handover: Handover[ConnectionProtocol] | None = None

    def run(self) -> None:
        """Serve until the end.

        Raises:
            UserError: it cannot start.
            SystemExit: the same.
        """
        order = self._order
        _follow_the_supervisor(order["pid"])
        _enter(order["folder"])
        self._options.count = order["count"]
        _install_reactor(order["reactor"])
        self._configure(order)
        if self._options.reload:
            self._link.start_writing()
            self._sources.start()
        service = self._make(order)
        _enter(order["rundir"])
        service.startService()
        # As twistd does: first of all the service stops.
        self._reactor.addSystemEventTrigger("before", "shutdown", self._stop)
        beats = LoopingCall(self._beat)
        self._reactor.callWhenRunning(beats.start, HEARTBEAT)
        if service.look is not None:
            self._reactor.callWhenRunning(service.look.start)
        self._reactor.run()

    def _configure(self, order: Message) -> None:
        """Use the settings of the start, with those that reloads have changed since."""
        options = self._options
        options.text = order["first_text"]
        options.parseOptions(order["arguments"])
        # That of twistd's options which a check asks for.
        options.parent = {"uid": order["uid"]}  # type: ignore[assignment] # `Options` are one
        if order["text"] != options.text:
            options.text = order["text"]
            options.settings = reloaded(options.settings, options.configure())

    def give_up(self, error: UserError | SystemExit) -> None:
        """Tell the supervisor why this process cannot start."""
        said = str(error).removeprefix("echod: ")
        more = {}
        if self._options.reload:
            self._sources.look(error)
            more["traceback"] = traceback_of_start(error)
        self._link.send(news="failed", why=said, **more)
        self._link.finish(LAST_WORDS)

    def _beat(self) -> None:
        self._link.send(news="alive", preparing=self._preparing)
        if self._handover is not None:
            self._handover.begin()

    def _make(self, order: Message) -> EchoService:
        from twisted.internet import reactor

        _import_for_requests(self._options.settings)
        self._reactor = reactor
        options = self._options
        settings = options.settings
        atexit.register(ending.flush_files)
        sink = LinkSink(stamps=order["stamps"])
        observer = LogObserver(
            sink,
            format=settings.log_format,
            level=settings.log_level,
            rate=settings.log_rate,
            worker=order["number"],
        )
        log_through(observer)
        capture = Capture(observer.write_now)
        copies = Copies(order["files"], order["folders"])
        passed = PassedSockets(order["number"], order["sockets"], copies)
        close_on_exec(order["sockets"])
        with capturing(capture):
            options.settings = fit_limits(settings)
            table = AdmissionTable(LIMITS, order["blocks"])
            os.set_inheritable(LIMITS, False)
            admit = self._admission(table, settings, options.settings)
            numbers = table.numbers(order["block"])
            service = prepare_service(options, passed=passed, admit=admit, numbers=numbers)
        service.hold()  # it accepts once the supervisor says so
        globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
        reactor.addSystemEventTrigger("after", "shutdown", capture.withdraw)
        service.is_worker = True
        service.log_observer = observer
        service.capture = capture
        service.reloading.placed = options.placed
        if settings.control and service.journal is not None:
            self._handover = Handover(reactor, service.journal, self._link)
        service.notifier = LinkNotifier(reactor, service, self._link, self._handover)
        self._signals = service.signals = Signals(
            reactor,
            abort=service.abort,
            reload=lambda: None,
            patience=options.settings.drain_timeout + GRACE,
            flush=observer.writer.flush,
            supervised=True,
        )
        service.signals.install()
        service.reloading.parts.append(reload_of_signals(service.signals))
        service.reloading.parts.append(reload_of_log(observer))
        self._service = service
        atexit.register(self._link.finish, LAST_WORDS)
        self._link.start(self._obey, self._left_alone)
        return service

    def _admission(
        self, table: AdmissionTable, wanted: Settings, fitting: Settings
    ) -> Callable[..., SharedAdmission]:
        """Return the maker of the admission.

        Args:
            table: where the connections of all processes are counted.
            wanted: the settings for the whole service.
            fitting: those for which this process has the descriptors.
        """
        order = self._order
        factor = float(order["count"])
        if wanted.max_connections:
            factor = min(factor, wanted.max_connections / fitting.max_connections)
        key = bytes.fromhex(order["key"])
        return partial(SharedAdmission, table=table, block=order["block"], key=key, factor=factor)

    # In the thread that reads orders.

    def _obey(self, order: Message) -> None:
        assert self._signals is not None
        match order["do"]:
            case "stop":
                if order["whole"]:
                    self._take_queues()
                self._reactor.callFromThread(fire, self._told)
                self._signals.stop()
            case "hurry":
                self._signals.stop()
                self._signals.hurry()
            case _:
                self._reactor.callFromThread(self._obey_in_turn, order)

    def _take_queues(self) -> None:
        """Let the drain serve the clients that wait: the service ends, and no successor comes."""
        assert self._service is not None
        for listener, ends in zip(self._service.listeners, self._order["ends"], strict=True):
            listener.is_last = ends

    def _left_alone(self) -> None:
        """End, because the supervisor has."""
        assert self._signals is not None
        self._signals.stop()

    # In the event loop.

    def _stop(self) -> Deferred[None]:
        """Drain, once the supervisor has said whether a successor comes.

        A signal to the whole group may come here first. Until it comes there, the clients of this
        worker's sockets are to be served: no successor will.
        """
        service = self._service
        assert service is not None
        late = self._reactor.callLater(MOMENT, fire, self._told)

        def drain(_: None) -> Deferred[None]:
            cancel_timer(late)
            return service.stopService()

        return self._told.addCallback(drain)

    def _obey_in_turn(self, order: Message) -> None:
        match order["do"]:
            case "accept" if self._service is not None:
                self._service.accept()
            case "prepare" | "commit" | "forget" if self._preparing:
                self._later.append(order)
            case "prepare":
                self._preparing = True
                Deferred.fromCoroutine(self._prepare(order)).addBoth(self._prepared)
            case "commit":
                commit, self._commit = self._commit, None
                if commit is not None:
                    commit()
            case "forget":
                self._commit = None
            case "control":
                self._perform(order)
            case "figures" if self._service is not None and self._service.look is not None:
                tell_figures(self._service.look, self._link, order["number"])

    def _perform(self, order: Message) -> None:
        """Perform an operation of the control for the connections of this process."""
        from echod.control import Operations  # only with --control
        from echod.control.site import Call, perform
        from echod.status.snapshot import state_of

        service = self._service
        assert service is not None
        pause = partial(deferLater, self._reactor, 0)
        routes = Operations(service, pause, partial(state_of, service)).routes
        operation = routes[order["path"]][order["method"]]
        call = Call(order["query"].encode("latin-1"), order["id"])

        def tell(answer: Answer) -> None:
            body = answer.body.decode()
            self._link.send(
                news="control", number=order["number"], status=answer.status, body=body
            )

        performed = Deferred.fromCoroutine(perform(operation, call))
        performed.addCallback(tell)
        performed.addErrback(lambda failure: log.failure("Performing a request failed", failure))

    def _prepared(self, failure: object) -> None:
        """Obey the orders that came meanwhile."""
        if isinstance(failure, Failure):
            log.failure("Preparing a reload failed", failure)
        self._preparing = False
        while self._later and not self._preparing:
            self._obey_in_turn(self._later.popleft())

    async def _prepare(self, order: Message) -> None:
        """Make new settings ready, and tell whether they can be used."""
        assert self._service is not None
        before, self._options.text = self._options.text, order["text"]
        why = ""
        try:
            wanted = self._service.reloading.adapt(self._options.configure())
            self._commit = await self._service.reloading.prepare(wanted)
        except Exception as error:  # the service goes on as it was
            why = why_refused(error)
        if why:
            self._options.text = before
        self._link.send(news="prepared", number=order["number"], why=escape(why))


def _share(value: int, count: int) -> Any:
    return math.ceil(value / count)


def _follow_the_supervisor(supervisor: int) -> None:
    """Let the kernel send SIGTERM once the supervisor has ended: also to a blocked event loop."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):  # not on macOS; there the end of the pipe has to do
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # it has ended before
        raise SystemExit(1)


def _enter(folder: str) -> None:
    """Change to the folder of the daemon, which may have been removed since its start.

    Raises:
        StartError: that fails.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise StartError(
            f"the folder in which the daemon runs, {escape(folder)}: {error.strerror}"
        ) from None


def _install_reactor(name: str) -> None:
    """Use the reactor of the supervisor."""
    if name != "uvloop":
        from twisted.application.reactors import installReactor

        installReactor(name)
    else:
        choose_reactor.choose()


def main() -> None:
    """Run a worker: what the supervisor executes."""
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: None)
    faulthandler.register(SHOW_STACKS, file=STDERR, all_threads=False)
    link = Link()
    worker = Worker(link, link.first())
    try:
        worker.run()
    except (UserError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise
        worker.give_up(error)
        sys.exit(1)
