"""The figures at one moment, put together from those who keep them."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import twisted
from echod import __version__
from echod.addresses import shown_address
from echod.concurrency.pool import WorkerPool
from echod.connections.sweeper import SLICE
from echod.limits import Level
from echod.metrics import Histogram, Metrics, Totals
from echod.reasons import REFUSED_BY, EndReason
from echod.text import escape
from echod.tls import ServedCertificate


class ObservedFactory(Protocol):
    """What is asked of a listener's factory."""

    @property
    def metrics(self) -> Metrics: ...
    @property
    def connections(self) -> Iterable[object]: ...


class ObservedListener(Protocol):
    """What is asked of a listener."""

    @property
    def description(self) -> str: ...
    @property
    def address(self) -> Any: ...
    @property
    def factory(self) -> ObservedFactory: ...


class ObservedLog(Protocol):
    """What is asked of the log."""

    @property
    def written(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def suppressed(self) -> int: ...


class Subject(Protocol):
    """What is asked of the service."""

    @property
    def listeners(self) -> Sequence[ObservedListener]: ...
    @property
    def ready(self) -> bool: ...
    @property
    def draining(self) -> bool: ...
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


@dataclass(frozen=True)
class Build:
    """Versions of echod, Python, Twisted, and the reactor."""

    version: str
    python: str
    twisted: str
    reactor: str

    @classmethod
    def of(cls, reactor: str) -> Build:
        """Return the versions of what runs on `reactor`, a name as `--reactor` has it."""
        return cls(__version__, platform.python_version(), twisted.__version__, reactor)


@dataclass(frozen=True)
class ListenerFigures:
    """What one listener has seen; sizes in bytes.

    Attributes:
        name: its endpoint string, escaped; where several are alike, with a number.
        address: where it listens; "" where it does not.
        accepted, open: connections.
        messages, received, sent: of connections that ended and of those that are open.
        handler_errors: what the handler has raised.
        ended: connections by the reason of their end; every reason is there.
        refused: clients by the limit that they met; every limit is there.
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


@dataclass(frozen=True)
class PoolFigures:
    """The pool's threads, and what waits for them.

    Attributes:
        size, busy: how many threads there may be, and how many work.
        queued, wait: how many tasks wait, and how long (seconds).
        lost, dropped: how many tasks of lost connections wait, behind those; how many of their
            messages found no room.
    """

    size: int
    busy: int
    queued: int
    wait: float
    lost: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class LogFigures:
    """Lines written, lines lost, and events that the rate limit has only counted."""

    written: int
    lost: int
    suppressed: int


@dataclass(frozen=True)
class Rates:
    """How much a second, on average over at most a minute, since somebody last looked.

    Attributes:
        messages: given to the handler.
        received, sent: bytes.
    """

    messages: float = 0.0
    received: float = 0.0
    sent: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """Everything at one moment; times in seconds.

    Attributes:
        levels: what is scarce, and how much of it is taken.
        last_minute: what was counted in the last minute.
        rates: of what is known only when connections are asked; None at the first look.
        certificates: those in use.
        now: the time, as Unix has it.
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

    @property
    def pool_wait(self) -> float:
        """How long a message waits for a thread."""
        return 0.0 if self.pool is None else self.pool.wait

    @property
    def certificate_ends_in(self) -> float:
        """For how long the certificate is valid that ends first."""
        ends = (each.valid_until.timestamp() for each in self.certificates)
        return min(ends, default=math.inf) - self.now


STATES = ("starting", "ready", "draining")


def totals_of(subject: Subject) -> Totals:
    """Return what has been counted over all listeners."""
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
    return "ready" if subject.ready else "starting"


async def figures_of(
    listeners: Sequence[ObservedListener], pause: Callable[[], Awaitable[object]]
) -> list[ListenerFigures]:
    """Return what each listener has seen.

    Each connection has to be asked, which takes long where there are many: 100 ms for ten
    thousand.  The event loop is given its turn between slices of them.

    Args:
        listeners: who is asked.
        pause: returns what is awaited between two slices.
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
    # The sums and the connections are those of one moment: a connection that ends meanwhile is in
    # the list still, with its last figures, and not in the sums yet.  So no sum ever goes back.
    counted, connections = _counted(name, listener), list(listener.factory.connections)
    messages, received, sent = counted.messages, counted.received, counted.sent
    for number, connection in enumerate(connections, 1):
        # One whose PROXY header is awaited has none yet.
        some_messages, some_received, some_sent = getattr(connection, "figures", (0, 0, 0))
        messages += some_messages
        received += some_received
        sent += some_sent
        if number % SLICE == 0:
            await pause()
    return replace(counted, messages=messages, received=received, sent=sent)


def _counted(name: str, listener: ObservedListener) -> ListenerFigures:
    """Return what a listener's counters say; they know nothing of open connections' traffic."""
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
        refused={limit: metrics.refused[limit] for limit in REFUSED_BY},
    )
