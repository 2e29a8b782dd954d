"""The units of etc/: systemd accepts them, and the daemon works within their restrictions."""

from __future__ import annotations

import configparser
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.certificates import self_signed_pem
from tests.support.clients import (
    BANNER,
    connect,
    greeted,
    is_served,
    receive,
    receive_all,
)
from tests.support.daemon import CONCURRENT, Daemon, Start
from tests.support.needs import needs_root, tool
from tests.support.paths import ROOT
from tests.support.programs import SCRIPTS

UNITS = ROOT / "etc" / "systemd"

# The exposure that systemd-analyze may find, in tenths.
EXPOSURE = {"echod.service": 10, "echod@.service": 10, "echod-activated.service": 3}

# The options that replace the network of the socket-activated service.
CUT_OFF = {
    "IPAddressAllow": None,
    "IPAddressDeny": "any",
    "PrivateNetwork": "yes",
    "RestrictAddressFamilies": "AF_UNIX",
}


def run(*command: str | Path, check: bool = True, **options: object) -> str:
    """Run a command; return what it prints, errors too."""
    ended = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    assert not check or ended.returncode == 0, ended.stdout
    return str(ended.stdout)


def read(unit: str) -> configparser.ConfigParser:
    """Return a unit; for settings that repeat, the last value."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(UNITS / unit)
    return parser


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target of `make install-service`; the program is the one under test."""
    directory = tmp_path_factory.mktemp("in stalled")
    install(directory)
    return directory


def install(directory: Path) -> None:
    prefix = directory / "the program"
    if not prefix.exists():
        prefix.symlink_to(sysconfig.get_path("data"))
    run(tool("make"), "install-service", f"DESTDIR={directory}", f"PREFIX={prefix}", cwd=ROOT)


def test_systemd_accepts_the_units(installed: Path) -> None:
    units = sorted((installed / "usr/local/lib/systemd/system").iterdir())
    assert [unit.name for unit in units] == sorted(unit.name for unit in UNITS.iterdir())
    assert run(tool("systemd-analyze"), "verify", *units) == ""


@pytest.mark.parametrize(("unit", "exposure"), EXPOSURE.items())
def test_little_is_exposed(unit: str, exposure: int) -> None:
    threshold = f"--threshold={exposure}"
    run(tool("systemd-analyze"), "security", "--offline=true", threshold, UNITS / unit)


def test_the_units_differ_only_where_they_must() -> None:
    direct, instance, activated = (read(unit)["Service"] for unit in EXPOSURE)
    for name in {*direct, *instance, *activated} - {"ExecStart"}:
        assert instance.get(name) == direct.get(name), name
        assert activated.get(name) == CUT_OFF.get(name, direct.get(name)), name


def test_a_service_has_its_user_and_its_folder(installed: Path) -> None:
    said = run(tool("systemd-sysusers"), "--dry-run", f"--root={installed}")
    assert "Creating user 'echod'" in said
    lines = (installed / "usr/local/lib/tmpfiles.d/echod.conf").read_text()
    assert "d /run/echod 0750 echod echod" in lines


def test_settings_that_are_there_already_are_kept(tmp_path: Path) -> None:
    install(tmp_path)
    settings = tmp_path / "etc/echod/echod.toml"
    assert settings.read_text() == (ROOT / "etc" / "echod.toml").read_text()
    settings.write_text("port = 7\n")
    install(tmp_path)
    assert settings.read_text() == "port = 7\n"


# The daemon does not need the privileges that the units remove.


@pytest.fixture(scope="module")
def allowed() -> set[str]:
    """The system calls that the units allow."""
    lines = (UNITS / "echod.service").read_text().splitlines()
    names = [line.split("=")[1].split() for line in lines if line.startswith("SystemCallFilter=")]
    [[*granted], [first, *others]] = names
    assert first.startswith("~")
    return calls(*granted) - calls(first[1:], *others)


def calls(*names: str) -> set[str]:
    """Return the system calls of these names, which may be names of groups."""
    found = set()
    for name in names:
        if name.startswith("@"):
            members = run(tool("systemd-analyze"), "syscall-filter", name).split("\n")[1:]
            found |= calls(*(line.strip() for line in members if line.strip()[:1] not in "#"))
        else:
            found.add(name)
    return found


@pytest.mark.parametrize("model", ["reactor", "defer-to-thread", "thread-per-connection"])
def test_no_system_call_is_needed_that_the_units_forbid(
    daemon: Start, tmp_path: Path, allowed: set[str], model: str
) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    running = daemon(
        *("--concurrency", model, "--listen", f"unix:{tmp_path / 'socket'}", "--port", "0"),
        *("--listen", f"tls:0:interface=127.0.0.1:certificate={tmp_path / 'server.pem'}"),
        under=[tool("strace"), "-f", "-qq", "-o", str(trace), "--signal=none"],
    )
    with greeted(running) as connection:
        assert is_served(connection)
        process = int(trace.read_text().split()[0])
        os.kill(process, signal.SIGHUP)
        running.wait_for("Reloaded")
        os.kill(process, signal.SIGTERM)
        assert receive_all(connection) == b""
    running.wait()
    used = calls_in(trace)
    assert {"epoll_ctl", "accept4"} <= used
    assert used <= allowed


def calls_in(trace: Path) -> set[str]:
    """Return the system calls in the output of strace."""
    lines = trace.read_text()
    return set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z]\w*)(?:\(| resumed)", lines, re.M))


def test_programs_workers_and_the_control_need_none_either(
    daemon: Start, tmp_path: Path, allowed: set[str]
) -> None:
    trace = tmp_path / "trace"
    running = daemon(
        *("--handler", "exec:command=cat", "--workers", "1", "--port", "0"),
        *("--control", f"unix:{tmp_path}/control", "--status", f"unix:{tmp_path}/status"),
        # Not as root, which may not run programs for clients.
        under=[
            *(tool("unshare"), "--user", "--map-user=1000"),
            *(tool("strace"), "-f", "-qq", "-o", str(trace), "--signal=none"),
        ],
    )
    running.wait_for("worker 1 .* serves")
    process = int(trace.read_text().split()[0])
    os.kill(process, signal.SIGUSR2)
    running.wait_for("The workers have been replaced")
    with connect(running) as connection:
        connection.sendall(b"happy")
        assert receive(connection, 5) == b"happy"
        command = [
            SCRIPTS / "echod",
            "ctl",
            "connections",
            "--control",
            f"unix:{tmp_path}/control",
        ]
        assert "(open)" in run(*command)
        os.kill(process, signal.SIGTERM)
        assert receive_all(connection) == b""
    running.wait()
    used = calls_in(trace)
    assert {"execve", "accept4"} <= used
    assert used <= allowed


BEREFT = """
import ctypes
import os
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 38, 65
libc = ctypes.CDLL(None)
libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # what MemoryDenyWriteExecute= does, where the kernel can
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_it_runs_without_privileges_in_a_world_that_it_cannot_write(tmp_path: Path) -> None:
    needs_root("take so much away")
    (tmp_path / "bereft.py").write_text(BEREFT)
    (tmp_path / "echod.toml").write_text("port = 0\n")
    # As root without root's privileges: another user could not even read what is under test.
    read_only = 'mount -o remount,bind,ro / && exec "$@"'
    running = Daemon(
        *("--config", str(tmp_path / "echod.toml")),
        cwd=Path("/"),
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        under=[
            *(tool("unshare"), "--mount", "sh", "-c", read_only, "sh"),
            *(tool("setpriv"), "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"),
            *(sys.executable, str(tmp_path / "bereft.py")),
        ],
    )
    try:
        with greeted(running) as connection:
            assert is_served(connection)
        assert "Traceback" not in running.log
    finally:
        running.stop()


UNIX_ONLY = """
import ctypes
import os
import struct
import sys

# What RestrictAddressFamilies=AF_UNIX does: socket(2) of another family gets EAFNOSUPPORT.
SOCKET = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
AF_UNIX, ALLOW, EAFNOSUPPORT = 1, 0x7FFF0000, 0x00050000 | 97
rules = [
    (LOAD, 0, 0, 0),
    (IF_EQUAL, 0, 3, SOCKET),
    (LOAD, 0, 0, 16),
    (IF_EQUAL, 1, 0, AF_UNIX),
    (RETURN, 0, 0, EAFNOSUPPORT),
    (RETURN, 0, 0, ALLOW),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
program = struct.pack("HxxxxxxN", len(rules), ctypes.addressof(code))
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
libc = ctypes.CDLL(None)
libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
assert not libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("model", CONCURRENT)
def test_the_sockets_of_the_unit_are_served_where_no_other_can_be_made(
    daemon: Start, tmp_path: Path, model: str
) -> None:
    (tmp_path / "unix_only.py").write_text(UNIX_ONLY)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        running = daemon(
            *("--listen", "systemd:name=echod", "--concurrency", model),
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "echod"},
            under=[
                *("bash", "-c", f'exec 3<&{number}; exec "$@"', "bash"),
                *(sys.executable, str(tmp_path / "unix_only.py")),
            ],
            pass_fds=[number],
        )
        running.wait_for("Socket now listening")
        with socket.create_connection(listening.getsockname(), 10) as connection:
            assert receive(connection, len(BANNER)) == BANNER
            assert is_served(connection)
    running.stop()
    assert "Traceback" not in running.log
