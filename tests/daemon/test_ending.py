from __future__ import annotations

import gc
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from echod.daemon import ending


def end(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run this program to its end."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_signal_comes_when_python_has_ended(number: int, tmp_path: Path) -> None:
    program = """
import atexit, sys
from echod.daemon import ending
held = open(sys.argv[2], "w")
held.write("flushed")
atexit.register(print, "atexit ran")
ending.end_by_signal(int(sys.argv[1]))
"""
    ended = end(program, number, tmp_path / "held")
    assert ended.returncode == -number
    assert ended.stdout == "atexit ran\n"
    assert (tmp_path / "held").read_text() == "flushed"


def test_where_the_signal_is_ignored_its_exit_code_remains() -> None:
    program = """
import signal
from echod.daemon import ending
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ending.end_by_signal(signal.SIGTERM)
"""
    assert end(program).returncode == 128 + signal.SIGTERM


def test_an_exit_code_of_its_own_is_the_last_word() -> None:
    ended = end(
        "import sys; from echod.daemon import ending; ending.end_with_code(7); print('said')"
    )
    assert (ended.returncode, ended.stdout) == (7, "said\n")


HANGING = """
import sys, time
from echod.daemon import ending

class Hanging:
    def __del__(self, sleep=time.sleep):
        print("hangs", flush=True)
        while True:
            sleep(1)

if len(sys.argv) > 2:
    ending._libc = object()
ending.keep_deadline(int(sys.argv[1]), time.monotonic() + 0.3)
hanging = Hanging()
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([128 + signal.SIGTERM], -signal.SIGTERM),
        ([128 + signal.SIGINT], -signal.SIGINT),
        ([0], -signal.SIGTERM),
        ([0, "without timers, as on macOS"], -signal.SIGALRM),
    ],
)
def test_the_kernel_ends_what_hangs_while_python_is_torn_down(
    arguments: list[object], status: int
) -> None:
    ended = end(HANGING, *arguments)
    assert (ended.returncode, ended.stdout) == (status, "hangs\n")


class Difficult(io.StringIO):
    def flush(self) -> None:
        raise ValueError("not now")


@pytest.mark.parametrize("frozen", [False, True], ids=["", "of the collector's permanent ones"])
def test_what_files_hold_back_is_written_whatever_another_one_does(
    tmp_path: Path, frozen: bool
) -> None:
    difficult, closed = Difficult(), (tmp_path / "closed").open("w")
    closed.close()
    with (tmp_path / "text").open("w") as text, (tmp_path / "binary").open("wb") as binary:
        text.write("text")
        binary.write(b"binary")
        if frozen:
            gc.freeze()
        ending.flush_files()
        assert (tmp_path / "text").read_text() == "text"
        assert (tmp_path / "binary").read_bytes() == b"binary"
    difficult.close()
