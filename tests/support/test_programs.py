"""A program that is forked is as one that is executed."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.programs import SCRIPTS, Program, block, children, close, limit, run
from tests.support.served_workers import START
from tests.support.waiting import PATIENCE, block_until

# A handler that says, when it is imported, in which process it is.
PROBE = """
import gc, json, os, resource, signal, sys, threading

streams = [sys.__stdin__, sys.__stdout__, sys.__stderr__]
facts = {
    "arguments": sys.argv,
    "bytecode": sys.dont_write_bytecode,
    "cwd": os.getcwd(),
    "descriptors": {n: os.fstat(n).st_ino for n in map(int, os.listdir("/proc/self/fd"))
                    if os.path.exists(f"/proc/self/fd/{n}") and (n < 3 or n == KEPT)},
    "environment": dict(os.environ),
    # That about bytecode is not what counts: `sys.dont_write_bytecode` is.
    "flags": [flag for flag in str(sys.flags).split() if "bytecode" not in flag],
    "ignored": [s.name for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN
                and s < signal.SIGRTMIN],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "limits": [resource.getrlimit(n) for n in range(10)],
    "main": [sys.modules["__main__"].__name__, str(sys.modules["__main__"].__file__)],
    "parent": os.getppid(),
    "path": sys.path,
    "reactor": type(sys.modules["twisted.internet.reactor"]).__name__,
    "session": os.getsid(0) == os.getpid(),
    "streams": [s and [s.fileno(), s.encoding, s.errors, s.line_buffering, s.write_through,
                       s.mode, s.name] for s in streams],
    "threads": threading.active_count(),
    "umask": os.umask(0o22),
}
with open("facts", "w") as file:
    json.dump(facts, file)
print("said at the end", end="", file=sys.__stdout__)
print("an error", file=sys.__stderr__)
raise SystemExit(7)
"""


def leave_out_what_a_shell_sets(environment: dict[str, str]) -> None:
    """A shell begins those scripts whose path has a space: Python has to be named in quotes."""
    if " " in str(SCRIPTS):
        environment.pop("PWD", None)


def facts(folder: Path, *, executed: bool, **options: Any) -> dict[str, Any]:
    """Run the probe; return its facts."""
    reading, writing = os.pipe()
    (folder / "probe.py").write_text(PROBE.replace("KEPT", str(writing)))
    try:
        ended = run(
            folder,
            *(SCRIPTS / "twistd", "-n", "--pidfile=", "echod", "--handler", "probe:handler"),
            executed=executed,
            pass_fds=[writing],
            **{"env": dict(os.environ), **options},
        )
        passed = os.fstat(writing).st_ino
    finally:
        os.close(reading)
        os.close(writing)
    assert (folder / "facts").exists(), ended.stderr
    told = json.loads((folder / "facts").read_text())
    assert told["descriptors"].pop(str(writing)) == passed
    told["descriptors"] = sorted(told["descriptors"])
    leave_out_what_a_shell_sets(told["environment"])
    told["ended"] = ended.returncode, ended.stdout, ended.stderr
    return told


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "env": {**os.environ, "PYTHONUNBUFFERED": "1", "HELLO": "wörld", "TZ": "Asia/Tokyo"},
            "start_new_session": True,
        },
        {"env": {**os.environ, "PATH": "/bin", "PYTHONDONTWRITEBYTECODE": "1"}},
        {
            "env": {**os.environ, "PYTHONPATH": "/nonesuch"},
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
        },
        {
            "steps": [
                limit(resource.RLIMIT_NOFILE, 100),
                limit(resource.RLIMIT_CORE, 0),
                close(0),
                block(),
            ]
        },
    ],
    ids=["plain", "unbuffered", "without bytecode", "another path", "steps"],
)
def test_a_forked_program_finds_what_an_executed_one_finds(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    forked = facts(tmp_path, executed=False, **options)
    executed = facts(tmp_path, executed=True, **options)
    assert {name: forked[name] for name in forked if forked[name] != executed[name]} == {}
    assert forked["parent"] == os.getpid()
    assert forked["cwd"] == str(tmp_path)


# A handler that says, when a worker imports it, in which process it is.
WORKERS = """
import json, os, resource, signal, sys
from pathlib import Path

facts = {
    "arguments": sys.argv,
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "cwd": os.getcwd(),
    "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
    "environment": dict(os.environ),
    "handled": {str(s): repr(signal.getsignal(s)).partition(" at ")[0]
                for s in signal.valid_signals() if s < signal.SIGRTMIN},
    "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "main": sys.modules["__main__"].__name__,
    "path": sys.path,
    "reactor": type(sys.modules["twisted.internet.reactor"]).__name__,
    "session": os.getsid(0) == os.getsid(os.getppid()),
    "umask": os.umask(0o22),
}
Path("parent").write_text(str(os.getppid()))
Path("facts").write_text(json.dumps(facts))
os._exit(7)
"""


def test_a_worker_of_a_forked_daemon_finds_what_an_executed_one_finds(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(WORKERS)
    found = []
    for executed in (False, True):
        command = (SCRIPTS / "twistd", "-n", "--pidfile=", "echod", "--handler", "probe:handler")
        steps = [limit(resource.RLIMIT_NOFILE, 700, 900)]  # the daemon raises it
        with Program(
            [*command, "--workers", "1", "--port", "0"],
            cwd=tmp_path,
            env=dict(os.environ),
            executed=executed,
            steps=steps,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as program:
            _, said = program.communicate(timeout=START)  # of the daemon, and of its worker
        assert "worker 1 was ended with exit code 7 before it served" in said
        assert int((tmp_path / "parent").read_text()) == program.pid
        found.append(json.loads((tmp_path / "facts").read_text()))
        leave_out_what_a_shell_sets(found[-1]["environment"])
    forked, executed_one = found
    assert {name: forked[name] for name in forked if forked[name] != executed_one[name]} == {}


def test_a_step_counts_more_than_the_limit_of_the_tests(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        told = facts(tmp_path, executed=False, steps=[limit(resource.RLIMIT_NOFILE, 100)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told["limits"][resource.RLIMIT_NOFILE] == [100, 100]


def test_its_umask_is_that_of_the_moment(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert facts(tmp_path, executed=False)["umask"] == 0o077
    finally:
        os.umask(before)


def test_it_reads_its_input_and_a_signal_ends_it(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text("import sys, signal\nprint(input())\nsignal.pause()\n")
    command = [SCRIPTS / "twistd", "-n", "echod", "--handler", "asks:handler"]
    process: Program[str] = Program(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        assert process.poll() is None
        process.stdin.write("hello\n")
        process.stdin.flush()
        while "hello" not in process.stdout.readline():
            pass
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL


def test_the_process_that_forks_is_no_child_of_a_test(tmp_path: Path) -> None:
    assert run(tmp_path, SCRIPTS / "echod", "--version").returncode == 0
    assert children() == set()
    with Program([SCRIPTS / "echod", "--version"], stdout=subprocess.DEVNULL) as process:
        assert children() == {process.pid}


def test_a_crash_is_seen(tmp_path: Path) -> None:
    (tmp_path / "crashes.py").write_text("import os\nos.abort()\n")
    ended = run(tmp_path, SCRIPTS / "twistd", "-n", "echod", "--handler", "crashes:handler")
    assert ended.returncode == -signal.SIGABRT


FORKS = """
import os, sys
from pathlib import Path
from tests.support import programs
assert programs.run(Path("."), programs.SCRIPTS / "echod", "--version").returncode == 0
print(os.getpid(), flush=True)
os._exit(0)
"""


def test_the_process_that_forks_ends_with_the_tests() -> None:
    said = subprocess.run(
        [sys.executable, "-c", FORKS], cwd=ROOT, stdout=subprocess.PIPE, check=True
    ).stdout

    def is_gone() -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(f"\0echod-tests-{int(said)}") != 0

    block_until(is_gone)
