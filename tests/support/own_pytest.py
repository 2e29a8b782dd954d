"""A pytest that a test starts, on this suite's conftest.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def own_pytest(folder: Path, tests: dict[str, str], *options: str) -> subprocess.Popen[str]:
    """Start pytest in `folder`; its output goes to a pipe.

    Args:
        folder: an empty folder.
        tests: the text of each file of tests, by name.
        options: pytest's options.
    """
    (folder / "tests").mkdir()
    for name, text in tests.items():
        (folder / "tests" / f"test_{name}.py").write_text(text)
    within: list[str | Path] = [
        "-p",
        "tests.conftest",
        "-c",
        ROOT / "pyproject.toml",
        "--rootdir",
        folder,
    ]
    without = ("randomly", "cacheprovider", "schemathesis", "pytest_cov", "anyio")
    plain = [*(f"-pno:{name}" for name in without), "-o", "addopts="]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *within, *plain, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
