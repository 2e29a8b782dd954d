"""`script`, by the real daemon, with the clients that it stands in for."""

from __future__ import annotations

import re
import signal
import smtplib
import socket
import time
from pathlib import Path

import pytest
import redis

from tests.support.clients import connect, receive, receive_all
from tests.support.daemon import TERMINATED, Start
from tests.support.paths import ROOT

SCRIPTS = ROOT / "examples/scripts"


def test_a_fake_smtp_server_takes_mail_of_smtplib(daemon: Start) -> None:
    running = daemon("--handler", f"script:file={SCRIPTS}/smtp.txt")
    for _ in range(2):
        with smtplib.SMTP("127.0.0.1", running.port, timeout=20) as client:
            refused = client.sendmail("a@a.example", ["b@b.example"], "Subject: x\r\n\r\n..\r\nx")
            assert refused == {}
    assert "has left the script" not in running.log


def test_a_fake_redis_answers_redis_py(daemon: Start) -> None:
    running = daemon("--handler", f"script:file={SCRIPTS}/redis.txt")
    with redis.Redis(
        port=running.port, protocol=2, socket_timeout=20, single_connection_client=True
    ) as client:
        assert client.ping()
        assert client.set("any", "value")
        assert client.get("mood") == b"happy"
        assert client.get("other") is None
    assert "has left the script" not in running.log


@pytest.mark.parametrize("name", ["smtp.txt", "redis.txt"])
def test_the_examples_have_few_lines(name: str) -> None:
    assert len((SCRIPTS / name).read_text().splitlines()) <= 15


def test_a_mismatch_is_a_line_in_the_log_and_ends_the_connection(
    daemon: Start, tmp_path: Path
) -> None:
    (tmp_path / "talk.txt").write_text("> hello\n< (yes|no)\n> fine\n")
    running = daemon("--handler", "script:file=talk.txt")
    with connect(running) as client:
        assert receive(client, 7) == b"hello\r\n"
        client.sendall(b"maybe\x1b\n")
        assert receive_all(client) == b""
    (line,) = running.wait_for("has left the script .*")
    expected = r"has left the script talk.txt, line 2: expected (yes|no), got 'maybe"
    assert line.startswith(expected)
    assert "\x1b" not in running.log


@pytest.mark.parametrize(
    ("text", "error"),
    [("> a\nhello\n", r"script: talk\.txt:2: a line begins with"), (None, "No such file")],
)
def test_a_wrong_script_is_one_line_at_the_start_and_of_the_check(
    daemon: Start, tmp_path: Path, text: str | None, error: str
) -> None:
    if text is not None:
        (tmp_path / "talk.txt").write_text(text)
    for more in ((), ("--check-config",)):
        running = daemon("--handler", "script:file=talk.txt", *more)
        running.wait()
        assert running.process.returncode == 1
        assert len(re.findall(f"--handler: .*{error}", running.log)) == 1
        assert "Traceback" not in running.log


def test_a_wait_is_not_shorter_than_asked_for_and_holds_what_comes(
    daemon: Start, tmp_path: Path
) -> None:
    (tmp_path / "talk.txt").write_text("< a\nwait 0.3\n> b\n< c\n> d\n")
    running = daemon("--handler", "script:file=talk.txt")
    with connect(running) as client:
        began = time.monotonic()
        client.sendall(b"a\nc\n")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"b\r\nd\r\n"
        assert time.monotonic() - began >= 0.3


def test_a_script_resets(daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "talk.txt").write_text("< a\nreset\n")
    running = daemon("--handler", "script:file=talk.txt")
    with connect(running) as client:
        client.sendall(b"a\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_script_without_end_pauses_while_its_client_does_not_read(
    daemon: Start, tmp_path: Path
) -> None:
    """Fault 154: Memory does not grow, and other clients are served."""
    (tmp_path / "talk.txt").write_text("repeat\n> " + "x" * 1000 + "\nend\n")
    running = daemon("--handler", "script:file=talk.txt")
    with connect(running) as reading:
        assert len(receive(reading, 1 << 20)) == 1 << 20
        before = running.resident
        with connect(running) as silent:
            for _ in range(32):
                assert len(receive(reading, 1 << 20)) == 1 << 20
            assert running.resident - before < 16 << 20
            assert silent.recv(1) == b"x"


def test_a_drain_ends_a_script_that_expects_its_client(daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "talk.txt").write_text("> hello\n< a\n")
    running = daemon("--handler", "script:file=talk.txt", "--drain-timeout", "3600")
    with connect(running) as client:
        assert receive(client, 7) == b"hello\r\n"
        running.signal(signal.SIGTERM)
        assert receive_all(client) == b""
    running.wait()
    assert running.process.returncode in TERMINATED
    assert "drained" in running.wait_for("Disconnected from.*")[0]
    assert "has left the script" not in running.log  # the client has done nothing
