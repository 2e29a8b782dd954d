from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.programs import SCRIPTS

COMMANDS = [
    "echod handlers",
    "echod --help",
    "echod --version",
    "twistd echod --help",
    "twistd echod --version",
    "twistd echod --print-config",
    "twistd echod --check-config",
    "echod serve --help",
    "echod serve --help-reactors",
    "echod serve echo --check-config",
]


def run(command: str, output: int) -> subprocess.CompletedProcess[str]:
    program, *arguments = command.split()
    return programs.run(
        Path.cwd(),
        *(SCRIPTS / program, *arguments),
        stdout=output,
        # With it, argparse takes no notice of what it cannot write.
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_cannot_be_written_is_one_line(command: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(command, full.fileno())
    assert done.returncode == 1
    assert done.stderr == "echod: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_whoever_reads_the_output_may_stop_reading(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = run(command, output.fileno())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_without_standard_output_does_what_it_does() -> None:
    command = ["sh", "-c", 'exec "$0" handlers >&-', SCRIPTS / "echod"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
