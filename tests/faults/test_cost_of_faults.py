"""The cost of faults on purpose to the connections that have none, and their pauses.

Instructions are counted with valgrind, and medians need many pauses: both take minutes, so they
are `make soak`'s. That such connections have the same objects, `make test` holds.
"""

from __future__ import annotations

import pytest

from bench import faults, pauses
from tests.faults.scale import SOAK
from tests.support.needs import not_here, tool


@pytest.fixture
def long_form() -> None:
    if not SOAK:
        not_here("it takes minutes: make soak runs it")


@pytest.mark.usefixtures("long_form")
def test_a_fault_on_one_connection_in_ten_costs_the_others_little() -> None:
    """Fault 136: By valgrind's count of instructions, a message of the other nine costs at most
    1.05 times as much as without faults.
    """
    tool("valgrind")
    assert faults.main() == 0


@pytest.mark.usefixtures("long_form")
def test_no_pause_is_much_longer_than_asked_for() -> None:
    """Fault 162: The median of twenty pauses is at most 10 %, or 5 ms, longer than asked for, and
    no byte comes earlier.
    """
    assert pauses.main() == 0
