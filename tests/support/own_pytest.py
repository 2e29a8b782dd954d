"""A pytest that a test starts, on this suite's conftest.py, or on some of its plugins only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.interruption import Interruption
from tests.support.paths import ROOT

# To import what the whole conftest.py does takes longer than all else that such a pytest does.
CONFTEST = """
from tests.support.{module} import {plugin}

def pytest_configure(config):
    config.pluginmanager.register({plugin}(config))
"""

# Only the whole conftest.py uses these plugins, and `Interruption` one of them.
UNUSED = {"hypothesispytest", "twisted", "echod"}
USED_BY = {Interruption: {"twisted"}}


def own_pytest(
    folder: Path, tests: dict[str, str], *options: str, only: type | None = None
) -> subprocess.Popen[str]:
    """Start pytest in `folder`; its output goes to a pipe.

    Args:
        folder: an empty folder.
        tests: the text of each file of tests, by name.
        options: pytest's options.
        only: the only plugin of this suite that it has; None for its conftest.py.
    """
    (folder / "tests").mkdir()
    for name, text in tests.items():
        (folder / "tests" / f"test_{name}.py").write_text(text)
    within: list[str | Path] = ["-c", ROOT / "pyproject.toml", "--rootdir", folder]
    without = ["randomly", "cacheprovider", "schemathesis", "pytest_cov", "anyio"]
    if only is None:
        within += ["-p", "tests.conftest"]
    else:
        module = only.__module__.rpartition(".")[2]
        conftest = CONFTEST.format(module=module, plugin=only.__name__)
        (folder / "tests" / "conftest.py").write_text(conftest)
        without += UNUSED - USED_BY.get(only, set())
    plain = [*(f"-pno:{name}" for name in without), "-o", "addopts="]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *within, *plain, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
