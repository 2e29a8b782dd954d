"""The examples of services that open something, check their arguments, or measure."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.support.clients import connect, receive, receive_all
from tests.support.daemon import REACTOR, Daemon, Start
from tests.support.needs import not_here
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, block_until


@pytest.fixture
def service(daemon: Start, tmp_path: Path) -> Start:
    """Start an example of examples/services, from the folder of the daemon."""
    for path in (ROOT / "examples" / "services").glob("*.py"):
        shutil.copy(path, tmp_path)

    def start(*arguments: str) -> Daemon:
        return daemon(*arguments, env={**os.environ, "PYTHONUNBUFFERED": "1"})

    return start


def ask(running: Daemon, *lines: bytes) -> list[bytes]:
    """Send lines; return the lines that come back, as many."""
    with connect(running) as client, client.makefile("rb") as replies:
        found = []
        for line in lines:
            client.sendall(line + b"\n")
            found.append(replies.readline().rstrip(b"\n"))
    return found


def test_words_are_looked_up_by_many_threads(service: Start, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "words.db") as words:
        words.execute("CREATE TABLE words (word TEXT PRIMARY KEY, meaning TEXT)")
        words.executemany(
            "INSERT INTO words VALUES (?, ?)", [(f"w{n}", f"m{n}") for n in range(9)]
        )
    words.close()
    running = service("--handler", "lookups:lookups:path=words.db", "--no-banner")
    running.wait_for("The handler asks for: framing line, concurrency defer-to-thread$")
    wrong: list[object] = []

    def look(number: int) -> None:
        for _ in range(20):
            replies = ask(running, b"w%d" % number, b"other")
            if replies != [b"m%d" % number, b"unknown"]:
                wrong.append(replies)

    threads = [threading.Thread(target=look, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not wrong
    running.signal()
    running.wait()
    assert "Traceback" not in running.log


def test_without_its_database_it_does_not_start(service: Start) -> None:
    running = service("--handler", "lookups:lookups:path=none.db")
    running.wait()
    assert running.process.returncode == 1
    assert "lookups:lookups cannot be opened: OperationalError: unable to open" in running.log


def test_a_flag_overrides_what_a_handler_asks_for(service: Start) -> None:
    running = service(
        *("--handler", "measured:shout", "--framing", "chunk", "--banner", "Hello"),
    )
    with connect(running) as client:
        assert receive(client, 6) == b"Hello\n"
        client.sendall(b"happy")
        assert receive(client, 5) == b"HAPPY"
    assert "The handler asks for" not in running.log


def test_values_are_kept_for_their_time(service: Start) -> None:
    running = service("--handler", "store:store:sweep=0.05")
    assert ask(running, b"GET a", b"SET a 60 b c", b"GET a", b"DEL a", b"GET a", b"x") == [
        *(b"NONE", b"OK", b"VALUE b c", b"OK", b"NONE"),
        b"ERROR: SET key seconds value, GET key, or DEL key",
    ]
    assert ask(running, b"SET a 1 b", b"GET a") == [b"OK", b"VALUE b"]
    block_until(lambda: ask(running, b"GET a") == [b"NONE"])
    running.signal()
    running.wait()
    assert "Traceback" not in running.log


def test_connections_are_passed_on(service: Start) -> None:
    if REACTOR == ["--reactor=epoll"]:
        not_here("a handler of streams is refused on this reactor")
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        port = upstream.getsockname()[1]
        running = service("--handler", f"tcp_proxy:proxy:host=127.0.0.1,port={port}")
        with connect(running) as client:
            server, _ = upstream.accept()
            with server:
                client.sendall(b"question" * 50_000)
                client.shutdown(socket.SHUT_WR)
                assert receive_all(server) == b"question" * 50_000
                server.sendall(b"answer" * 50_000)
            assert receive_all(client) == b"answer" * 50_000
    running.signal()
    running.wait()
    assert "Traceback" not in running.log


def test_its_own_metrics_stand_beside_echods(service: Start) -> None:
    status = free_port()
    running = service(
        *("--handler", "measured:shout:times=2"),
        *("--status", f"tcp:{status}:interface=127.0.0.1"),
    )
    assert ask(running, b"a b", b"c") == [b"A B A B", b"C C"]
    with urllib.request.urlopen(f"http://127.0.0.1:{status}/metrics") as page:
        text = page.read().decode()
    assert "shout_words_total 3.0" in text
    assert "echod_uptime_seconds" in text


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("measured:shout:times=11", "measured:shout: times must be between 1 and 10"),
        ("store:store:sweep=0", "store:store: sweep must be more than 0 seconds"),
    ],
)
def test_their_arguments_are_checked(service: Start, handler: str, said: str) -> None:
    running = service("--handler", handler)
    running.wait()
    assert running.process.returncode == 1
    assert f"echod: --handler: {said}" in running.lines
