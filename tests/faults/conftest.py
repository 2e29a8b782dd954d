"""Shared by the tests of faults: their scale, and the summary of a soak."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.scale import HOURS, SOAK, Budget, Report, Scale

_budget = pytest.StashKey[Budget]()
_reports = pytest.StashKey[list[Report]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_budget] = Budget(HOURS * 3600)
    config.stash[_reports] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    scaled = [item for item in session.items if "scale" in getattr(item, "fixturenames", ())]
    session.config.stash[_budget].tests_left = len(scaled)


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Iterator[Scale]:
    """How much this test does: little in `make test`, much in `make soak`."""
    stash = request.config.stash
    made = Scale(request.node.name, stash[_budget].share() if SOAK else None)
    began = time.monotonic()
    yield made
    made.report.seconds = time.monotonic() - began
    stash[_reports].append(made.report)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not SOAK or not config.stash[_reports]:
        return
    terminalreporter.section("soak")
    for report in config.stash[_reports]:
        done = ", ".join(f"{part.done:,} of {part.wanted:,}" for part in report.parts)
        figures = "; ".join([*([done] if done else []), *report.notes])
        terminalreporter.write_line(f"{report.name}: {figures} ({report.seconds:.0f} s)")
