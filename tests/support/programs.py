"""Programs that end by themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.support.waiting import PATIENCE


def run(directory: Path, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, and wait for its end.

    Args:
        directory: the folder that it runs in.
        command: the program and its arguments.
        options: further ones of `subprocess.run`.
    """
    return subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )
