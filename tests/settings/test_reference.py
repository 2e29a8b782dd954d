from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from echod.settings import reference
from echod.settings.definitions import SETTINGS, configure
from echod.settings.schema import Setting
from tests.support.paths import ROOT


def test_the_page_and_the_settings_agree() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    assert page.endswith(reference.tables()), "run: make docs"


def test_the_annotated_file_and_the_settings_agree() -> None:
    assert (ROOT / "etc/echod.toml").read_text() == reference.annotated_file(), "run: make docs"


def test_the_annotated_file_as_it_comes_changes_nothing() -> None:
    assert configure({}, reference.annotated_file()) == configure({})


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.name)
def test_each_line_of_the_annotated_file_can_be_uncommented(one: Setting) -> None:
    lines = re.findall(rf"^#({re.escape(one.key)} = .*)$", reference.annotated_file(), re.M)
    assert len(lines) == 1
    # Where the default is None or (), its Text needs an `example`.
    wanted = reference.example(one)
    value = one.from_file(tomllib.loads(lines[0])[one.key])
    assert one.in_file(value) == one.in_file(wanted)
    assert value not in (None, ())


def test_making_them_keeps_what_is_written_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "etc").mkdir()
    page = tmp_path / "docs/settings.md"
    page.write_text(f"by hand\n{reference.MARK}stale\n")
    monkeypatch.chdir(tmp_path)
    reference.main()
    assert page.read_text() == f"by hand\n{reference.tables()}"
    assert (tmp_path / "etc/echod.toml").read_text() == reference.annotated_file()
