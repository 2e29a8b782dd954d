"""A test that takes too long ends its process, and the others do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.own_pytest import own_pytest
from tests.support.time_limit import TimeLimit
from tests.support.waiting import PATIENCE

TESTS = """
import threading
import time

import pytest

begun = threading.active_count()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", range(2))
def test_in_time(number):
    assert threading.active_count() == begun + 1


@pytest.mark.timeout(0.1)
def test_too_slow():
    time.sleep(3600)


def test_later():
    pass
"""


# Another pytest starts on a busy machine.
@pytest.mark.timeout(300)
def test_one_thread_ends_a_test_that_takes_too_long(tmp_path: Path) -> None:
    process = own_pytest(tmp_path, {"limits": TESTS}, "-v", only=TimeLimit)
    said, _ = process.communicate(timeout=6 * PATIENCE)
    assert process.returncode == 1
    assert said.count("PASSED") == 2
    assert "in test_too_slow\n    time.sleep(3600)\n" in said
    assert "test_later" not in said
