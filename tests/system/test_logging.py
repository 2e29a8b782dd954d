"""The log of the real daemon, from twistd's first line to its last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.daemon import (
    BANNER,
    PATIENCE,
    REACTOR,
    SCRIPTS,
    Start,
    connect,
    eventually,
    receive,
)


def test_every_line_is_an_object_from_the_first_to_the_last(daemon: Start) -> None:
    running = daemon("--log-format", "json")
    with connect(running) as client:
        receive(client, len(BANNER))
    (line,) = running.wait_for(".*Disconnected from.*")
    running.stop()
    records = [json.loads(line) for line in running.lines]
    assert any("starting up" in record["message"] for record in records)
    assert records[-1]["message"] == "Server Shut Down."
    record = json.loads(line)
    assert record["reason"] == "client closed"
    assert (record["messages"], record["received"], record["sent"]) == (0, 0, len(BANNER))
    assert record["listener"] == "tcp:0"
    assert record["duration"] >= 0


def test_the_text_ends_with_twistds_last_line(daemon: Start) -> None:
    running = daemon()
    running.wait_for("Socket now listening")
    running.stop()
    assert running.lines[-1].endswith("Server Shut Down.")


def test_what_is_below_the_level_is_left_out(daemon: Start) -> None:
    running = daemon("--log-level", "error", "--port", "18", "--listen", "tcp:nosuch")
    running.wait()
    assert [line for line in running.lines if "#info" in line] == []


def test_a_reload_changes_the_level(daemon: Start, tmp_path: Path) -> None:
    file = tmp_path / "echod.toml"
    file.write_text('log-level = "warn"\n')
    running = daemon("--config", str(file), "--listen", f"unix:{tmp_path}/socket")
    eventually((tmp_path / "socket").exists)
    file.write_text('log-level = "debug"\nlog-rate = 50\n')

    def reloaded() -> bool:
        running.signal(signal.SIGHUP)
        return "Reloaded; changed: log-level, log-rate" in running.log

    eventually(reloaded)
    assert "Socket now listening" not in running.log


def test_a_background_daemon_logs_to_a_file_that_sigusr1_rotates(tmp_path: Path) -> None:
    path, log = tmp_path / "socket", tmp_path / "twistd.log"
    started = subprocess.run(
        [SCRIPTS / "twistd", *REACTOR, "echod", "--listen", f"unix:{path}"],
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (started.returncode, started.stdout, started.stderr) == (0, b"", b"")
    process = int((tmp_path / "twistd.pid").read_text())
    try:
        eventually(lambda: "Socket now listening" in log.read_text())
        first = log.read_text()
        os.kill(process, signal.SIGUSR1)
        eventually((tmp_path / "twistd.log.1").exists)
        eventually(log.exists)
    finally:
        os.kill(process, signal.SIGTERM)
    eventually(lambda: log.read_text().endswith("Server Shut Down.\n"))
    assert (tmp_path / "twistd.log.1").read_text().startswith(first)
    assert first.count("starting up") == 1
    eventually(lambda: not Path(f"/proc/{process}").exists())


def test_a_log_file_that_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    failed = subprocess.run(
        [SCRIPTS / "twistd", "-n", "--pidfile=", "--logfile", "nosuch/log", "echod"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert failed.returncode == 1
    assert failed.stderr == f"echod: --logfile {tmp_path}/nosuch/log: No such file or directory\n"


def test_an_observer_that_twistd_was_given_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def observer():\n    return lambda event: print('mine', file=open('mine.txt', 'a'))\n"
    )
    path = tmp_path / "socket"
    process = subprocess.Popen(
        [SCRIPTS / "twistd", "-n", "--pidfile=", "--logger", "mine.observer", "echod",
         "--listen", f"unix:{path}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    try:
        eventually(path.exists)
        assert "mine" in (tmp_path / "mine.txt").read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_child_of_a_handler_logs_too(daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "forking.py").write_text("""
import os, time

def fork(message: bytes) -> bytes:
    child = os.fork()
    if not child:
        print("the child says so", flush=True)
        time.sleep(0.5)
        os._exit(0)
    os.waitpid(child, 0)
    print("the parent says so")
    return message
""")
    running = daemon("--handler", "forking:fork")
    with connect(running) as client:
        client.sendall(b"happy\n")
        assert receive(client, 6) == b"happy\n"
    running.wait_for("the parent says so")
    assert len(running.wait_for("the child says so")) == 1


@pytest.mark.parametrize("flag", ["--log-format=xml", "--log-level=loud", "--log-rate=-1"])
def test_wrong_settings_are_refused(tmp_path: Path, flag: str) -> None:
    failed = subprocess.run(
        [SCRIPTS / "twistd", "-n", "--pidfile=", "echod", flag],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"echod: {flag.split('=')[0]}: ")
