"""The machine: which core runs what, how busy others keep it, and what is installed on it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

PACKAGES = ("txechod", "Twisted", "uvloop", "gevent", "pyOpenSSL")


@dataclass(frozen=True)
class Cores:
    """Which core serves and which one makes the load; None where there is only one core."""

    server: int | None
    load: int | None

    @classmethod
    def allowed(cls) -> Cores:
        """Take the last two cores that this process may use: the first has the interrupts."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[-1], cores[-2]) if len(cores) > 1 else cls(None, None)


def child_of_ours(core: int | None) -> Callable[[], None]:
    """Return a function that a child process runs before its program, to pin it and end it with
    us.

    Args:
        core: the core to run on; None for any.
    """

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if core is not None:
            os.sched_setaffinity(0, {core})

    return prepare


def raise_descriptor_limit() -> int:
    """Raise the limit of descriptors to the maximum, for us and our children; return that."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its threads so far, user and system, in seconds."""
    # A clock that belongs to a process has this number: man 3 clock_getcpuclockid, and
    # MAKE_PROCESS_CPUCLOCK with CPUCLOCK_SCHED in the kernel's posix-timers_types.h.
    return time.clock_gettime((~pid << 3) | 2)


class Neighbours:
    """Measures how much of the server's core other processes used."""

    def __init__(self, core: int | None, pid: int) -> None:
        """Start measuring.

        Args:
            core: the core that is the server's; None where it shares one with the load.
            pid: the server's process.
        """
        self._core = core
        self._pid = pid
        self._started = self._now()

    def _now(self) -> tuple[float, float]:
        """Return seconds on the clock, and seconds that others had the core."""
        busy = 0.0 if self._core is None else _busy_seconds(self._core)
        return time.monotonic(), busy - cpu_seconds(self._pid)

    def share(self) -> float | None:
        """Return the share of the time since the start that others had the core: 0 to 1."""
        if self._core is None:
            return None
        clock, others = self._now()
        return max(0.0, (others - self._started[1]) / (clock - self._started[0]))


def _busy_seconds(core: int) -> float:
    """Return how long a core has been busy since boot, in seconds."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            busy = user + nice + system + irq + softirq + steal
            return busy / os.sysconf("SC_CLK_TCK")
    raise RuntimeError(f"/proc/stat does not know core {core}")


def description() -> dict[str, str]:
    """Describe the environment of the figures: machine, versions, the code's commit."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": sys.version.split()[0],
        **{name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty=, modified"]
    try:
        result = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
