"""pytest's plugin, in a test run of another project."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest_echod
from tests.support.paths import ROOT

USES_IT = """
import pytest
from echod import Handler


class Shout(Handler):
    def received(self, message):
        return message.upper()


def test_one(echod_server):
    server = echod_server(Shout, framing="line")
    other = echod_server("reverse")
    with server.connect() as client:
        assert client.ask(b"hello") == b"HELLO"
    assert other.connect().ask(b"abc") == b"cba"


def test_two(echod_server):
    assert echod_server(Shout, framing="line").connect().ask(b"again") == b"AGAIN"
"""

MISBEHAVES = """
import socket


def fetch(port):
    while True:
        with socket.create_connection(("127.0.0.1", port)) as client:
            try:
                client.sendall(b"hello")
                data = b""
                while len(data) < 10:
                    data += client.recv(100)
                return data
            except ConnectionResetError:
                pass


def test_my_client_retries(echod_server):
    here = echod_server("echo:prefix=12345", no_banner=True)
    with here.fault("reset:after=9,first=2") as server:
        assert fetch(server.port) == b"12345hello"
        assert [c.reason for c in server.connections] == ["fault", "fault", "client closed"]
        assert server.connections[-1].received == b"hello"


def test_an_error_of_the_handler_fails_its_test_once(echod_server):
    def fail(message):
        raise ValueError("on purpose")

    with echod_server(fail) as server, server.connect() as client:
        client.sendall(b"x")
        assert client.receive_all() == b""
"""

DOES_NOT = """
import sys


def test_nothing_is_imported():
    mine = ("echod", "twisted", "uvloop", "zope")
    assert not [name for name in sys.modules if name.partition(".")[0] in mine]
    assert "pytest_echod" in sys.modules
"""


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on a file with this text, with echod's plugin alone."""
    (folder / "test_it.py").write_text(text)
    others = [
        f"no:{one.name}" for one in entry_points(group="pytest11") if one.value != "pytest_echod"
    ]
    options = [option for other in others for option in ("-p", other)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, "-p", "no:cacheprovider", folder],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_fixture_serves_until_the_end_of_its_test(tmp_path: Path) -> None:
    ran = run(tmp_path, USES_IT)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    assert "2 passed" in ran.stdout


def test_the_fixture_misbehaves_on_demand(tmp_path: Path) -> None:
    """Fault 158: A test's server resets, counts and remembers connections, by pytest's fixture."""
    ran = run(tmp_path, MISBEHAVES)
    assert "1 failed, 1 passed" in ran.stdout, ran.stdout
    assert "the handler has raised ValueError('on purpose')" in ran.stdout


def test_runs_that_do_not_use_it_import_neither_echod_nor_twisted(tmp_path: Path) -> None:
    ran = run(tmp_path, DOES_NOT)
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


def test_the_plugin_is_found_by_its_entry_point() -> None:
    found = [one for one in entry_points(group="pytest11") if one.name == "echod"]
    assert [one.load() for one in found] == [pytest_echod]


def test_to_import_the_plugin_takes_less_than_five_milliseconds() -> None:
    program = """
import pytest, sys, time
for _ in range(5):
    before = set(sys.modules)
    began = time.perf_counter()
    import pytest_echod
    print(time.perf_counter() - began)
    for name in set(sys.modules) - before:
        del sys.modules[name]
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    took = [float(line) for line in ran.stdout.split()]
    assert len(took) == 5
    assert min(took) < 0.005


def test_the_examples_of_clients_pass(tmp_path: Path) -> None:
    """Fault 159: redis-py, urllib3 and psycopg do what the examples say of them."""
    for name in ("testing", "scripts"):
        shutil.copytree(ROOT / "examples" / name, tmp_path / name)
    ran = run(tmp_path, "")
    assert ran.returncode == 0, ran.stdout
    assert "21 passed" in ran.stdout


def test_the_tests_of_the_chat_pass(tmp_path: Path) -> None:
    for name in ("chat.py", "test_chat.py"):
        shutil.copy(ROOT / "examples" / "services" / name, tmp_path)
    ran = run(tmp_path, "")
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout
