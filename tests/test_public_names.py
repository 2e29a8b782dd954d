"""The names that `import echod` gives: each is there, and none is imported before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import echod

SOURCE = Path(echod.__file__).read_text()


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True
    )
    return done.stdout.strip()


def test_each_name_is_what_type_checkers_take_it_for() -> None:
    imported = {
        alias.name: node.module
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("echod.")
        for alias in node.names
    }
    assert sorted(imported) == sorted(echod.__all__)
    for name, module in imported.items():
        assert module is not None
        assert getattr(echod, name) is getattr(import_module(module), name)
        assert echod._MODULES[name] == module.removeprefix("echod.")


def test_the_names_are_listed_and_others_are_no_attributes() -> None:
    assert set(echod.__all__) <= set(dir(echod))
    assert run("import echod; print(hasattr(echod, 'nothing'))") == "False"


def test_the_import_brings_nothing_that_is_not_used() -> None:
    loaded = "sorted(m for m in sys.modules if m.partition('.')[0] in ('echod', 'twisted'))"
    assert run(f"import sys, echod; print({loaded})") == "['echod']"


def test_a_handlers_decorator_needs_no_twisted() -> None:
    loaded = "any(m.partition('.')[0] == 'twisted' for m in sys.modules)"
    assert run(f"import sys; from echod import message_handler; print({loaded})") == "False"
