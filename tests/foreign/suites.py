"""The suites, the outcome of a run, and the differences between two runs."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).parent

#: The reactors that are compared, by the names that `--reactor` takes.
REACTORS = ("epoll", "uvloop")

#: A test that was begun and never ended: the run was cut off within it.
HUNG = "hung"

# Twisted's own, package by package, so that one that hangs takes no other with it.
_OF_TWISTED = (
    *("internet.test", "test", "web.test", "protocols.test", "conch.test", "names.test"),
    *("mail.test", "words.test", "application.test", "runner.test", "spread.test"),
    *("logger.test", "python.test", "cred.test", "pair.test", "positioning.test"),
    *("scripts.test", "persisted.test", "trial.test", "_threads.test"),
)


@dataclass(frozen=True)
class Suite:
    """A package of tests.

    Attributes:
        package: its name, to import.
        runner: what its tests are written for: `trial` or `pytest`.
    """

    package: str
    runner: str = "trial"


SUITES = (
    *(Suite(f"twisted.{package}") for package in _OF_TWISTED),
    Suite("treq.test"),
    Suite("klein.test"),
    Suite("wormhole.test", "pytest"),
)


@dataclass(frozen=True)
class Difference:
    """A test that ended otherwise on the uvloop reactor than on epoll."""

    test: str
    epoll: str
    uvloop: str


def differences(epoll: Mapping[str, str], uvloop: Mapping[str, str]) -> list[Difference]:
    """Return where two runs of a suite, as outcomes by the tests' names, are not the same."""
    return [
        Difference(test, epoll.get(test, "not run"), uvloop.get(test, "not run"))
        for test in sorted({*epoll, *uvloop})
        if epoll.get(test) != uvloop.get(test)
    ]


def reasons(file: Path = HERE / "known.toml") -> dict[str, str]:
    """Return why tests may differ, by their names, in which ``*`` matches anything.

    Raises:
        ValueError: an entry lacks its reason.
    """
    known = {
        test: " ".join(reason.split()) for test, reason in tomllib.loads(file.read_text()).items()
    }
    for test, reason in known.items():
        if not reason:
            raise ValueError(f"{file}: no reason for {test}")
    return known


def reason_for(test: str, known: Mapping[str, str]) -> str | None:
    """Return why a test may differ, if that is known."""
    return next((known[name] for name in known if fnmatchcase(test, name)), None)


def row(name: str, epoll: Mapping[str, str], uvloop: Mapping[str, str], differ: int) -> str:
    """Return a row of the table, as Markdown."""
    return f"| {name} | {counts(epoll.values())} | {counts(uvloop.values())} | {differ} |"


def counts(outcomes: Iterable[str]) -> str:
    """Return how many there are of each outcome, in words."""
    of = Counter(outcomes)
    order = ["passed", "failed", "skipped", HUNG]
    return ", ".join(f"{of[name]} {name}" for name in order if of[name]) or "none"


def table(rows: Iterable[str]) -> str:
    """Return the table, as Markdown."""
    head = ["| suite | epoll | uvloop | differ |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])
