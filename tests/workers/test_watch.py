from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from echod.workers.watch import GONE_AFTER, Watch

LONG_AGO = 1000.0
LATER = 4000.0
# No file changes after this.
NEVER = math.inf


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Save a file, at a time that the test chooses."""

    def save(name: str, text: str = "", when: float = LONG_AGO) -> str:
        path = tmp_path / name
        path.write_text(text)
        os.utime(path, (when, when))
        return str(path)

    return save


Save = Callable[..., str]


def test_a_change_is_told_once_the_files_are_still(save: Save) -> None:
    one, other = save("one.py"), save("other.py")
    watch = Watch([one, other])
    assert watch.look() == []
    save("other.py", "x = 1")
    assert watch.look() == []
    save("one.py", "x = 2")
    assert watch.look() == []
    assert watch.look() == [one, other]
    assert watch.look() == []


@pytest.mark.parametrize(
    ("text", "when"), [("x = 2", LONG_AGO), ("x = 1", LATER), ("x = 1", LONG_AGO - 1)]
)
def test_another_size_is_a_change_and_another_time_is_one_too(
    save: Save, text: str, when: float
) -> None:
    file = save("one.py", "x = ")
    watch = Watch([file])
    save("one.py", text, when)
    watch.look()
    assert watch.look() == [file]


def test_an_editor_may_replace_a_file(save: Save) -> None:
    file = save("one.py", "x = 1")
    watch = Watch([file])
    Path(save(".one.py.swp", "x = 2")).replace(file)  # of the same size and time
    watch.look()
    assert watch.look() == [file]


def test_a_file_that_is_away_for_a_moment_is_one_change(save: Save) -> None:
    file = save("one.py")
    watch = Watch([file])
    Path(file).unlink()
    for _ in range(GONE_AFTER):
        assert watch.look() == []
    save("one.py", "x = 1")
    assert watch.look() == []
    assert watch.look() == [file]


def test_a_file_that_stays_away_is_a_change(save: Save) -> None:
    file = save("one.py")
    watch = Watch([file])
    Path(file).unlink()
    told = [watch.look() for _ in range(2 * GONE_AFTER)]
    assert told.index([file]) == GONE_AFTER
    assert told.count([file]) == 1
    save("one.py")
    watch.look()
    assert watch.look() == [file]


def test_a_file_that_is_made_is_a_change(save: Save, tmp_path: Path) -> None:
    watch = Watch([str(tmp_path / "one.py")])
    watch.look()
    save("one.py")
    watch.look()
    assert watch.look() == [str(tmp_path / "one.py")]


def test_a_change_while_a_process_starts_is_told(save: Save) -> None:
    before = save("before.py")
    since = Path(before).stat().st_ctime
    while Path(since_then := save("since.py")).stat().st_ctime == since:
        pass  # the clock of files has ticks
    watch = Watch()
    watch.tell("first", [before, since_then], since)
    assert watch.look() == [since_then]
    # The next process has read it: the clock of another machine's files may be fast.
    watch.tell("second", [before, since_then], since)
    watch.keep(["second"])
    assert watch.look() == []


def test_the_files_of_processes_that_are_kept_are_watched(save: Save) -> None:
    shared, old, new = save("shared.py"), save("old.py"), save("new.py")
    watch = Watch()
    watch.tell("first", [shared, old], since=NEVER)
    watch.tell("second", [shared], since=NEVER)
    watch.tell("second", [shared, new], since=NEVER)
    watch.keep(["second", "of which nothing was told"])
    for name in ("old", "new"):
        save(f"{name}.py", "x = 1")
    watch.look()
    assert watch.look() == [new]


def test_a_path_that_no_file_can_have_is_no_error() -> None:
    assert Watch(["\0", "/nowhere/at/all.py"]).look() == []
