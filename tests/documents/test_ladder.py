"""The ladder runs, with the figures of each rung.

It waits for half a minute, so it has a file of its own: the other pages run beside it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.page import check_page
from tests.support.paths import ROOT


@pytest.mark.long
@pytest.mark.timeout(180)
def test_each_rung_is_as_the_ladder_has_it(tmp_path: Path) -> None:
    check_page(ROOT / "docs" / "ladder.md", tmp_path)
