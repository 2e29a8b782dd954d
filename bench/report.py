"""The report: aligned tables in Markdown, that read as well in a terminal as on a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.bars import Verdict
from bench.catalogue import Group, Peer
from bench.results import BYTES, COUNT, CPU, P50, P99, RATE, Results
from bench.workloads import (
    CONNECT,
    CONNECTIONS,
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
)

# The server that no other can be much cheaper than.
LOWER_BOUND = "c-epoll"

BEGIN = "<!-- made by `python -m bench --document`: begin -->"
END = "<!-- made by `python -m bench --document`: end -->"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its head.
        value: the figure of a server.
        form: how the figure is written.
    """

    title: str
    value: Callable[[Results, Peer], float | None]
    form: str = "{:,.0f}"

    def text(self, results: Results, peer: Peer) -> str:
        """Return the cell for one server."""
        value = self.value(results, peer)
        return "" if value is None else self.form.format(value)


def _median(
    workload: str, figure: str, scale: float = 1.0
) -> Callable[[Results, Peer], float | None]:
    """Return what looks up a median, in units of `scale`."""

    def value(results: Results, peer: Peer) -> float | None:
        median = results.median(peer.name, workload, figure)
        return None if median is None else median / scale

    return value


def _cost_beside(other: str) -> Callable[[Results, Peer], float | None]:
    """Return what looks up the CPU time a message as a multiple of another server's."""

    def value(results: Results, peer: Peer) -> float | None:
        return results.ratio(peer.name, other, MESSAGES.name, CPU)

    return value


COLUMNS = (
    Column("msg/s", _median(MESSAGES.name, RATE)),
    Column("µs/msg", _median(MESSAGES.name, CPU), "{:.2f}"),
    Column("p50 µs", _median(MESSAGES.name, P50)),
    Column("p99 µs", _median(MESSAGES.name, P99)),
    Column("16x100 B µs", _median(PIPELINED.name, CPU), "{:.2f}"),
    Column("64 KiB µs", _median(LARGE.name, CPU), "{:.1f}"),
    Column("line µs", _median(LINE.name, CPU), "{:.2f}"),
    Column("16 lines µs", _median(LINES_AT_ONCE.name, CPU), "{:.2f}"),
    Column("length µs", _median(LENGTH.name, CPU), "{:.2f}"),
    Column("16 lengths µs", _median(LENGTHS_AT_ONCE.name, CPU), "{:.2f}"),
    Column("conn/s", _median(CONNECT.name, RATE)),
    Column("µs/conn", _median(CONNECT.name, CPU), "{:.1f}"),
    Column("KiB/idle", _median(SILENT.name, BYTES, 1024), "{:.2f}"),
    Column("start ms", lambda results, peer: results.start(peer.name)),
)


def render(results: Results, peers: tuple[Peer, ...], verdicts: list[Verdict]) -> str:
    """Return the whole report."""
    parts = [_class(results, group, peers) for group in Group]
    parts += [_beside(results, peers), _bars(verdicts), _notes(results)]
    return "\n\n".join(filter(None, parts)) + "\n"


def table(rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """Return rows as a Markdown table.

    Args:
        rows: the cells; the first row is the head.
        words: how many columns, from the first on, are words; the others are numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [":" + "-" * (width - 1) for width in widths[:words]]
    rule = [*left, *("-" * (width - 1) + ":" for width in widths[words:])]
    lines = [
        [*map(str.ljust, row[:words], widths), *map(str.rjust, row[words:], widths[words:])]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def best_of(results: Results, group: Group, peers: Iterable[Peer]) -> str | None:
    """Return the peer of a class that needs the least CPU time a message.

    Not echod, and not the lower bound, which each row is compared with anyway.
    """
    costs = {
        peer.name: cost
        for peer in peers
        if peer.group is group
        and not peer.is_echod
        and peer.name != LOWER_BOUND
        and (cost := results.median(peer.name, MESSAGES.name, CPU)) is not None
    }
    return min(costs, key=costs.__getitem__) if costs else None


def _class(results: Results, group: Group, peers: tuple[Peer, ...]) -> str:
    """Return the section of one class."""
    rows = [peer for peer in peers if peer.group is group and _measured(results, peer)]
    if not rows:
        return ""
    columns = [*COLUMNS, Column(f"x {LOWER_BOUND}", _cost_beside(LOWER_BOUND), "{:.2f}")]
    best = best_of(results, group, peers)
    if best is not None:
        columns.append(Column(f"x {best}", _cost_beside(best), "{:.2f}"))
    columns = [column for column in columns if any(column.text(results, peer) for peer in rows)]
    head = ["", *(column.title for column in columns)]
    body = [[peer.name, *(column.text(results, peer) for column in columns)] for peer in rows]
    return f"### {group}\n\n{table([head, *body])}"


def _measured(results: Results, peer: Peer) -> bool:
    return any(sample.peer == peer.name for sample in results.samples)


def _beside(results: Results, peers: tuple[Peer, ...]) -> str:
    """Return the section of polite clients beside a greedy one."""
    head = [
        "",
        "in the handler",
        "p50 ms",
        "beside a greedy client",
        "p99 ms",
        "beside it",
        "more",
    ]
    rows = [head]
    for peer in peers:
        for work in WORK:
            pair = LINES[work].name, GREEDY[work].name
            values = [
                results.median(peer.name, name, figure) for figure in (P50, P99) for name in pair
            ]
            values.append(results.growth(peer.name, pair[1], pair[0], P99))
            if all(value is not None for value in values):
                cells = [f"{value / 1000:.2f}" for value in values if value is not None]
                rows.append([peer.name, f"{work} µs", *cells])
    if len(rows) == 1:
        return ""
    words = (
        f"{CONNECTIONS} clients send lines of {GREEDY[WORK[0]].size} bytes, one at a time; the "
        "greedy one sends\nempty lines as fast as it can. More: the median within the rounds."
    )
    return f"### Beside a greedy client\n\n{table(rows, words=2)}\n\n{words}"


def _bars(verdicts: list[Verdict]) -> str:
    """Return the section of the bars."""
    judged = [verdict for verdict in verdicts if verdict.measured is not None]
    if not verdicts:
        return ""
    rows = [["", "workload", "bar", "measured", ""]]
    for verdict in judged:
        bar = verdict.bar
        measured = f"{verdict.measured:.2f} {bar.unit}"
        rows.append([verdict.peer, bar.workload.title, bar.promise, measured, verdict.word])
    passed = sum(verdict.word == "PASS" for verdict in judged)
    summary = f"{passed} of {len(verdicts)} pass; {len(verdicts) - len(judged)} not measured."
    return "\n\n".join(["### Bars", table(rows, words=3), summary])


# The legend of each class's columns.
LEGEND = f"""\
- msg/s, µs/msg, p50, p99: {CONNECTIONS} connections, {MESSAGES.title}.
- µs/...: the server's CPU time, user and system, of all its threads. p50, p99: the time from
  sending a message until all of it is back.
- x ...: ratio to that server's CPU time a message, the median of the ratios within each round.
- 16x100 B: {PIPELINED.title}, so at least two pieces come back; µs a message.
- 64 KiB: {LARGE.title}, read in pieces of that size.
- line, 16 lines: {LINE.title}; {LINES_AT_ONCE.title}; µs a line.
- length, 16 lengths: {LENGTH.title}; {LENGTHS_AT_ONCE.title}; µs a message.
- conn/s: {CONNECT.title}, {CONNECT.connections} at once.
- start: from the command to the first accepted connection."""


def _notes(results: Results) -> str:
    """Return the legend of the figures, and the environment that they depend on."""
    environment = ", ".join(f"{name} {value}" for name, value in results.environment.items())
    lines = [LEGEND, f"- KiB/idle: {_idle_counts(results)}.", f"- {environment}."]
    share = results.others_share()
    if share is not None:
        lines.append(f"- Other programs had {share:.0%} of the server's core, in the median.")
    lines += [f"- Skipped: {peer}: {why}." for peer, why in results.skipped.items()]
    if results.failures:
        lines.append(f"- {len(results.failures)} measurements failed: {results.failures[0]}")
    return "\n".join(lines)


def _idle_counts(results: Results) -> str:
    counts: dict[int, list[str]] = {}
    for sample in results.samples:
        if sample.workload == SILENT.name:
            counts.setdefault(int(sample.figures[COUNT]), []).append(sample.peer)
    if not counts:
        return "not measured"
    most = max(counts, key=lambda count: len(counts[count]))
    others = [
        f"{count:,} for {', '.join(peers)}" for count, peers in counts.items() if count != most
    ]
    return "; ".join([f"growth of resident memory for each of {most:,} connections", *others])


def replace_generated(page: str, report: str) -> str:
    """Return a page with the part between `BEGIN` and `END` replaced.

    Raises:
        ValueError: the page has no such part.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"it needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{report}\n{END}{after}"
