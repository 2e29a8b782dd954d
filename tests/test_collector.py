from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from echod.collector import importing


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_within_nothing_is_collected_and_afterwards_all_is_as_before(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    within = []
    with importing():
        within.append(gc.isenabled())
    assert within == [False]
    assert gc.isenabled() == enabled


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_the_collector_never_looks_at_what_was_imported() -> None:
    with importing():
        made: list[object] = []
    assert gc.is_tracked(made)
    assert not any(each is made for each in gc.get_objects())


@pytest.mark.parametrize(
    "command",
    [
        "from twisted.plugins.echod_plugin import echod; echod.options",
        "from echod import cli; cli.main(['serve', '--help'])",
    ],
    ids=["twistd", "echod serve"],
)
def test_the_daemon_is_imported_without_a_collection(command: str) -> None:
    program = f"""
import atexit, gc, twisted.scripts.twistd
before = gc.get_stats()[2]["collections"]
atexit.register(lambda: print(gc.get_stats()[2]["collections"] - before, gc.get_freeze_count()))
{command}
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    collections, frozen = said.splitlines()[-1].split()
    assert collections == "0"
    assert int(frozen) > 50_000
