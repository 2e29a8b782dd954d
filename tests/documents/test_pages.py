"""Every page runs: each command and each block, and what they print is what the page shows.

A failure names page and line, and shows the difference. CONTRIBUTING.md lists the marks of blocks.

This is not sybil, which makes a test of each block: the blocks of a page are one session at a
terminal, in their order, beside a server that goes on from one block to the next.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.documents.page import Page, ask_for_tools, copy_of_the_project
from tests.documents.terminal import terminal
from tests.support.needs import not_here
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# These pages change the machine: they get folders such as /etc of their own.
INSTALLING = {"deploy.md"}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_shows_is_what_its_reader_sees(path: Path, tmp_path: Path) -> None:
    if "TEST_REACTOR" in os.environ:
        not_here("the pages show what runs on the default reactor")
    ask_for_tools(path)
    directory = tmp_path / "echod"
    directory.mkdir()
    copy_of_the_project(directory)
    layer = None
    if path.name in INSTALLING:
        layer = tmp_path / "layer"
        layer.mkdir()
    with terminal(directory, tmp_path, layer=layer) as here:
        page = Page(path, here)
        page.run()
    if page.differences:
        pytest.fail("\n\n".join(["", *page.differences]), pytrace=False)
