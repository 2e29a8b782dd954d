"""`exec`: a program that cannot run is refused at the start, in one line."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.handlers.command import Command
from echod.handlers.contract import ConcurrencyModel, HandlerError
from echod.handlers.kinds import Kind
from echod.handlers.lookup import adopt, parse, resolve
from tests.support.needs import needs_root

REACTOR = ConcurrencyModel.REACTOR


def test_a_program_is_found_in_path_and_keeps_its_name() -> None:
    command = Command(command="cat -n '/a file'")
    assert command.words == ["cat", "-n", "/a file"]
    assert Path(command.path).is_absolute()
    assert Path(command.path).name == "cat"


def test_a_path_is_made_absolute_because_twistd_changes_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch(0o755)
    monkeypatch.chdir(tmp_path)
    assert Command(command="./mine").path == str(tmp_path / "mine")


def test_only_path_and_language_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("SECRET", "1")
    environment = Command(command="cat").environment
    assert environment == {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def test_without_path_the_systems_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    assert Command(command="cat").environment["PATH"] == "/bin:/usr/bin"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("", "exec:command= names no program"),
        ("''", "exec:command= names no program"),
        ("cat 'a", "no closing quotation"),
        ("no-such-program", "no program in PATH"),
        ("a" * 300, "no program in PATH"),
        ("./no-such", "/no-such: No such file or directory"),
        ("/etc/passwd", "exec: /etc/passwd is not executable by the user "),
        ("/tmp", "exec: /tmp is not a file"),
        ("/a\0b", "exec: /a\\x00b: "),
        ("/etc/passwd/x", "exec: /etc/passwd/x: Not a directory"),
    ],
)
def test_a_program_that_cannot_run_is_refused_in_one_line(command: str, why: str) -> None:
    with pytest.raises(HandlerError) as caught:
        Command(command=command)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_program_in_path_that_is_not_executable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HandlerError, match="/mine is not executable by the user "):
        Command(command="mine")


def test_a_folder_in_path_that_its_user_cannot_enter_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_root("become another user")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tmp_path.chmod(0)
    os.seteuid(65534)
    try:
        assert Path(Command(command="cat").path).name == "cat"
        with pytest.raises(HandlerError, match=r"no program in PATH .* is named no-such-program"):
            Command(command="no-such-program")
    finally:
        os.seteuid(0)


def test_a_program_that_its_user_cannot_run_is_found_at_the_second_look(tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.touch(0o755)
    handler = adopt(Command(command=str(program)), REACTOR)
    handler.try_constructor()
    program.chmod(0o644)
    with pytest.raises(HandlerError, match="is not executable"):
        handler.try_constructor()


@pytest.mark.parametrize("interpreter", ["/no/such/python3", "/etc/passwd"])
def test_a_script_whose_interpreter_cannot_run_is_refused(
    tmp_path: Path, interpreter: str
) -> None:
    script = tmp_path / "mine"
    script.write_text(f"#! {interpreter} -u\nprint()\n")
    script.chmod(0o755)
    with pytest.raises(HandlerError) as caught:
        Command(command=str(script))
    assert f"exec: {interpreter} (the interpreter of {script})" in str(caught.value)


def test_a_program_that_can_be_run_but_not_read_is_no_script(tmp_path: Path) -> None:
    for first in (b"", b"#!", b"#!\n", b"\x7fELF\xff", b"#!/bin/sh"):
        program = tmp_path / "mine"
        program.write_bytes(first)
        program.chmod(0o755)
        assert Command(command=str(program)).path == str(program)


def test_exec_is_a_handler_by_name() -> None:
    handler = resolve(parse(r"exec:command=cat a\,b \:c"), REACTOR)
    assert handler.kind is Kind.PROGRAM
    assert isinstance(handler.target, Command)
    assert handler.target.words == ["cat", "a,b", ":c"]


@pytest.mark.parametrize("model", [one for one in ConcurrencyModel if one is not REACTOR])
def test_exec_runs_in_the_reactors_model_only(model: ConcurrencyModel) -> None:
    with pytest.raises(HandlerError, match=f"runs with --concurrency reactor, not {model}"):
        resolve(parse("exec:command=cat"), model)


@given(st.lists(st.text(min_size=1), max_size=4))
def test_whatever_the_arguments_a_shells_quoting_gives_them_to_the_program(
    words: list[str],
) -> None:
    assert Command(command=shlex.join(["cat", *words])).words == ["cat", *words]
