from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import twisted
from echod.errors import UserError
from echod.workers import sources
from echod.workers.sources import Sources, files_of_error, files_of_modules, possible_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def import_error(folder: Path, text: str, name: str = "broken_app") -> BaseException:
    """Return the error of a module's import, as the look-up of a handler raises it."""
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    try:
        try:
            importlib.import_module(name)
        except BaseException as error:
            raise UserError("cannot be imported") from error
    except UserError as error:
        return error
    raise AssertionError("it can be imported")


def test_the_users_modules_are_sources_and_those_of_others_are_not(folder: Path) -> None:
    (folder / "own_module.py").write_text("import json\n")
    importlib.invalidate_caches()
    own = importlib.import_module("own_module")
    strange = SimpleNamespace(__file__=7)
    modules = [own, twisted, importlib, sys, sources, strange, None, object()]
    assert files_of_modules(modules) == {str(folder / "own_module.py")}


def test_an_error_of_syntax_is_about_its_file_and_those_that_import_it(folder: Path) -> None:
    (folder / "broken_helper.py").write_text("def f(:\n")
    error = import_error(folder, "import broken_helper\n")
    assert files_of_error(error) >= {
        str(folder / "broken_app.py"),
        str(folder / "broken_helper.py"),
    }


def test_an_exception_is_about_the_files_that_it_went_through(folder: Path) -> None:
    (folder / "raising_helper.py").write_text("def f():\n    raise ValueError\n")
    error = import_error(folder, "import raising_helper\nraising_helper.f()\n")
    assert files_of_error(error) >= {
        str(folder / "broken_app.py"),
        str(folder / "raising_helper.py"),
    }


def test_an_import_that_fails_is_about_the_file_that_is_missing(folder: Path) -> None:
    error = import_error(folder, "import missing_helper\n")
    assert files_of_error(error) >= {
        str(folder / "missing_helper.py"),
        str(folder / "missing_helper" / "__init__.py"),
    }
    (folder / "helper_without.py").touch()
    error = import_error(folder, "from helper_without import name\n", "broken_again")
    assert str(folder / "helper_without.py") in files_of_error(error)


def test_a_file_that_cannot_be_read_is_a_source(folder: Path) -> None:
    missing = folder / "words.txt"
    error = import_error(folder, f"open({str(missing)!r})\n")
    assert str(missing) in files_of_error(error)


def test_errors_that_refer_to_each_other_are_read_once(folder: Path) -> None:
    one, other = ValueError(), OSError(2, "not there", str(folder / "a"))
    one.__context__, other.__context__ = other, one
    assert files_of_error(one) == {str(folder / "a")}
    assert files_of_error(None) == set()


def test_a_module_may_be_a_file_or_a_package() -> None:
    assert possible_files("a.b", ["/home/me"]) == {
        "/home/me/a/__init__.py",
        "/home/me/a/b/__init__.py",
        "/home/me/a/b.py",
    }
    assert possible_files("a", ["/x/site-packages", str(Path(importlib.__file__).parent)]) == set()
    assert possible_files("..a", ["/home/me"]) == set()


def test_all_files_are_told_whenever_there_are_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    kept = Sources(told.append)
    kept.look()
    count = len(told)
    kept.look()
    assert len(told) == count
    added = str(folder / "added_later.py")
    module = ModuleType("added_later")
    module.__file__ = added
    monkeypatch.setitem(sys.modules, "added_later", module)
    kept.look()
    assert added in told[-1]
    kept.look(OSError(2, "not there", str(folder / "more")))
    assert {added, str(folder / "more")} <= set(told[-1])


def test_a_thread_tells_modules_that_are_imported_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = ModuleType("imported_later")
    later.__file__ = str(folder / "imported_later.py")
    told: list[list[str]] = []

    class EndError(Exception):
        pass

    def sleep(seconds: float) -> None:
        if "imported_later" in sys.modules:
            raise EndError
        monkeypatch.setitem(sys.modules, "imported_later", later)
        turns.append(seconds)

    turns: list[float] = []
    monkeypatch.setattr(sources, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(EndError):
        Sources(told.append)._run()
    assert turns == [sources.PERIOD]
    assert later.__file__ in told[-1]
