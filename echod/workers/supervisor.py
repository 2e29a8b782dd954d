"""The supervisor: starts the workers, replaces those that end, and stands for all of them.

It runs in the process of twistd, which runs no handler. It binds the sockets, once and before
privileges are dropped, and gives each worker its own: see `echod.listening.shared`. Guarantees:

* A worker that ends is replaced at once; one that ends again and again, or cannot start, after
  a time that doubles up to `child.backoff`'s longest. If none of the first can start, the daemon
  ends with the reason.
* A worker that has begun to drain has its successor while it drains.
* A worker accepts clients once it has told that it is ready, and has been told to accept. So none
  accepts while the service is suspended, however late it started.
* SIGTERM drains all workers, and kills those that are left a little after the drain's deadline.
* New settings are used by every worker or by none: each makes them ready before any applies them.
* SIGUSR2 replaces the workers by new processes with the code that is on disk then, one at a time:
  each drains once its successor serves. If a successor cannot start, the old ones stay.
* Every line that a worker has written to its log before it ended is in the log, in the order of
  their arrival.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.application.service import IServiceCollection, Service
from twisted.internet import process
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from echod.connections.shared_admission import AdmissionTable
from echod.daemon import checks, ending
from echod.daemon.background import telling
from echod.daemon.choose_reactor import name_of
from echod.daemon.notify import Notifier
from echod.daemon.process import Options, reload_of_log, twistd_options
from echod.daemon.resolve import StartError, why_refused
from echod.daemon.signals import GRACE, Signals
from echod.errors import UserError
from echod.listening.listener import bind_error
from echod.listening.shared import SharedSockets
from echod.log.observer import LogObserver
from echod.log.sinks import Line
from echod.permissions import closed_folder, user_name
from echod.settings.definitions import Settings, differences, reloaded
from echod.text import escape, excerpt, plural
from echod.timers import cancel_timer
from echod.tls import Copies
from echod.turns import go_through
from echod.workers.child import Child, backoff
from echod.workers.link import MOMENT, SHOW_STACKS, Message
from echod.workers.orphans import reap_orphans
from echod.workers.reload import Reload

if TYPE_CHECKING:
    from echod.control import ControlServer
    from echod.daemon.reload import Part
    from echod.interfaces import Reactor
    from echod.status.server import StatusServer
    from echod.workers.code_reload import CodeReload
    from echod.workers.control import WorkersControl
    from echod.workers.look import WorkersLook

log = Logger("echod")

# How long one turn of the event loop may wait before it runs, in seconds.
TURN = 0.02

# A worker that has served for this long, in seconds, has not failed to start.
PROVEN = 1.0

# While the successor of a worker waits for longer, in seconds, the others have its clients.
LONG_WAIT = 1.0

# How often the heartbeats are looked at, in seconds.
LOOK = 0.5

# How long a worker that stands still has to show where, in seconds, before it is killed.
LAST_STACK = 0.5

# The number of a reload of one worker alone, which takes the settings in force.
CATCH_UP = 0

# How long the kill waits after the deadline by which a worker ends by itself, in seconds.
SPARE = 0.3


class Supervisor(Service):
    """The supervisor.

    Attributes:
        log_observer: writes the log of all.
        notifier: notifies the service manager.
        signals: turns signals into drain and abort.
        draining: whether it drains, or has ended.
        other_user: how this program is run as another user, for the log.
        tell_error: tells of an error of the start, before twistd does.
        status: the status of the service; None if it was not asked for.
        figures: its source.
        code_reload: replaces the workers when their files change; None if they are not watched.
        control: the control of the service; None if it was not asked for.
        operations: what it does.
        parts: each takes new settings of the supervisor's own.
        copies: the files that this process could read before it became another user.
    """

    name = "echod"

    def __init__(
        self,
        reactor: Reactor,
        options: Options,
        listeners: Sequence[tuple[str, SharedSockets]],
        log_observer: LogObserver,
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: for processes and timers.
            options: the flags and the file.
            listeners: each with its endpoint string.
            log_observer: see above.
        """
        self.reactor = reactor
        self.log_observer = log_observer
        self.notifier = Notifier(reactor, self.describe)
        self.signals: Signals | None = None
        self.draining = False
        self.other_user = "Run the program as another user"
        self.tell_error: Callable[[UserError], object] = lambda _: None
        self.status: StatusServer | None = None
        self.figures: WorkersLook | None = None
        self.code_reload: CodeReload | None = None
        self.control: ControlServer | None = None
        self.operations: WorkersControl | None = None
        self.parts: list[Part] = [reload_of_log(log_observer)]
        self.copies = Copies()
        self._options = options
        self._settings = options.settings
        # The file of settings at the start, and as it is in force.
        self._first_text = self._text = options.text  # a pipe is read once
        self._listeners = listeners
        self._folder = Path.cwd()
        # As twistd has it by the first start; it may be removed later, and made again.
        self._rundir = ""
        # Several processes of a worker may drain beside the one that serves.
        self._blocks = 4 * self._settings.worker_count + 16
        self._free_blocks = deque(range(self._blocks))
        self._table: AdmissionTable | None = None
        self._key = secrets.token_hex(16)
        self._seats = [Seat(number) for number in range(1, self._settings.worker_count + 1)]
        # Every process that has not ended, or whose last lines have not come.
        self._children: set[Child] = set()
        self._failed: list[str] = []
        self._serving = False
        self._is_ready = False
        self._refused = ""
        self._looks = LoopingCall(self._look)
        self._looks.clock = reactor
        self._looked = 0.0
        self._stopped: Deferred[None] | None = None
        self._kill: IDelayedCall | None = None
        self._reload: Reload | None = None
        self._reload_again = False
        self._renewing: Iterator[Seat] | None = None
        self._renew_again = False

    def setServiceParent(self, parent: IServiceCollection | None) -> None:
        """Join an application; twistd gets the log observer from the application."""
        super().setServiceParent(parent)
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.log_observer)

    # The start.

    @telling
    def privilegedStartService(self) -> None:
        """Bind, while low ports and protected paths are still allowed.

        Raises:
            StartError: a listener cannot.
        """
        super().privilegedStartService()
        if self.signals is not None:
            self.signals.serve()
        self.log_observer.writer.start()
        for description, sockets in self._listeners:
            log.info("Socket created")
            try:
                sockets.bind()
            except OSError as error:
                self._close()
                why = f"{escape(description)}: {bind_error(error)}"
                log.critical("{why}", why=why)
                raise StartError(why) from error
            log.info("Socket bind complete")
            log.info("Socket now listening")
            if port := sockets.drawn_port:  # a worker says so, too, but only once it can start
                log.info("{listener} has port {port}", listener=escape(description), port=port)
        for site in self._sites:
            site.listen().addErrback(self._no_site)
            if self._failed:
                self._close()
                raise StartError(self._failed[0])

    def _no_site(self, failure: Failure) -> None:
        self._failed.append(str(failure.value))

    @property
    def _sites(self) -> list[StatusServer | ControlServer]:
        return [one for one in (self.status, self.control) if one is not None]

    @property
    def _suspended(self) -> bool:
        return self.operations is not None and self.operations.suspended

    def block_of(self, number: int) -> int:
        """Return the block of the process that has given a connection this number."""
        return -1 if self._table is None else self._table.block_of(number)

    @property
    def state(self) -> str:
        """The state of the service, as the status has it."""
        if self.draining:
            return "draining"
        if not self._is_ready:
            return "starting"
        return "suspended" if self._suspended else "ready"

    @property
    def children(self) -> list[Child]:
        """The processes of workers that have not ended."""
        return [child for child in self._children if child.state != "ended"]

    @telling
    def startService(self) -> None:
        """Start the workers; return once they serve, or at once if their files are watched: code
        that cannot start can be mended.

        Raises:
            StartError: none of them can, there is no memory for their limits, or a signal ends the
                start.
        """
        super().startService()
        count = len(self._seats)
        self._make_table()
        log.info("Starting {count} {noun}", count=count, noun=plural(count, "worker", "workers"))
        if self.code_reload is None:
            self._start_and_wait()
            return
        self._serving = True
        for seat in self._seats:
            self._start(seat)
        self.code_reload.start()
        self.reactor.callWhenRunning(self._when_running)

    def _make_table(self) -> None:
        try:
            self._table = AdmissionTable.create(self._blocks)
        except OSError as error:
            self._close()
            size = -(-AdmissionTable.size(self._blocks) >> 10)
            why = (
                f"the {size} KiB of memory in which workers count their connections cannot be "
                f"made: {error.strerror}"
            )
            if error.errno == errno.EFBIG:
                why += (
                    "; raise the limit on the size of files: ulimit -f, or LimitFSIZE= in a unit"
                )
            log.critical("{why}", why=why)
            raise StartError(why) from error

    def _start_and_wait(self) -> None:
        stopped: list[int] = []
        if self.signals is not None:
            self.signals.starting = stopped.append
        for seat in self._seats:
            self._start(seat)
        while not (stopped or all(seat.decided for seat in self._seats)):
            self.reactor.iterate(TURN)
            process.reapAllProcesses()  # Twisted's own reactors do it only once they run
        if self.signals is not None:
            self.signals.starting = None
        if stopped and not all(seat.child for seat in self._seats):
            self._end_start()
            ending.end_by_signal(stopped[0])
            raise StartError(f"{signal.Signals(stopped[0]).name} came while the workers started")
        if not any(seat.child for seat in self._seats):
            self._end_start()
            why = escape(self._failed[0])
            log.critical("{why}", why=why)
            raise StartError(why)
        self._serving = True
        for seat in self._seats:
            if seat.child is None:
                self._start_later(seat)
        self.reactor.callWhenRunning(self._when_running)
        if stopped and self.signals is not None:
            self.signals.pass_on(stopped[0])  # clients may have been served: they are drained

    def _end_start(self) -> None:
        """Kill what has been started; a service of a worker is over by its drain's time."""
        self.draining = True
        if self.signals is not None:
            self.signals.answer()
        deadline = time.monotonic() + self._settings.drain_timeout + GRACE
        for child in list(self._children):
            _stop(child)
        while self._children:
            if time.monotonic() > deadline:
                for child in self._children:
                    child.signal(signal.SIGKILL)
            self.reactor.iterate(TURN)
            process.reapAllProcesses()
        self._close()

    def _when_running(self) -> None:
        if danger := checks.warning_once_started(os.geteuid(), self.other_user):
            log.warn("{danger}", danger=danger)
        if self.running:
            self._looked = self.reactor.seconds()
            for child in self._children:
                child.heard = self._looked
            self._looks.start(LOOK, now=False)
            self._tell_ready()

    def _tell_ready(self) -> None:
        """Notify the service manager once all serve."""
        if self._is_ready or self.draining or not self.reactor.running:
            return
        if all(seat.child and seat.child.state == "ready" for seat in self._seats):
            self._is_ready = True
            self.notifier.ready()

    def _start(self, seat: Seat) -> None:
        """Start the process of a seat, or its successor."""
        seat.later = None
        self._rundir = self._rundir or os.getcwd()
        child = Child(self, self.reactor, seat.number, self._text)
        order: dict[str, object] = {
            "pid": os.getpid(),
            "count": len(self._seats),
            "blocks": self._blocks,
            "key": self._key,
            "arguments": list(self._options.arguments),
            "uid": twistd_options(self._options).get("uid"),
            "folder": str(self._folder),
            "rundir": self._rundir,
            "reactor": self._reactor_name(),
            "stamps": self.log_observer.stamps,
            "files": self.copies.texts,
            "folders": self.copies.folders,
            "first_text": self._first_text,
            "ends": [one.end_with_service for _, one in self._listeners],
        }
        sockets = [one.descriptors_of(seat.number) for _, one in self._listeners]
        assert self._table is not None
        seat.next = child
        self._children.add(child)
        try:
            for _, shared in self._listeners:
                shared.restore(seat.number)
            if not self._free_blocks:
                raise OSError(errno.EAGAIN, "too many of its predecessors drain")
            child.block = order["block"] = self._free_blocks.popleft()
            child.start(order, sockets, self._table.descriptor)
        except OSError as error:  # no more processes, or descriptors, are allowed
            self._children.discard(child)
            if "block" in order:
                self._free_blocks.append(child.block)
            child.state = "ended"
            child.why = f"worker {seat.number} cannot be started: {_why_not(error)}"
            self._not_started(seat, child)

    def _reactor_name(self) -> str:
        """Return the name of the reactor: the given one, because a package may choose any."""
        asked_for = twistd_options(self._options).get("reactor")
        return asked_for if isinstance(asked_for, str) else name_of(self.reactor)

    # News of workers.

    def child_told(self, child: Child, news: Message) -> None:
        """Take news of a worker."""
        seat = self._seats[child.number - 1]
        match news["news"]:
            case "ready" if child is seat.next:
                self._serves(seat, child)
            case "draining" if child is seat.child and not self.draining:
                # It got SIGTERM itself: its successor takes new clients meanwhile. The whole
                # group may have got it: this process will then know in a moment.
                seat.child = None
                if not seat.next:
                    log.info("{child} drains; its successor starts", child=str(child))
                    seat.later = self.reactor.callLater(MOMENT, self._start, seat)
            case "files" if self.code_reload is not None and child in (seat.child, seat.next):
                serving = [one.child for one in self._seats if one.child is not None]
                self.code_reload.take_files(child, news["files"], serving)
            case "starting" if not self._is_ready:
                self.notifier.starting(str(news["text"]), float(news["seconds"]))
            case "figures" if self.figures is not None:
                self.figures.told(child, news["figures"], news["number"])
            case "control" | "ended" if self.operations is not None:
                self.operations.told(child, news)
            case "prepared" if news["number"] == CATCH_UP:
                self._caught_up(child, str(news["why"]))
            case "alive" | "prepared" if self._reload is not None:
                self._reload.told(child, news)

    def child_logged(self, line: Line) -> None:
        """Write a line of a worker's log."""
        self.log_observer.writer.add(line)

    def child_printed(self, child: Child, text: str) -> None:
        """Log a line that a worker, or a program that it has started, has printed."""
        if text:
            log.info(
                "{text}",
                text=escape(text),
                log_worker=child.number,
                log_kind=f"printed by worker {child.number}",
            )

    def child_exited(self, child: Child) -> None:
        """Replace a worker that has ended."""
        seat = self._seats[child.number - 1]
        if self._table is not None:
            self._table.clear(child.block)
            self._free_blocks.append(child.block)
        if self.figures is not None:
            self.figures.ended(child)
        if self.operations is not None:
            self.operations.ended(child)
        if self._reload is not None:
            self._reload.gone(child)
        if child is seat.next:
            self._not_started(seat, child)
        elif child is seat.child:
            seat.child = None
            if not self.draining and seat.next is None:
                self._died(seat, child)
        elif not self.draining:
            log.info("{child} has {ending}", child=str(child), ending=child.ending)
        if child is seat.leaving:
            seat.leaving = None
            self._renew_next()

    def child_is_over(self, child: Child) -> None:
        """Take note that all a worker said has come."""
        self._children.discard(child)
        if self._stopped is not None and not self._children:
            self._all_ended()

    def _serves(self, seat: Seat, child: Child) -> None:
        """Let a worker take the place of its predecessor."""
        before, seat.child, seat.next = seat.child, child, None
        log.info("{child} serves", child=str(child))
        if self.draining:
            child.stop(whole=True)
        else:
            self._let_accept(child)
        if before is not None:
            seat.leaving = before
            before.stop(whole=False)
        self._tell_ready()
        self._renew_next()

    def _let_accept(self, child: Child) -> None:
        if child.text != self._text:
            self._catch_up(child)
        if not self._suspended:  # otherwise `resume` tells it, as all that serve
            child.order(do="accept")

    def _not_started(self, seat: Seat, child: Child) -> None:
        """Take note that a worker has ended before it served."""
        seat.next = None
        seat.failures += 1
        why = child.why or f"worker {seat.number} was {child.ending} before it served"
        self._failed.append(why)
        if self.draining or not self._serving:
            return
        if self.code_reload is not None and child.has_refused:
            self._renewing, self._renew_again = None, False
            self.code_reload.tell_refusal(child, old_serves=seat.child is not None)
            return
        if seat.child is not None:  # it stays
            log.error("{why}: the workers that serve go on, with their code", why=escape(why))
            self._renewing, self._renew_again = None, False
            return
        self._start_later(seat, why)

    def _died(self, seat: Seat, child: Child) -> None:
        """Replace a worker that has ended without being told to."""
        served = self.reactor.seconds() - child.since
        seat.failures = 1 if served >= PROVEN else seat.failures + 1
        self._start_later(seat, f"{child} was {child.ending}")

    def _start_later(self, seat: Seat, why: str = "") -> None:
        delay = backoff(seat.failures)
        if why:
            when = f"in {delay:g} s" if delay else "now"
            if delay > LONG_WAIT and any(each.child for each in self._seats):
                when += ", and the others have its clients"
                for _, shared in self._listeners:
                    shared.withdraw(seat.number)
            log.error("{why}; its successor starts {when}", why=escape(why), when=when)
        if delay:
            seat.later = self.reactor.callLater(delay, self._start, seat)
        else:
            self._start(seat)

    # Heartbeats.

    def _look(self) -> None:
        """Kill a worker whose event loop stands still; reap orphans."""
        reap_orphans()
        now = self.reactor.seconds()
        slept, self._looked = now - self._looked - LOOK, now
        for child in self._children:
            if slept > LOOK:
                child.heard += slept  # the supervisor, too, did not run: nothing is known
            still = now - child.heard
            limit = self._settings.worker_timeout
            if child.state != "ready" or not limit or still < limit:
                child.warned = 0.0
            elif not child.warned:
                child.warned = now
                log.error(
                    "{child} has stood still for {seconds:.0f} s; it is killed, and was at:",
                    child=str(child),
                    seconds=still,
                )
                child.signal(SHOW_STACKS)
            elif now - child.warned >= LAST_STACK:
                child.signal(signal.SIGKILL)

    # New settings.

    def reload(self) -> None:
        """Let every worker use the new settings, or none."""
        if self.draining:
            return
        if self._reload is not None:
            self._reload_again = True
            return
        if self._is_ready:
            self.notifier.reloading()
        try:
            text = self._options.read_file()
            wanted = self._options.configure_from(text)
        except Exception as error:  # the workers go on as they were
            self._reload_ends(why_refused(error))
            return
        serving = [seat.child for seat in self._seats if seat.child is not None]
        self._reload = Reload(
            self.reactor,
            serving,
            text,
            self._prepare_own(wanted),
            lambda why: self._decided(why, text, wanted),
        )
        self._reload.begin()

    async def _prepare_own(self, wanted: Settings) -> list[Callable[[], object]]:
        """Make this process ready for new settings; return the functions that apply them."""
        own: list[Callable[[], object]] = [
            await go_through(self.reactor, site.tls.reread())
            for site in self._sites
            if site.tls is not None
        ]
        return own + [part(wanted) for part in self.parts]

    def _decided(self, why: str, text: str, wanted: Settings) -> None:
        assert self._reload is not None
        reload, self._reload = self._reload, None
        if not why:
            self._text = text
            changed = differences(self._settings, wanted)
            self._settings = reloaded(self._settings, wanted)
            if self.signals is not None:
                self.signals.reconfigure(patience_for(self._settings))
            taken = ", ".join(one.key for one in changed if one.text.reload)
            log.info(
                "Reloaded in every worker; changed: {taken}",
                taken=taken or "nothing",
                log_always=True,
            )
        reload.finish(apply=not why)
        for seat in self._seats:  # one that serves only since the reload began was not asked
            if seat.child is not None and seat.child.text != self._text:
                self._catch_up(seat.child)
        self._reload_ends(why)

    def _reload_ends(self, why: str) -> None:
        self._refused = excerpt(why, 500)
        if why:
            log.error("Reload refused, nothing has changed: {why}", why=self._refused)
        if self._is_ready:
            self.notifier.ready()
        if self._reload_again:
            self._reload_again = False
            self.reload()

    def _catch_up(self, child: Child) -> None:
        """Give the settings in force to a worker that was started with others."""
        child.text = self._text
        child.order(do="prepare", number=CATCH_UP, text=self._text)
        child.order(do="commit")

    def _caught_up(self, child: Child, why: str) -> None:
        """Replace a worker that cannot use the settings in force; its successor can start so."""
        if why and not child.told:
            log.error(
                "{child} cannot use the settings in force: {why}; its successor starts",
                child=str(child),
                why=escape(why),
            )
            child.stop(whole=False)

    # New code.

    def renew(self) -> None:
        """Replace the workers by new processes, one at a time."""
        if self.draining:
            return
        if not self._serving:  # the start waits for its own workers, not for their successors
            self.reactor.callWhenRunning(self.renew)
            return
        if self._renewing is not None:
            self._renew_again = True
            return
        log.info("Replacing the workers, one at a time")
        self._renewing = iter(self._seats)
        self._renew_next()

    def replace(self, text: str) -> None:
        """Replace the workers at once, as `renew` does: those that still start, too.

        Args:
            text: the content of the file of settings, for the new ones.
        """
        if self.draining:
            return
        self._first_text = self._text = text
        self._renew_again = False
        serving = [seat for seat in self._seats if seat.child is not None]
        for seat in self._seats:
            seat.failures, seat.leaving = 0, None
            if seat.later is not None:
                seat.later.cancel()
            if seat.next is not None:
                given_up, seat.next = seat.next, None
                _stop(given_up, whole=False)
            if seat.child is None:
                self._start(seat)
        self._renewing = iter(serving)
        self._renew_next()

    def _renew_next(self) -> None:
        """Renew the next worker, unless the last one has not finished, or one does not serve."""
        if self._renewing is None or self.draining:
            return
        if not all(seat.is_settled for seat in self._seats):
            return  # this is called again when a worker serves, and when a predecessor has ended
        for seat in self._renewing:
            self._start(seat)
            return
        if self.code_reload is None:
            log.info("The workers have been replaced")
        self._renewing = None
        if self._renew_again:
            self._renew_again = False
            self.renew()

    # The end.

    def stopService(self) -> Deferred[None]:
        """Drain.

        Returns:
            Fires when every worker has ended, a little after the drain's deadline at the latest.
        """
        super().stopService()
        self.draining = True
        self.notifier.stopping()
        if self.code_reload is not None:
            self.code_reload.stop()
        for seat in self._seats:
            if seat.later is not None:
                seat.later.cancel()
                seat.later = None
        self._close()
        if self._reload is not None:
            self._reload.cancel()
            self._reload = None
        stopped = self._stopped = Deferred()
        for child in list(self._children):
            _stop(child)
        if not self._children:
            self._all_ended()
        else:
            patience = self._settings.drain_timeout + GRACE + SPARE
            self._kill = self.reactor.callLater(patience, self._kill_all)
        return stopped

    def abort(self) -> None:
        """End every worker at once."""
        for child in self._children:
            child.told = True
            child.order(do="hurry")
        if self._kill is not None and self._kill.active():
            self._kill.reset(GRACE + SPARE)

    def _kill_all(self) -> None:
        for child in self._children:
            if child.state != "ended":
                log.error("{child} has not ended in time: it is killed", child=str(child))
                child.signal(signal.SIGKILL)

    def _all_ended(self) -> None:
        stopped, self._stopped = self._stopped, None
        cancel_timer(self._kill)
        if self._looks.running:
            self._looks.stop()
        self.notifier.close()
        log.info("Stopped")
        if stopped is not None:
            # It stops last, so that it answers as long as possible.
            over = gatherResults([site.stop() for site in self._sites])
            over.addCallback(lambda _: None).chainDeferred(stopped)

    def _close(self) -> None:
        for _, sockets in self._listeners:
            sockets.close()

    def describe(self) -> str:
        """Describe the current state in a few words, for the service manager."""
        serving = sum(
            seat.child is not None and seat.child.state == "ready" for seat in self._seats
        )
        refused = f"; the last reload was refused: {self._refused}" if self._refused else ""
        doing = "Suspended" if self._suspended else "Serving"
        doing = "Draining" if self.draining else doing
        return f"{doing}; workers: {serving} of {len(self._seats)}{refused}"


class Seat:
    """The place of one worker.

    Attributes:
        number: of the worker, from 1 on.
        child: the process that serves; None if there is none now.
        next: its successor, which starts.
        leaving: the predecessor that a renewal waits for.
        later: the start that waits.
        failures: how many processes in a row have failed.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: Child | None = None
        self.next: Child | None = None
        self.leaving: Child | None = None
        self.later: IDelayedCall | None = None
        self.failures = 0

    @property
    def decided(self) -> bool:
        """Whether its first process serves, or has ended."""
        return self.next is None

    @property
    def is_settled(self) -> bool:
        """Whether one process serves, and the renewal waits for no other."""
        return self.child is not None and self.next is None and self.leaving is None


def _stop(child: Child, *, whole: bool = True) -> None:
    child.stop(whole=whole)
    if child.state == "starting":
        child.signal(signal.SIGTERM)  # it reads no orders yet, and has accepted no client


def patience_for(settings: Settings) -> float:
    """Return how long the supervisor has for its end: longer than its workers, in seconds."""
    return settings.drain_timeout + 2 * (GRACE + SPARE)


def _why_not(error: OSError) -> str:
    """Return why a worker cannot be started: a new process of Python, by the user of `--uid`."""
    if isinstance(error, PermissionError) and (closed := closed_folder(sys.executable)):
        return (
            f"the user {escape(user_name())} cannot enter {escape(closed)}, and so not run "
            f"{escape(sys.executable)}: see its permissions, or use a Python elsewhere"
        )
    return error.strerror or str(error)
