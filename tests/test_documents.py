"""The documentation names what is there."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.paths import ROOT

PICTURE = ROOT / "docs" / "pictures" / "status.svg"
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
        for path in (ROOT / "echod").rglob("*.py")
        if not path.name.startswith("_") and path.parent.name not in ("cli", "reactor")
    }
    assert modules
    assert not modules - described
    assert re.search(r"\|\n\n\|", layers) is None  # an empty line would cut the table in two


def test_the_page_on_observing_shows_as_many_alerts_as_there_are() -> None:
    alerts = (ROOT / "etc" / "prometheus-alerts.yml").read_text().count("- alert: ")
    text = (ROOT / "docs" / "observing.md").read_text()
    assert f"SUCCESS: {alerts} rules found" in text


def test_the_index_lists_each_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"]({page.name})" in index or page.name == "index.md"


def test_the_first_screen_says_how_to_begin_and_is_short() -> None:
    first = (ROOT / "README.md").read_text().partition("\n## ")[0]
    for needed in ("make run", "make test", "python3-venv", "**not for**", "docs/index.md"):
        assert needed in first
    assert f"]({PICTURE.relative_to(ROOT)})" in first
    assert len(first.splitlines()) <= 60


def test_the_picture_is_small_well_formed_and_asks_for_nothing_from_elsewhere() -> None:
    text = PICTURE.read_text()
    drawing = ElementTree.fromstring(text)
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    tags = {element.tag.rpartition("}")[2] for element in drawing.iter()}
    assert tags == {"svg", "title", "style", "rect", "text"}
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"href|url\(|@import", text)
    assert len(text) < 60_000
    classes = {name for element in drawing.iter() for name in element.get("class", "").split()}
    assert classes <= set(re.findall(r"\.([\w-]+) {", text))


def test_the_picture_shows_what_the_page_does_now() -> None:
    shown = {element.text for element in ElementTree.parse(PICTURE).iter()}
    tiles = re.findall(r"_tile\(\s*\"([^\"]+)\"", (ROOT / "echod/status/page.py").read_text())
    assert len(tiles) == 8
    assert shown >= {*tiles, "Listeners", "Limits"}
