"""Faults on purpose of one listener: it refuses, does not answer, or accepts late.

* `refuse`: a listening TCP socket that is shut down for reading refuses connections with RST,
  stays bound, and listens again when told to. A UNIX socket cannot be brought back like that; its
  file gives way to one on which no process listens.
* `connect-timeout`: the queue of connections is made as short as can be, and a connection of our
  own fills it. Then the kernel answers no SYN, and lets clients of a UNIX socket wait, or tells
  them EAGAIN.
* `slow-accept`: a connection is taken from the kernel, and waits before it is served. The client
  cannot tell that from a connection that waits in the kernel.

Guarantees:

* Connections that were there before go on. When a fault begins while the listener accepts, clients
  in the queue are served, not reset.
* When a fault ends, and at the end of the daemon, the socket is as before, with its queue: also a
  socket that the service manager has passed.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from typing import Protocol as TypingProtocol

from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.addresses import reachable_here
from echod.connections.transport_layers import hand_over, note_before
from echod.faults.arrival import ConnectTimeout, Refuse, SlowAccept, at_work, next_change
from echod.listening.backlog import backlog_of
from echod.text import escape
from echod.timers import cancel_timer

if TYPE_CHECKING:
    from echod.faults import Rule
    from echod.interfaces import Reactor

log = Logger("echod")

# How many connections wait before they are served; more stay with the kernel.
MOST_HELD = 1000
# How often a connection of our own tries to fill the queue, and for how many seconds each time.
TRIES = 20
PATIENCE = 0.05


class Accepting(TypingProtocol):
    """A listener, as its faults see it."""

    def pause(self, why: str) -> None:
        """Let clients wait in the kernel's queue."""

    def resume(self, why: str) -> None:
        """Accept again, unless it pauses for another reason."""

    def accept_waiting(self, why: str) -> None:
        """Accept all that wait in the kernel's queue, if it does not pause for another reason."""


class Arrivals:
    """The faults on purpose of one listener.

    Attributes:
        reactor: for timers.
    """

    def __init__(
        self,
        reactor: Reactor,
        description: str,
        note: Callable[[str], None],
        accepting: Accepting,
    ) -> None:
        """Set up, without faults.

        Args:
            reactor: see above.
            description: the endpoint.
            note: counts a fault that happens, by name.
            accepting: lets the listener accept or not.
        """
        self.reactor = reactor
        self._description = description
        self._note = note
        self._accepting = accepting
        self._rules: Sequence[Rule] = ()
        self._sockets: Sequence[socket.socket] | None = None
        self._began = 0.0
        # The rule that lets no client in, and what it does to each socket.
        self._rule: Rule | None = None
        self._barriers: list[Barrier] = []
        self._slow: Rule | None = None
        self._timer: IDelayedCall | None = None
        self._held: set[Held] = set()

    def change(self, rules: Sequence[Rule]) -> None:
        """Use these faults from now on; their times begin now."""
        self._rules = rules
        self._began = self.reactor.seconds()
        if self._sockets is not None:
            self._look()

    def begin(self, sockets: Sequence[socket.socket]) -> None:
        """Begin: the listener listens on these."""
        self._sockets = sockets
        self._began = self.reactor.seconds()
        self._look()

    def stop(self) -> None:
        """End each fault: the listener is about to stop."""
        self._set_timer(math.inf)
        self._raise(None)
        self._sockets = None
        self._set_slow(None)

    def _look(self) -> None:
        """Begin and end what is due, and look again when the next is."""
        elapsed = self.reactor.seconds() - self._began
        self._raise(at_work(self._rules, elapsed, Refuse, ConnectTimeout))
        self._set_slow(at_work(self._rules, elapsed, SlowAccept))
        self._set_timer(next_change(self._rules, elapsed))

    def _set_timer(self, wait: float) -> None:
        cancel_timer(self._timer)
        self._timer = None
        if wait < math.inf:
            self._timer = self.reactor.callLater(wait, self._look)

    # The sockets that let no client in.

    def _raise(self, rule: Rule | None) -> None:
        """Put the barriers of `rule` in place of the present ones."""
        if rule is self._rule:
            return
        self._lower()
        if rule is None:
            return
        name = rule.fault.name
        self._rule = rule
        self._accepting.accept_waiting(name)
        self._accepting.pause(name)
        try:
            for one in self._sockets or ():
                barrier = barrier_for(rule, one)
                self._barriers.append(barrier)
                barrier.begin(partial(self._accepting.accept_waiting, name))
        except OSError as error:
            self._take_down()
            log.error(
                "Fault on purpose {fault} cannot be on {where}: {why}",
                fault=name,
                where=escape(self._description),
                why=escape(error.strerror or str(error)),
            )
        else:
            self._note(name)
            self._tell("Began", rule)

    def _lower(self) -> None:
        """End the present fault."""
        rule, was_up = self._rule, bool(self._barriers)
        self._take_down()
        self._rule = None
        if rule is not None and was_up:
            self._tell("Ended", rule)

    def _take_down(self) -> None:
        for barrier in self._barriers:
            with contextlib.suppress(OSError):
                barrier.end()
        self._barriers.clear()
        if self._rule is not None:
            self._accepting.resume(self._rule.fault.name)

    def _tell(self, event: str, rule: Rule) -> None:
        where = escape(self._description)
        log.info(
            "{event} a fault on purpose on {where}: {fault}",
            event=event,
            where=where,
            fault=escape(rule.text),
        )

    # Connections that wait.

    def _set_slow(self, rule: Rule | None) -> None:
        before, self._slow = self._slow, rule
        if before is not rule:
            if before is not None:
                self._tell("Ended", before)
            if rule is not None:
                self._tell("Began", rule)
        if rule is None:
            for one in list(self._held):
                one.go_on()

    def hold(self, factory: IProtocolFactory, address: IAddress) -> Held | None:
        """Return what holds the next connection; None if none is held now."""
        if self._slow is None:
            return None
        assert isinstance(self._slow.fault, SlowAccept)
        self._note(self._slow.fault.name)
        return Held(self, factory, address, self._slow.fault.time)

    def held(self, one: Held, *, held: bool) -> None:
        """Note that a connection is held, or no longer."""
        (self._held.add if held else self._held.discard)(one)
        if len(self._held) >= MOST_HELD:
            self._accepting.pause("too many held")
        elif not held:
            self._accepting.resume("too many held")


class Barrier(TypingProtocol):
    """Lets no client in by one socket."""

    def begin(self, accept_waiting: Callable[[], None]) -> None:
        """Close; `accept_waiting` serves clients that came before."""

    def end(self) -> None:
        """Open."""


def barrier_for(rule: Rule, listening: socket.socket) -> Barrier:
    """Return the barrier for a socket.

    Raises:
        OSError: there is none for such a socket.
    """
    if isinstance(rule.fault, ConnectTimeout):
        return Silent(listening)
    return (RefusingFile if listening.family == socket.AF_UNIX else Refusing)(listening)


class Refusing:
    """A TCP socket that refuses."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._backlog = backlog_of(listening)
        self._address = listening.getsockname()
        if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR):
            # Twisted and systemd set it.
            raise OSError("a socket without SO_REUSEADDR could lose its port")

    def begin(self, accept_waiting: Callable[[], None]) -> None:
        """Refuse."""
        self._listening.shutdown(socket.SHUT_RD)
        self._bind()

    def _bind(self) -> None:
        """Bind it again: a port that the kernel has chosen is the kernel's again."""
        try:
            self._listening.bind(self._address)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is bound
                raise

    def end(self) -> None:
        """Listen again."""
        self._bind()
        self._listening.listen(self._backlog)


class RefusingFile:
    """A UNIX socket that refuses: another one has its place, on which no process listens."""

    def __init__(self, listening: socket.socket) -> None:
        name = listening.getsockname()
        if not isinstance(name, str) or not name:
            raise OSError("a UNIX socket without a file cannot refuse")
        self._path = Path(name).absolute()
        self._aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        self._placeholder: socket.socket | None = None

    def begin(self, accept_waiting: Callable[[], None]) -> None:
        """Refuse."""
        found = self._path.stat()
        self._path.rename(self._aside)
        self._placeholder = socket.socket(socket.AF_UNIX)
        try:
            self._placeholder.bind(str(self._path))
            self._path.chmod(stat.S_IMODE(found.st_mode))
            with contextlib.suppress(OSError):  # only root may
                os.chown(self._path, found.st_uid, found.st_gid)
        except OSError:
            self.end()
            raise

    def end(self) -> None:
        """Put the socket back."""
        if self._placeholder is not None:
            self._placeholder.close()
            with contextlib.suppress(FileNotFoundError):  # another process has taken it away
                self._aside.rename(self._path)


class Silent:
    """A socket whose queue is full."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._backlog = backlog_of(listening)
        self._filler: socket.socket | None = None

    def begin(self, accept_waiting: Callable[[], None]) -> None:
        """Fill the queue."""
        self._listening.listen(0)
        for _ in range(TRIES):
            filler = socket.socket(self._listening.family)
            if self._connects(filler):
                self._filler = filler
                return
            # A client was there before: it is served, or it is what fills the queue.
            filler.close()
            accept_waiting()

    def _connects(self, filler: socket.socket) -> bool:
        """Connect to the listening socket; return whether that has succeeded."""
        filler.setblocking(False)
        address = self._listening.getsockname()
        if self._listening.family != socket.AF_UNIX:
            # An end by RST, which leaves nothing in the kernel.
            filler.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            address = (reachable_here(address[0]), *address[1:])
        if filler.connect_ex(address) == 0:
            return True
        if self._listening.family == socket.AF_UNIX:
            return False
        poll = select.poll()
        poll.register(filler, select.POLLOUT)
        return bool(poll.poll(PATIENCE * 1000)) and not filler.getsockopt(
            socket.SOL_SOCKET, socket.SO_ERROR
        )

    def end(self) -> None:
        """Take our own connection out of the queue, and let as many wait as before."""
        filler, self._filler = self._filler, None
        if filler is not None:
            filler.close()
            with contextlib.suppress(OSError):
                self._listening.accept()[0].close()  # it came first
        self._listening.listen(self._backlog)


class Held(Protocol):
    """A connection that waits before it is served; it is not read meanwhile."""

    transport: Any

    def __init__(
        self,
        arrivals: Arrivals,
        factory: IProtocolFactory,
        address: IAddress,
        seconds: float,
    ) -> None:
        self._arrivals = arrivals
        self._factory = factory
        self._address = address
        self._seconds = seconds
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self.transport.pauseProducing()
        self._timer = self._arrivals.reactor.callLater(self._seconds, self.go_on)
        self._arrivals.held(self, held=True)

    def go_on(self) -> None:
        """Serve it."""
        self._let_go()
        transport = self.transport
        note_before(transport, SlowAccept.name)
        protocol = self._factory.buildProtocol(self._address)
        if protocol is None:
            transport.abortConnection()
            return
        transport.resumeProducing()  # first: the protocol may pause it, and let a thread read
        hand_over(transport, protocol)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._let_go()

    def _let_go(self) -> None:
        cancel_timer(self._timer)
        self._timer = None  # it keeps its method, and so this object, once it has fired
        self._arrivals.held(self, held=False)


class HoldingFactory(Factory):
    """Lets connections wait, if a fault on purpose says so."""

    noisy = False

    def __init__(self, wrapped: IProtocolFactory, arrivals: Arrivals) -> None:
        self._wrapped = wrapped
        self._arrivals = arrivals
        if (note := getattr(wrapped, "connection_turned_away", None)) is not None:
            self.connection_turned_away = note

    def doStart(self) -> None:
        self._wrapped.doStart()

    def doStop(self) -> None:
        self._wrapped.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        address: Any = addr  # None for a client of a UNIX socket
        held = self._arrivals.hold(self._wrapped, address)
        return self._wrapped.buildProtocol(address) if held is None else held
