"""One listener of the daemon, from its start to its end."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.addresses import Network
from echod.errors import UserError
from echod.listening.endpoints import ListenError, Listening
from echod.text import escape

if TYPE_CHECKING:
    from echod.interfaces import Reactor

log = Logger("echod")

Served = TypeVar("Served")


class Listener(Generic[Served]):
    """One endpoint, and the factory that serves it.

    Attributes:
        description: the endpoint, as the operator wrote it.
        factory: makes the protocols.
        tls: the certificate and the rules; None without TLS.
        flag: the text before the endpoint in an error, if it is not from `--listen`.
    """

    flag = ""

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
        self._wanted = wanted
        self._trusted = trusted
        self._stopped = False
        # Why it does not accept, though it listens.
        self._pauses: set[str] = set()
        self._port: IListeningPort | None = None

    def listen(self) -> Deferred[None]:
        """Bind and listen.

        Returns:
            Fires once it listens, or has been stopped before it could; fails with `ListenError`.
        """
        self._stopped = False
        factory = self._wanted.wrap(self.factory, self._reactor, self._trusted)
        return self._wanted.endpoint.listen(factory).addCallbacks(self._listens, self._refused)

    def pause(self, why: str) -> None:
        """Let clients wait in the kernel's queue until `resume`; no accepted one is lost."""
        if not self._pauses and (stop := getattr(self._port, "stopReading", None)):
            stop()
        self._pauses.add(why)

    def resume(self, why: str) -> None:
        """Accept the clients that wait, and those that come, unless it pauses for another reason.

        Calling it again is harmless.
        """
        if why in self._pauses:
            self._pauses.remove(why)
            if not self._pauses and (start := getattr(self._port, "startReading", None)):
                start()

    def stop(self) -> Deferred[None]:
        """Stop accepting; the Deferred fires once that is done."""
        self._stopped = True
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        return succeed(None).addCallback(lambda _: port.stopListening())

    @property
    def address(self) -> IAddress | None:
        """The Twisted address on which it listens; None if it does not."""
        return None if self._port is None else self._port.getHost()

    @property
    def has_waiting_clients(self) -> bool:
        """Whether clients wait in the kernel's queue, and will be accepted."""
        listening = getattr(self._port, "socket", None)
        if listening is None or self._pauses:
            return False
        poll = select.poll()
        poll.register(listening, select.POLLIN)
        return bool(poll.poll(0))

    def _listens(self, port: IListeningPort) -> Deferred[None] | None:
        self._port = port
        if self._pauses and (pause := getattr(port, "stopReading", None)):
            pause()
        if self._stopped:  # it was stopped before the endpoint was ready
            return self.stop()
        if "backlog=" not in self.description and hasattr(port, "socket"):
            # Twisted lets 50 clients wait. When the queue is full, the kernel reports some further
            # clients as connected, and these would wait for a greeting for ever.
            port.socket.listen(socket.SOMAXCONN)
        return None

    def _refused(self, failure: Failure) -> None:
        assert failure.value is not None
        listener = self.flag + escape(self.description)
        error = failure.value
        why = escape(str(error)) if isinstance(error, UserError) else bind_error(error)
        log.critical("{listener}: {why}", listener=listener, why=why)
        raise ListenError(f"{listener}: {why}")


# The usual remedy for an error of `bind`, by its number.
REMEDIES = {
    errno.EADDRINUSE: "ss -ltnp shows which process has it: stop that, or take another port",
    errno.EADDRNOTAVAIL: "ip address lists the addresses of this machine",
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
    remedy = REMEDIES.get(cause.errno) if why == usual else None
    said = f"Bind failed. Error Code : {cause.errno} Message {why}"
    return f"{said}; {remedy}" if remedy else said
