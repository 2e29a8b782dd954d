"""Installed distributions with entry points, and nothing else."""

from __future__ import annotations

from pathlib import Path


def add_distribution(
    folder: Path, name: str, *entries: str, group: str = "echod.handlers"
) -> Path:
    """Install a distribution with these entry points in a folder of the path."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "\n".join([f"[{group}]", *entries])
    (metadata / "entry_points.txt").write_text(f"{lines}\n")
    return metadata
