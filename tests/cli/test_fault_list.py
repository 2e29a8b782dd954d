from __future__ import annotations

import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from echod.faults import FAULTS, parse_fault
from echod.faults.grammar import keys_of
from echod.faults.listing import listing
from echod.faults.stage import Selection
from tests.support.programs import run

LINES = list(listing())
HEADS = [number for number, line in enumerate(LINES) if line[:1].isalpha()]


def written_under(name: str) -> list[str]:
    """Return the keys that the list shows for a fault, as they are written there."""
    begins = next(number for number in HEADS if LINES[number].split()[0] == name)
    ends = HEADS[HEADS.index(begins) + 1]
    return [line.split()[0] for line in LINES[begins + 1 : ends] if line]


def test_the_command_lists_each_fault_with_its_keys_and_those_of_all(tmp_path: Path) -> None:
    done = run(tmp_path, Path(sys.executable).parent / "echod", "faults")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[:1].islower()] == list(FAULTS)
    for shown in (
        r"delay +Every byte comes later\.",
        r" +time=0\.2 +how much later, in seconds",
        r"half-close .* \[direction=out\]",
        r"alert .* \[TLS\]",
        r"refuse .* \[listener\]",
        r"  p=1 +the share of the connections",
        r"  direction=out .*",
    ):
        assert any(re.fullmatch(shown, line) for line in lines), shown


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_listed_with_each_of_its_own_keys(name: str) -> None:
    assert [key.partition("=")[0] for key in written_under(name)] == list(keys_of(FAULTS[name]))


@pytest.mark.parametrize("name", FAULTS)
def test_the_defaults_that_are_listed_change_nothing(name: str) -> None:
    # Fails, too, if one of them cannot be written so.
    fault = parse_fault(name)
    if given := [key for key in written_under(name) if "=" in key]:
        assert replace(parse_fault(f"{name}:{','.join(given)}"), text=name) == fault


def test_the_keys_of_all_faults_are_listed_once() -> None:
    common = [line.split()[0].partition("=")[0] for line in LINES[HEADS[-2] + 1 : HEADS[-1]]]
    assert common == [*keys_of(Selection), "direction"]
    assert len(common) == len(fields(Selection)) + 1
