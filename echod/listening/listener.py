"""One listener of the daemon, from its start to its end."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.addresses import Network
from echod.connections.kernel import events
from echod.errors import UserError
from echod.listening.endpoints import ListenError, Listening
from echod.listening.last_clients import admit_no_more
from echod.text import escape

if TYPE_CHECKING:
    from echod.faults import Faults
    from echod.interfaces import Reactor
    from echod.listening.arrivals import Arrivals

log = Logger("echod")

Served = TypeVar("Served")

# How often a batch of waiting clients is accepted at once.
MOST_ROUNDS = 100


class Listener(Generic[Served]):
    """One endpoint, and the factory that serves it.

    Attributes:
        description: the endpoint, as the operator wrote it.
        factory: makes the protocols.
        tls: the certificate and the rules; None without TLS.
        flag: the text before the endpoint in an error, if it is not from `--listen`.
        is_last: whether no later process accepts from its sockets; None: unless they were passed
            to this one, as systemd does.
    """

    flag = ""
    is_last: bool | None = None

    def __init__(
        self,
        reactor: Reactor,
        description: str,
        wanted: Listening,
        factory: Served,
        trusted: Sequence[Network] = (),
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: for the timers of TLS.
            description: see above.
            wanted: where to listen, and the wrappers of the factory.
            factory: see above.
            trusted: the networks whose PROXY headers are accepted.
        """
        self.description = description
        self.factory = factory
        self.tls = wanted.tls
        self._reactor = reactor
        self._endpoint = wanted.endpoint
        # Now, because it imports what it needs, which is too late after a chroot.
        self._wrapped = wanted.wrap(factory, reactor, trusted)
        self._stopped = False
        # Why it does not accept, though it listens.
        self._pauses: set[str] = set()
        self._port: IListeningPort | None = None
        self._arrivals: Arrivals | None = None

    def listen(self) -> Deferred[None]:
        """Bind and listen.

        Returns:
            Fires once it listens, or has been stopped before it could; fails with `ListenError`.
        """
        self._stopped = False
        factory = self._wrapped
        if self._arrivals is not None:
            from echod.listening.arrivals import HoldingFactory  # rarely needed

            factory = HoldingFactory(factory, self._arrivals)
        return self._endpoint.listen(factory).addCallbacks(self._listens, self._refused)

    def add_faults(self, faults: Faults, note: Callable[[str], None]) -> None:
        """Use the faults on purpose that are the listener's.

        Args:
            faults: its faults, which may change.
            note: counts one that happens, by name.
        """
        from echod.listening.arrivals import Arrivals  # rarely needed

        self._arrivals = arrivals = Arrivals(self._reactor, self.description, note, self)
        faults.arrivals_changed = lambda: arrivals.change(faults.arrivals)
        arrivals.change(faults.arrivals)

    def pause(self, why: str) -> None:
        """Let clients wait in the kernel's queue until `resume`; no accepted one is lost."""
        if not self._pauses:
            self._stop_accepting()
        self._pauses.add(why)

    def resume(self, why: str) -> None:
        """Accept the clients that wait, and those that come, unless it pauses for another reason.

        Calling it again is harmless.
        """
        if why in self._pauses:
            self._pauses.remove(why)
            if not self._pauses:
                for port in self._ports:
                    port.startReading()

    def accept_waiting(self, why: str) -> None:
        """Accept all that wait in the kernel's queue, if it does not pause for another reason."""
        if self._pauses - {why} or not self._reactor.running:
            return
        for port in self._ports:
            for _ in range(MOST_ROUNDS):
                if not _accept_from(port):
                    break

    def _stop_accepting(self) -> None:
        for port in self._ports:
            port.stopReading()

    @property
    def _ports(self) -> list[Any]:
        """The sockets that the reactor accepts from; other endpoints have none."""
        ports = getattr(self._port, "ports", [self._port])
        return [port for port in ports if hasattr(port, "socket")]

    def stop(self) -> Deferred[None]:
        """Accept the clients that wait, then stop; the Deferred fires once that is done.

        Every client that was accepted has its protocol then, and counts as a connection. The
        queue of sockets that another process accepts from later, see `is_last`, stays.
        """
        self._stopped = True
        if self._arrivals is not None:
            self._arrivals.stop()
        ports = self._ports
        takes = ports if self.takes_queue and not self._pauses else []
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        return ensureDeferred(self._stop(port, takes, accepts=bool(ports)))

    @property
    def takes_queue(self) -> bool:
        """Whether its stop accepts the clients that wait: nothing else would."""
        return hasattr(self._port, "socket") if self.is_last is None else self.is_last

    async def _stop(self, port: IListeningPort, takes: Sequence[Any], *, accepts: bool) -> None:
        for each in takes:
            admit_no_more(each)
            await self._take_waiting(each)
        if (stopping := port.stopListening()) is not None:
            await stopping
        if accepts:
            # On uvloop a client that was accepted gets its protocol later. The first of these
            # calls may be among others that were asked for before.
            await self._turn()
            await self._turn()

    async def _take_waiting(self, port: Any) -> None:
        """Accept those in the kernel's queue, which would reset them; some in each turn."""
        for _ in range(MOST_ROUNDS):
            if not _accept_from(port):
                return
            await self._turn()

    def _turn(self) -> Deferred[None]:
        """Wait until the event loop has done what it has to do by now, timers apart."""
        turned: Deferred[None] = Deferred()
        IReactorFromThreads(self._reactor).callFromThread(turned.callback, None)
        return turned

    @property
    def address(self) -> IAddress | None:
        """The Twisted address on which it listens; None if it does not."""
        return None if self._port is None else self._port.getHost()

    @property
    def has_waiting_clients(self) -> bool:
        """Whether clients wait in the kernel's queue, and will be accepted."""
        return not self._pauses and any(map(is_waited_for, self._ports))

    def _listens(self, port: IListeningPort) -> Deferred[None] | None:
        self._port = port
        if self._pauses:
            self._stop_accepting()
        if self._stopped:  # it was stopped before the endpoint was ready
            return self.stop()
        for each in self._ports:
            _send_at_once(each.socket)
        if self._arrivals is not None:
            self._arrivals.begin([each.socket for each in self._ports])
        return None

    def _refused(self, failure: Failure) -> None:
        assert failure.value is not None
        listener = self.flag + escape(self.description)
        error = failure.value
        why = escape(str(error)) if isinstance(error, UserError) else bind_error(error)
        log.critical("{listener}: {why}", listener=listener, why=why)
        raise ListenError(f"{listener}: {why}")


def _send_at_once(listening: socket.socket) -> None:
    """Let connections that are accepted from now on send each reply at once: they inherit that.

    uvloop sets it on each connection, Twisted's reactors on none. Without it, the kernel keeps a
    second reply back until the client has acknowledged the first, which may take 40 ms.
    """
    if listening.family != socket.AF_UNIX:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def is_waited_for(port: Any) -> bool:
    """Return whether a client waits in the kernel's queue of a port."""
    return bool(events(port.socket, select.POLLIN))


# The usual remedy for an error of `bind`, by its number.
REMEDIES = {
    errno.EADDRINUSE: "ss -ltnp shows which process has it: stop that, or take another port",
    errno.EADDRNOTAVAIL: "ip address lists the addresses of this machine",
    socket.EAI_NONAME: "interface= takes an address of this machine, or a name of one",
    errno.EACCES: "a port below 1024 needs root, CAP_NET_BIND_SERVICE or a socket from systemd",
}


def bind_error(error: BaseException) -> str:
    """Format a bind error as `Bind failed. Error Code : …`, and add the usual remedy.

    An error that has words of its own, as UNIX sockets have, says by itself what to do.
    """
    cause: object = error.socketError if isinstance(error, CannotListenError) else error
    if not isinstance(cause, OSError) or cause.errno is None:
        return f"Bind failed. Error Code : {errno.EINVAL} Message {escape(str(cause))}"
    usual = os.strerror(cause.errno)
    why = escape(cause.strerror or usual)
    # `os.strerror` does not know the numbers of names that cannot be looked up.
    is_usual = why == usual or isinstance(cause, socket.gaierror)
    remedy = REMEDIES.get(cause.errno) if is_usual else None
    file = f": {escape(str(cause.filename))}" if cause.filename and is_usual else ""
    said = f"Bind failed. Error Code : {cause.errno} Message {why}{file}"
    return f"{said}; {remedy}" if remedy else said


def _accept_from(port: Any) -> bool:
    """Accept as the reactor does, if a client waits; return whether one did."""
    is_there = is_waited_for(port)
    if is_there:
        port.doRead()
    return is_there
