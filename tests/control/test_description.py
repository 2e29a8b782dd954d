"""schemathesis reads the description, and tries the API of the real daemon by it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.scale import number
from tests.support.daemon import Start
from tests.support.needs import missing
from tests.support.paths import ROOT

TOKEN = "0123456789abcdef"
EXAMPLES = number(ci=4, soak=1000)  # of each operation
CONFIGURATION = """
# No schema says which texts are faults, so some that fit it are refused.
[[operations]]
include-path = "/faults"
checks = { positive_data_acceptance = { enabled = false } }
"""
PROGRAM = Path(sys.executable).parent / "schemathesis"


def schemathesis(port: int, folder: Path) -> None:
    """Run it on the control of a daemon; a failure shows its report."""
    if not PROGRAM.exists():
        missing("schemathesis is not installed (pip install schemathesis)")
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    done = subprocess.run(
        [PROGRAM, "run", f"http://127.0.0.1:{port}/openapi.json", "--no-color",
         f"--header=Authorization: Bearer {TOKEN}", f"--max-examples={EXAMPLES}"],
        cwd=folder,
        # There hypothesis keeps what it has found out about Unicode, which takes it seconds.
        env={
            **os.environ,
            "HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis"),
            "HYPOTHESIS_NO_PLUGINS": "1",  # such as trio's, whose imports take a third of a second
        },
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.timeout(400)
def test_schemathesis_finds_no_fault_in_the_api(daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    here = daemon(
        *("--control", "tcp:0:interface=127.0.0.1", "--control-token-file", "token"),
        *("--journal", "10", "--journal-bytes", "10"),
    )
    port = int(here.wait_for(r"ControlSite starting on (\d+)")[0])
    schemathesis(port, tmp_path)
    assert "Traceback" not in here.log
