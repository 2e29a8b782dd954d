"""Every page runs: each command and each block, and what they print is what the page shows.

A failure names page and line, and shows the difference. CONTRIBUTING.md lists the marks of blocks.

This is not sybil, which makes a test of each block: the blocks of a page are one session at a
terminal, in their order, beside a server that goes on from one block to the next.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.page import check_page
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs" / "ladder.md")  # test_ladder.py runs it


@pytest.mark.long
@pytest.mark.timeout(300)  # each server of a page starts in seconds on a busy machine
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_shows_what_its_reader_sees(path: Path, tmp_path: Path) -> None:
    check_page(path, tmp_path)
