"""The comparison of two runs in `make foreign`; the suites themselves take too long here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.foreign.__main__ import read, run
from tests.foreign.suites import Difference, Suite, counts, differences, reason_for, reasons


def test_a_test_that_ends_otherwise_is_a_difference() -> None:
    epoll = {"same": "passed", "worse": "passed", "only here": "passed", "both fail": "failed"}
    uvloop = {"same": "passed", "worse": "hung", "only there": "failed", "both fail": "failed"}
    assert differences(epoll, uvloop) == [
        Difference("only here", "passed", "not run"),
        Difference("only there", "not run", "failed"),
        Difference("worse", "passed", "hung"),
    ]


def test_what_had_begun_when_a_run_was_cut_off_has_hung() -> None:
    lines = [["a", None], ["a", "passed"], ["b", None], ["b", "failed"], ["b", None], ["c", None]]
    outcomes = read("\n".join(map(json.dumps, lines)))
    assert outcomes == {"a": "passed", "b": "failed", "c": "hung"}
    assert counts(outcomes.values()) == "1 passed, 1 failed, 1 hung"


def test_each_difference_has_to_have_a_reason(tmp_path: Path) -> None:
    known = tmp_path / "known.toml"
    known.write_text('"a.test" = "it is so"\n')
    assert reasons(known) == {"a.test": "it is so"}
    assert reason_for("a.test", {"a.*": "so"}) == "so"
    assert reason_for("b.test", {"a.*": "so"}) is None
    known.write_text('"a.test" = " "\n')
    with pytest.raises(ValueError, match=r"no reason for a\.test"):
        reasons(known)
    assert all(reasons().values())


TESTS = """
import unittest
{imports}

class Example({base}):
    def test_passes(self): pass
    def test_fails(self): self.fail()
    @unittest.skip("so")
    def test_is_skipped(self): pass
    def test_reactor(self):
        from twisted.internet import reactor
        assert type(reactor).__name__ == "EPollReactor"
"""


@pytest.mark.parametrize("runner", ["trial", "pytest"])
def test_a_suite_is_run_on_the_reactor_asked_for(
    runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, imports = "unittest.TestCase", ""
    if runner == "trial":
        base, imports = "trial.TestCase", "from twisted.trial import unittest as trial"
    package = tmp_path / "example_tests"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "test_it.py").write_text(TESTS.format(base=base, imports=imports))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # Their imports would take longer than all else.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    suite = Suite("example_tests", runner)
    outcomes = run(suite, "epoll", tmp_path / "first")
    short = {name.rpartition("test_")[2]: outcome for name, outcome in outcomes.items()}
    assert short == {
        "passes": "passed",
        "fails": "failed",
        "is_skipped": "skipped",
        "reactor": "passed",
    }, (tmp_path / "first" / "output").read_text()
    again = [name for name in outcomes if "fails" in name or "passes" in name]
    outcomes = run(suite, "epoll", tmp_path / "again", *again)
    assert sorted(outcomes) == sorted(again)
    assert sys.path[0] != str(tmp_path)
