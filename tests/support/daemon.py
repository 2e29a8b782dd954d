"""The real daemon, started as a user would."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import pytest

from tests.support.programs import SCRIPTS, Program, Step
from tests.support.waiting import PATIENCE, block_until

# The reactor that the tests themselves run on is the daemon's too.
REACTOR = [f"--reactor={name}"] if (name := os.environ.get("TEST_REACTOR")) else []

# The command that runs in the foreground, and leaves no pidfile.
TWISTD = (SCRIPTS / "twistd", "-n", "--pidfile=")

# The exit codes of a process that SIGTERM has ended: its own, and a shell's for it.
TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)

MODELS = ("reactor", "defer-to-thread", "thread-per-connection", "serial")

# The models that serve several clients at a time.
CONCURRENT = MODELS[:3]


class Daemon:
    """A running `twistd -n echod`."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        twistd: Path = SCRIPTS / "twistd",
        options: Sequence[str] = (),
        env: dict[str, str],
        under: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        executed: bool = False,
        steps: Sequence[Step] = (),
        served: bool = False,
    ) -> None:
        """Start it.

        Args:
            arguments: echod's.
            cwd: where it runs.
            twistd: which of them.
            options: twistd's own, before `echod`.
            env: its environment.
            under: the command that runs the command, as `prlimit` does.
            pass_fds: descriptors that it inherits.
            executed: whether it is executed in any case: see `Program`.
            steps: the steps that the process takes before, such as to a limit.
            served: whether it is `echod serve` instead of `twistd -n echod`.
        """
        self.directory = cwd
        command = [twistd, "-n", "--pidfile=", *REACTOR, *options, "echod"]
        if served:
            command = [SCRIPTS / "echod", "serve", *REACTOR]
        self.process: Program[str] = Program(
            [*under, *command, *arguments],
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            executed=executed,
            steps=steps,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        )
        self.lines: list[str] = []
        self._told = False
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
        """The lines that it has printed, as one text."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, count: int = 1, patience: float = PATIENCE) -> list[str]:
        """Wait until `count` lines match `pattern`; return their first groups, or the matches."""
        found: list[str] = []
        searched = 0

        def is_there() -> bool:
            nonlocal searched
            fresh = self.lines[searched:]
            searched += len(fresh)
            matches = [match for line in fresh if (match := re.search(pattern, line))]
            found.extend(match[1] if match.re.groups else match[0] for match in matches)
            return len(found) >= count

        with self._changed:
            assert self._changed.wait_for(is_there, patience), f"no {pattern!r} in:\n{self.log}"
        return found

    @cached_property  # a test of many clients asks for each of them, and the log has grown then
    def port(self) -> int:
        """The TCP port that it listens on: the kernel's choice, where it was asked for 0."""
        # Eight of them may have been started at a time, on a busy machine.
        self.wait_for("Socket now listening", patience=2 * PATIENCE)
        return int(self.wait_for(r"starting on (\d+)")[0])

    @property
    def descriptors(self) -> int:
        """How many descriptors it has open; a failure if it has ended."""
        code = self.process.poll()
        assert code is None, f"it has ended with {code}:\n{self.log}"
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208

    @property
    def resident(self) -> int:
        """Its resident memory, in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu(self) -> float:
        """The processor time that it has used, in seconds."""
        # The second field, the command's name, may hold spaces, but ends with the last bracket.
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def on_uvloop(self) -> bool:
        """Whether its reactor is echod's own."""
        return self.wait_for(r"reactor class: (\S+)\.$")[0].endswith("UvloopReactor")

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 2 * PATIENCE) -> float:
        """Wait for its end, and perhaps for its start before; return how many seconds it took."""
        began = time.monotonic()
        self.process.wait(timeout)
        self._reader.join()
        return time.monotonic() - began

    def tell(self) -> None:
        """Send it SIGTERM, once."""
        if not self._told and self.process.poll() is None:
            self._told = True
            self.signal(signal.SIGTERM)

    def stop(self) -> None:
        """End it, however it is."""
        if self.process.poll() is None:
            self.tell()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.wait()
                pytest.fail(f"SIGTERM was not enough:\n{self.log}")
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[..., Daemon]


@contextlib.contextmanager
def starting(directory: Path) -> Iterator[Start]:
    """Give what starts daemons in `directory`; at the end they are stopped."""
    running: list[Daemon] = []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}

    def start(*arguments: str, listening: bool = False, **options: object) -> Daemon:
        # `listening`: where is in its file.
        if not listening and not any(
            word.startswith(("--port", "--listen")) for word in arguments
        ):
            arguments = ("--port", "0", *arguments)
        started = Daemon(*arguments, **{"cwd": directory, "env": environment, **options})  # type: ignore[arg-type]
        running.append(started)
        return started

    try:
        yield start
    finally:
        with contextlib.ExitStack() as stack:
            for started in running:
                started.tell()
                stack.callback(started.stop)


@contextlib.contextmanager
def nothing_kept(*daemons: Daemon) -> Iterator[None]:
    """Check that daemons which several tests share have no more descriptors after a test."""
    before = [running.descriptors for running in daemons]
    yield
    # One that was on its way out when they were counted may be gone since.
    with contextlib.suppress(AssertionError):
        block_until(lambda: not _grown(daemons, before))
    assert _grown(daemons, before) == []


def _grown(daemons: Sequence[Daemon], before: Sequence[int]) -> list[int]:
    """Return how many descriptors each daemon has that has more than before."""
    counts = [running.descriptors for running in daemons]
    return [count for count, once in zip(counts, before, strict=True) if count > once]
