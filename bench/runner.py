"""Runs the measurements: in rounds, each server in turn, with one server alive at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.catalogue import MOST_IDLE, UPSTREAM, Peer
from bench.machine import Cores, Neighbours, child_of_ours
from bench.results import OTHERS, START, Results, Sample, figures_of
from bench.server import Server, ServerError
from bench.tools import HERE, Tools
from bench.workloads import SILENT, Mode, Workload

# How much longer than asked the load may take, in seconds; it ends itself a little earlier.
LOAD_TIME = 70.0


class MeasurementError(Exception):
    """A measurement failed; the text says why, in one line."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        peers: the servers, in the order of the tables.
        workloads: what each is asked to do.
        rounds: how often.
        seconds: how long each measurement takes.
        warm_up: seconds before each measurement.
        idle: how many connections stay silent, at most.
    """

    peers: tuple[Peer, ...]
    workloads: tuple[Workload, ...]
    rounds: int
    seconds: float
    warm_up: float
    idle: int

    def steps(self) -> Iterator[Step]:
        """Return the measurements in order: those to be compared next to each other.

        Every other round goes backwards, so that no server always follows the same one.
        """
        for number in range(self.rounds):
            for workload in self.workloads:
                # Memory does not depend on neighbours: once is enough.
                if workload.mode is Mode.IDLE and number:
                    continue
                for peer in self.peers if number % 2 == 0 else reversed(self.peers):
                    if not peer.takes(workload):
                        continue
                    yield Step(number, peer, self._for_peer(workload, peer))

    def _for_peer(self, workload: Workload, peer: Peer) -> Workload:
        if workload is not SILENT:
            return workload
        count = min(self.idle, MOST_IDLE[peer.group])
        return dataclasses.replace(workload, connections=count)


@dataclass(frozen=True)
class Step:
    """One measurement: in which round, of whom, under which load."""

    round: int
    peer: Peer
    workload: Workload


class Runner:
    """Carries a plan out."""

    def __init__(self, plan: Plan, tools: Tools, results: Results) -> None:
        """Get ready.

        Args:
            plan: what to run.
            tools: what to run it with.
            results: where the figures go.
        """
        self._plan = plan
        self._tools = tools
        self._results = results
        self._cores = Cores.allowed()

    def run(self) -> None:
        """Run all measurements; note those that fail, and go on with the rest."""
        steps = list(self._plan.steps())
        progress = Progress(len(steps), self._plan.rounds)
        for step in steps:
            progress.show(step)
            try:
                figures = self._measure(step)
            except (ServerError, MeasurementError) as error:
                words = f"{step.peer.name}, {step.workload.name}, round {step.round + 1}: {error}"
                progress.complain(words)
                self._results.failures.append(words)
                continue
            self._results.samples.append(
                Sample(step.peer.name, step.workload.name, step.round, figures)
            )
        progress.end()

    def _measure(self, step: Step) -> dict[str, float]:
        with self._serving(step) as server:
            neighbours = Neighbours(self._cores.server, server.pid)
            try:
                raw = self._load(step, server)
            except MeasurementError as error:
                raise MeasurementError(f"{error} [the server: {server.last_words()}]") from None
            share = neighbours.share()
            figures = figures_of(raw) | {START: 1e3 * server.start_seconds}
            return figures if share is None else figures | {OTHERS: share}

    @contextlib.contextmanager
    def _serving(self, step: Step) -> Iterator[Server]:
        """Run a server; and, if it is a relay, the one behind it, beside the load."""
        tools, workload, cores = self._tools, step.workload, self._cores
        with contextlib.ExitStack() as running:
            upstream = 0
            if step.peer.group.is_relay:
                behind = Server(UPSTREAM, tools, workload, cores.load)
                upstream = running.enter_context(behind).port
            server = Server(step.peer, tools, workload, cores.server, upstream)
            yield running.enter_context(server)

    def _load(self, step: Step, server: Server) -> dict[str, float]:
        """Run the load against a server, and return what it printed."""
        tls, workload = step.peer.group.is_encrypted, step.workload
        command = [
            *(self._tools.tls_load if tls else self._tools.load),
            workload.mode.value,
            *map(str, (server.port, server.pid, workload.connections)),
            *map(str, (workload.size, workload.depth, self._plan.warm_up, self._plan.seconds)),
            str(int(tls)),
        ]
        try:
            result = subprocess.run(
                command,
                cwd=HERE.parent,
                capture_output=True,
                text=True,
                timeout=self._plan.warm_up + self._plan.seconds + LOAD_TIME,
                preexec_fn=child_of_ours(self._cores.load),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError("the load did not end") from None
        if result.returncode:
            words = result.stderr.strip().splitlines() or [f"load: exit code {result.returncode}"]
            raise MeasurementError(words[-1])
        raw: dict[str, float] = json.loads(result.stdout)
        return raw


class Progress:
    """Says on stderr what is being measured, and how long the rest will take."""

    def __init__(self, steps: int, rounds: int) -> None:
        self._steps = steps
        self._rounds = rounds
        self._done = 0
        self._started = time.monotonic()
        # On a terminal one line changes; in a file each round has one.
        self._live = sys.stderr.isatty()
        self._round = -1

    def show(self, step: Step) -> None:
        """Show the step that begins now."""
        text = (
            f"[{self._done + 1}/{self._steps}] round {step.round + 1} of {self._rounds}: "
            f"{step.peer.name}, {step.workload.name}{self._remaining()}"
        )
        if self._live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif step.round != self._round:
            print(text, file=sys.stderr, flush=True)
        self._round = step.round
        self._done += 1

    def complain(self, words: str) -> None:
        """Show what went wrong."""
        start = "\r\x1b[K" if self._live else ""
        print(f"{start}failed: {words}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _remaining(self) -> str:
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._started) / self._done * (self._steps - self._done)
        return f"; {seconds / 60:.0f} min left" if seconds >= 90 else f"; {seconds:.0f} s left"
