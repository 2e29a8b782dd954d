"""Collect all figures of one moment from the parts that keep them."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import twisted
from echod import __version__
from echod.addresses import shown_address
from echod.concurrency.pool import WorkerPool
from echod.connections.sweeper import SLICE
from echod.limits import Level
from echod.metrics import Histogram, Metrics, Totals
from echod.reasons import Check, EndReason, Refusal
from echod.text import escape
from echod.tls import ServedCertificate

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from twisted.internet.interfaces import IAddress


class ObservedFactory(Protocol):
    """The interface of a listener's factory."""

    @property
    def metrics(self) -> Metrics: ...
    @property
    def connections(self) -> Iterable[object]: ...


class ObservedListener(Protocol):
    """The interface of a listener."""

    @property
    def description(self) -> str: ...
    @property
    def address(self) -> IAddress | None: ...
    @property
    def factory(self) -> ObservedFactory: ...


class ObservedLog(Protocol):
    """The interface of the log."""

    @property
    def written(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def suppressed(self) -> int: ...


class Subject(Protocol):
    """The interface of the service."""

    @property
    def listeners(self) -> Sequence[ObservedListener]: ...
    @property
    def ready(self) -> bool: ...
    @property
    def draining(self) -> bool: ...
    @property
    def suspended(self) -> bool: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def pool(self) -> WorkerPool | None: ...
    @property
    def oldest_call(self) -> float: ...
    @property
    def log_observer(self) -> ObservedLog | None: ...
    @property
    def levels(self) -> Sequence[Level]: ...
    @property
    def certificates(self) -> Sequence[ServedCertificate]: ...
    @property
    def own_metrics(self) -> CollectorRegistry | None: ...


@dataclass(frozen=True)
class Build:
    """Versions of echod, Python, Twisted, and the reactor."""

    version: str
    python: str
    twisted: str
    reactor: str

    @classmethod
    def of(cls, reactor: str) -> Build:
        """Return the versions, with `reactor`, the name for `--reactor`."""
        return cls(__version__, platform.python_version(), twisted.__version__, reactor)


@dataclass(frozen=True)
class ListenerFigures:
    """The figures of one listener; sizes in bytes.

    Attributes:
        name: its endpoint string, escaped; with a number if several are equal.
        address: where it listens; "" if it does not.
        accepted, open: connections.
        messages, received, sent: of connections that ended and of those that are open.
        handler_errors: exceptions of the handler.
        ended: ended connections by reason; every reason is present.
        refused: refused clients by limit; every limit is present.
        faults: connections in which a fault on purpose has happened, by fault.
        checks: health checks of load balancers by kind; every kind of a listener is present.
    """

    name: str
    address: str
    accepted: int
    open: int
    messages: int
    received: int
    sent: int
    handler_errors: int
    ended: Mapping[str, int]
    refused: Mapping[str, int]
    faults: Mapping[str, int] = field(default_factory=dict)
    checks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolFigures:
    """The pool's threads, and the tasks that wait for them.

    Attributes:
        size, busy: the highest number of threads, and the number at work.
        queued, wait: how many tasks wait, and how long (seconds).
        lost, dropped: how many tasks of lost connections wait behind those, and how many of their
            messages were dropped.
    """

    size: int
    busy: int
    queued: int
    wait: float
    lost: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class LogFigures:
    """Lines written, lines lost, and events that the rate limit has suppressed."""

    written: int
    lost: int
    suppressed: int


@dataclass(frozen=True)
class Rates:
    """Rates a second, averaged over at most a minute, since an earlier snapshot.

    Attributes:
        messages: passed to the handler.
        received, sent: bytes.
    """

    messages: float = 0.0
    received: float = 0.0
    sent: float = 0.0


@dataclass(frozen=True)
class WorkerFigures:
    """The figures of one worker, since its start; times in seconds.

    Attributes:
        number, pid: the worker's number, and its process id.
        state: as of a daemon.
        uptime: how long it has been running.
        open, accepted: connections.
        messages: passed to the handler.
        worst_lag: of its event loop, in the last minute.
        cpu: the processor time that it has used.
        resident: its memory, in bytes.
    """

    number: int
    pid: int
    state: str
    uptime: float
    open: int
    accepted: int
    messages: int
    worst_lag: float
    cpu: float
    resident: int


@dataclass(frozen=True)
class Snapshot:
    """All figures of one moment; times in seconds.

    Attributes:
        levels: the limits, and how much of each is in use.
        last_minute: the totals of the last minute.
        rates: the rates of messages and bytes; None in the first snapshot.
        certificates: those in use.
        now: the Unix time.
        checks: health checks that the status has answered, by kind.
        status: the endpoint of the status, escaped.
        workers: each worker; none if this is a single process.
    """

    build: Build
    started: float
    uptime: float
    state: str
    listeners: Sequence[ListenerFigures]
    handler_time: Histogram
    oldest_call: float
    lag: Histogram
    worst_lag: float
    stalls: int
    stalled: float
    pool: PoolFigures | None
    log: LogFigures | None
    levels: Sequence[Level]
    last_minute: Totals
    rates: Rates | None
    certificates: Sequence[ServedCertificate]
    now: float
    checks: Mapping[str, int] = field(default_factory=dict)
    status: str = ""
    workers: Sequence[WorkerFigures] = ()

    @property
    def pool_wait(self) -> float:
        """How long a message waits for a thread."""
        return 0.0 if self.pool is None else self.pool.wait

    @property
    def certificate_ends_in(self) -> float:
        """How long the certificate that expires first is still valid."""
        ends = (each.valid_until.timestamp() for each in self.certificates)
        return min(ends, default=math.inf) - self.now


STATES = ("starting", "ready", "suspended", "draining")


def totals_of(subject: Subject) -> Totals:
    """Return the totals over all listeners."""
    all_metrics = [listener.factory.metrics for listener in subject.listeners]
    return Totals(
        accepted=sum(metrics.accepted for metrics in all_metrics),
        ended=sum(metrics.ended.total() for metrics in all_metrics),
        refused=sum(metrics.refused.total() for metrics in all_metrics),
        handler_errors=sum(metrics.handler_errors for metrics in all_metrics),
        lines_lost=0 if subject.log_observer is None else subject.log_observer.lost,
    )


def state_of(subject: Subject) -> str:
    """Return one of `STATES`."""
    if subject.draining:
        return "draining"
    if not subject.ready:
        return "starting"
    return "suspended" if subject.suspended else "ready"


async def figures_of(
    listeners: Sequence[ObservedListener], pause: Callable[[], Awaitable[object]]
) -> list[ListenerFigures]:
    """Return the figures of each listener.

    Each connection has to be asked, which takes long if there are many: 100 ms for ten thousand.
    The event loop gets its turn between slices of them.

    Args:
        listeners: the listeners.
        pause: returns an awaitable to await between two slices.
    """
    seen: Counter[str] = Counter()
    figures = []
    for listener in list(listeners):
        name = escape(listener.description)
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name} #{seen[name]}"
        figures.append(await _figures(name, listener, pause))
    return figures


async def _figures(
    name: str, listener: ObservedListener, pause: Callable[[], Awaitable[object]]
) -> ListenerFigures:
    # The sums and the list of connections are from one moment: a connection that ends meanwhile is
    # still in the list, with its last figures, and not in the sums yet. So no sum ever decreases.
    counted, connections = _counted(name, listener), list(listener.factory.connections)
    messages, received, sent = counted.messages, counted.received, counted.sent
    for number, connection in enumerate(connections, 1):
        # A connection that waits for its PROXY header has none yet.
        some_messages, some_received, some_sent = getattr(connection, "figures", (0, 0, 0))
        messages += some_messages
        received += some_received
        sent += some_sent
        if number % SLICE == 0:
            await pause()
    return replace(counted, messages=messages, received=received, sent=sent)


def _counted(name: str, listener: ObservedListener) -> ListenerFigures:
    """Return a listener's counters, which do not include the traffic of open connections."""
    metrics, address = listener.factory.metrics, listener.address
    return ListenerFigures(
        name=name,
        address="" if address is None else shown_address(address),
        accepted=metrics.accepted,
        open=metrics.open,
        messages=metrics.messages,
        received=metrics.bytes_received,
        sent=metrics.bytes_sent,
        handler_errors=metrics.handler_errors,
        ended={reason.value: metrics.ended[reason.value] for reason in EndReason},
        refused={one.value: metrics.refused[one.value] for one in Refusal},
        faults=dict(metrics.faults),
        checks={kind.value: metrics.checks[kind.value] for kind in Check if kind.by_listener},
    )
