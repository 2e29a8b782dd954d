"""Other programs change the log's file, and the daemon meets files that are not its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.test_logs import connect_to, daemon_of, is_listening
from tests.support.clients import receive, receive_all
from tests.support.daemon import REACTOR
from tests.support.needs import missing, needs_root, tool
from tests.support.paths import ROOT
from tests.support.programs import SCRIPTS, Program
from tests.support.waiting import PATIENCE, block_until


class Logging:
    """A daemon that logs to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with connect_to(path) as client:
            self.process = daemon_of(client)

    def visit(self, size: int = 1) -> None:
        """Send this many bytes, and leave; the log has their number."""
        with connect_to(self._path) as client:
            client.sendall(b"x" * size)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client).endswith(b"x" * size)

    def begin_anew(self) -> None:
        os.kill(self.process, signal.SIGUSR1)


@contextmanager
def logging_to(
    logfile: str | Path, folder: Path, *, twistd: Sequence[str] = (), under: Sequence[str] = ()
) -> Iterator[Logging]:
    path = folder / "socket"
    process: Program[str] = Program(
        [*under, SCRIPTS / "twistd", "-n", "--pidfile=", "--logfile", logfile, *REACTOR, *twistd,
         "echod", "--listen", f"unix:{path}", "--log-rate", "0"],
        cwd=folder,
    )  # fmt: skip
    try:
        block_until(lambda: is_listening(path))
        running = Logging(path)
        yield running
        os.kill(running.process, signal.SIGTERM)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()


# Gives a command a /dev of its own, which it may spoil, and lists what is there before and after.
DEVICES = """
list() { stat --format "%n %F %t:%T" /dev/*; }
mount -t tmpfs -o mode=755 none dev || exit
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 dev/${device%:*} c 1 ${device#*:} || exit
done
mkfifo dev/fifo
ln -s /proc/self/fd/1 dev/stdout
ln -s null dev/link
ln -s "$PWD/unread" dev/log
mount --move dev /dev || exit
list > before
"$@"
list > after
"""


def own_devices(folder: Path) -> Sequence[str]:
    """Return the beginning of a command that runs in `folder` with a /dev of its own."""
    needs_root("make a /dev of a test's own")
    (folder / "dev").mkdir()
    own = (tool("unshare"), "--mount", "sh", "-c", DEVICES, "sh")
    if subprocess.run([*own, "true"], cwd=folder, capture_output=True, check=False).returncode:
        missing("no mount namespace can be made")
    return own


@pytest.mark.parametrize("name", ["null", "stdout", "fifo", "link"])
def test_a_device_is_never_renamed(tmp_path: Path, name: str) -> None:
    """Fault 81: The daemon writes to a device, a FIFO or a link to one, and never renames it."""
    with logging_to(f"/dev/{name}", tmp_path, under=own_devices(tmp_path)) as running:
        for _ in range(2):
            running.begin_anew()
            running.visit()
    before, after = ((tmp_path / name).read_text() for name in ("before", "after"))
    assert "/dev/null character special file 1:3" in before
    assert after == before


@pytest.mark.parametrize("mode", ["create 0600", "copytruncate", "nocreate"])
def test_logrotate_and_the_daemon_agree(tmp_path: Path, mode: str) -> None:
    """Fault 81: In each mode of logrotate, each line is in one file, once, and no file has a hole;
    SIGUSR1 opens the path again.
    """
    folder = tmp_path / "log"
    folder.mkdir(mode=0o755)
    log = folder / "echod.log"
    with logging_to(str(log), tmp_path) as running:
        stanza = (ROOT / "etc/logrotate.d/echod").read_text()
        for old, new in {
            "/var/log/echod/echod.log": str(log),
            '"$(cat /run/echod/echod.pid)"': str(running.process),
            "create 0640 echod echod": mode,
            "    compress\n    delaycompress\n": "",
        }.items():
            assert old in stanza
            stanza = stanza.replace(old, new)
        if mode == "copytruncate":  # which tells the daemon nothing
            stanza = re.sub(r" *postrotate\n.*\n *endscript\n", "", stanza)
        config = tmp_path / "logrotate.conf"
        config.write_text(stanza)
        config.chmod(0o644)
        for size in (1, 2, 3):
            running.visit(size)
            block_until(lambda size=size: f"bytes in: {size}," in log.read_text())
            subprocess.run(
                [tool("logrotate"), "--force", "--state", str(tmp_path / "state"), str(config)],
                check=True,
                capture_output=True,
            )
            block_until(lambda: is_open(running.process, log))
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(written) == ["echod.log", "echod.log.1", "echod.log.2", "echod.log.3"]
    for number in (1, 2, 3):
        found = re.findall(rb"bytes in: ([1-9]),", written[f"echod.log.{number}"])
        assert found == [b"%d" % (4 - number)]
        assert b"\0" not in written[f"echod.log.{number}"]
    assert written["echod.log"].endswith(b"Server Shut Down.\n")


def is_open(process: int, log: Path) -> bool:
    """Return whether the daemon has the file open that is at the path now."""
    try:
        wanted = log.stat()
    except FileNotFoundError:
        return False
    return any(
        os.path.samestat(wanted, entry.stat())
        for entry in Path(f"/proc/{process}/fd").iterdir()
        if entry.exists()
    )


def test_where_no_new_file_can_be_had_the_log_says_so(tmp_path: Path) -> None:
    """Fault 81: If no new file can be opened, as in root's folder with `--uid`, the log says so,
    and the daemon keeps writing to the old file.
    """
    needs_root("have a folder that the daemon's user cannot write")
    log = tmp_path / "roots" / "echod.log"
    log.parent.mkdir()
    with logging_to(log, tmp_path, twistd=("--uid=65534", "--gid=65534")) as running:
        running.visit()  # it serves once it has become its user: root could open a new file
        running.begin_anew()
        block_until(lambda: b"Cannot begin a new log file" in log.read_bytes())
        running.visit()
        block_until(lambda: log.read_bytes().count(b"Disconnected from") == 2)
    assert [path.name for path in log.parent.iterdir()] == [log.name]
    assert f"{log}: Permission denied" in log.read_text()


FORKS = """
import os

def fork(message: bytes) -> bytes:
    print("x" * 1000)
    child = os.fork()
    if not child:
        print("the child says so")
        os._exit(0)
    os.waitpid(child, 0)
    return message
"""


def fill(log: socket.socket) -> None:
    """Send to a socket until its queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(BlockingIOError):
        sender.setblocking(False)
        while True:
            sender.sendto(b"x", log.getsockname())


def test_a_child_does_not_wait_for_a_system_log_that_stands_still(tmp_path: Path) -> None:
    """Fault 15: Clients are served while the system's log stands still, too, and a child that a
    handler forks waits for that log only for a moment.
    """
    (tmp_path / "forks.py").write_text(FORKS)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "unread"))
        fill(log)
        process: Program[str] = Program(
            [*own_devices(tmp_path), SCRIPTS / "twistd", "-n", "--pidfile=", "--syslog", *REACTOR,
             "echod", "--handler", "forks:fork", "--listen", f"unix:{path}"],
            cwd=tmp_path,
        )  # fmt: skip
        try:
            block_until(lambda: is_listening(path))
            with connect_to(path) as client:
                daemon = daemon_of(client)
                client.sendall(b"happy\n")
                assert receive(client, 6) == b"happy\n"
            os.kill(daemon, signal.SIGTERM)
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
