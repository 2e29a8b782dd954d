from __future__ import annotations

import sys
from pathlib import Path

import pytest
from twisted.logger import globalLogBeginner

from echod import cli
from echod.handlers.builtin import HANDLERS
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.kinds import Kind
from echod.handlers.lookup import notes_on
from echod.handlers.naming import Installed
from tests.support.programs import run

ECHOD = Path(sys.executable).parent / "echod"


def test_the_command_lists_each_handler_on_a_line_with_its_models_and_arguments(
    tmp_path: Path,
) -> None:
    done = run(tmp_path, ECHOD, "handlers")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    by_name = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert by_name["upper"] == "Sends back what it gets in capital letters. [message; every model]"
    assert by_name["count"].endswith(" at `quit`. [message; every model] (start: int = 1)")
    assert [line.split()[0] for line in done.stdout.splitlines()] == sorted(HANDLERS)


def test_a_broken_handler_is_named_and_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        Installed(
            *("fine", "Fine.", "fine:fine"),
            notes=notes_on(Kind.STREAMS, (ConcurrencyModel.REACTOR,)),
        ),
        Installed("plain", "Plain.", "fine:plain", notes=notes_on(None, tuple(ConcurrencyModel))),
        Installed("bad", "", "bad:bad (bad-package)", error="no good"),
    ]
    monkeypatch.setattr(cli, "installed", lambda: found)
    assert cli.list_handlers() == 1
    printed = capsys.readouterr()
    assert printed.out == (
        "fine   Fine. [asyncio streams; reactor]\n"
        "plain  Plain. [message or connection; every model]\n"
        "bad    broken\n"
    )
    assert printed.err == "echod: bad: bad:bad (bad-package): no good\n"


def test_main_runs_the_command_that_was_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(globalLogBeginner, "beginLoggingTo", lambda *_, **__: None)
    assert cli.main(["handlers"]) == 0
    assert "echo " in capsys.readouterr().out


def test_a_wrong_command_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, ECHOD, "nonsense")
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stderr


@pytest.mark.parametrize("arguments", [["run"], ["--port", "8888"]])
def test_a_wrong_command_names_the_one_that_runs_the_daemon(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = run(tmp_path, ECHOD, *arguments)
    assert done.returncode == 2
    assert done.stderr.endswith("; the daemon is run by: echod serve, or twistd -n echod\n")
