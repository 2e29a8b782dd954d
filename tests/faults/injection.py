"""Errors that system calls of a running daemon return: strace puts them there."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.needs import missing, tool
from tests.support.waiting import PATIENCE, block_until

# Reactors and threads use different calls for the same purpose: epoll's reactor receives by recv,
# uvloop by read, and uvloop sends remaining data by writev.
ACCEPT = "accept,accept4"
RECEIVE = "read,readv,recvfrom,recvmsg"
SEND = "write,writev,sendto,sendmsg"
WAIT = "epoll_wait,epoll_pwait,epoll_pwait2"


class Injection:
    """An strace that is attached."""

    def __init__(self, output: Path) -> None:
        self._output = output

    @property
    def faults(self) -> int:
        """How many calls it has made fail."""
        return self._output.read_text(errors="replace").count("(INJECTED)")

    def wait_for(self, faults: int) -> None:
        """Wait until this many calls have failed."""
        block_until(lambda: self.faults >= faults)


@contextlib.contextmanager
def injecting(
    running: Daemon, calls: str, fault: str, *, on: socket.socket | None = None
) -> Iterator[Injection]:
    """Let system calls fail within the block.

    Args:
        running: whose.
        calls: which.
        fault: how and when, as strace has it: `error=ENFILE:when=1+`.
        on: only those for the daemon's end of this client's connection.
    """
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        output = Path(directory, "strace")
        output.touch()
        only = [] if on is None else ["-P", other_end(on)]
        what = ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}", *only]
        strace = stack.enter_context(
            subprocess.Popen(
                [tool("strace"), "-f", "-p", f"{running.process.pid}", "-o", output, *what],
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(strace.send_signal, signal.SIGINT)
        assert strace.stderr is not None
        assert select.select([strace.stderr], [], [], PATIENCE)[0]
        said = strace.stderr.readline()
        if "Operation not permitted" in said:
            missing(
                "strace may not trace a daemon here: permit ptrace (as root; in a container, "
                "CAP_SYS_PTRACE)"
            )
        assert "attached" in said, said
        yield Injection(output)


def other_end(connection: socket.socket) -> str:
    """Return what /proc calls the socket at the other end of a connection on this machine."""
    ours, theirs = connection.getsockname()[1], connection.getpeername()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode = line.split()[:10]
        if (int(local[-4:], 16), int(remote[-4:], 16)) == (theirs, ours):
            return f"socket:[{inode}]"
    raise AssertionError(f"no socket for {connection}")
