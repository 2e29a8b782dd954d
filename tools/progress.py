"""Run a command that takes long, and show on one line that it goes on.

    python tools/progress.py TITLE COMMAND...

On a terminal the line has the time that has passed and the command's last line of output, and is
drawn again as these change. In a log there is one line, when the command is done. The command's
output is shown if it fails; its exit code is passed on.

For make, before there is anything installed: the standard library is enough.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TextIO

# Seconds after which the time is drawn again while the command is silent.
TICK = 1.0

ERASE = "\r\x1b[K"
# Sequences of a terminal, and single characters that would move the line.
CONTROLS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f]")


def main(arguments: list[str], screen: TextIO) -> int:
    """Run a command, and return its exit code: a shell's, where a signal has ended it."""
    title, *command = arguments
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    line = _Line(screen, title)
    output = bytearray()
    try:
        for piece in _pieces(process):
            output += piece
            line.draw(time.monotonic() - began, _last_line(output))
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to the command, too
        process.wait()
        code = -signal.SIGINT
    line.end(time.monotonic() - began, code)
    if code and code != -signal.SIGINT:
        screen.write(output.decode("utf-8", "replace"))
    screen.flush()
    return code if code >= 0 else 128 - code


def _pieces(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Yield the output as it comes, and b"" when a while has passed without any."""
    assert process.stdout is not None
    with process.stdout, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(TICK):
                yield b""
            elif piece := os.read(process.stdout.fileno(), 65536):
                yield piece
            else:
                return


def _last_line(output: bytearray) -> str:
    """Return the last line that is not empty, as text that moves no line."""
    lines = output[-1000:].decode("utf-8", "replace").split("\n")
    shown = (CONTROLS.sub("", line).strip() for line in reversed(lines))
    return next(filter(None, shown), "")


class _Line:
    """The line on the screen, if that can draw one again and again."""

    def __init__(self, screen: TextIO, title: str) -> None:
        self._screen = screen
        self._title = title
        self._is_drawn = screen.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def draw(self, seconds: float, said: str) -> None:
        if self._is_drawn:
            text = f"{self._title}, {seconds:.0f} s: {said}"
            width = shutil.get_terminal_size().columns - 1
            self._screen.write(ERASE + text[:width])
            self._screen.flush()

    def end(self, seconds: float, code: int) -> None:
        failed = f", failed ({code})" if code else ""
        start = ERASE if self._is_drawn else ""
        self._screen.write(f"{start}{self._title}: {seconds:.0f} s{failed}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stderr))
