"""The figures as a page for people: one file, without scripts or external resources."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from echod.limits import Level
from echod.metrics import Histogram
from echod.status.snapshot import ListenerFigures, PoolFigures, Snapshot, WorkerFigures
from echod.status.strain import NEARLY, SOON, strains
from echod.text import plural

# Seconds after which a browser reloads the page.
REFRESH = 5

_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f6f7f9; --card: #ffffff; --ink: #1b2330; --dim: #5d6878; --line: #e2e6ec;
  --good: #12805c; --wait: #a15c00; --bad: #c02b37; --bar: #3b6fd8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11151b; --card: #1a2029; --ink: #e7ecf3; --dim: #93a0b2; --line: #2b3440;
    --good: #4cc79b; --wait: #e5a54b; --bad: #f27782; --bar: #7ba4f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 1.25rem; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 62rem; margin: 0 auto; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .4rem .9rem; }
h1 { font-size: 1.5rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: .95rem; margin: 0 0 .6rem; }
header p { margin: 0; color: var(--dim); }
.state { font-weight: 600; padding: .1rem .7rem; border-radius: 1rem; color: var(--card); }
.ready { background: var(--good); } .starting { background: var(--wait); }
.draining { background: var(--bad); } .saturated { background: var(--wait); }
.suspended { background: var(--wait); }
.strains { color: var(--wait); font-weight: 600; margin: .6rem 0 0; padding-left: 1.2rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem; margin-top: 1rem; overflow-x: auto; }
.tiles { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.tiles section { margin-top: 0; }
.tiles { margin-top: 1rem; }
.tiles h2 { color: var(--dim); font-weight: 500; margin: 0; }
.tiles p { font-size: 1.6rem; margin: .1rem 0 0; font-variant-numeric: tabular-nums; }
.tiles small, .dim { color: var(--dim); }
.tiles small { display: block; }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr));
  margin-top: 1rem; align-items: start; }
.pair section { margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem 0 .3rem 1rem; border-top: 1px solid var(--line);
  white-space: nowrap; }
thead th { border-top: 0; color: var(--dim); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; font-weight: 500; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
meter { width: 4rem; height: .8rem; vertical-align: middle; }
.alarm, .tiles .alarm { color: var(--bad); font-weight: 600; }
footer { color: var(--dim); margin: 1rem 0 0; font-size: .85rem; }
a { color: inherit; }
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def page(now: Snapshot) -> str:
    """Return the page that shows `now`."""
    strained = strains(now)
    ended = [(one.name, one.ended) for one in now.listeners]
    refused = [(one.name, one.refused) for one in now.listeners]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{REFRESH}">
<title>echod: {escape(_state(now, strained))}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
{_header(now, strained)}
{_tiles(now)}
{_listeners(now.listeners)}
{_workers(now.workers)}
{_levels(now.levels)}
<div class="pair">
{_by_listener("Ends by reason", "reason", ended, "No connection has ended yet.")}
{_by_listener("Refused by limit", "limit", refused, "No client has been refused.")}
{_times(now.handler_time)}
{_pool(now.pool)}
{_certificates(now)}
</div>
<footer>{_footer(now)}</footer>
</main>
</body>
</html>
"""


def _state(now: Snapshot, strained: Sequence[str]) -> str:
    """Return the state for people, which says more than ready or not."""
    return f"{now.state}, saturated" if strained and now.state == "ready" else now.state


def _header(now: Snapshot, strained: Sequence[str]) -> str:
    build, state = now.build, _state(now, strained)
    kind = "saturated" if state != now.state else now.state
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in strained)
    return f"""<header>
<h1>echod</h1>
<span class="state {escape(kind)}" role="status">{escape(state)}</span>
<p>{escape(build.version)}, up for {duration(now.uptime)}</p>
</header>
{f'<ul class="strains">{reasons}</ul>' if reasons else ""}"""


def _tiles(now: Snapshot) -> str:
    listeners, minute, rates = now.listeners, now.last_minute, now.rates
    stalls = "no stalls"
    if now.stalls:
        count = f"{number(now.stalls)} {plural(now.stalls, 'stall', 'stalls')}"
        stalls = f"{count}, {duration(now.stalled)} in total"
    refused = sum(sum(one.refused.values()) for one in listeners)
    tiles = [
        _tile(
            "Connections",
            number(sum(one.open for one in listeners)),
            f"open; {sum(one.accepted for one in listeners):,} accepted",
            f"{minute.accepted:,} in the last minute",
        ),
        _tile(
            "Messages",
            number(sum(one.messages for one in listeners)),
            "passed to the handler",
            f"{rates.messages:,.1f} a second" if rates else "",
        ),
        _tile(
            "Received",
            size(sum(one.received for one in listeners)),
            "from clients",
            f"{size(round(rates.received))} a second" if rates else "",
        ),
        _tile(
            "Sent",
            size(sum(one.sent for one in listeners)),
            "to clients",
            f"{size(round(rates.sent))} a second" if rates else "",
        ),
        _tile(
            "Refused",
            number(refused),
            "clients",
            f"{minute.refused:,} in the last minute",
            alarm=bool(minute.refused),
        ),
        _tile("Oldest call", duration(now.oldest_call), "of the handler, still running"),
        _tile("Event loop lag", duration(now.worst_lag), "worst of a minute", stalls),
    ]
    if now.log is not None:
        lost = f"{now.log.lost:,} lost, {now.log.suppressed:,} above the rate"
        tiles.append(_tile("Log lines", number(now.log.written), lost, alarm=bool(now.log.lost)))
    return f'<div class="tiles">\n{"".join(tiles)}</div>'


def _tile(title: str, value: str, *beside: str, alarm: bool = False) -> str:
    mark = ' class="alarm"' if alarm else ""
    lines = "".join(f"<small{mark}>{escape(line)}</small>" for line in beside if line)
    return f"<section><h2>{escape(title)}</h2><p>{escape(value)}</p>{lines}</section>\n"


def _listeners(listeners: Iterable[ListenerFigures]) -> str:
    rows = "".join(
        f"<tr><td>{escape(one.name)}</td>"
        f"<td>{one.open:,}</td><td>{one.accepted:,}</td><td>{one.messages:,}</td>"
        f"<td>{size(one.received)}</td><td>{size(one.sent)}</td>"
        f"<td>{escape(one.address) or '<span class=dim>not listening</span>'}</td></tr>\n"
        for one in listeners
    )
    return f"""<section><h2>Listeners</h2>
<table><thead><tr><th>listener</th><th>open</th><th>accepted</th><th>messages</th>
<th>received</th><th>sent</th><th>address</th></tr></thead><tbody>
{rows}</tbody></table></section>"""


def _workers(workers: Sequence[WorkerFigures]) -> str:
    if not workers:
        return ""
    rows = "".join(
        f"<tr><td>{one.number}</td><td>{one.pid}</td>"
        f"<td{' class=alarm' if one.state != 'ready' else ''}>{escape(one.state)}</td>"
        f"<td>{duration(one.uptime)}</td><td>{one.open:,}</td><td>{one.accepted:,}</td>"
        f"<td>{one.messages:,}</td><td>{duration(one.worst_lag)}</td><td>{duration(one.cpu)}</td>"
        f"<td>{size(one.resident)}</td></tr>\n"
        for one in workers
    )
    return f"""<section><h2>Workers</h2>
<table><thead><tr><th>worker</th><th>process</th><th>state</th><th>up for</th><th>open</th>
<th>accepted</th><th>messages</th><th>lag</th><th>processor</th><th>memory</th></tr></thead><tbody>
{rows}</tbody></table></section>"""


def _levels(levels: Iterable[Level]) -> str:
    rows = "".join(
        f"<tr><td>{escape(one.limit)}</td>"
        f"<td{' class=alarm' if one.used >= NEARLY * one.most else ''}>{one.used:,}</td>"
        f"<td>{one.most:,}</td><td>{_meter(one)}</td></tr>\n"
        for one in levels
    )
    return f"""<section><h2>Limits</h2>
<table><thead><tr><th>limit</th><th>in use</th><th>of</th><th></th></tr></thead><tbody>
{rows}</tbody></table></section>"""


def _meter(level: Level) -> str:
    high = NEARLY * level.most
    return f'<meter value="{level.used}" max="{level.most}" high="{high:g}" optimum="0"></meter>'


def _by_listener(
    title: str, what: str, counts: Sequence[tuple[str, Mapping[str, int]]], nothing: str
) -> str:
    """Return a table of counts, with a column for each listener if there are several."""
    total: Counter[str] = Counter()
    for _, some in counts:
        total.update(some)
    shown = [(name, count) for name, count in total.most_common() if count]
    if len(counts) < 2:
        return _counts(title, what, shown, nothing)
    head = "".join(f"<th>{escape(listener)}</th>" for listener, _ in counts)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{some.get(name, 0):,}</td>" for _, some in counts)
        + f"<td>{count:,}</td></tr>\n"
        for name, count in shown
    )
    table = f"""<table><thead><tr><th>{what}</th>{head}<th>all</th></tr></thead><tbody>
{rows}</tbody></table>"""
    body = table if shown else f'<span class="dim">{nothing}</span>'
    return f"<section><h2>{title}</h2>{body}</section>"


def _certificates(now: Snapshot) -> str:
    if not now.certificates:
        return ""
    rows = "".join(
        f"<tr><td>{escape(each.path)}</td><td>{escape(each.serial)}</td>"
        f"<td{' class=alarm' if each.valid_until.timestamp() - now.now < SOON else ''}>"
        f"{each.valid_until:%Y-%m-%d}</td></tr>\n"
        for each in now.certificates
    )
    return f"""<section><h2>Certificates</h2>
<table><thead><tr><th>file</th><th>serial number</th><th>valid until</th></tr></thead><tbody>
{rows}</tbody></table></section>"""


def _counts(title: str, what: str, counts: Iterable[tuple[str, int]], nothing: str) -> str:
    some = [(name, count) for name, count in counts if count]
    most = max((count for _, count in some), default=0)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{count:,}</td>"
        f'<td><meter value="{count}" max="{most}"></meter></td></tr>\n'
        for name, count in some
    )
    table = f"""<table><thead><tr><th>{what}</th><th>count</th><th></th></tr></thead><tbody>
{rows}</tbody></table>"""
    body = table if some else f'<span class="dim">{nothing}</span>'
    return f"<section><h2>{title}</h2>{body}</section>"


def _times(times: Histogram) -> str:
    bounds = [*(f"up to {duration(bound)}" for bound in times.bounds), "longer"]
    counts = zip(bounds, times.counts, strict=True)
    return _counts("Handler times", "time", counts, "No message has been timed yet.")


def _pool(pool: PoolFigures | None) -> str:
    if pool is None:
        return ""
    full = ' class="alarm"' if pool.busy == pool.size else ""
    return f"""<section><h2>Threads</h2><table><tbody>
<tr><td>at work</td><td{full}>{pool.busy:,} of {pool.size:,}</td>
<td><meter value="{pool.busy}" max="{pool.size}"></meter></td></tr>
<tr><td>messages waiting</td><td>{pool.queued:,}</td><td></td></tr>
<tr><td>waiting for</td><td>{duration(pool.wait)}</td><td></td></tr>
<tr><td>for lost connections</td><td>{pool.lost:,}</td><td></td></tr>
<tr><td>of those, dropped</td><td>{pool.dropped:,}</td><td></td></tr>
</tbody></table></section>"""


def _footer(now: Snapshot) -> str:
    build = now.build
    started = datetime.fromtimestamp(now.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"Started {started}. Python {escape(build.python)}, Twisted {escape(build.twisted)}, "
        f"{escape(build.reactor)} reactor. Figures are since the start. "
        '<a href="metrics">metrics</a>, <a href="readyz">readyz</a>, '
        '<a href="healthz">healthz</a>'
    )


def number(value: int) -> str:
    """Return a whole number, short: 12,345 or 1.23 M."""
    for unit, factor in (("G", 10**9), ("M", 10**6)):
        if value >= factor:
            return f"{value / factor:,.2f} {unit}"
    return f"{value:,}"


def size(count: int) -> str:
    """Return a number of bytes, in binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count:,} B" if unit == "B" else f"{value:,.1f} {unit}"


def duration(seconds: float) -> str:
    """Format a time in suitable units, at most two."""
    if seconds <= 0:
        return "0 s"
    for unit, factor in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if seconds < 1000 * factor and (unit != "s" or seconds < 60):
            return f"{seconds / factor:.3g} {unit}"
    whole = round(seconds)
    for (large, many), (small, few) in (
        (("d", 86400), ("h", 3600)),
        (("h", 3600), ("min", 60)),
        (("min", 60), ("s", 1)),
    ):
        if whole >= many:
            return f"{whole // many} {large} {whole % many // few} {small}"
    return f"{whole} s"
