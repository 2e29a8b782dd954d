from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from echod.messages.framing import Line
from echod.user_code import definition_of, is_users, place_of, told_with_place

USERS = """
import json
import helper

class Handler:
    pass

def raises():
    raise ValueError("no\\nway")

def calls_the_library():
    json.loads("{")

def calls_what_is_installed():
    helper.fails(0)
"""
INSTALLED = "def fails(nothing):\n    return 1 / nothing\n"


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A user's module, and one that is installed."""
    installed = tmp_path / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "helper.py").write_text(INSTALLED)
    (tmp_path / "users_module.py").write_text(USERS)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), str(installed)])
    yield importlib.import_module("users_module")
    for name in ("users_module", "helper"):
        sys.modules.pop(name, None)


def error_of(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - any will do
        function()
    # As the caller within echod would see it: without this file.
    error = raised.value
    assert error.__traceback__ is not None
    steps = error.__traceback__
    while steps.tb_next is not None and steps.tb_frame.f_code.co_filename == __file__:
        steps = steps.tb_next
    return error.with_traceback(steps)


@pytest.mark.parametrize(
    ("name", "line"),
    [("raises", 9), ("calls_the_library", 12), ("calls_what_is_installed", 15)],
)
def test_the_place_is_the_users_own_innermost_line(
    users: ModuleType, name: str, line: int
) -> None:
    assert place_of(error_of(getattr(users, name))) == f" ({users.__file__}, line {line})"


def test_a_plugin_that_is_installed_has_places_too(users: ModuleType) -> None:
    helper = sys.modules["helper"]
    assert place_of(error_of(lambda: helper.fails(0))) == f" ({helper.__file__}, line 2)"


def test_an_error_that_no_user_has_raised_has_no_place() -> None:
    assert place_of(error_of(lambda: Line(max_message=-1))) == ""
    assert place_of(error_of(lambda: json.loads("{"))) == ""
    assert place_of(ValueError("never raised")) == ""


def test_a_syntax_error_names_its_own_place() -> None:
    assert place_of(error_of(lambda: compile("(", "users.py", "exec"))) == ""


def test_an_error_is_one_line(users: ModuleType) -> None:
    assert told_with_place(error_of(users.raises)) == (
        rf"ValueError: no\nway ({users.__file__}, line 9)"
    )


def test_a_definition_is_named_if_it_is_a_users(users: ModuleType) -> None:
    assert definition_of(users.raises) == f" ({users.__file__}, line 8)"
    assert definition_of(users.Handler) == f" ({users.__file__}, line 5)"
    assert definition_of(users.Handler()) == f" ({users.__file__}, line 5)"
    for known in (Line, Line(), json.loads, len, 3, None):
        assert definition_of(known) == ""


def test_the_users_files_are_neither_ours_nor_pythons_nor_installed(tmp_path: Path) -> None:
    assert is_users(str(tmp_path / "app.py"))
    assert is_users("app.py")
    others = (place_of.__code__.co_filename, json.__file__, "/x/site-packages/a.py", "<string>")
    assert not any(map(is_users, others))
