"""The composition root: settings in, a running service out.

The only place where the parts meet, and the only one that touches what is global: the reactor,
signal handlers, `sys.path` and `sys.excepthook`.

Stopping is promised in three steps, each a fall-back of the one before:

* The first SIGTERM (or SIGINT) drains: no new connection is accepted, what was received is
  answered, and after `drain_timeout` the rest is aborted.
* The second one aborts at once.
* A thread ends the process if the reactor is not gone `GRACE` seconds after that deadline: a
  handler that blocks the event loop for ever, or a foreign thread that is joined at exit, cannot
  keep the process alive.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod import default_reactor
from echod.concurrency import InPool, InReactor, Model, Serial, ThreadPerConnection, WorkerPool
from echod.escaping import escape
from echod.handlers import ConcurrencyModel, HandlerError, Kind, resolve
from echod.metrics import Metrics
from echod.protocol import EchoFactory
from echod.settings import Options as SettingsOptions
from echod.settings import Settings

__all__ = ["EchoService", "Options", "StartError", "build_service", "makeService"]

log = Logger()

# How long after the drain's deadline the process may take to end in good order, in seconds.
GRACE = 0.7


class StartError(Exception):
    """The daemon cannot start; the text says where and why, in one line."""


class Options(SettingsOptions):
    """The flags; `--check-config` tries all that they name.

    To read them is the last moment at which to choose a reactor.
    """

    def postOptions(self) -> None:
        default_reactor.choose()
        super().postOptions()

    def check(self) -> None:
        """Look up the handler, and read the endpoint strings and the files that they name."""
        makeService(self)


def makeService(options: Options) -> EchoService:
    """Return the service that `options` ask for; what is wrong with them is one line, exit 1."""
    from twisted.internet import reactor

    _import_from_current_directory()
    _show_start_errors_in_one_line()
    default_reactor.follow_the_monotonic_clock(reactor)
    log.info("Running on the {name} reactor", name=default_reactor.name_of(reactor))
    try:
        service = build_service(options.settings, reactor)
    except StartError as error:
        raise SystemExit(f"echod: {error}") from None
    service.stopper = Stopper(reactor, service.abort, options.settings.drain_timeout + GRACE)
    return service


def build_service(settings: Settings, reactor: Any) -> EchoService:
    """Return the service for `settings`, not started.

    Args:
        settings: what was asked for.
        reactor: where it runs.

    Raises:
        StartError: the handler cannot be had or an endpoint string is wrong.
    """
    try:
        handler = resolve(settings.handler_spec, settings.concurrency)
    except HandlerError as error:
        raise StartError(f"--handler: {error}") from error
    if handler.kind is Kind.CONNECTION and (useless := settings.about_messages):
        raise StartError(
            f"{useless[0]} is of no use: {escape(handler.name)} is a connection handler, "
            "which reads the socket itself"
        )
    framing = settings.make_framing()
    model = make_model(settings, reactor)
    metrics = Metrics()
    listeners = [
        Listener(
            description,
            parse_endpoint(reactor, description),
            EchoFactory(
                reactor,
                handler=handler,
                framing=framing,
                model=model,
                limits=settings.make_limits(),
                banner=settings.make_banner(framing),
                metrics=metrics,
                listener=description,
            ),
        )
        for description in settings.endpoints
    ]
    log.info(
        "Serving the {kind} handler {handler}, concurrency model {model}",
        kind=handler.kind,
        handler=escape(handler.name),
        model=model.name,
    )
    return EchoService(reactor, listeners, model, settings.drain_timeout)


def make_model(settings: Settings, reactor: Any) -> Model:
    """Return the concurrency model that `settings` ask for."""
    match settings.concurrency:
        case ConcurrencyModel.REACTOR:
            return InReactor()
        case ConcurrencyModel.SERIAL:
            limits = settings.make_limits()
            return Serial(
                reactor.seconds, patience=limits.serial_timeout, queue_size=limits.serial_queue
            )
        case ConcurrencyModel.DEFER_TO_THREAD:
            return InPool(WorkerPool(settings.threads, reactor.callFromThread))
        case ConcurrencyModel.THREAD_PER_CONNECTION:
            return ThreadPerConnection(WorkerPool(settings.max_threads, reactor.callFromThread))


def parse_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """Return the endpoint that a string describes.

    Raises:
        StartError: the string is not one, or what it names cannot be read.
    """
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    except Exception as error:  # each endpoint parser has its own ways to refuse
        what = escape(str(error)) or type(error).__name__
        raise StartError(f"--listen {escape(description)}: {what}") from error
    return endpoint


class Listener:
    """One endpoint, and the factory that serves it."""

    def __init__(
        self, description: str, endpoint: IStreamServerEndpoint, factory: EchoFactory
    ) -> None:
        self.description = description
        self.factory = factory
        self._endpoint = endpoint
        self._port: IListeningPort | None = None

    def listen(self) -> Deferred[Any]:
        """Bind and listen.

        Returns:
            Fires once it listens; fails with `StartError`.
        """
        log.info("Socket created")
        return self._endpoint.listen(self.factory).addCallbacks(self._listening, self._refused)

    def stop(self) -> Deferred[None]:
        """Accept nothing more; fires once that is so."""
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        return succeed(None).addCallback(lambda _: port.stopListening())

    @property
    def address(self) -> Any:
        """Where it listens, as a Twisted address; None where it does not."""
        return self._port and self._port.getHost()

    def _listening(self, port: IListeningPort) -> None:
        self._port = port
        log.info("Socket bind complete")
        log.info("Socket now listening")

    def _refused(self, failure: Failure) -> None:
        assert failure.value is not None
        why = bind_error(failure.value)
        log.critical("{why}", why=why)
        raise StartError(f"{escape(self.description)}: {why}")


def bind_error(error: BaseException) -> str:
    """Return why listening failed, in the words that every first server prints."""
    cause: Any = error.socketError if isinstance(error, CannotListenError) else error
    if isinstance(cause, OSError) and cause.errno is not None:
        return f"Bind failed. Error Code : {cause.errno} Message {os.strerror(cause.errno)}"
    return f"Bind failed. Error Code : {errno.EINVAL} Message {escape(str(cause))}"


class EchoService(Service):
    """Listens, and at the end drains.

    Attributes:
        listeners: where it listens, in the order given.
        stopper: turns signals into drain and abort; None where somebody else does.
    """

    name = "echod"

    def __init__(
        self, reactor: Any, listeners: list[Listener], model: Model, drain_timeout: float
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: for the drain's deadline.
            listeners: where to listen.
            model: what to stop at the end.
            drain_timeout: seconds that clients have at the end.
        """
        self.listeners = listeners
        self.stopper: Stopper | None = None
        self._reactor = reactor
        self._model = model
        self._drain_timeout = drain_timeout
        self._listening = False
        self._failures: list[Failure] = []

    def privilegedStartService(self) -> None:
        """Listen, while low ports and protected paths are still allowed.

        Raises:
            StartError: a listener cannot.
        """
        super().privilegedStartService()
        for listener in self.listeners:
            listener.listen().addErrback(self._cannot_listen)
        self._listening = True
        if self._failures:
            self._stop_listening()
            self._failures[0].raiseException()

    def _cannot_listen(self, failure: Failure) -> None:
        self._failures.append(failure)
        if self._listening:  # an endpoint that took its time: nobody is left to raise it to
            self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
            self._reactor.stop()

    def startService(self) -> None:
        """Listen, if that has not been done with privileges: `twist` has no such step."""
        super().startService()
        if not self._listening:
            self.privilegedStartService()
        if self.stopper is not None:
            self._reactor.callWhenRunning(self.stopper.install)

    def stopService(self) -> Deferred[None]:
        """Drain.

        Returns:
            Fires when the last connection is closed, at the drain's deadline at the latest.
        """
        super().stopService()
        return self._stop_listening().addCallback(lambda _: self._drain())

    def abort(self) -> None:
        """Close every connection at once; a drain under way ends."""
        for listener in self.listeners:
            listener.factory.abort()
        self._model.stop()

    def _stop_listening(self) -> Deferred[Any]:
        self._listening = False
        return DeferredList([listener.stop() for listener in self.listeners])

    def _drain(self) -> Deferred[None]:
        drained = DeferredList([listener.factory.drain() for listener in self.listeners])
        count = sum(len(listener.factory.connections) for listener in self.listeners)
        if count:
            log.info(
                "Draining {count} connections, for {seconds:g} seconds at most",
                count=count,
                seconds=self._drain_timeout,
            )
        deadline = self._reactor.callLater(self._drain_timeout, self._give_up)
        # What handlers have to do once their connections are gone is within the deadline too.
        drained.addCallback(lambda _: self._model.drain())
        return drained.addCallback(lambda _: self._drained(deadline))

    def _give_up(self) -> None:
        count = sum(len(listener.factory.connections) for listener in self.listeners)
        log.warn("Drain time-out: aborting {count} connections", count=count)
        self.abort()

    def _drained(self, deadline: Any) -> None:
        if deadline.active():
            deadline.cancel()
        self._model.stop()
        log.info("Stopped")


class Stopper:
    """Turns SIGTERM and SIGINT into a drain, then an abort, then the end of the process."""

    def __init__(self, reactor: Any, abort: Callable[[], None], patience: float) -> None:
        """Set up, without touching signal handlers.

        Args:
            reactor: told of the first signal through the handler it had installed.
            abort: closes every connection; called in the reactor thread at the second signal.
            patience: seconds from the first signal to the end of the process.
        """
        self._reactor = reactor
        self._abort = abort
        self._patience = patience
        self._hurry = threading.Event()
        self._previous: dict[int, Any] = {}
        self._signalled = False

    def install(self) -> None:
        """Take over from the handlers that the reactor has installed."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # Under nohup and the like a signal is ignored, and shall be.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._on_signal)

    def uninstall(self) -> None:
        """Give the signals back."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            self._hurry.set()
            self._reactor.callFromThread(self._abort)
            return
        self._signalled = True
        threading.Thread(
            target=self._insist, args=(number,), name="echod-stopper", daemon=True
        ).start()
        self._previous[number](number, frame)

    def _insist(self, number: int) -> None:
        """In a thread: end the process where nothing else does."""
        if self._hurry.wait(self._patience):
            time.sleep(GRACE)
        # 128 + the signal's number is what a shell reports of a process that a signal ended.
        os._exit(128 + number)


def _import_from_current_directory() -> None:
    """Let `--handler module:object` find a module beside the user.

    At the end of the path: no file that lies there can stand in for an installed module.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def _show_start_errors_in_one_line() -> None:
    # twistd removes its pidfile only if an Exception passes, not a SystemExit; and what passes
    # through it ends at the interpreter, which would print a traceback.
    previous = sys.excepthook

    def show(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, StartError):
            print(f"echod: {error}", file=sys.__stderr__)  # sys.stderr is the log
        else:
            previous(kind, error, traceback)

    sys.excepthook = show
