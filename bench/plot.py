"""The picture: CPU time a message, class by class, as an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.catalogue import Group, Peer
from bench.results import CPU, Results
from bench.workloads import CONNECTIONS, MESSAGES

ECHOD = "#c4472b"
OTHERS = "#8a9aa9"
INK = "#30363c"
# In inches: matplotlib's unit.
WIDTH = 7.2
ROW = 0.3
HEAD = 0.42


def draw(results: Results, peers: Sequence[Peer], target: Path) -> None:
    """Draw the figures to a file.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    # Text stays text: small, searchable, and in the reader's font. No dates, no random names:
    # the same figures give the same file.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "echod", "font.family": "sans-serif"}
    classes = _classes(results, peers)
    if not classes:
        return
    heights = [HEAD + ROW * len(rows) for rows in classes.values()]
    figure, axes = pyplot.subplots(
        len(classes),
        squeeze=False,
        sharex=True,
        figsize=(WIDTH, sum(heights) + HEAD),
        height_ratios=heights,
        layout="constrained",
    )
    for axis, (group, rows) in zip(axes[:, 0], classes.items(), strict=True):
        _draw_class(axis, group, rows)
    axes[-1, 0].set_xlabel(
        f"server CPU a message, µs ({CONNECTIONS} connections, {MESSAGES.size} bytes; "
        "median, and from least to most)",
        color=INK,
        fontsize=9,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


# A row: a server's name, and its figure in each round.
Rows = list[tuple[str, list[float]]]


def _classes(results: Results, peers: Sequence[Peer]) -> dict[Group, Rows]:
    """Return what there is to draw."""
    classes: dict[Group, Rows] = {}
    for peer in peers:
        values = sorted(results.values(peer.name, MESSAGES.name, CPU).values())
        if values:
            classes.setdefault(peer.group, []).append((peer.name, values))
    return classes


def _draw_class(axis: Any, group: Group, rows: Rows) -> None:
    for at, (name, values) in enumerate(rows):
        middle = values[len(values) // 2]
        colour = ECHOD if name.startswith("echod") else OTHERS
        axis.barh(at, middle, color=colour, height=0.68)
        if len(values) > 1:
            axis.plot((values[0], values[-1]), (at, at), color=INK, linewidth=0.9)
        axis.annotate(
            f"{middle:.1f}",
            (values[-1], at),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9, color=INK)
    axis.invert_yaxis()
    axis.set_title(str(group), loc="left", fontsize=10, color=INK)
    axis.tick_params(length=0, labelsize=8, labelcolor=INK)
    axis.tick_params(axis="y", labelsize=9)
    axis.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axis.grid(axis="x", color="#dde2e6", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.margins(x=0.08)
