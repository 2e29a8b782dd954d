"""`script`, by its factory in every way, and by the real daemon with real clients."""

from __future__ import annotations

import re
import signal
import smtplib
import socket
import time
from pathlib import Path

import pytest
import pytest_twisted

from echod.connections.factory import EchoFactory
from echod.handlers.contract import HandlerError
from echod.handlers.script import Script
from echod.reasons import EndReason
from tests.support.clients import connect, receive, receive_all
from tests.support.daemon import TERMINATED, Start
from tests.support.log import Log
from tests.support.paths import ROOT
from tests.support.reactor import reactor
from tests.support.serving import Server, eventually, server_by

SCRIPTS = ROOT / "examples/scripts"
in_every_way = pytest.mark.parametrize("way", ["clear", "TLS", "PROXY"])


def serving(way: str, folder: Path, certificate: Path, text: str) -> Server:
    """Return a server that holds the conversations of a script."""
    file = folder / "talk.txt"
    file.write_text(text)
    return server_by(way, EchoFactory(reactor, handler=Script(file=str(file))), certificate)


@in_every_way
@pytest_twisted.ensureDeferred
async def test_a_conversation_goes_by_the_script_however_its_input_comes(
    way: str, tmp_path: Path, certificate: Path
) -> None:
    text = "> Who?\n< I am (\\w+)\nwait 0.01\n> Hello \\1\nrepeat 2\n< a\n>- b\nend\nclose\n"
    async with serving(way, tmp_path, certificate, text) as server:
        client = await server.connect()
        await client.receive(b"Who?\r\n")
        client.send(b"I am ")
        await client.arrive()
        client.send(b"Ann\r\na\na\n")
        assert await client.receive_all() == b"Hello Ann\r\nbb"
        assert client.clean
        await eventually(lambda: not server.factory.connections)


@in_every_way
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_the_script_is_told_of_and_disconnected(
    way: str, tmp_path: Path, certificate: Path, log: Log
) -> None:
    async with serving(way, tmp_path, certificate, "< yes\n> fine\n") as server:
        client = await server.connect()
        client.send(b"no\n")
        assert await client.receive_all() == b""
        gone = await server.connect()
        gone.finish()
        assert await gone.receive_all() == b""
        await eventually(lambda: not server.factory.connections)
    assert "line 1: expected yes, got 'no" in log.text
    assert log.text.count("has left the script") == 2


@in_every_way
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_within_a_wait_leaves_no_timer(
    way: str, tmp_path: Path, certificate: Path
) -> None:
    async with serving(way, tmp_path, certificate, "> a\nwait 3600\n> b\n") as server:
        client = await server.connect()
        await client.receive(b"a\r\n")
        (served,) = server.factory.connections
        served.abort(EndReason.ABORTED)
        await eventually(lambda: not server.factory.connections)
        await client.until(lambda: client.reason is not None)


@pytest_twisted.ensureDeferred
async def test_a_reset_of_the_script_is_one(tmp_path: Path, certificate: Path) -> None:
    async with serving("clear", tmp_path, certificate, "< a\nreset\n") as server:
        client = await server.connect()
        client.send(b"a\n")
        assert await client.receive_all() == b""
        assert not client.clean
        await eventually(lambda: not server.factory.connections)


@in_every_way
@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_pauses_the_script(
    way: str, tmp_path: Path, certificate: Path
) -> None:
    text = "repeat 3000\n> " + "x" * 9998 + "\nend\n"
    async with serving(way, tmp_path, certificate, text) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        await eventually(
            lambda: any(getattr(one, "is_blocked", False) for one in server.factory.connections)
        )
        client.transport.resumeProducing()
        assert len(await client.receive_all()) == 30_000_000


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, r"script: .*talk\.txt: No such file or directory"),
        (b"\xff", r"script: .*talk\.txt is not UTF-8"),
        (b"> a\nhello\n", r"script: .*talk\.txt:2: a line begins with"),
    ],
)
def test_a_script_that_cannot_be_used_says_why(
    tmp_path: Path, content: bytes | None, error: str
) -> None:
    if content is not None:
        (tmp_path / "talk.txt").write_bytes(content)
    with pytest.raises(HandlerError, match=error):
        Script(file=str(tmp_path / "talk.txt"))


def test_a_fake_smtp_server_takes_mail_of_smtplib(daemon: Start) -> None:
    running = daemon("--handler", f"script:file={SCRIPTS}/smtp.txt")
    for _ in range(2):
        with smtplib.SMTP("127.0.0.1", running.port, timeout=20) as client:
            refused = client.sendmail("a@a.example", ["b@b.example"], "Subject: x\r\n\r\n..\r\nx")
            assert refused == {}
    assert "has left the script" not in running.log


def test_a_fake_redis_answers_redis_py(daemon: Start) -> None:
    import redis  # each worker of pytest would wait for it

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
