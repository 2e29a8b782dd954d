"""The figures: what one measurement gave, and what many of them come to.

Medians, not means: one round that a neighbour on the machine spoiled must not count. A ratio of
two servers is the median of the ratios within each round, when both had the same neighbours.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

# The names of figures; the unit is in the name.
RATE = "per_second"
CPU = "cpu_us"
P50 = "p50_us"
P99 = "p99_us"
PIECES = "pieces_per_message"
BYTES = "bytes_per_connection"
COUNT = "connections"
START = "start_ms"
BUSY = "server_busy_share"
OTHERS = "others_share"


@dataclass(frozen=True)
class Sample:
    """One measurement.

    Attributes:
        peer: which server.
        workload: what it was asked to do.
        round: in which round, from 0.
        figures: what came of it, by the names above.
    """

    peer: str
    workload: str
    round: int
    figures: Mapping[str, float]


def figures_of(raw: Mapping[str, float]) -> dict[str, float]:
    """Return the figures in what the load printed."""
    if "memory_after" in raw:
        growth = raw["memory_after"] - raw["memory_before"]
        return {BYTES: growth / raw["connections"], COUNT: raw["connections"]}
    work = raw["messages"] if "messages" in raw else raw["connections"]
    figures = {
        RATE: work / raw["seconds"],
        CPU: 1e6 * raw["cpu_seconds"] / work if work else float("nan"),
        BUSY: raw["cpu_seconds"] / raw["seconds"],
    }
    if "messages" in raw:
        figures[PIECES] = raw["pieces"] / raw["messages"]
        figures |= {name: raw[name] for name in (P50, P99, "max_us")}
    return figures


@dataclass
class Results:
    """The results of a run.

    Attributes:
        environment: what the figures depend on.
        samples: all measurements, in order.
        skipped: why a server was not measured, by its name.
        failures: what went wrong with single measurements, in words.
    """

    environment: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def values(self, peer: str, workload: str, figure: str) -> dict[int, float]:
        """Return one figure of one server, by round."""
        return {
            sample.round: sample.figures[figure]
            for sample in self.samples
            if sample.peer == peer and sample.workload == workload and figure in sample.figures
        }

    def median(self, peer: str, workload: str, figure: str) -> float | None:
        """Return the median over the rounds; None where there is nothing."""
        values = self.values(peer, workload, figure)
        return statistics.median(values.values()) if values else None

    def start(self, peer: str) -> float | None:
        """Return the median time from a server's command to listening, in milliseconds."""
        values = [each.figures[START] for each in self.samples if each.peer == peer]
        return statistics.median(values) if values else None

    def ratio(self, peer: str, other: str, workload: str, figure: str) -> float | None:
        """Return how many times `other`'s figure `peer`'s is; None where one has none."""
        ours = self.values(peer, workload, figure)
        theirs = self.values(other, workload, figure)
        ratios = [ours[at] / theirs[at] for at in ours.keys() & theirs.keys() if theirs[at]]
        return statistics.median(ratios) if ratios else None

    def growth(self, peer: str, workload: str, before: str, figure: str) -> float | None:
        """Return by how much a figure is larger under `workload` than under `before`."""
        ours = self.values(peer, workload, figure)
        theirs = self.values(peer, before, figure)
        growth = [ours[at] - theirs[at] for at in ours.keys() & theirs.keys()]
        return statistics.median(growth) if growth else None

    def others_share(self) -> float | None:
        """Return the median share of the server's core that other programs had."""
        shares = [each.figures[OTHERS] for each in self.samples if OTHERS in each.figures]
        return statistics.median(shares) if shares else None

    def as_json(self) -> str:
        """Return everything, for programs."""
        return json.dumps(asdict(self), indent=1) + "\n"
