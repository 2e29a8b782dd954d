"""The reactor: Twisted's interfaces over one uvloop loop.

Five things feed the loop:

- Streams are uvloop's own transports (``transport.py``); they never pass through this module.
- Listening stream sockets (``port.py``) are watched by uvloop.
- Every other descriptor (UDP sockets, pipes, connecting sockets) is registered with one epoll
  object, as in Twisted's epoll reactor, and that object is itself watched by uvloop. So their
  behaviour is Twisted's own; ``loop.add_reader`` would end watching at the first error condition.
- Child processes are watched by their own descriptors (``children.py``), not by SIGCHLD.
- Timed calls and calls from threads: one armed uvloop timer for the earliest timed call, and one
  wake-up for any number of calls from threads.

Guarantees: time is monotonic (a clock step neither fires nor delays a timed call); only
``callFromThread`` and ``wakeUp`` may be called from other threads.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
import traceback
from collections.abc import Callable
from contextvars import Context
from typing import Any

import uvloop
from twisted.internet import process
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.base import DelayedCall, ReactorBase
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import UnsupportedAddressFamily
from twisted.internet.interfaces import IProtocolFactory, IReadDescriptor, IWriteDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.awaiting import make_task
from echod.reactor import children, logprefix
from echod.reactor.connector import TCPConnector, UNIXConnector
from echod.reactor.interfaces import Port, Stream
from echod.reactor.port import AcceptingPort, TCPPort, UNIXPort
from echod.reactor.server import TCPServerTransport, UNIXServerTransport
from echod.reactor.transport import SHORT_READ, StreamSocket, StreamTransport

_log = Logger("echod.reactor")

# Seconds the timer sleeps at most; a call due later only has it armed once more.
_LONGEST = 86400.0

_SELF_WATCHED = (StreamTransport, AcceptingPort)

# Added to the monotonic clock so that the few callers that format ``reactor.seconds()`` as a date
# (twisted.web's access log) still get today's. Read once, so later clock steps have no effect.
_EPOCH = time.time() - time.monotonic()


def _seconds(_monotonic: Callable[[], float] = time.monotonic, _epoch: float = _EPOCH) -> float:
    """Seconds on the monotonic clock, offset to be near the time of day at start."""
    return _monotonic() + _epoch


class UvloopReactor(EPollReactor, AsyncioSelectorReactor):
    """Twisted's reactor interfaces over a uvloop loop.

    Code that needs an asyncio loop below the reactor checks whether the reactor is an
    ``AsyncioSelectorReactor``, and some code then uses ``_asyncioEventloop``. So this is one, but
    only by name: it uses none of that class's methods, because it calls those of ``ReactorBase``
    directly where ``super()`` would find them.

    :ivar loop: the uvloop loop; asyncio code may use it.
    """

    seconds = staticmethod(_seconds)
    run = ReactorBase.run
    iterate = ReactorBase.iterate

    def __init__(self, loop: uvloop.Loop | None = None) -> None:
        self.loop = uvloop.new_event_loop() if loop is None else loop
        self._asyncioEventloop = self.loop
        # Tasks may await Deferreds, too.
        self.loop.set_task_factory(make_task)
        # Our own callbacks run in this empty context, or they would inherit the context of
        # whichever connection happened to schedule them, and keep it alive.
        self.context = Context()
        self.streams: set[Stream] = set()
        # For streams with short reads; its memory is not touched before there is one.
        self.read_buffer = memoryview(bytearray(SHORT_READ))
        self.ports: set[Port] = set()  # the ports that accept, or rest
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._wakeup_sent = False
        self._ending = False
        super().__init__()
        logprefix.install()
        self.loop.set_exception_handler(self._loop_exception)
        Context().run(self.loop.add_reader, self._poller.fileno(), self._descriptors_ready)

    # Running and stopping

    def mainLoop(self) -> None:
        """Run until :meth:`crash`, which ends every orderly stop too."""
        self._ending = False
        self.wakeUp()
        while self._started:
            self._run_loop()
        self._ending = False
        _log.info("Main loop terminated.")

    def doIteration(self, delay: float | None) -> None:
        """Run the loop for ``delay`` seconds (``None``: one turn)."""
        self._ending = False
        self._arm_timer()
        if delay:
            self.loop.call_later(delay, self.loop.stop, context=self.context)
        else:
            self.loop.call_soon(self.loop.stop, context=self.context)
        self._run_loop()

    def _run_loop(self) -> None:
        """Run the loop until it is stopped.

        ``sys.exit()`` in a task or a callback of asyncio's ends that one only, as it does in a
        ``callLater`` of Twisted's: the process has an orderly end, by :meth:`stop`.
        """
        try:
            self.loop.run_forever()
        except SystemExit as error:
            frames = traceback.extract_tb(error.__traceback__)
            _log.error(
                "sys.exit() in a task or callback of asyncio's ended that one only: "
                "{file}, line {line}",
                file=frames[-1].filename,
                line=frames[-1].lineno,
            )

    def stop(self) -> None:
        ReactorBase.stop(self)
        # The shutdown event is fired by runUntilCurrent.
        self.wakeUp()

    def crash(self) -> None:
        ReactorBase.crash(self)
        # uvloop closes what disconnectAll aborts in the next turn of the loop: stop after that
        # one, but let nothing else happen in it.
        self._ending = True
        self.loop.call_soon(self.loop.stop, context=self.context)

    def disconnectAll(self) -> None:
        super().disconnectAll()
        for stream in list(self.streams):  # the streams that neither read nor write
            stream.connectionLost(Failure(CONNECTION_LOST))
        if not self.loop.is_running():
            self._ending = True
            self.loop.call_soon(self.loop.stop, context=self.context)
            self.loop.run_forever()
            self._ending = False

    def _loop_exception(self, loop: asyncio.AbstractEventLoop, details: dict[str, object]) -> None:
        """Log an uncaught exception; an error of a stream ends that stream."""
        exception = details.get("exception")
        stream = details.get("protocol")
        if not isinstance(exception, BaseException):
            _log.error("{message}", message=details.get("message"))
        elif isinstance(stream, StreamTransport):
            stream.failed(exception)
        else:
            failure = Failure(exception, type(exception), exception.__traceback__)
            _log.failure("{message}", failure, message=details.get("message"))

    # Processes

    def _signalsFactory(self) -> Any:
        return ReactorBase._signalsFactory(self)  # without Twisted's for SIGCHLD

    def spawnProcess(self, *arguments: Any, **more: Any) -> Any:
        transport = super().spawnProcess(*arguments, **more)
        if transport.pid in process.reapProcessHandlers:  # or it has ended already
            children.watch(self, transport.pid)
        return transport

    # Descriptors; streams and their ports themselves start and stop reading

    def _descriptors_ready(self) -> None:
        if self._selectables and not self._ending:
            # Due timed calls come first, as in every turn of Twisted's own reactors.
            self.context.run(self._run_due_calls)
            if self._selectables:  # still: epoll_wait does not take 0 for their number
                self.doPoll(0)

    def addReader(self, reader: IReadDescriptor) -> None:
        if isinstance(reader, _SELF_WATCHED):
            reader.startReading()
        else:
            super().addReader(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        if isinstance(reader, _SELF_WATCHED):
            reader.stopReading()
        else:
            super().removeReader(reader)

    def addWriter(self, writer: IWriteDescriptor) -> None:
        if not isinstance(writer, _SELF_WATCHED):
            super().addWriter(writer)

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        if not isinstance(writer, _SELF_WATCHED):
            super().removeWriter(writer)

    def getReaders(self) -> list[Any]:
        return [*super().getReaders(), *self.ports, *(s for s in self.streams if s.reading)]

    def getWriters(self) -> list[Any]:
        return [*super().getWriters(), *(s for s in self.streams if s.writing)]

    def removeAll(self) -> list[Any]:
        watched: list[Any] = [*self.ports, *(s for s in self.streams if s.reading or s.writing)]
        for each in watched:
            each.stopReading()
        self.streams.difference_update(watched)  # until one reads again
        return [*super().removeAll(), *watched]

    # Time

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> DelayedCall:
        call = ReactorBase.callLater(self, delay, callable, *args, **kw)
        if call.time < self._timer_due:
            self._arm(call.time)
        return call

    def _moveCallLaterSooner(self, delayedCall: DelayedCall) -> None:
        ReactorBase._moveCallLaterSooner(self, delayedCall)
        if delayedCall.time < self._timer_due:
            self._arm(delayedCall.time)

    def _arm(self, due: float) -> None:
        """Schedule :meth:`_run_due` for ``due``, instead of the time armed before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        # uvloop counts whole milliseconds and rounds: rounded down, the timer would mostly fire
        # early, and would only be armed again.
        delay = math.ceil(min(due - self.seconds(), _LONGEST) * 1000) / 1000
        self._timer = self.loop.call_later(delay, self._run_due, context=self.context)

    def _arm_timer(self) -> None:
        """Arm for the earliest timed call, unless that is done already."""
        timeout = self.timeout()
        if timeout is not None:
            due = self.seconds() + timeout
            if due < self._timer_due:
                self._arm(due)

    def _run_due(self) -> None:
        self._timer = None
        self._timer_due = math.inf
        self._run_pending()

    def _run_due_calls(self) -> None:
        if self._timer_due <= self.seconds():
            self._run_pending()

    def after_due_calls(self, function: Callable[[], None]) -> None:
        """Call ``function`` in the next turn, after the timed calls that are due by then."""
        self.loop.call_soon(self._after_due_calls, function, context=self.context)

    def _after_due_calls(self, function: Callable[[], None]) -> None:
        self._run_due_calls()
        function()

    def _run_pending(self) -> None:
        if not self._ending:
            try:
                self.runUntilCurrent()
            finally:
                self._arm_timer()

    # Threads

    def callFromThread(  # type: ignore[override] # two bases, two names for `f`
        self, f: Callable[..., object], *args: object, **kwargs: object
    ) -> None:
        assert callable(f), f"{f} is not callable"
        self.threadCallQueue.append((f, args, kwargs))
        if not self._wakeup_sent:
            self.wakeUp()

    def wakeUp(self) -> None:
        # The flag is set before the wake-up and cleared before the queue is read, so a call that
        # finds it set is in the queue that the coming wake-up reads.
        self._wakeup_sent = True
        self.loop.call_soon_threadsafe(self._woken, context=self.context)

    def _woken(self) -> None:
        self._wakeup_sent = False
        self._run_pending()

    def installWaker(self) -> None:
        """Do nothing: uvloop has its own waker."""

    # Streams

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> TCPPort:
        listening = TCPPort(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30.0,
        bindAddress: Any = None,
    ) -> TCPConnector:
        connector = TCPConnector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def listenUNIX(
        self,
        address: Any,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> UNIXPort:
        listening = UNIXPort(address, factory, backlog, mode, self, wantPID)
        listening.startListening()
        return listening

    def connectUNIX(
        self,
        address: str,
        factory: Any,
        timeout: float = 30,
        checkPID: bool = False,
    ) -> UNIXConnector:
        connector = UNIXConnector(address, factory, timeout, self, checkPID)
        connector.connect()
        return connector

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> TCPPort | UNIXPort:
        self._check_family(addressFamily)
        listening: TCPPort | UNIXPort
        if addressFamily == socket.AF_UNIX:
            listening = UNIXPort._fromListeningDescriptor(self, fileDescriptor, factory)
        else:
            listening = TCPPort._fromListeningDescriptor(
                self, fileDescriptor, addressFamily, factory
            )
        listening.startListening()
        return listening

    def adoptStreamConnection(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> None:
        """As in the interface; the protocol is built in this or the next turn of the loop."""
        self._check_family(addressFamily)
        skt = StreamSocket(addressFamily, socket.SOCK_STREAM, 0, os.dup(fileDescriptor))
        kind = UNIXServerTransport if addressFamily == socket.AF_UNIX else TCPServerTransport
        try:
            skt.setblocking(False)
            kind.adopted(skt, factory, self).attach()
        except BaseException:
            skt.close()
            raise

    def _check_family(self, family: int) -> None:
        if family not in self._supportedAddressFamilies:
            raise UnsupportedAddressFamily(family)


def install(loop: uvloop.Loop | None = None) -> None:
    """Make a :class:`UvloopReactor` the global reactor.

    :param loop: the uvloop loop to run on; a new one by default. It becomes asyncio's current
        loop, so that asyncio code in the same process shares it.
    :raise twisted.internet.error.ReactorAlreadyInstalledError: another reactor is in place.
    """
    from twisted.internet.main import installReactor

    _fill_standard_descriptors()
    reactor = UvloopReactor(loop)
    installReactor(reactor)
    asyncio.set_event_loop(reactor.loop)


def _fill_standard_descriptors() -> None:
    """Open ``/dev/null`` for each closed standard stream: without it libuv ends the process."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
