"""Sockets that systemd opened: `systemd:name=NAME` listens on those with that name.

The daemon inherits open descriptors, from 3 on, and its environment describes them
(sd_listen_fds(3)): LISTEN_FDS is their number, LISTEN_PID the process they are for, and
LISTEN_FDNAMES their names. The kind of each socket is read from the socket itself.

systemd keeps the sockets: while the daemon restarts, the kernel queues new clients. So nothing
here may shut the sockets down, or remove their files, when the daemon stops.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, DeferredList, execute, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IReactorSocket,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from zope.interface import implementer

from echod.errors import UserError
from echod.listening.backlog import backlog_of
from echod.text import escape, plural

log = Logger("echod.listening")

if TYPE_CHECKING:
    from echod.interfaces import Reactor
    from echod.tls import Copies, Files
    from echod.tls.files import Loaded

FIRST = 3


class ActivationError(UserError):
    """A requested socket is not available; the text names those that are, and the remedy."""


class InheritedSockets:
    """The sockets passed to this process; each serves one listener.

    Attributes:
        shared: whether other processes accept from the same listeners.
        copies: of the files of TLS that were read, or may not be read any more; None for none.
    """

    shared = False
    copies: Copies | None = None

    def __init__(self, environment: Mapping[str, str], first: int = FIRST) -> None:
        """Set up, without reading anything.

        Args:
            environment: the variables that the process was started with.
            first: the lowest descriptor that was passed.
        """
        self._environment = environment
        self._first = first
        self._taken: set[int] = set()

    def load(self, files: Files) -> Loaded:
        """Load the files of TLS."""
        return files.load() if self.copies is None else self.copies.load(files)

    def take(self, *, name: str | None = None, index: int | None = None) -> list[int]:
        """Return the descriptors of the sockets called `name`, or of the one at `index`.

        Raises:
            ActivationError: there is none, it does not listen, or another listener has it.
        """
        passed = self._passed()
        if name is None:
            found = passed[index : index + 1] if index is not None else []
        else:
            found = [each for each in passed if each[1] == name]
        if not found:
            raise ActivationError(_missing(passed, name, index))
        for descriptor, called in found:
            if descriptor in self._taken:
                raise ActivationError(f"{called} is the socket of another listener already")
            check(descriptor)
        self._taken.update(descriptor for descriptor, _ in found)
        return [descriptor for descriptor, _ in found]

    def endpoint(self, reactor: Reactor) -> ActivatedEndpoint | None:
        """Return the endpoint that takes the place of the next listener's own; None: none does."""
        return None

    @property
    def unused(self) -> list[str]:
        """The names of the sockets that no listener has taken."""
        with contextlib.suppress(ActivationError):
            return [name for number, name in self._passed() if number not in self._taken]
        return []

    def _passed(self) -> list[tuple[int, str]]:
        """Return the passed descriptors with their names; "" if one has none."""
        environment = self._environment
        count, pid = environment.get("LISTEN_FDS", ""), environment.get("LISTEN_PID", "")
        names = environment.get("LISTEN_FDNAMES", "")
        if not count:
            raise ActivationError(
                "no socket was passed (LISTEN_FDS is not set): start the daemon by its socket "
                "unit, or by systemd-socket-activate --listen=PORT --fdname=NAME"
            )
        if not (count.isascii() and count.isdigit()) or int(count) > 1024:
            raise ActivationError(
                f"LISTEN_FDS is {escape(count)!r}, which is not a number of sockets"
            )
        if pid != str(os.getpid()):
            raise ActivationError(
                f"the sockets are for process {escape(pid) or '(LISTEN_PID is not set)'}, and "
                f"this is {os.getpid()}: no other program may run between systemd and it, "
                "unless it uses exec"
            )
        called = names.split(":") if names else [""] * int(count)
        if len(called) != int(count):
            raise ActivationError(
                f"LISTEN_FDS says {count} {plural(int(count), 'socket', 'sockets')}, "
                f"and LISTEN_FDNAMES names {len(called)}: "
                "give each socket unit a FileDescriptorName="
            )
        return [(self._first + place, name) for place, name in enumerate(called)]


def started_with() -> Mapping[str, str]:
    """Return the environment that this process was started with.

    `os.environ` does not help: importing `twisted.internet.endpoints` removes LISTEN_FDS from it.
    """
    try:
        block = Path("/proc/self/environ").read_bytes()
    except OSError:  # not Linux, so there is no systemd
        return os.environ
    pairs = (os.fsdecode(entry).partition("=") for entry in block.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def check(descriptor: int) -> socket.AddressFamily:
    """Return the address family of a listening stream socket.

    Raises:
        ActivationError: the descriptor is not one.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise ActivationError(f"descriptor {descriptor} is not a socket: use ListenStream=")
    except OSError as error:
        raise ActivationError(f"descriptor {descriptor}: {error.strerror}") from None
    with socket.socket(fileno=os.dup(descriptor)) as passed:
        if passed.type != socket.SOCK_STREAM:
            raise ActivationError(f"descriptor {descriptor} is not a stream: use ListenStream=")
        if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ActivationError(
                f"descriptor {descriptor} does not listen: use Accept=no in the socket unit"
            )
        if passed.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise ActivationError(f"descriptor {descriptor} is neither TCP nor UNIX")
        return passed.family


def _backlog(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as passed:
        return backlog_of(passed)


@implementer(IStreamServerEndpoint)
class ActivatedEndpoint:
    """Listens on passed sockets: on all of one name, as one listener.

    Attributes:
        descriptors: those sockets.
    """

    def __init__(self, reactor: Reactor, descriptors: Sequence[int]) -> None:
        """Set up.

        Args:
            reactor: can be adapted to `IReactorSocket`.
            descriptors: of listening sockets; they are closed once the reactor has duplicates.
        """
        # By its types, Twisted's method takes subclasses of Twisted's `ServerFactory` alone.
        self._reactor: Any = IReactorSocket(reactor)
        self.descriptors = descriptors
        self._backlogs = {each: _backlog(each) for each in descriptors}

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        return execute(lambda: Ports([self._adopt(each, factory) for each in self.descriptors]))

    def _adopt(self, descriptor: int, factory: IProtocolFactory) -> IListeningPort:
        os.set_blocking(descriptor, False)
        family = check(descriptor)
        port = self._adopted(descriptor, family, factory)
        with socket.socket(family, socket.SOCK_STREAM, fileno=descriptor) as passed:
            passed.listen(self._backlogs[descriptor])  # Twisted gives a UNIX socket a short one
        if isinstance(port, unix.Port):
            # Twisted would shut the socket down, for all processes that have it, and remove its
            # file.
            port._shouldShutdown = False
            end = partial(tcp.Port.connectionLost, port)
            port.connectionLost = end  # type: ignore[method-assign]
        return port

    def _adopted(self, descriptor: int, family: int, factory: IProtocolFactory) -> IListeningPort:
        if family == socket.AF_UNIX and type(self._reactor).__module__.startswith("twisted."):
            passed = PassedUNIXPort._fromListeningDescriptor(self._reactor, descriptor, factory)
            passed.startListening()
            return passed  # type: ignore[no-any-return]
        port: IListeningPort = self._reactor.adoptStreamPort(descriptor, family, factory)
        return port


class PassedUNIXPort(unix.Port):
    """A passed UNIX socket on a reactor of Twisted's, whose file keeps its mode.

    Twisted would make it writable for all users, or fail if another one owns it.
    """

    def startListening(self) -> None:
        passed, self._preexistingSocket = self._preexistingSocket, None
        assert passed is not None
        assert self.factory is not None
        tcp._reservedFD.reserve()
        log.info(
            "{prefix} starting on {path!r}",
            prefix=self._getLogPrefix(self.factory),
            path=os.fsdecode(self._bindPath),
        )
        self.factory.doStart()
        self.socket = passed
        self.fileno = passed.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.connected = True
        self.startReading()


@implementer(IListeningPort)
class Ports:
    """Several ports that are one listener.

    Attributes:
        ports: each of them.
    """

    def __init__(self, ports: Sequence[IListeningPort]) -> None:
        self.ports = ports

    def startListening(self) -> None:
        """Do nothing, because they listen already."""

    def stopListening(self) -> Deferred[None]:
        stopped = [maybeDeferred(port.stopListening) for port in self.ports]
        return DeferredList(stopped).addCallback(lambda _: None)

    def getHost(self) -> IAddress:
        """Return the address of the first port."""
        return self.ports[0].getHost()


def _missing(passed: Sequence[tuple[int, str]], name: str | None, index: int | None) -> str:
    names = [each for _, each in passed]
    wanted = f"number {index}" if name is None else escape(name)
    if not passed:
        there, todo = "none", "give the socket unit a ListenStream="
    elif not any(names):
        there = f"{len(passed)} without a name (LISTEN_FDNAMES is not set)"
        todo = "use FileDescriptorName=, or index=0"
    else:
        there, todo = ", ".join(escape(each) for each in names), "use one of these"
    return f"no socket {wanted} was passed; there is: {there}; {todo}"
