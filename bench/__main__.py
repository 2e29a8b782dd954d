"""`python -m bench`: run echod beside its peers, and say how it compares."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from bench import plot, report
from bench.bars import Verdict, judge
from bench.catalogue import DEFAULT_REACTOR, Peer, chosen, contenders
from bench.machine import Cores, description, raise_descriptor_limit
from bench.results import Results
from bench.runner import Plan, Runner
from bench.tools import HERE, Tools, prepare
from bench.workloads import IDLE, WORKLOADS, Workload

FIGURES = HERE / "results" / "figures.json"
PLOT = HERE.parent / "docs" / "performance.svg"
# Where the plot of a run goes that was not the whole: it must not pass for one.
PARTIAL_PLOT = HERE / "results" / "performance.svg"
# How many descriptors a process needs beside its connections.
SPARE_DESCRIPTORS = 100


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: {message} (see: python -m bench --help)\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = Parser(prog="python -m bench", description=__doc__)
    add = result.add_argument
    add("--rounds", type=_positive(int), help="how often each server has its turn [5]")
    add("--seconds", type=_positive(float), help="length of each measurement [1.5]")
    add("--idle", type=_positive(int), help=f"idle connections, at most [{IDLE}]")
    add("--quick", action="store_true", help="1 round of 0.5 seconds, 500 idle connections")
    add("--only", metavar="PEER,...", type=_words, help="these servers only; * and ? match any")
    add("--workloads", metavar="NAME,...", type=_workloads, help=f"of {', '.join(WORKLOADS)}")
    add(
        "--reactor",
        metavar="NAME",
        action="append",
        help="run echod under twistd's --reactor NAME; `default` is its own choice; repeats",
    )
    add("--list", action="store_true", help="list the servers and what they lack, and exit")
    add("--plot", type=Path, metavar="FILE", help=f"where the plot goes [{_shown(PLOT)}]")
    add("--json", type=Path, metavar="FILE", help=f"raw figures [{_shown(FIGURES)}]")
    add("--document", type=Path, metavar="FILE", help="a page to renew the generated part of")
    add("--check", action="store_true", help="exit with 1 if a bar is missed or not measured")
    add("--python-load", action="store_true", help="do not compile the load (slower)")
    return result


def main() -> int:
    """Run as the command line says; return the exit code."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="echod-bench-") as directory:
            return _run(options, Path(directory))
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, directory: Path) -> int:
    if options.document:
        _renew(options.document, "", write=False)  # better to fail now than in half an hour
    peers = contenders(dict.fromkeys(options.reactor or [DEFAULT_REACTOR]))
    if options.only:
        peers = chosen(peers, options.only)
    tools = prepare(directory, python_load=options.python_load)
    lacking = {peer.name: why for peer in peers if (why := peer.missing(tools))}
    if options.list:
        print("\n".join(f"{peer.name:14} {lacking.get(peer.name, '')}".rstrip() for peer in peers))
        return 0
    for name, why in lacking.items():
        print(f"skipped: {name}: {why}", file=sys.stderr)
    plan = _plan(options, tuple(peer for peer in peers if peer.name not in lacking))
    results = Results(description() | _load_described(tools), skipped=lacking)
    results.environment["load average before"] = _load_average()
    Runner(plan, tools, results).run()
    results.environment["load average after"] = _load_average()
    return _finish(options, plan, results)


def _plan(options: argparse.Namespace, peers: tuple[Peer, ...]) -> Plan:
    """Return what to run, with defaults where nothing was said."""
    rounds, seconds, idle = (1, 0.5, 500) if options.quick else (5, 1.5, IDLE)
    idle = options.idle or idle
    most = raise_descriptor_limit() - SPARE_DESCRIPTORS
    if idle > most:
        print(f"bench: {most} idle connections, as descriptors allow no more", file=sys.stderr)
    seconds = options.seconds or seconds
    return Plan(
        peers=peers,
        workloads=options.workloads or tuple(WORKLOADS.values()),
        rounds=options.rounds or rounds,
        seconds=seconds,
        warm_up=min(0.3, seconds),
        idle=min(idle, most),
    )


def _finish(options: argparse.Namespace, plan: Plan, results: Results) -> int:
    """Print and write what was found; return the exit code."""
    verdicts = judge(results, plan.peers)
    text = report.render(results, plan.peers, verdicts)
    print(text, end="")
    figures = options.json or FIGURES
    figures.parent.mkdir(parents=True, exist_ok=True)
    figures.write_text(results.as_json())
    _draw(options, plan, results)
    if options.document:
        _renew(options.document, text)
    return int(options.check and not _all_kept(verdicts))


def _all_kept(verdicts: list[Verdict]) -> bool:
    return bool(verdicts) and all(verdict.word == "PASS" for verdict in verdicts)


def _draw(options: argparse.Namespace, plan: Plan, results: Results) -> None:
    whole = not (options.quick or options.only or options.workloads)
    target = options.plot or (PLOT if whole else PARTIAL_PLOT)
    try:
        plot.draw(results, plan.peers, target)
    except ImportError as error:
        print(f"bench: no plot: {error}", file=sys.stderr)


def _renew(page: Path, text: str, *, write: bool = True) -> None:
    """Put the report into a page, or only see whether that can be done."""
    try:
        renewed = report.replace_generated(page.read_text(), text)
    except ValueError as error:
        raise ValueError(f"{page}: {error}") from None
    if write:
        page.write_text(renewed)


def _load_described(tools: Tools) -> dict[str, str]:
    """Say what makes the load, and where it runs."""
    cores = Cores.allowed()
    kinds = ["C" if len(command) == 1 else "Python" for command in (tools.load, tools.tls_load)]
    if "Python" in kinds:
        print("bench: no C compiler or OpenSSL headers: the load is slower", file=sys.stderr)
    pinned = "one core for the server, one for the load" if cores.load is not None else "one core"
    return {"load": " and ".join(dict.fromkeys(kinds)), "pinned to": pinned}


def _load_average() -> str:
    return f"{os.getloadavg()[0]:.2f}"


def _positive(kind: type[Any]) -> Callable[[str], Any]:
    """Return a parser of numbers above 0, of this kind."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < 10**6:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
        return value

    parse.__name__ = "number"  # argparse's own error uses this name
    return parse


def _words(text: str) -> list[str]:
    """Parse names that commas part."""
    return [word for word in text.split(",") if word]


def _workloads(text: str) -> tuple[Workload, ...]:
    """Parse names of workloads."""
    unknown = set(_words(text)) - WORKLOADS.keys()
    if unknown:
        raise argparse.ArgumentTypeError(f"no such workload: {', '.join(sorted(unknown))}")
    return tuple(WORKLOADS[name] for name in WORKLOADS if name in _words(text))


def _shown(path: Path) -> str:
    """Return how help names a file of this repository."""
    return str(path.relative_to(HERE.parent))


if __name__ == "__main__":
    sys.exit(main())
