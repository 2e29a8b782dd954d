from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from echod.daemon.checks import (
    exchanged,
    plugin_folders,
    proviso,
    refusal,
    refusal_of_programs,
    warning_once_started,
    warnings,
    why_stale,
)
from echod.settings.flags import Options
from tests.support.needs import needs_root

ROOT, SOMEBODY = 0, 1000


@pytest.mark.parametrize(
    ("twistd", "uid", "refused"),
    [
        ({"gid": 1000, "uid": None}, ROOT, True),
        ({"gid": 1000, "uid": 1000}, ROOT, False),
        ({"gid": None, "uid": None}, ROOT, False),
        ({"gid": 1000, "uid": None}, SOMEBODY, False),
        ({}, ROOT, False),
    ],
)
def test_a_group_without_a_user_is_refused_to_root(
    twistd: dict[str, Any], uid: int, refused: bool
) -> None:
    why = refusal(twistd, uid=uid)
    assert (why is not None and "--gid without --uid" in why) is refused


def test_a_pidfile_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    pidfile = tmp_path / "twistd.pid"
    assert refusal({"pidfile": str(pidfile)}, uid=SOMEBODY) is None
    pidfile.write_text("1")
    assert refusal({"pidfile": str(pidfile)}, uid=SOMEBODY) is None
    pidfile.unlink()
    pidfile.symlink_to(tmp_path / "precious")
    why = refusal({"pidfile": str(pidfile)}, uid=SOMEBODY)
    assert why is not None
    assert f"{pidfile} is a symbolic link" in why


def test_a_pidfile_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = refusal({"pidfile": str(tmp_path / "none" / "twistd.pid")}, uid=SOMEBODY)
    assert why is not None
    assert f"{tmp_path}/none/twistd.pid: that directory is not writable" in why
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as it is for an ordinary user
    assert refusal({"pidfile": ""}, uid=SOMEBODY) is None
    assert refusal({"pidfile": str(tmp_path / "twistd.pid")}, uid=SOMEBODY) is not None
    (tmp_path / "twistd.pid").touch()  # twistd handles it: that process may be running
    assert refusal({"pidfile": str(tmp_path / "twistd.pid")}, uid=SOMEBODY) is None


def test_a_pidfile_for_which_the_disk_has_no_room_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pidfile = tmp_path / "twistd.pid"
    monkeypatch.setattr(os, "write", fail)
    assert refusal({"pidfile": str(pidfile)}, uid=ROOT) == (
        f"--pidfile {pidfile} cannot be written: No space left on device; name another file, or "
        "none: twistd --pidfile= echod"
    )
    assert not pidfile.exists()


def test_folders_that_this_user_may_not_enter_are_refused(tmp_path: Path) -> None:
    needs_root("become another user")
    closed = tmp_path / "closed"
    tmp_path.chmod(0)
    os.seteuid(SOMEBODY)
    try:
        why = refusal({"pidfile": f"{closed}/twistd.pid"}, uid=SOMEBODY)
        assert why is not None
        assert why.startswith(f"--pidfile {closed}/twistd.pid: that directory is not writable")
        why = refusal({"rundir": f"{closed}"}, uid=SOMEBODY)
        assert why == f"--rundir {closed}: there is no such directory"
    finally:
        os.seteuid(0)


def test_a_current_directory_that_is_gone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    why = refusal({}, uid=SOMEBODY)
    assert why == "the current directory: No such file or directory: change to one that exists"
    with pytest.raises(SystemExit, match=r"echod: --config x: No such file or directory"):
        Options().parseOptions(["--config", "x"])


def test_a_run_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    assert refusal({"rundir": str(tmp_path)}, uid=SOMEBODY) is None
    why = refusal({"rundir": str(tmp_path / "none")}, uid=SOMEBODY)
    assert why == f"--rundir {tmp_path}/none: there is no such directory"


def test_what_others_can_write_is_named(tmp_path: Path) -> None:
    uid = os.geteuid()
    assert warnings({}, [tmp_path, tmp_path / "none"], uid=uid) == []
    cache = tmp_path / "dropin.cache"
    cache.touch()
    cache.chmod(0o666)
    (said,) = warnings({}, [tmp_path], uid=uid)
    assert said.startswith(f"{cache} is writable by other users")
    cache.chmod(0o644)
    tmp_path.chmod(0o777)
    (said,) = warnings({}, [tmp_path], uid=uid)
    assert said.startswith(f"{tmp_path} is writable by other users")


def test_what_somebody_else_owns_is_named(tmp_path: Path) -> None:
    needs_root("give files away")
    os.chown(tmp_path, SOMEBODY, SOMEBODY)
    assert len(warnings({}, [tmp_path], uid=ROOT)) == 1
    assert warnings({}, [tmp_path], uid=SOMEBODY) == []


def test_to_keep_the_way_back_to_root_is_named() -> None:
    assert warnings({"euid": 1, "uid": 1000}, [], uid=ROOT)
    assert not warnings({"euid": 0, "uid": 1000}, [], uid=ROOT)
    assert not warnings({"euid": 1, "uid": 1000}, [], uid=SOMEBODY)


def test_handlers_as_root_are_named() -> None:
    assert str(warning_once_started(ROOT, "Do this")).startswith("Handlers run as root: ")
    assert str(warning_once_started(ROOT, "Do this")).endswith(" machine. Do this")
    assert warning_once_started(SOMEBODY, "Do this") is None


def test_what_is_good_for_root_may_not_be_for_others() -> None:
    assert proviso(ROOT).startswith(" for root, who can read every file")
    assert proviso(SOMEBODY) == ""


def test_plugins_are_looked_for_where_twisted_does() -> None:
    here = Path(__file__).parents[2] / "twisted" / "plugins"
    assert str(here) in plugin_folders()


def test_a_user_without_an_entry_is_refused() -> None:
    why = refusal({"uid": 12345}, uid=ROOT)
    assert why is not None
    assert why.startswith("--uid 12345: there is no user with this id")
    assert refusal({"uid": ROOT}, uid=ROOT) is None


def test_only_root_becomes_another_user() -> None:
    assert refusal({"uid": os.getuid()}, uid=os.getuid()) is None
    why = refusal({"uid": ROOT}, uid=SOMEBODY)
    assert why == "--uid 0: only root can become another user: leave it out"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "it is empty"),
        ("\n", "it is empty"),
        ("many\x1b", "it does not contain a process id"),
        ("0", "it does not contain a process id"),
        ("-1", "it does not contain a process id"),
        ("9" * 5000, "it does not contain a process id"),
        ("\u0661", "it does not contain a process id"),
        pytest.param(str(os.getpid()), f"{os.getpid()} is this process itself", id="its own"),
        ("1", "process 1 is not twistd"),
        (str(2**31 - 1), None),  # no such process: twistd detects that
    ],
)
def test_a_pidfile_of_no_daemon_is_stale(tmp_path: Path, content: str, why: str | None) -> None:
    (tmp_path / "pid").write_text(content)
    assert why_stale(tmp_path / "pid") == why


def test_a_pidfile_of_another_twistd_is_not_stale(tmp_path: Path) -> None:
    program = tmp_path / "twistd"
    program.write_text("import signal\nprint(flush=True)\nsignal.pause()\n")
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        (tmp_path / "pid").write_text(f"{running.pid}\n")
        assert why_stale(tmp_path / "pid") is None
        running.send_signal(signal.SIGKILL)


def test_what_a_module_has_exchanged_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Proxied(socket.socket):
        pass

    assert exchanged() == []
    monkeypatch.setattr(socket, "socket", Proxied)
    assert exchanged() == []
    monkeypatch.setattr(socket, "socket", object)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert exchanged() == ["socket.socket", "time.sleep"]


@pytest.mark.parametrize(
    ("twistd", "uid", "why"),
    [
        ({}, 0, "exec runs a program for every client, here as root"),
        ({"uid": None}, 0, "exec runs a program for every client, here as root"),
        ({"uid": 65534}, 0, None),
        ({"uid": 65534, "euid": True}, 0, "the programs could become root again"),
        ({}, 1000, None),
    ],
)
def test_programs_are_not_run_as_root_unless_that_is_said(
    twistd: dict[str, object], uid: int, why: str | None
) -> None:
    said = refusal_of_programs(twistd, uid=uid)
    assert said is None if why is None else said is not None and why in said
