"""Folders that look as they are, and in which a change is seen only in one mount namespace."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path


def layers(layer: Path, folders: Iterable[str | Path]) -> list[str]:
    """Return the shell's commands that put a layer in memory over folders; only root can run them.

    Args:
        layer: an empty folder, which keeps the changes.
        folders: the folders.
    """
    commands = [shlex.join(["mount", "-t", "tmpfs", "tmpfs", str(layer)])]
    for number, folder in enumerate(map(str, folders)):
        upper, work = (str(layer / f"{number}-{kind}") for kind in ("upper", "work"))
        options = f"lowerdir={folder},upperdir={upper},workdir={work}"
        commands += [
            shlex.join(["mkdir", upper, work]),
            shlex.join(["mount", "-t", "overlay", "overlay", "-o", options, folder]),
        ]
    return commands
