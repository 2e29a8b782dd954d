"""The bars: what echod has promised, and whether these figures keep it."""

from __future__ import annotations

from dataclasses import dataclass

from bench.catalogue import Group, Peer
from bench.results import BYTES, CPU, P99, RATE, Results
from bench.workloads import (
    CONNECT,
    GREEDY,
    LARGE,
    LENGTH,
    LENGTHS_AT_ONCE,
    LINE,
    LINES,
    LINES_AT_ONCE,
    MESSAGES,
    PIPELINED,
    SILENT,
    WORK,
    Workload,
)


@dataclass(frozen=True)
class Bar:
    """One promise.

    Attributes:
        group: which of echod's rows it is about.
        workload: under which load.
        figure: which figure.
        other: the server whose figure is the measure; None: `limit` is the figure itself.
        limit: how many times the other's figure, or the figure in its own unit.
        at_least: whether `limit` is the least, not the most.
        unit: what `limit` is of where there is no other; a divisor is in `scale`.
        scale: what one unit is.
        beside: the workload above whose figure the measure is; None for the figure itself.
    """

    group: Group
    workload: Workload
    figure: str
    other: str | None
    limit: float
    at_least: bool = False
    unit: str = "x"
    scale: float = 1.0
    beside: Workload | None = None

    def measured(self, results: Results, peer: str) -> float | None:
        """Return the ratio, or the figure; None where something was not measured."""
        if self.other is not None:
            return results.ratio(peer, self.other, self.workload.name, self.figure)
        if self.beside is not None:
            value = results.growth(peer, self.workload.name, self.beside.name, self.figure)
        else:
            value = results.median(peer, self.workload.name, self.figure)
        return None if value is None else value / self.scale

    def kept(self, measured: float) -> bool:
        """Return whether this is good enough."""
        return measured >= self.limit if self.at_least else measured <= self.limit

    @property
    def promise(self) -> str:
        """The bar, in words."""
        bound = "at least" if self.at_least else "at most"
        what = f"{bound} {self.limit:g} {self.unit}"
        return f"{what} {self.other}" if self.other else what


BARS = (
    Bar(Group.REACTOR, MESSAGES, CPU, "c-epoll", 1.25),
    Bar(Group.REACTOR, MESSAGES, CPU, "uvloop", 1.05),
    Bar(Group.REACTOR, MESSAGES, CPU, "twisted", 0.5),
    Bar(Group.DEFER, MESSAGES, CPU, "threading", 1.25),
    Bar(Group.DEFER, MESSAGES, CPU, "twisted-defer", 0.33),
    Bar(Group.THREAD, MESSAGES, CPU, "threading", 1.10),
    Bar(Group.TLS, MESSAGES, CPU, "uvloop-tls", 1.0),
    Bar(Group.STREAMS, MESSAGES, CPU, "uvloop-streams", 1.05),
    Bar(Group.STREAMS_TLS, MESSAGES, CPU, "uvloop-streams-tls", 1.0),
    Bar(Group.PROTOCOL, MESSAGES, CPU, "uvloop-protocol", 1.05),
    Bar(Group.PROTOCOL_TLS, MESSAGES, CPU, "uvloop-protocol-tls", 1.0),
    Bar(Group.TWISTED, MESSAGES, CPU, "twisted-protocol", 1.05),
    Bar(Group.ASYNC, MESSAGES, CPU, "plain-def", 1.20),
    Bar(Group.FORWARD, MESSAGES, CPU, "uvloop-relay", 1.5),
    Bar(Group.REACTOR, SILENT, BYTES, None, 2.5, unit="KiB each", scale=1024),
    Bar(Group.REACTOR, CONNECT, RATE, "uvloop", 0.6, at_least=True),
    Bar(Group.TLS, CONNECT, RATE, "uvloop-tls", 0.8, at_least=True),
    Bar(Group.TLS_TICKETLESS, CONNECT, RATE, "uvloop-ticketless", 0.85, at_least=True),
    Bar(Group.TLS, LARGE, CPU, "uvloop-tls", 1.05),
    Bar(Group.LINES, LINE, CPU, "uvloop-line", 1.12),
    Bar(Group.LINES, LINES_AT_ONCE, CPU, "uvloop-line", 1.35),
    Bar(Group.LENGTHS, LENGTH, CPU, "uvloop-length", 1.12),
    Bar(Group.LENGTHS, LENGTHS_AT_ONCE, CPU, "uvloop-length", 1.35),
    Bar(Group.LINES_DEFER, LINE, CPU, "executor-line", 1.2),
    Bar(Group.LINES_DEFER, LINES_AT_ONCE, CPU, "executor-line", 1.2),
    Bar(Group.LENGTHS_DEFER, LENGTH, CPU, "executor-length", 1.2),
    Bar(Group.LENGTHS_DEFER, LENGTHS_AT_ONCE, CPU, "executor-length", 1.2),
    Bar(Group.LINES_THREAD, LINE, CPU, "threading-line", 1.2),
    Bar(Group.LINES_THREAD, LINES_AT_ONCE, CPU, "threading-line", 1.2),
    Bar(Group.LENGTHS_THREAD, LENGTH, CPU, "threading-length", 1.2),
    Bar(Group.LENGTHS_THREAD, LENGTHS_AT_ONCE, CPU, "threading-length", 1.2),
    Bar(Group.REACTOR, LARGE, CPU, "uvloop", 1.0),
    Bar(Group.REACTOR, PIPELINED, CPU, "uvloop", 1.0),
    *(
        Bar(
            *(Group.REACTOR, GREEDY[work], P99, None, 10.0),
            unit="ms more in p99",
            scale=1000,
            beside=LINES[work],
        )
        for work in WORK
    ),
)


@dataclass(frozen=True)
class Verdict:
    """Whether one of echod's rows keeps one bar.

    Attributes:
        peer: the row.
        bar: the promise.
        measured: the ratio, or the figure in the bar's unit; None where it was not measured.
    """

    peer: str
    bar: Bar
    measured: float | None

    @property
    def word(self) -> str:
        """PASS, FAIL, or that there is nothing to judge."""
        if self.measured is None:
            return "not measured"
        return "PASS" if self.bar.kept(self.measured) else "FAIL"


def judge(results: Results, peers: tuple[Peer, ...]) -> list[Verdict]:
    """Hold each of echod's rows against the bars for its class."""
    return [
        Verdict(peer.name, bar, bar.measured(results, peer.name))
        for bar in BARS
        for peer in peers
        if peer.is_echod and peer.group is bar.group
    ]
