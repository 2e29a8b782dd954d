from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from echod.handlers import importing
from echod.handlers.importing import import_watched
from tests.support.waiting import PATIENCE


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose import lasts until the operator has been told."""
    (tmp_path / "users_slow.py").write_text(
        "import threading\n"
        "def wait():\n"
        "    threading.reached.set()\n"
        "    [one.join() for one in threading.enumerate() if one.name == 'echod-import']\n"
        "wait()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importing, "PATIENCE", 0.01)
    reached, tell = threading.Event(), importing._tell
    monkeypatch.setattr(threading, "reached", reached, raising=False)

    def tell_there(*place: Any) -> None:
        """On a busy machine the time may be over before the import has reached its line."""
        reached.wait(PATIENCE)
        tell(*place)

    monkeypatch.setattr(importing, "_tell", tell_there)
    name = "users_slow"
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_an_import_that_does_not_return_names_its_line_once(
    slow: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_watched(slow).__name__ == slow
    assert capsys.readouterr().err == (
        "echod: users_slow is still being imported, at users_slow.py line 5: does it run a server "
        'of its own? Put that under `if __name__ == "__main__"`\n'
    )


def test_an_import_that_returns_leaves_no_thread_and_no_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = threading.active_count()
    assert import_watched("json").__name__ == "json"
    assert threading.active_count() == before
    assert capsys.readouterr().err == ""


def test_an_import_goes_on_where_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    assert import_watched("json").__name__ == "json"
