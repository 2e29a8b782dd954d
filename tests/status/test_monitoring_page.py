"""docs/observing.md describes every metric that the daemon has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from echod.status.exposition import EchodCollector
from tests.status.test_page import busy_subject, snapshot

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "observing.md"
BEGIN = "<!-- This table is what /metrics has; a test compares them. -->\n"
END = "<!-- End of the table. -->\n"


def row(family: Any) -> str:
    name = f"{family.name}{'_total' if family.type == 'counter' else ''}"
    name += "_info" if family.type == "info" else ""
    labels = list(dict.fromkeys(label for sample in family.samples for label in sample.labels))
    shown = ", ".join(f"`{label}`" for label in labels if label != "le")
    return f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def table() -> str:
    families = EchodCollector(snapshot(busy_subject())).collect()
    head = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *map(row, families)]) + "\n"


def test_every_metric_is_described() -> None:
    described = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]
    assert described == table()


if __name__ == "__main__":  # writes the table
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}")
