"""Programs that serve clients of a real daemon: many of them, greedy ones, and noisy ones."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scale import Scale, number
from tests.support.certificates import self_signed_pem
from tests.support.clients import connect, end_while_idle, receive, receive_all
from tests.support.daemon import TERMINATED, Daemon, Start, nothing_kept
from tests.support.needs import needs_root, tool
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE, block_until

# Root has to name a user; this one is in every container. Another user cannot name any.
AS_THIS_USER = ("--uid=0",) if os.geteuid() == 0 else ()


def children(running: Daemon | str) -> list[str]:
    """Return the processes that a daemon, or a process, is the parent of, and has not reaped."""
    pid = running if isinstance(running, str) else running.process.pid
    task = Path(f"/proc/{pid}/task")
    return [pid for each in task.glob("*/children") for pid in each.read_text().split()]


@contextlib.contextmanager
def client(running: Daemon, way: str) -> Iterator[socket.socket]:
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(connect(running))
        if way == "tls":
            # An end without close_notify would be an error.
            context = client_context()
            wrapped = context.wrap_socket(connection, suppress_ragged_eofs=False)
            connection = stack.enter_context(wrapped)
        yield connection


def start(daemon: Start, command: str, *flags: str, way: str = "tcp") -> Daemon:
    listen = "tls:0:certificate=server.pem" if way == "tls" else "tcp:0"
    written = "exec:command=" + command.replace(",", r"\,")
    return daemon("--listen", listen, "--handler", written, *flags, options=AS_THIS_USER)


@pytest.mark.parametrize("way", ["tcp", "tls"])
def test_sigterm_ends_every_idle_program_and_resets_no_client(
    daemon: Start, tmp_path: Path, scale: Scale, way: str
) -> None:
    """Fault 114: Idle programs end at once, each client sees the end of the stream, no reset."""
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    count = number(ci=50, soak=1000)
    # A drain that waits for its deadline would take 200 s.
    limits = ("--max-processes", str(2 * count), "--drain-timeout", "200")
    running = start(daemon, "cat", *limits, way=way)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(running, way)) for _ in range(count)]
        seconds = end_while_idle(running, clients)
    scale.note(f"{way}: {count} programs ended in {seconds:.2f} s")


def test_as_process_1_the_supervisor_of_workers_reaps_what_their_programs_leave(
    daemon: Start,
) -> None:
    """Fault 212: So does the supervisor of workers; there, it may have left the group, too."""
    needs_root("start a process 1")
    waits = "read gone <&3"
    leaves = f"exec 3<&0; ({waits}) & setsid sh -c {shlex.quote(waits)} &"
    running = daemon(
        *("--handler", f"exec:command=sh -c {shlex.quote(leaves)}", "--workers", "1"),
        options=AS_THIS_USER,
        under=[tool("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc"],
    )
    running.wait_for("serves")
    (process_1,) = children(running)
    workers = set(children(process_1))
    try:
        for _ in range(3):
            with connect(running) as connection:
                block_until(lambda: len(children(process_1)) == len(workers) + 2)
                connection.shutdown(socket.SHUT_WR)
                assert receive_all(connection) == b""
            block_until(lambda: set(children(process_1)) == workers)
    finally:
        os.kill(int(process_1), signal.SIGTERM)  # unshare passes none on
    running.wait()
    assert "successor" not in running.log


def test_workers_run_programs_as_root_if_that_is_asked_for(daemon: Start) -> None:
    needs_root("another user is refused nothing here")
    running = start(daemon, "cat", "--workers", "2")
    running.wait_for("Socket now listening")
    with connect(running) as connection:
        connection.sendall(b"happy")
        assert receive(connection, 5) == b"happy"


@pytest.mark.parametrize("way", ["tcp", "tls"])
def test_a_program_that_writes_more_than_its_client_reads_costs_little(
    daemon: Start, tmp_path: Path, scale: Scale, way: str
) -> None:
    """Fault 111: 20 MB that a client reads slowly, or not yet, are not held in memory."""
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    size = number(ci=20, soak=200) * 1_000_000
    running = start(daemon, f"head -c {size} /dev/zero", way=way)
    with client(running, way) as first:
        first.shutdown(socket.SHUT_WR) if way == "tcp" else None
        assert len(receive_all(first)) == size
    with client(running, way) as slow:
        assert receive(slow, 1) == b"\0"
        before, most, came = running.resident, 0, 1
        while piece := slow.recv(1 << 20):
            came += len(piece)
            most = max(most, running.resident - before)
    assert came == size
    scale.note(f"{way}: {most >> 10} KiB more for {size >> 20} MB")
    assert most < 2 << 20
    block_until(lambda: not children(running))


def test_programs_that_fail_or_are_left_leave_no_descriptor_and_no_zombie(
    daemon: Start, scale: Scale
) -> None:
    """Fault 112: No matter which side ends first, no descriptor and no zombie is left."""
    running = start(daemon, shlex.join(["sh", "-c", "read how; echo $how; [ $how != bad ]"]))
    with connect(running) as warm:
        warm.sendall(b"good\n")
        assert receive_all(warm) == b"good\n"
    block_until(lambda: not children(running))
    with nothing_kept(running):
        for turn in scale(ci=30, soak=3000):
            with connect(running) as each:
                if turn % 3:
                    each.sendall(b"good\n" if turn % 3 == 1 else b"bad\n")
                    receive_all(each)
        block_until(lambda: not children(running))
    running.wait_for("handler error: exit status 1")


def test_a_program_that_complains_without_end_delays_no_other_client(daemon: Start) -> None:
    """Fault 115: Its lines are counted above `--log-rate`, and others are served meanwhile."""
    script = "read how; [ $how = loud ] && exec yes loud >&2; echo $how"
    running = start(daemon, shlex.join(["sh", "-c", script]), "--log-rate", "5")
    with connect(running) as loud:
        loud.sendall(b"loud\n")
        running.wait_for("says: loud")
        before = running.resident
        for _ in range(20):
            with connect(running) as other:
                other.sendall(b"calm\n")
                assert receive_all(other) == b"calm\n"
        assert running.resident - before < 16 << 20
    running.stop()
    assert running.log.count("says: loud") < 500


def test_as_root_a_program_needs_a_user(daemon: Start) -> None:
    """Fault 49: `exec` does not start as root, unless `--uid` names the user."""
    needs_root("start a daemon as root")
    running = daemon("--handler", "exec:command=cat")
    running.wait(PATIENCE)
    assert running.process.returncode == 1
    assert "exec runs a program for every client, here as root" in running.log


def test_a_program_runs_as_the_user_that_uid_names(daemon: Start, tmp_path: Path) -> None:
    needs_root("become another user")
    running = daemon("--handler", "exec:command=id -u", options=("--uid=65534", "--gid=65534"))
    with connect(running) as each:
        assert receive_all(each) == b"65534\n"


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--framing", "line"), "--framing has no effect: exec is a program"),
        (("--banner", "hello"), "--banner has no effect: exec is a program"),
        (("--concurrency", "serial"), "runs with --concurrency reactor, not serial"),
    ],
)
def test_settings_without_effect_are_refused(
    daemon: Start, flags: tuple[str, ...], why: str
) -> None:
    running = start(daemon, "cat", "--check-config", *flags)
    running.wait(PATIENCE)
    assert running.process.returncode == 1
    assert running.log.count("\n") == 0
    assert why in running.log


def test_a_missing_program_is_one_line_at_the_start(daemon: Start) -> None:
    running = start(daemon, "./missing --flag")
    running.wait(PATIENCE)
    assert running.process.returncode == 1
    assert re.fullmatch(
        "echod: --handler: exec: /.*/missing: No such file or directory", running.lines[-1]
    )


@pytest.mark.parametrize(
    ("mode", "why"),
    [(0o700, "who cannot enter {folder}: see its permissions"), (0o755, "see its permissions")],
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_program_that_the_daemons_user_cannot_run_ends_the_start(
    daemon: Start, mode: int, why: str, linked: bool
) -> None:
    """Fault 140: The start fails once privileges are dropped, and names program and user."""
    needs_root("start a daemon as root")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as links:
        program = Path(folder, "mine")
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755 if mode == 0o700 else 0o700)
        Path(folder).chmod(mode)
        if linked:
            Path(links).chmod(0o755)
            Path(links, "mine").symlink_to(program)
            program = Path(links, "mine")
        command = f"exec:command={program}"
        running = daemon("--handler", command, options=("--uid=65534", "--gid=65534"))
        running.wait(PATIENCE)
        assert running.process.returncode == 1
        user = pwd.getpwuid(65534).pw_name
        said = next(line for line in running.lines if line.startswith("echod: --handler: "))
        assert f"exec: {program} " in said
        assert f"by the user {user}" in said
        assert why.format(folder=folder) in said


def test_a_program_behind_python_gets_a_whole_conversation(daemon: Start, tmp_path: Path) -> None:
    """Pipes are line by line only where the program flushes: this one does."""
    (tmp_path / "greeter.py").write_text(
        "print('who is there?', flush=True)\nprint('hello', input(), flush=True)\n"
    )
    running = start(daemon, shlex.join([sys.executable, "greeter.py"]))
    with connect(running) as each:
        assert receive(each, 14) == b"who is there?\n"
        each.sendall(b"me\n")
        assert receive_all(each) == b"hello me\n"


@pytest.mark.parametrize(
    "script", ["kill -STOP $$; cat", "trap '' TERM; while :; do sleep 1; done"]
)
def test_a_program_that_does_not_end_is_killed_at_the_deadline_and_leaves_no_traceback(
    daemon: Start, script: str
) -> None:
    running = start(daemon, shlex.join(["sh", "-c", script]), "--drain-timeout", "1")
    with connect(running):
        block_until(lambda: children(running))
        programs = children(running)
        running.signal()
        running.wait()
    assert running.process.returncode in TERMINATED
    assert "Drain time-out" in running.log
    assert "Traceback" not in running.log
    block_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in programs))
