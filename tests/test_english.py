"""The check of the English finds odd sentences, and passes questions, quotations and code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.needs import tool
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE
from tools import english


def found(source: str, path: str = "page.md") -> list[tuple[int, str]]:
    return [(find.line, find.word) for find in english.finds(path, source)]


@pytest.mark.parametrize(
    "sentence",
    [
        "What is late is dropped.",
        "It ends. Who comes then is refused.",
        "Those who wait are served.",
        "A client that nobody serves is refused.",
        "It ends, whatever it does.",
        "All that is queued is sent.",
        "The reply is sent; what is left is dropped.",
        "Change the module where one would look for it.",
        "- a list\n- Whoever asks",
        "# What holds",
        "| a cell | what it means |",
        "An item:\n\n> *What is bold is found, too.*",
    ],
)
def test_an_odd_sentence_is_found(sentence: str) -> None:
    assert len(found(sentence)) == 1


@pytest.mark.parametrize(
    "sentence",
    [
        "What is late?",
        "It says “What is late is dropped”, and ends.",
        'It says "nobody", and ends.',
        "The user `nobody` owns it.",
        "Start it:\n\n```\nnobody\n```\n",
        "The daemon logs what the client sent, and who it was.",
        "The next one can go on.",
        "A [page](what-nobody.md) tells.",
        "What's new",
        "| [what nobody knows](../tests/test_x.py) |",
    ],
)
def test_a_plain_sentence_a_question_a_quotation_and_code_are_not(sentence: str) -> None:
    assert not found(sentence)


def test_a_find_names_the_line_its_paragraph_begins_on() -> None:
    assert found("# A page\n\nPlain.\n\nPlain. Nobody\nknows.\n") == [(5, "Nobody")]


def test_docstrings_and_comments_of_python_are_read() -> None:
    source = '''"""What a module does."""

LIMIT = 1
"""What it limits."""

def function():
    """Return.

    Nobody knows.
    """
    # What is
    # this.
    return "# What a string holds, whoever asks"  # whoever asks
'''
    lines = sorted(line for line, _ in found(source, "tests/module.py"))
    assert lines == [1, 4, 9, 11, 13]


def test_messages_are_read_where_strings_are_messages() -> None:
    source = 'log.info("Nobody has {count} of them", count=1)\nname = "nobody"\n'
    assert found(source, "echod/module.py") == [(1, "Nobody")]
    assert not found(source, "tests/module.py")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("Makefile", "all:\n\t# Nobody knows.\n"),
        ("etc/echod.toml", "port = 1\n# Whoever asks.\n"),
        ("etc/alerts.yml", 'a:\n  summary: "Nobody is served"\n'),
        ("bench/load.c", "/* What is\n * left. */\nint n;\n"),
        ("bench/load.c", "int n; // nobody\n"),
    ],
)
def test_comments_and_alerts_of_other_files_are_read(path: str, source: str) -> None:
    assert len(found(source, path)) == 1


def test_every_page_and_module_is_read() -> None:
    read = {str(path.relative_to(english.ROOT)) for path in english.files()}
    assert {"README.md", "docs/handlers.md", "echod/__init__.py", "etc/echod.toml"} <= read
    assert {"Makefile", ".ci/run", "etc/systemd/echod.service", "setup.cfg"} <= read
    assert not any(path.startswith((".venv", "build")) for path in read)


def test_an_odd_sentence_is_printed_and_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Plain.\n")
    assert english.main([str(page)]) == 0
    page.write_text("Plain.\n\nNobody knows.\n")
    assert english.main([str(page)]) == 1
    assert "page.md:3: 'Nobody': Nobody knows." in capsys.readouterr().out


def test_make_check_reads_the_project() -> None:
    shown = subprocess.run(
        [tool("make"), "--dry-run", "--no-print-directory", "check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert re.search(r"^\S*/python -m tools\.english$", shown.stdout, re.MULTILINE), shown
