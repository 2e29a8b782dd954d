"""The documentation names only things that exist."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from twisted.scripts import twistd

from echod import EndReason
from echod.cli.serve import ServeOptions
from echod.settings.definitions import SETTINGS
from tests.support.paths import ROOT

PICTURE = ROOT / "docs" / "pictures" / "status.svg"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchor(heading: str) -> str:
    """Return GitHub's anchor of a heading."""
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
            text = target.read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert heading in {*map(anchor, headings), *re.findall('<a id="(.+?)">', text)}, link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_command_within_a_sentence_stands_on_one_line_to_be_copied(document: Path) -> None:
    sentences = re.sub(
        r"^ *```.*?^ *```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    spans = [
        found[2]
        for paragraph in re.split(r"\n\s*\n", sentences)
        for found in re.finditer(r"(`+)((?:(?!\1).)+?)\1", paragraph, re.DOTALL)
    ]
    assert not [span for span in spans if "\n" in span]


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
FLOORS = ARCHITECTURE.partition("## Floors")[2].partition("\n## ")[0]

# Parts that could be published on their own: to them one row is enough.
WHOLE = {"reactor", "tls", "cli"}


def test_the_architecture_names_each_module() -> None:
    named = set(re.findall(r"`(?:[\w/]+/)?(\w+)/?`", FLOORS))
    package = ROOT / "echod"
    modules = {
        path.stem
        for path in package.rglob("*.py")
        if not path.stem.startswith("_") and path.relative_to(package).parts[0] not in WHOLE
    }
    assert modules
    assert not modules - named
    folders = {each.parent.name for each in package.rglob("__init__.py")}
    others = {"print", "logging", "makeService", "ssl", "socketserver", "self"}
    assert named - modules - folders <= others
    assert re.search(r"\|\n\n\|", FLOORS) is None  # an empty line would cut the table in two


def test_the_architecture_begins_with_a_picture_of_the_floors_from_top_to_bottom() -> None:
    picture = ARCHITECTURE.partition("```text\n")[2].partition("```")[0]
    assert ARCHITECTURE.index(picture) < ARCHITECTURE.index("\n## ")
    floors = re.findall(r"^│ (\w+)/ ", picture, re.MULTILINE)
    assert floors == ["listening", "connections", "messages", "concurrency", "handlers"]
    assert all((ROOT / "echod" / floor).is_dir() for floor in floors)
    assert len({len(line) for line in picture.splitlines() if line[0] in "│├┌└"}) == 1
    assert max(map(len, picture.splitlines())) <= 80


def test_a_method_that_the_architecture_names_is_one() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "echod").rglob("*.py"))
    classes = set(re.findall(r"^class (\w+)", code, re.MULTILINE))
    attributes = set(re.findall(r"(?:def|class) (\w+)", code))
    attributes |= set(re.findall(r"\b(\w+)(?:: | = )", code))
    named = set(re.findall(r"`([A-Z]\w+|[a-z]\w+)\.(\w+)`", ARCHITECTURE))
    named -= {(name, end) for name, end in named if end in {"py", "md", "toml"}}
    foreign = {
        "multiprocessing",
        "self",
        "twisted",
        "transport",
        "conn",
        "socket",
        "sys",
        "factory",
        "http",
        "reactor",
    }
    ours = {(name, attribute) for name, attribute in named if name not in foreign}
    assert len(ours) > 20
    for name, attribute in ours:
        if name[0].isupper():
            assert name in classes
        else:
            assert list((ROOT / "echod").rglob(f"{name}.py")), name
        assert attribute in attributes


def test_the_architecture_says_in_which_file_each_class_of_an_invariant_is() -> None:
    part = ARCHITECTURE.partition("## Invariants")[2].partition("\n## ")[0]
    invariants, _, places = part.partition("The classes named here")
    listed: dict[str, Path] = {}
    for folder, classes in re.findall(r"^\| (\S+) \| (`.+) \|$", places, re.MULTILINE):
        room = ROOT / "echod" / ("" if folder == "others" else folder.strip("`"))
        for names, file in re.findall(r"(`\w+`(?: and `\w+`)*) in `(.+?)`", classes):
            listed.update(
                (name, room / file) for name in re.findall(r"\w+", names.replace(" and ", " "))
            )
    named = set(re.findall(r"\b([A-Z]\w+)(?=[.`])", invariants)) - {"SystemExit"}
    assert len(named) > 15
    assert named == listed.keys()
    for name, path in listed.items():
        assert re.search(rf"^class {name}\b", path.read_text(), re.MULTILINE), name


def test_each_decision_is_found_by_its_number() -> None:
    decisions = re.findall(
        r'^<a id="d(\d+)"></a>\n\n### D(\d+)\. (.+)$', ARCHITECTURE, re.MULTILINE
    )
    listed = re.findall(r"^- \[D(\d+)\]\(#d(\d+)\) (.+)$", ARCHITECTURE, re.MULTILINE)
    assert listed == decisions
    assert [int(number) for number, _, _ in decisions] == list(range(1, len(decisions) + 1))
    assert len(re.findall("^### ", ARCHITECTURE, re.MULTILINE)) == len(decisions)


def test_the_page_on_observing_shows_as_many_alerts_as_there_are() -> None:
    alerts = (ROOT / "etc" / "prometheus-alerts.yml").read_text().count("- alert: ")
    text = (ROOT / "docs" / "observing.md").read_text()
    assert f"SUCCESS: {alerts} rules found" in text


def test_the_page_on_observing_explains_each_reason_for_which_a_connection_ends() -> None:
    page = (ROOT / "docs" / "observing.md").read_text()
    table = page.partition("echod.EndReason has; a test")[2].partition("<!-- End of")[0]
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.*?) ?\|$", table, re.MULTILINE)
    assert [reason for reason, _, _ in rows] == [each.value for each in EndReason]
    named = {key for _, _, settings in rows for key in re.findall("`(.+?)`", settings)}
    assert named <= {one.key for one in SETTINGS}
    limits = {each.value for each in EndReason} & {one.key for one in SETTINGS}
    assert all(f"`{reason}`" in settings for reason, _, settings in rows if reason in limits)


# Flags of other programs, which pages name.
OTHERS_FLAGS = {"--now": "systemctl", "--fdname": "systemd-socket-activate"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_flag_that_a_page_names_is_there(document: Path) -> None:
    flags = set(re.findall("`(--[a-z][a-z-]+)", document.read_text()))
    commands = [ServeOptions(), twistd.ServerOptions()]  # type: ignore[attr-defined]
    known = {f"--{option.rstrip('=')}" for each in commands for option in each.longOpt}
    ctl = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "echod" / "cli" / "ctl.py").read_text()))
    assert flags <= known | ctl | OTHERS_FLAGS.keys()


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


def test_each_target_of_make_is_explained_on_a_page() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = "\n".join(page.read_text() for page in DOCUMENTS)
    assert "pictures" in targets
    assert not [target for target in targets if f"`make {target}" not in text]
