"""`echod ctl`: each command against the real daemon."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from echod.cli.ctl import PAGE
from tests.cli.test_handlers import ECHOD
from tests.support.certificates import Authority
from tests.support.clients import BANNER, connect, greeted, is_over, receive
from tests.support.daemon import Daemon, Start, starting
from tests.support.programs import run
from tests.support.waiting import block_until

TOKEN = "0123456789abcdef"


Ctl = Callable[..., subprocess.CompletedProcess[str]]


def controlled(daemon: Start, folder: Path) -> Daemon:
    path = folder / "control"
    running = daemon("--control", f"unix:{path}", "--journal", "2000", "--journal-bytes", "20")
    block_until(path.exists)
    return running


def ctl_of(folder: Path) -> Ctl:
    environment = {**os.environ, "ECHOD_CONTROL": f"unix:{folder / 'control'}"}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return run(folder, ECHOD, "ctl", *words, env=environment)

    return call


@pytest.fixture
def here(daemon: Start, tmp_path: Path) -> Daemon:
    return controlled(daemon, tmp_path)


@pytest.fixture
def ctl(here: Daemon, tmp_path: Path) -> Ctl:
    return ctl_of(tmp_path)


@pytest.fixture(scope="module")
def ctl_that_changes_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ctl]:
    """Of a daemon that tests share."""
    folder = tmp_path_factory.mktemp("ctl")
    with starting(folder) as start:
        controlled(start, folder)
        yield ctl_of(folder)


def lines(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in done.stdout.splitlines()]


def test_connections_are_listed_shown_and_ended(here: Daemon, ctl: Ctl) -> None:
    with greeted(here) as one, greeted(here) as two:
        one.sendall(b"\x1b[31m\n")
        receive(one, 5)
        heads, first, second = lines(ctl("connections"))
        assert heads[:3] == ["ID", "CLIENT", "LISTENER"]
        assert (first[0], first[-1], second[0], second[-1]) == ("1", "(open)", "2", "(open)")
        shown = ctl("connections", "1").stdout
        assert r"received: \x1b[31m" in shown
        assert "\x1b" not in shown
        (same, _) = json.loads(ctl("connections", "--json", "--open").stdout)
        assert same == json.loads(ctl("--json", "connections", "1").stdout) | {
            "seconds": same["seconds"]
        }
        assert same["received_base64"] == "G1szMW0K"
        assert ctl("disconnect", "1").stdout == "disconnected 1 connection\n"
        assert is_over(one)
        assert ctl("disconnect", "--address", "192.0.2.1").stdout == "disconnected 0 connections\n"
        assert ctl("disconnect", "--all", "--drain").stdout == "disconnected 1 connection\n"
        assert receive(two, 1) == b""
    block_until(lambda: len(lines(ctl("connections", "--ended"))) == 3)
    assert [row[-1] for row in lines(ctl("connections", "--ended"))[1:]] == [
        "disconnected",
        "drained",
    ]
    assert len(lines(ctl("connections", "--reason", "drained"))) == 2
    assert len(lines(ctl("connections", "--limit", "1"))) == 2


def test_faults_are_set_added_removed_and_shown(here: Daemon, ctl: Ctl) -> None:
    assert ctl("fault", "reset:after=10", "--seed", "5").stdout == "seed: 5\nreset:after=10\n"
    with connect(here) as client:
        assert receive(client, 10) == BANNER[:10]
        assert is_over(client)
    ctl("fault", "--add", "drip:first=2")
    shown = "seed: 5\nreset:after=10\ndrip:first=2\nhappened: reset, in 1 connection\n"
    block_until(lambda: ctl("faults").stdout == shown)
    assert "drip" not in ctl("fault", "--remove", "drip:first=2").stdout
    assert json.loads(ctl("fault", "--clear", "--json").stdout)["faults"] == []
    assert "no faults on purpose" in ctl("faults").stdout


def test_it_suspends_and_resumes(here: Daemon, ctl: Ctl) -> None:
    assert ctl("suspend").stdout == "suspended\n"
    assert json.loads(ctl("suspend", "--json").stdout) == {"state": "suspended"}
    assert ctl("resume").stdout == "ready\n"
    with greeted(here):
        pass


def test_all_pages_are_fetched(here: Daemon, ctl: Ctl) -> None:
    for _ in range(PAGE + 5):
        with socket.create_connection(("127.0.0.1", here.port)):
            pass
    count = PAGE + 6
    block_until(lambda: len(lines(ctl("connections"))) == count)
    assert len(lines(ctl("connections", "--limit", str(PAGE + 1)))) == PAGE + 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("disconnect", "77"), 1, "no connection of that number is open"),
        (("connections", "77"), 1, "no connection of that number is open, or remembered"),
        (("fault", "nosuch"), 1, "no fault is named"),
        (("fault", "drip", "--remove"), 1, "no fault is written so"),
        (("fault",), 2, "name the faults"),
        (("fault", "drip", "--clear"), 2, "name the faults"),
        (("fault", "drip", "--add", "--seed", "1"), 2, "--seed needs"),
        (("disconnect",), 2, "say which"),
        (("disconnect", "1", "--all"), 2, "say which"),
        (("disconnect", "x"), 2, "is not a number from 1"),
        (("nosuch",), 2, "invalid choice"),
        ((), 2, "COMMAND"),
        (("faults", "--control", "unix:/nosuch"), 3, "No such file"),
        (("faults", "--control", "x"), 2, "is no endpoint of a control"),
        (("faults", "--control", ":"), 2, "is no endpoint of a control"),
        (("faults", "--control", "tcp:\N{SUPERSCRIPT TWO}"), 2, "is no endpoint of a control"),
        (("faults", "--control", "tcp:a..b:1"), 3, "'idna' codec"),
        (("faults", "--control-token-file", "/nosuch"), 2, "No such file"),
        (("faults", "--control", "tls:1", "--ca", "/nosuch"), 2, "--ca /nosuch"),
    ],
)
def test_an_error_is_one_line_with_an_exit_code(
    words: tuple[str, ...], code: int, said: str, ctl_that_changes_nothing: Ctl
) -> None:
    done = ctl_that_changes_nothing(*words)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("echod ctl: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_without_an_endpoint_it_says_how_to_name_one(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ECHOD_CONTROL"}
    done = run(tmp_path, ECHOD, "ctl", "faults", env=environment)
    assert done.returncode == 2
    assert "name the control, by --control ENDPOINT or ECHOD_CONTROL" in done.stderr


@contextmanager
def answering(data: bytes) -> Iterator[int]:
    """Answer one request with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("data", [b"", b"nonsense\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>"])
def test_another_server_is_no_control(data: bytes, tmp_path: Path) -> None:
    with answering(data) as port:
        done = run(tmp_path, ECHOD, "ctl", "faults", "--control", f"tcp:{port}")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1


def test_a_daemon_without_a_journal_says_so(daemon: Start, tmp_path: Path) -> None:
    path = tmp_path / "control"
    daemon("--control", f"unix:{path}")
    block_until(path.exists)
    done = run(tmp_path, ECHOD, "ctl", "connections", "--ended", "--control", f"unix:{path}")
    assert done.returncode == 1
    assert "start it with --journal N" in done.stderr


@pytest.mark.parametrize("way", ["tcp", "tls"])
def test_over_a_network_it_needs_the_token(way: str, daemon: Start, tmp_path: Path) -> None:
    file, certificate = tmp_path / "token", tmp_path / "server.pem"
    file.write_text(TOKEN)
    file.chmod(0o600)
    certificate.write_bytes(Authority().pem)
    more = f":certificate={certificate}" if way == "tls" else ""
    here = daemon(
        *("--control", f"{way}:0:interface=127.0.0.1{more}", "--control-token-file", str(file))
    )
    port = here.wait_for(r"ControlSite(?: \(TLS\))? starting on (\d+)")[-1]
    words = ["--control", f"{way}:127.0.0.1:{port}", "--ca", str(certificate)]
    done = run(tmp_path, ECHOD, "ctl", "faults", *words)
    assert done.returncode == 1
    assert "the token is missing or wrong" in done.stderr
    done = run(tmp_path, ECHOD, "ctl", "faults", *words, "--control-token-file", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    environment = {**os.environ, "ECHOD_CONTROL_TOKEN": TOKEN}
    assert run(tmp_path, ECHOD, "ctl", "faults", *words, env=environment).returncode == 0
