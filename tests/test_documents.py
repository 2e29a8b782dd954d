"""The documentation names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchor(heading: str) -> str:
    """Return what GitHub makes of a heading for a link to it."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_leads_to_a_file_and_to_a_heading_of_it(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match("https?:", link):
            continue
        name, _, heading = link.partition("#")
        target = (document.parent / name) if name else document
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in map(anchor, headings), link


def test_the_architecture_says_what_is_in_each_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    layers = text.partition("## Layers")[2].partition("\n## ")[0]
    described = set(re.findall(r"`(?:echod\.)?(\w+)`", layers))
    modules = {
        path.stem
        for path in (ROOT / "echod").iterdir()
        if not path.name.startswith("_")
        and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert modules
    assert not modules - described
    assert re.search(r"\|\n\n\|", layers) is None  # an empty line would cut the table in two


def test_the_page_on_observing_shows_as_many_alerts_as_there_are() -> None:
    alerts = (ROOT / "etc" / "prometheus-alerts.yml").read_text().count("- alert: ")
    text = (ROOT / "docs" / "observing.md").read_text()
    assert f"SUCCESS: {alerts} rules found" in text
