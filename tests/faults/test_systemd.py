"""The daemon under a service manager: what it says, and what it is given."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Start, connect, receive
from tests.faults.clients import greeted
from tests.service_manager import Manager, managing

HANDLERS = """
import os
import time


def sleeping(message):
    time.sleep(float(message))
    return message


def environment(message):
    return " ".join(name for name in os.environ if name.startswith(("NOTIFY", "WATCH"))).encode()
"""


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    address = path if request.param == "path" else f"@{path}"
    with managing(address) as listening:
        yield listening


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "served.py").write_text(HANDLERS)
    path = tmp_path / "echod.toml"
    path.write_text("")
    return path


def asked_by(manager: Manager, **more: str) -> dict[str, str]:
    """Return the environment of a daemon that the manager starts."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "NOTIFY_SOCKET": manager.address, **more}


def test_the_manager_is_told_in_order(daemon: Start, manager: Manager, file: Path) -> None:
    """Fault 62: It hears READY when clients are served, then the watchdog's sign of life,
    RELOADING and READY around a reload, and STOPPING when the drain begins.
    """
    environment = asked_by(manager, WATCHDOG_USEC="200000")
    running = daemon("--config", str(file), "--drain-timeout", "60", env=environment)
    manager.wait_for("READY=1")
    port = running.port  # it listens already
    with connect(port):
        manager.wait_for("STATUS=Serving; connections: 1")
        manager.wait_for("WATCHDOG=1", 3)
        running.signal(signal.SIGHUP)
        manager.wait_for("READY=1", 2)
        file.write_text("nonsense")
        running.signal(signal.SIGHUP)
        manager.wait_for("READY=1", 3)
        (refused,) = [line for line in manager.heard[-1] if line.startswith("STATUS=")]
        assert "the last reload was refused: " in refused
        running.signal()
        manager.wait_for("EXTEND_TIMEOUT_USEC=10000000")
    running.wait()
    manager.hear()
    told = [
        message[0].split("=")[0]
        for message in manager.heard
        if not message[0].startswith(("WATCHDOG", "STATUS"))
    ]
    reload = ["RELOADING", "READY"]
    assert told == ["READY", *reload, *reload, "STOPPING"]
    assert f"MAINPID={running.process.pid}" in manager.heard[0]
    assert all(line.isprintable() for message in manager.heard for line in message)


def test_the_watchdog_starves_while_a_handler_holds_the_loop(
    daemon: Start, manager: Manager, file: Path
) -> None:
    """Faults 8 and 62: No sign of life is given while a handler holds the event loop."""
    environment = asked_by(manager, WATCHDOG_USEC="200000")
    running = daemon("--handler", "served:sleeping", env=environment)
    with connect(running) as connection:
        manager.wait_for("WATCHDOG=1", 3)
        connection.sendall(b"1.5")
        running.wait_for("A handler has held the event loop")
        manager.hear()
        time.sleep(0.7)  # the handler sleeps for longer than that
        assert manager.hear() == []
        assert receive(connection, 3) == b"1.5"
        manager.wait_for("WATCHDOG=1", len(manager.heard) + 1 - count_others(manager))


def count_others(manager: Manager) -> int:
    return sum("WATCHDOG=1" not in message for message in manager.heard)


def test_what_a_handler_starts_cannot_speak_for_the_daemon(
    daemon: Start, manager: Manager, file: Path
) -> None:
    """Fault 62: The manager's address is not handed on to handlers and what they start."""
    environment = asked_by(manager, WATCHDOG_USEC="200000")
    running = daemon("--handler", "served:environment", "--framing", "line", env=environment)
    with connect(running) as connection:
        connection.sendall(b"?\n")
        assert receive(connection, 1) == b"\n"


def test_a_manager_that_is_not_there_is_a_line_in_the_log(daemon: Start, tmp_path: Path) -> None:
    """Fault 62: Without anybody at the other end, the daemon serves as ever."""
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": str(tmp_path / "nobody"),
        "PYTHONUNBUFFERED": "1",
    }
    running = daemon(env=environment)
    with greeted(running):
        running.wait_for("The service manager cannot be told: .*No such file or directory")
