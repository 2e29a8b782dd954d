"""The servers of the comparison: how each is started, and what it needs."""

from __future__ import annotations

import enum
import fnmatch
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.tools import Tools
from bench.workloads import (
    CONNECT,
    LENGTH,
    LENGTHS_AT_ONCE,
    LINE,
    LINES_AT_ONCE,
    SILENT,
    Mode,
    Workload,
)

# The name for `--reactor` of echod's own choice.
DEFAULT_REACTOR = "default"


class Group(enum.StrEnum):
    """The classes that are compared; the value is the title."""

    REACTOR = "Event loop"
    DEFER = "Each message in a pool thread"
    THREAD = "A thread for each connection"
    TLS = "TLS"
    TLS_TICKETLESS = "TLS, without session tickets"
    STREAMS = "A reader and a writer"
    STREAMS_TLS = "A reader and a writer, over TLS"
    PROTOCOL = "An asyncio protocol"
    PROTOCOL_TLS = "An asyncio protocol, over TLS"
    TWISTED = "A Twisted protocol, on echod's reactor"
    LINES = "Lines"
    LENGTHS = "Messages behind their length"
    LINES_DEFER = "Lines, each in a pool thread"
    LENGTHS_DEFER = "Messages behind their length, each in a pool thread"
    LINES_THREAD = "Lines, a thread for each connection"
    LENGTHS_THREAD = "Messages behind their length, a thread for each connection"
    ASYNC = "An async def that does not wait"
    FORWARD = "A relay to c-epoll"

    @property
    def is_encrypted(self) -> bool:
        """Whether its servers speak TLS."""
        encrypted = (Group.TLS, Group.TLS_TICKETLESS, Group.STREAMS_TLS, Group.PROTOCOL_TLS)
        return self in encrypted

    @property
    def is_foreign(self) -> bool:
        """Whether the same code, which is not made for echod, runs with and without it."""
        return self in _FOREIGN

    @property
    def is_relay(self) -> bool:
        """Whether its servers pass everything on to another one, of which no figure is taken."""
        return self is Group.FORWARD

    @property
    def framing(self) -> str | None:
        """The name of echod's framing, if it is not chunks."""
        if self in (Group.LINES, Group.LINES_DEFER, Group.LINES_THREAD):
            return "line"
        if self in (Group.LENGTHS, Group.LENGTHS_DEFER, Group.LENGTHS_THREAD):
            return "length"
        return None


# How many idle connections a class gets at most. One address may have three quarters of echod's
# 342 threads; 10,000 TLS handshakes would take a minute.
MOST_IDLE = {Group.REACTOR: SILENT.connections, Group.DEFER: SILENT.connections}
MOST_IDLE |= {Group.THREAD: 250, Group.TLS: 1_000}

# The workloads that need a framing, and its name.
_FRAMED = {LINE: "line", LINES_AT_ONCE: "line", LENGTH: "length", LENGTHS_AT_ONCE: "length"}


@dataclass(frozen=True)
class Place:
    """The place and the conditions in which a server runs.

    Attributes:
        port: the TCP port on 127.0.0.1.
        read_size: the most data behind one prefix, in bytes.
        log: a file for the server's log.
        work: how long the handler takes for a line, in microseconds; 0: the echo, of chunks.
        upstream: the TCP port on 127.0.0.1 of the server that a relay connects to.
    """

    port: int
    read_size: int
    log: Path
    work: int = 0
    upstream: int = 0


@dataclass(frozen=True)
class Peer:
    """One server.

    Attributes:
        name: what options and tables call it.
        group: the class it is in.
        command: makes its command line.
        needs: names in `Tools.missing` without which it cannot run.
        environment: variables it is started with, beside the usual ones.
    """

    name: str
    group: Group
    command: Callable[[Tools, Place], list[str]]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_echod(self) -> bool:
        """Whether this is echod."""
        return self.name.startswith("echod")

    def takes(self, workload: Workload) -> bool:
        """Whether it does this work."""
        if self.group.framing is not None or workload in _FRAMED:
            return _FRAMED.get(workload) == self.group.framing
        if self.group is Group.TLS_TICKETLESS:
            return workload == CONNECT  # tickets are the handshake's
        if self.group.is_foreign or self.group in (Group.ASYNC, Group.FORWARD):
            return not workload.work and workload.mode is not Mode.IDLE
        return not workload.work or (self.is_echod and self.group is Group.REACTOR)

    def missing(self, tools: Tools) -> str | None:
        """Return why it cannot run here; None if it can."""
        return next((tools.missing[need] for need in self.needs if need in tools.missing), None)


def _python(
    module: str, *more: str, tls: bool = False, tickets: int = 1
) -> Callable[[Tools, Place], list[str]]:
    """Return a function that makes the command line of a peer written in Python."""

    def command(tools: Tools, place: Place) -> list[str]:
        files = [str(tools.certificate), str(tools.key), str(tickets)] if tls else []
        numbers = [str(place.port), str(place.read_size)]
        return [sys.executable, "-m", f"bench.peers.{module}", *numbers, *files, *more]

    return command


def _built(name: str) -> Callable[[Tools, Place], list[str]]:
    """Return a function that makes the command line of a compiled peer."""

    def command(tools: Tools, place: Place) -> list[str]:
        return [str(tools.built(name)), str(place.port), str(place.read_size)]

    return command


def _relay(_: Tools, place: Place) -> list[str]:
    """Return the command line of the relay."""
    ports = (str(place.port), str(place.upstream))
    return [sys.executable, "-m", "bench.peers.uvloop_relay", *ports]


PEERS = (
    Peer("c-epoll", Group.REACTOR, _built("epoll_echo"), ("cc",)),
    Peer("uvloop", Group.REACTOR, _python("uvloop_echo"), ("uvloop",)),
    Peer("go", Group.REACTOR, _built("go_echo"), ("go",), {"GOMAXPROCS": "1"}),
    Peer("asyncio", Group.REACTOR, _python("asyncio_echo")),
    Peer("gevent", Group.REACTOR, _python("gevent_echo"), ("gevent",)),
    Peer("twisted", Group.REACTOR, _python("twisted_echo"), ("twisted",)),
    Peer("twisted-defer", Group.DEFER, _python("twisted_defer_echo"), ("twisted",)),
    Peer("threading", Group.THREAD, _python("threading_echo")),
    Peer("uvloop-tls", Group.TLS, _python("uvloop_echo", tls=True), ("uvloop", "certificate")),
    Peer(
        *("uvloop-ticketless", Group.TLS_TICKETLESS, _python("uvloop_echo", tls=True, tickets=0)),
        needs=("uvloop", "certificate"),
    ),
    Peer("twisted-tls", Group.TLS, _python("twisted_echo", tls=True), ("twisted", "certificate")),
    Peer("uvloop-streams", Group.STREAMS, _python("streams_echo"), ("uvloop",)),
    Peer(
        *("uvloop-streams-tls", Group.STREAMS_TLS, _python("streams_echo", tls=True)),
        needs=("uvloop", "certificate"),
    ),
    Peer("uvloop-protocol", Group.PROTOCOL, _python("uvloop_echo"), ("uvloop",)),
    Peer(
        *("uvloop-protocol-tls", Group.PROTOCOL_TLS, _python("uvloop_echo", tls=True)),
        needs=("uvloop", "certificate"),
    ),
    Peer("uvloop-line", Group.LINES, _python("uvloop_line"), ("uvloop",)),
    Peer("uvloop-length", Group.LENGTHS, _python("uvloop_length"), ("uvloop",)),
    Peer(
        *("executor-line", Group.LINES_DEFER, _python("executor_framed", "line")),
        needs=("uvloop",),
    ),
    Peer(
        *("executor-length", Group.LENGTHS_DEFER, _python("executor_framed", "length")),
        needs=("uvloop",),
    ),
    Peer("threading-line", Group.LINES_THREAD, _python("threading_framed", "line")),
    Peer("threading-length", Group.LENGTHS_THREAD, _python("threading_framed", "length")),
    Peer("twisted-protocol", Group.TWISTED, _python("twisted_uvloop_echo"), ("uvloop",)),
    Peer("uvloop-relay", Group.FORWARD, _relay, ("uvloop", "cc")),
)

_ECHOD_MODELS = {
    "echod-reactor": (Group.REACTOR, "reactor"),
    "echod-defer": (Group.DEFER, "defer-to-thread"),
    "echod-thread": (Group.THREAD, "thread-per-connection"),
    "echod-tls": (Group.TLS, "reactor"),
    "echod-ticketless": (Group.TLS_TICKETLESS, "reactor"),
    "echod-streams": (Group.STREAMS, "reactor"),
    "echod-streams-tls": (Group.STREAMS_TLS, "reactor"),
    "echod-protocol": (Group.PROTOCOL, "reactor"),
    "echod-protocol-tls": (Group.PROTOCOL_TLS, "reactor"),
    "echod-twisted": (Group.TWISTED, "reactor"),
    "echod-line": (Group.LINES, "reactor"),
    "echod-length": (Group.LENGTHS, "reactor"),
    "echod-line-defer": (Group.LINES_DEFER, "defer-to-thread"),
    "echod-length-defer": (Group.LENGTHS_DEFER, "defer-to-thread"),
    "echod-line-thread": (Group.LINES_THREAD, "thread-per-connection"),
    "echod-length-thread": (Group.LENGTHS_THREAD, "thread-per-connection"),
    "plain-def": (Group.ASYNC, "reactor"),
    "echod-async": (Group.ASYNC, "reactor"),
    "echod-forward": (Group.FORWARD, "reactor"),
}

# The server that relays pass everything on to.
UPSTREAM = PEERS[0]

# The code that the peers of these classes run without echod.
_FOREIGN = {
    Group.STREAMS: "bench.peers.streams_echo:echo",
    Group.STREAMS_TLS: "bench.peers.streams_echo:echo",
    Group.PROTOCOL: "bench.peers.asyncio_echo:make",
    Group.PROTOCOL_TLS: "bench.peers.asyncio_echo:make",
    Group.TWISTED: "bench.peers.twisted_echo:make",
}

# The handlers of echod that are compared with each other.
_HANDLERS = {
    "plain-def": "bench.peers.async_echo:plain",
    "echod-async": "bench.peers.async_echo:awaiting",
}
_GREETING = "Welcome to the server. Type something and hit enter"


def _twistd(tools: Tools, group: Group) -> list[str]:
    if group is Group.TLS_TICKETLESS:
        return [sys.executable, "-m", "bench.peers.ticketless_twistd"]
    return [str(tools.twistd)]


def _echod(name: str, reactor: str) -> Peer:
    """Return echod as one of the servers, on the reactor with this name for twistd."""
    group, model = _ECHOD_MODELS[name]
    tls = group.is_encrypted

    def command(tools: Tools, place: Place) -> list[str]:
        twistd = [*_twistd(tools, group), "-n", "--pidfile=", f"--logfile={place.log}"]
        if reactor != DEFAULT_REACTOR:
            twistd.append(f"--reactor={reactor}")
        where = f"{place.port}:interface=127.0.0.1"
        if tls:
            listen = f"tls:{where}:certificate={tools.certificate}:key={tools.key}"
        else:
            listen = f"tcp:{where}"
        asked = ["--listen", listen, "--concurrency", model]
        if group.is_foreign:
            asked += ["--handler", f"{_FOREIGN[group]}:read_size={place.read_size}"]
        elif group.is_relay:
            asked += ["--handler", f"forward:to=127.0.0.1:{place.upstream}"]
        elif place.read_size != 1024:  # the default
            asked += ["--max-message", str(place.read_size)]
        if group.framing is not None:
            asked += ["--framing", group.framing]
        if name in _HANDLERS:
            asked += ["--handler", _HANDLERS[name], "--banner", _GREETING]
        if place.work:
            asked += ["--framing", "line", "--handler", f"working:Working:work={place.work}"]
        return [*twistd, "echod", *asked]

    shown = name if reactor == DEFAULT_REACTOR else f"{name}@{reactor}"
    needs = (*(("certificate",) if tls else ()), *(UPSTREAM.needs if group.is_relay else ()))
    return Peer(shown, group, command, ("twistd", *needs))


def contenders(reactors: Iterable[str]) -> list[Peer]:
    """Return every server, class by class; echod once for each reactor."""
    echods = [_echod(name, reactor) for name in _ECHOD_MODELS for reactor in reactors]
    return [peer for group in Group for peer in (*PEERS, *echods) if peer.group is group]


def chosen(peers: list[Peer], patterns: Iterable[str]) -> list[Peer]:
    """Return the peers whose names match any of the shell patterns.

    Raises:
        ValueError: a pattern matches none.
    """
    wanted = set()
    for pattern in patterns:
        matching = fnmatch.filter([peer.name for peer in peers], pattern)
        if not matching:
            names = ", ".join(peer.name for peer in peers)
            raise ValueError(f"no peer is called {pattern!r}; there are: {names}")
        wanted.update(matching)
    return [peer for peer in peers if peer.name in wanted]
