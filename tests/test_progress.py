"""make shows on one line that a long command is running, and all of its output if it fails."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.support.needs import tool
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE
from tools import progress

PROGRAM = [sys.executable, str(ROOT / "tools" / "progress.py"), "Installing"]
PYTHON = [*PROGRAM, sys.executable, "-c"]


def logged(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, code], capture_output=True, text=True, timeout=PATIENCE)


class Terminal:
    """A terminal of 40 columns, in which a command runs."""

    def __init__(self, command: list[str], term: str = "xterm") -> None:
        self.main, its = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=its,
            stderr=its,
            env={**os.environ, "TERM": term, "COLUMNS": "40"},
            start_new_session=True,
        )
        os.close(its)
        self.seen = ""

    def read_to(self, pattern: str) -> None:
        """Read until the screen has shown this."""
        while not re.search(pattern, self.seen):
            self.seen += os.read(self.main, 1024).decode()

    def read(self) -> str:
        """Read to the end."""
        try:
            while piece := os.read(self.main, 1024):
                self.seen += piece.decode()
        except OSError:  # Linux says so when the other side is closed
            pass
        return self.seen

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        os.close(self.main)
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: str, **options: str) -> Terminal:
        started.append(Terminal(list(arguments), **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_terminal_shows_the_last_line_and_the_time_while_the_command_runs(
    terminal: Callable[..., Terminal],
) -> None:
    code = "print('Collecting one', flush=True); input(); print('Collecting two'); input()"
    screen = terminal(*PYTHON, code)
    screen.read_to(r"Installing, 0 s: Collecting one")
    screen.read_to(r"Installing, 1 s: Collecting one")  # although it is silent
    assert "\n" not in screen.seen
    screen.go_on()
    screen.go_on()
    assert re.search(r"Installing: \d+ s\r\n$", screen.read())
    assert screen.process.wait(PATIENCE) == 0
    assert screen.seen.count("\n") == 1


def test_the_line_stays_one_line(terminal: Callable[..., Terminal]) -> None:
    code = r"print('a' * 100 + '\r\x1b[31mb\x1b[0m\tc'); print('d\x1b[2J' * 50, '\x9b2J')"
    shown = terminal(*PYTHON, code).read()
    assert shown.count("\n") == 1
    lines = shown.split(progress.ERASE)[1:]
    assert all(len(line) < 40 for line in lines)
    assert not any("\x1b" in line or "\x9b" in line for line in lines)


def test_a_log_has_one_line_at_the_end() -> None:
    done = logged("print('Collecting one')")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"Installing: \d+ s\n", done.stderr)


def test_a_terminal_that_cannot_draw_gets_what_a_log_gets(
    terminal: Callable[..., Terminal],
) -> None:
    shown = terminal(*PYTHON, "print('Collecting one')", term="dumb").read()
    assert re.fullmatch(r"Installing: \d+ s\r\n", shown)


def test_all_output_is_shown_if_the_command_fails() -> None:
    done = logged("import sys; print('\\n'.join(map(str, range(3000)))); sys.exit('no \\udcff')")
    assert done.returncode == 1
    first, *lines = done.stderr.splitlines()
    assert re.fullmatch(r"Installing: \d+ s, failed \(1\)", first)
    assert lines[:3000] == [str(number) for number in range(3000)]
    assert lines[-1].startswith("no ")


def test_a_command_that_is_ended_by_a_signal_fails_as_in_a_shell() -> None:
    done = logged("import os; os.kill(os.getpid(), 15)")
    assert done.returncode == 128 + signal.SIGTERM


def test_ctrl_c_ends_both_without_a_traceback(terminal: Callable[..., Terminal]) -> None:
    # It does not wait for input: a signal right before the system call would not end that.
    code = """\
import time
try:
    print("Collecting", flush=True)
    while True:
        time.sleep(0.02)
except KeyboardInterrupt:
    print("ended")
"""
    screen = terminal(*PYTHON, code)
    screen.read_to("Collecting")
    os.killpg(screen.process.pid, signal.SIGINT)
    shown = screen.read()
    assert screen.process.wait(PATIENCE) == 128 + signal.SIGINT
    assert "Traceback" not in shown


def test_make_runs_each_step_of_the_installation_under_it() -> None:
    steps = subprocess.run(
        [tool("make"), "--dry-run", "run", "VENV=.venv-none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    ).stdout
    for step in ("-m venv", "-m pip install"):
        assert re.search(rf"tools/progress\.py '[^']+'\s+(?:\\\s+)?\S+ {step} ", steps)
    assert "--quiet" not in steps
