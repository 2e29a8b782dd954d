"""The catalogue of faults reads what the tests say, and writes the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import catalogue
from tests.faults.catalogue import BEGIN, END

PROOF = '''
def test_all_is_answered(scale):
    """Faults 1 and 2: every reply
    arrives.
    """
'''


def test_every_fault_has_its_place() -> None:
    numbers = [number for faults in catalogue.CATALOGUE.values() for number in faults]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) >= set(range(1, 68))


def test_a_docstring_says_what_a_test_proves(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(PROOF)
    (tmp_path / "test_y.py").write_text('def test_other():\n    """No fault."""\n')
    [proof] = catalogue.proofs(tmp_path)
    assert proof.faults == (1, 2)
    assert proof.promise == "every reply arrives."
    assert proof.test == "test_all_is_answered"


def test_a_docstring_that_only_looks_like_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text('def test_x():\n    """Fault one: nothing."""\n')
    with pytest.raises(ValueError, match="test_x"):
        catalogue.proofs(tmp_path)


def test_the_page_keeps_what_stands_around_the_table() -> None:
    written = catalogue.page(f"before\n{BEGIN}what was there\n{END}after\n", [])
    assert written.startswith(f"before\n{BEGIN}")
    assert written.endswith(f"{END}after\n")
    assert "what was there" not in written


@pytest.fixture(scope="module")
def proofs() -> list[catalogue.Proof]:
    return catalogue.proofs()


def test_no_test_proves_a_fault_that_is_not_there(proofs: list[catalogue.Proof]) -> None:
    numbers = {number for faults in catalogue.CATALOGUE.values() for number in faults}
    for proof in proofs:
        assert set(proof.faults) <= numbers, proof


def test_every_fault_has_a_test_or_a_reason_to_have_none(proofs: list[catalogue.Proof]) -> None:
    proved = {number for proof in proofs for number in proof.faults}
    numbers = {number for faults in catalogue.CATALOGUE.values() for number in faults}
    assert numbers - proved == set(catalogue.NOT_APPLICABLE)


def test_the_page_is_as_the_tests_have_it(proofs: list[catalogue.Proof]) -> None:
    written = catalogue.PAGE.read_text()
    assert written == catalogue.page(written, proofs), "run `make docs`"


def test_each_promise_stands_beside_the_tests_that_hold_it() -> None:
    found = [
        catalogue.Proof((1, 2), "Every reply arrives.", Path("faults/test_x.py"), "test_replies"),
        catalogue.Proof((1,), "So does the end.", Path("faults/test_x.py"), "test_the_end"),
        catalogue.Proof((1,), "Every reply arrives.", Path("faults/test_y.py"), "test_many"),
    ]
    rows = catalogue.table(found).splitlines()
    first = next(number for number, row in enumerate(rows) if row.startswith("| 1 |"))
    assert rows[first].endswith(
        "| Every reply arrives. | [replies](../tests/faults/test_x.py); "
        "[many](../tests/faults/test_y.py) |"
    )
    assert rows[first + 1] == "| | | So does the end. | [the end](../tests/faults/test_x.py) |"
    assert rows[first + 2].startswith("| 2 |")
