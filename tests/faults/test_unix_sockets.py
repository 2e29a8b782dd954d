"""UNIX sockets: their mode, and the files that a dead daemon leaves."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.support.clients import BANNER, receive
from tests.support.daemon import Daemon, Start
from tests.support.waiting import PATIENCE


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(path))
    return connection


def is_served(path: Path) -> None:
    with connect(path) as connection:
        assert receive(connection, len(BANNER)) == BANNER
        connection.sendall(b"happy\n")
        assert receive(connection, 11) == b"OK...happy\n"


def ready(running: Daemon) -> Daemon:
    running.wait_for("Socket now listening")
    return running


@pytest.mark.parametrize(("option", "mode"), [("", 0o660), (":mode=600", 0o600)])
def test_the_mode_is_explicit(daemon: Start, tmp_path: Path, option: str, mode: int) -> None:
    """Fault 54: Only owner and group may connect, unless the listener sets another mode."""
    path = tmp_path / "s"
    before = os.umask(0)
    try:
        ready(daemon("--listen", f"unix:{path}{option}"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    is_served(path)


def test_a_directory_that_anyone_may_write_to_is_refused(daemon: Start, tmp_path: Path) -> None:
    """Fault 54: The daemon does not start if any user could replace the socket in the socket's
    directory.
    """
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    running = daemon("--listen", f"unix:{directory}/s")
    running.wait()
    assert running.process.returncode == 1
    expected = (
        f"echod: unix:{directory}/s: Bind failed. Error Code : 1 Message Any user may write to "
        f"{directory}, and replace the socket: chmod o-w, or use a directory of its own"
    )
    assert expected in running.log.splitlines()


def test_what_a_killed_daemon_leaves_is_replaced(daemon: Start, tmp_path: Path) -> None:
    """Fault 67: After SIGKILL the next daemon listens on the same path; nothing else is left
    behind.
    """
    path = tmp_path / "s"
    for _ in range(2):
        running = ready(daemon("--listen", f"unix:{path}"))
        is_served(path)
        running.process.kill()
        running.wait()
        assert path.exists()
    running = ready(daemon("--listen", f"unix:{path}"))
    is_served(path)
    running.tell()
    running.wait()
    assert not list(tmp_path.glob("s*"))


def test_a_socket_in_use_is_left_to_its_owner(daemon: Start, tmp_path: Path) -> None:
    """Fault 67: If a process listens there, the daemon does not start, and says so in one line,
    also if that process is stopped.
    """
    path = tmp_path / "s"
    owner = ready(daemon("--listen", f"unix:{path}"))
    owner.signal(signal.SIGSTOP)
    second = daemon("--listen", f"unix:{path}")
    second.wait()
    owner.signal(signal.SIGCONT)
    assert second.process.returncode == 1
    expected = (
        f"echod: unix:{path}: Bind failed. Error Code : 98 Message Address in use by another "
        "process, which ss -lxp shows"
    )
    assert expected in second.log.splitlines()
    is_served(path)


def test_of_daemons_that_start_at_once_one_has_the_socket(daemon: Start, tmp_path: Path) -> None:
    """Fault 67: When several daemons start at once over the socket of a killed one, exactly one
    gets it.
    """
    path = tmp_path / "s"
    killed = ready(daemon("--listen", f"unix:{path}"))
    killed.process.kill()
    killed.wait()
    started = [daemon("--listen", f"unix:{path}") for _ in range(2)]
    for each in started:
        each.wait_for("now listening|in use by another process")
    listening = [each for each in started if "now listening" in each.log]
    assert len(listening) == 1
    is_served(path)
