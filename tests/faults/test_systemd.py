"""The daemon under a service manager: its notifications, and the sockets it gets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scale import Scale
from tests.support.clients import BANNER, PREFIX, connect, greeted, receive
from tests.support.daemon import Daemon, Start
from tests.support.service_manager import Manager, managing
from tests.support.waiting import PACE, block_until

HANDLERS = """
import os
import time
from pathlib import Path


def holding(message):
    while not Path("released").exists():
        time.sleep(0.01)
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
    """Fault 62: The daemon sends READY when it serves clients, then notifies the watchdog, sends
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
    daemon: Start, manager: Manager, file: Path, tmp_path: Path
) -> None:
    """Faults 8 and 62: The daemon does not notify the watchdog while a handler blocks the event
    loop.
    """
    environment = asked_by(manager, WATCHDOG_USEC="200000")
    running = daemon("--handler", "served:holding", env=environment)
    with connect(running) as connection:
        manager.wait_for("WATCHDOG=1", 3)
        connection.sendall(b"happy")
        running.wait_for("The event loop has been blocked")
        manager.hear()
        assert not manager.hears_within(0.7)  # seven times the interval
        (tmp_path / "released").touch()
        assert receive(connection, 5) == b"happy"
        manager.wait_for("WATCHDOG=1", len(manager.heard) + 1 - count_others(manager))


def count_others(manager: Manager) -> int:
    return sum("WATCHDOG=1" not in message for message in manager.heard)


def test_what_a_handler_starts_cannot_speak_for_the_daemon(
    daemon: Start, manager: Manager, file: Path
) -> None:
    """Fault 62: Handlers do not inherit the manager's address, nor do the processes that they
    start.
    """
    environment = asked_by(manager, WATCHDOG_USEC="200000")
    running = daemon("--handler", "served:environment", "--framing", "line", env=environment)
    with connect(running) as connection:
        connection.sendall(b"?\n")
        assert receive(connection, 1) == b"\n"


def test_a_manager_that_is_not_there_is_a_line_in_the_log(daemon: Start, tmp_path: Path) -> None:
    """Fault 62: If nothing listens at the manager's address, the daemon serves all the same."""
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": str(tmp_path / "nobody"),
        "PYTHONUNBUFFERED": "1",
    }
    running = daemon(env=environment)
    with greeted(running):
        running.wait_for("Cannot notify the service manager: .*No such file or directory")


# Socket activation.


class Keeper:
    """Keeps a listening socket, as systemd does, and starts one daemon after the other on it."""

    def __init__(self, start: Start, *more: socket.socket) -> None:
        """Open the socket.

        Args:
            start: starts a daemon.
            more: sockets to pass behind it.
        """
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port = self.socket.getsockname()[1]
        self._start = start
        self._sockets = (self.socket, *more)

    def start(self, **environment: str) -> Daemon:
        """Start a daemon as systemd would: sockets are descriptors from 3 on, and meant for it."""
        numbers = [each.fileno() for each in self._sockets]
        moves = " ".join(f"{3 + place}<&{number}" for place, number in enumerate(numbers))
        hand_over = f'exec {moves}; export LISTEN_PID=$$; exec "$@"'
        return self._start(
            *("--listen", "systemd:name=echod"),
            under=["bash", "-c", hand_over, "bash"],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **PASSED, **environment},
            pass_fds=numbers,
        )


PASSED = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "echod"}

# Of those in tests/listening/test_socket_activation.py, some that an operator brings about.
REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no variables": ({"LISTEN_FDS": ""}, "LISTEN_FDS is not set"),
    "another name": ({"LISTEN_FDNAMES": "other"}, "there is: other"),
}


@pytest.mark.parametrize("situation", REFUSED)
def test_without_its_socket_it_does_not_start(daemon: Start, situation: str) -> None:
    """Fault 63: If the requested socket was not passed, the daemon does not start, and one line
    names the sockets that were and says what to do.
    """
    environment, why = REFUSED[situation]
    keeper = Keeper(daemon)
    with keeper.socket:
        ended = keeper.start(**environment)
        ended.wait()
    assert ended.process.returncode == 1
    (line,) = [line for line in ended.lines if line.startswith("echod: ")]
    assert why in line
    assert "Traceback" not in ended.log


def test_a_socket_for_another_process_is_not_taken(daemon: Start) -> None:
    """Fault 63: The daemon does not take a socket that was meant for another process."""
    ended = daemon(
        "--listen", "systemd:name=echod", env={**os.environ, **PASSED, "LISTEN_PID": "1"}
    )
    ended.wait()
    assert ended.process.returncode == 1
    assert "the sockets are for process 1" in ended.log


def test_two_sockets_of_one_name_are_both_served(daemon: Start) -> None:
    """Fault 63: Several sockets of one name are one listener, and it serves the clients of each of
    them.
    """
    with socket.create_server(("127.0.0.1", 0)) as another:
        keeper = Keeper(daemon, another)
        with keeper.socket:
            keeper.start(LISTEN_FDS="2", LISTEN_FDNAMES="echod:echod")
            for port in (keeper.port, another.getsockname()[1]):
                with connect(port) as connection:
                    assert receive(connection, len(BANNER)) == BANNER


MESSAGES = [b"%04d\n" % number for number in range(20)]
REPLIES = [PREFIX + message for message in MESSAGES]


class Load:
    """Clients that connect all the time, each with a conversation of some messages."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self.whole = self.cut = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self._talk()
            except Exception as error:  # each is one too many
                self.wrong.append(error)
            self._over.wait(PACE)

    def _talk(self) -> None:
        with connect(self._port) as connection:
            replies = b""
            if receive(connection, len(BANNER)) == BANNER:
                for message in MESSAGES:
                    connection.sendall(message)
                    replies += receive(connection, len(PREFIX) + len(message))
        if replies == b"".join(REPLIES):
            self.whole += 1
        elif any(replies == b"".join(REPLIES[:count]) for count in range(len(REPLIES))):
            self.cut += 1  # between two messages: the client knows what was answered
        else:
            self.wrong.append(replies)

    @contextlib.contextmanager
    def from_threads(self, count: int) -> Iterator[None]:
        """Run it in this many threads within the block."""
        threads = [threading.Thread(target=self.run) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()


def test_no_restart_is_seen_by_a_client(daemon: Start, scale: Scale) -> None:
    """Fault 64: In 100 restarts under load with socket activation no connection is refused or
    reset, and no reply is lost, cut or out of order; conversations end between two messages.
    """
    keeper = Keeper(daemon)
    load = Load(keeper.port)
    with keeper.socket, load.from_threads(4):
        running = keeper.start()
        for _ in scale(ci=3, soak=100):
            running.wait_for("Socket now listening")
            seen = load.whole
            block_until(lambda seen=seen: load.whole > seen + 20 or load.wrong)
            running.signal()
            running.wait()
            assert running.process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
            running = keeper.start()
        running.wait_for("Socket now listening")
    assert load.wrong == []
    scale.note(f"{load.whole:,} conversations were whole, {load.cut} ended earlier")
