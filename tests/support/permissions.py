"""Let a daemon that becomes another user reach the files of a test, and the Python it runs in."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.layers import layers
from tests.support.needs import tool
from tests.support.paths import ROOT


def open_to_all(folder: Path) -> None:
    """Let every user write to a test's folder, and enter those above it that pytest has made."""
    folder.chmod(0o777)
    for above in _closed([folder]):
        if any(name.startswith("pytest-of-") for name in above.parts):
            above.chmod(0o755)


def python_for_all(scratch: Path) -> list[str]:
    """Return what to put before a command so that each user may run this Python there.

    It may be below root's own folder. That stays closed, except for this command.

    Args:
        scratch: a folder of the test.
    """
    closed = _closed([Path(sys.executable), Path(sys.executable).resolve(), ROOT / "file"])
    layer = scratch / "layer"
    layer.mkdir()
    steps = [
        *layers(layer, closed),
        *(shlex.join(["chmod", "755", str(folder)]) for folder in closed),
        'exec "$@"',
    ]
    return [tool("unshare"), "--mount", "sh", "-c", " && ".join(steps), "sh"]


def _closed(paths: Iterable[Path]) -> list[Path]:
    """Return the folders above these that some user may not enter or read, the outermost first."""
    folders = {above for path in paths for above in path.parents}
    return sorted(each for each in folders if each.stat().st_mode & 0o005 != 0o005)
