"""The real daemon, started as a user would."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(sys.executable).parent

# How long the daemon may take to say or do what it is waited for, in seconds.
PATIENCE = 20.0


class Daemon:
    """A running `twistd -n echod`."""

    def __init__(
        self, *arguments: str, cwd: Path, twistd: Path = SCRIPTS / "twistd", env: dict[str, str]
    ) -> None:
        self.process = subprocess.Popen(
            [twistd, "-n", "--pidfile=", "echod", *arguments],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    @property
    def log(self) -> str:
        """All that it has printed."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until `count` lines match `pattern`; return what its first group, or all, matched."""
        found: list[str] = []

        def is_there() -> bool:
            matches = [match for line in self.lines if (match := re.search(pattern, line))]
            found[:] = [match[1] if match.re.groups else match[0] for match in matches]
            return len(found) >= count

        with self._changed:
            assert self._changed.wait_for(is_there, PATIENCE), f"no {pattern!r} in:\n{self.log}"
        return found

    @property
    def port(self) -> int:
        """The TCP port that it listens on: the kernel's choice, where it was asked for 0."""
        self.wait_for("Socket now listening")
        return int(self.wait_for(r"starting on (\d+)")[0])

    @property
    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208

    @property
    def resident(self) -> int:
        """Its resident memory, in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> float:
        """Wait for its end; return how many seconds that took."""
        began = time.monotonic()
        self.process.wait(timeout)
        self._reader.join()
        return time.monotonic() - began

    def stop(self) -> None:
        """End it, however it is."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.wait()
                pytest.fail(f"SIGTERM was not enough:\n{self.log}")
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start `twistd -n echod` with these arguments; `--port 0` unless others say where."""
    running: list[Daemon] = []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}

    def start(*arguments: str, **options: object) -> Daemon:
        if not any(word.startswith(("--port", "--listen")) for word in arguments):
            arguments = ("--port", "0", *arguments)
        started = Daemon(*arguments, **{"cwd": tmp_path, "env": environment, **options})  # type: ignore[arg-type]
        running.append(started)
        return started

    yield start
    for started in running:
        started.stop()


def client(name: str) -> str:
    """Return the path of a network client; a missing one is a failure in CI, else a skip."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed (Debian: netcat-openbsd, ncat, socat)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return path
