"""Sockets that a service manager passes: as it should, and as it should not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.clients import BANNER, connect, receive, receive_all
from tests.support.daemon import Daemon, Start
from tests.support.needs import tool
from tests.support.proxy_headers import line
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE


class Manager:
    """Opens sockets, keeps them, and passes them to daemons."""

    def __init__(self, start: Start, directory: Path) -> None:
        self._start = start
        self._directory = directory
        self.sockets: list[socket.socket] = []

    def tcp(self, family: socket.AddressFamily = socket.AF_INET) -> int:
        """Open a TCP socket; return its port."""
        opened = socket.socket(family)
        opened.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        opened.listen(4096)
        return self.add(opened).getsockname()[1]  # type: ignore[no-any-return]

    def unix(self) -> str:
        """Open a UNIX socket; return its path."""
        opened = socket.socket(socket.AF_UNIX)
        opened.bind(str(self._directory / "s"))
        opened.listen()
        return str(self.add(opened).getsockname())

    def add(self, opened: socket.socket) -> socket.socket:
        self.sockets.append(opened)
        return opened

    def start(self, *listen: str, names: str = "echod", flags: Iterable[str] = ()) -> Daemon:
        """Start a daemon with all sockets, as descriptors from 3 on."""
        numbers = [each.fileno() for each in self.sockets]
        moves = " ".join(f"{3 + place}<&{number}" for place, number in enumerate(numbers))
        hand_over = f'exec {moves}; export LISTEN_PID=$$; exec "$@"'
        told = {"LISTEN_FDS": str(len(numbers)), "LISTEN_FDNAMES": names}
        return self._start(
            *[word for each in listen for word in ("--listen", each)],
            *flags,
            under=["bash", "-c", hand_over, "bash"],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **told},
            pass_fds=numbers,
        )

    def serve(self, *listen: str, names: str = "echod", flags: Iterable[str] = ()) -> Daemon:
        """Start a daemon as above, and wait until it listens.

        The start of an executed program takes a busy machine longer than a client has patience.
        """
        started = self.start(*listen, names=names, flags=flags)
        started.wait_for("Socket now listening", len(listen), patience=2 * PATIENCE)
        return started


@pytest.fixture
def manager(daemon: Start, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(daemon, tmp_path)
    yield made
    for each in made.sockets:
        each.close()


def greeted(connection: socket.socket) -> bool:
    return receive(connection, len(BANNER)) == BANNER


def error_of(running: Daemon) -> str:
    """Return the one line that a daemon ends with."""
    running.wait()
    assert running.process.returncode == 1
    assert "Traceback" not in running.log
    (error,) = [line for line in running.log.splitlines() if line.startswith("echod: ")]
    return error


def test_systemd_socket_activate_starts_it(daemon: Start, tmp_path: Path) -> None:
    """Fault 63: With systemd's own tool, the first client starts the daemon, and is served."""
    path = tmp_path / "s"
    under = [tool("systemd-socket-activate"), f"--listen={path}", "--fdname=echod"]
    under += [f"--setenv={name}" for name in ("PYTHONUNBUFFERED",)]
    running = daemon("--listen", "systemd:name=echod", under=under)
    running.wait_for("Listening on")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        assert greeted(connection)


def test_every_kind_of_socket_is_recognised(manager: Manager) -> None:
    """Fault 63: The daemon recognises IPv4, IPv6 and UNIX sockets by itself; several of one name
    are one listener.
    """
    ports = manager.tcp(), manager.tcp(socket.AF_INET6)
    path = manager.unix()
    running = manager.serve("systemd:name=echod", names="echod:echod:echod")
    with connect(ports[0]) as first, socket.create_connection(("::1", ports[1])) as second:
        second.settimeout(PATIENCE)
        assert greeted(first)
        assert greeted(second)
    with socket.socket(socket.AF_UNIX) as third:
        third.settimeout(PATIENCE)
        third.connect(path)
        assert greeted(third)
    running.tell()
    running.wait()
    assert Path(path).exists()


def test_a_passed_socket_takes_what_others_take(manager: Manager, tmp_path: Path) -> None:
    """Fault 63: TLS and PROXY headers work on passed sockets too."""
    authority = Authority()
    (tmp_path / "server.pem").write_bytes(authority.pem)
    first, second, third = manager.tcp(), manager.tcp(), manager.tcp()
    running = manager.serve(
        "proxy:systemd:name=clear",
        "tls:systemd:name=tls:certificate=server.pem",
        "proxy:tls:systemd:name=both:certificate=server.pem",
        names="clear:tls:both",
    )
    context = client_context()
    with connect(first) as clear:
        clear.sendall(line())
        assert greeted(clear)
    with connect(second) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
        assert greeted(tls)
    with connect(third) as plain:
        plain.sendall(line())
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            assert greeted(tls)
    running.wait_for("Connected with 203.0.113.7", count=2)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_clients_wait_while_the_daemon_restarts(manager: Manager, kind: str) -> None:
    """Faults 63 and 64: At its end the daemon leaves the socket open: a client that connects
    before the next daemon starts waits, and is served.
    """
    place = manager.tcp() if kind == "tcp" else manager.unix()
    for _ in range(2):
        with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as waiting:
            waiting.settimeout(PATIENCE)
            waiting.connect(("127.0.0.1", place) if kind == "tcp" else place)
            waiting.sendall(b"happy\n")
            running = manager.serve("systemd:name=echod")
            assert greeted(waiting)
            assert receive(waiting, 11) == b"OK...happy\n"
            waiting.shutdown(socket.SHUT_WR)
            assert receive_all(waiting) == b""
        running.tell()
        running.wait()


def test_without_names_a_number_will_do(manager: Manager) -> None:
    """Fault 63: If the sockets have no names, a listener can select one by its number."""
    manager.tcp()
    port = manager.tcp()
    running = manager.serve("systemd:index=1", names="")
    with connect(port) as connection:
        assert greeted(connection)
    running.wait_for("systemd passed sockets that no --listen, --status or --control uses")


def test_without_a_manager_it_says_how_to_have_one(daemon: Start) -> None:
    """Fault 63: If the daemon is started without a socket, its error says how to pass one."""
    error = error_of(daemon("--listen", "systemd:name=echod"))
    assert "no socket was passed (LISTEN_FDS is not set): start the daemon by its socket" in error


def test_a_socket_that_does_not_listen_is_refused(manager: Manager) -> None:
    """Fault 63: The daemon refuses a connection, as Accept=yes passes it, and its error says why
    it does.
    """
    ours, theirs = socket.socketpair()
    manager.add(ours)
    with theirs:
        assert "does not listen: use Accept=no" in error_of(manager.start("systemd:name=echod"))


UPGRADING = """
from echod import Handler

class Upgrading(Handler):
    def opened(self, client):
        self.client = client

    def received(self, message):
        if message == b"STARTTLS":
            self.client.start_tls()
            return b"go ahead"
        return b"in TLS" if self.client.tls else b"in clear"
"""


def test_a_handler_begins_tls_on_a_passed_socket(manager: Manager, tmp_path: Path) -> None:
    """Fault 135: This holds for a socket that the service manager passes, too."""
    (tmp_path / "upgrading.py").write_text(UPGRADING)
    (tmp_path / "server.pem").write_bytes(Authority().pem)
    port = manager.tcp()
    manager.serve(
        f"starttls:systemd:name=echod:certificate={tmp_path / 'server.pem'}",
        flags=("--handler", "upgrading:Upgrading", "--framing", "line", "--no-banner"),
    )
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"NOOP\n")
        assert receive(client, 9) == b"in clear\n"
        client.sendall(b"STARTTLS\n")
        assert receive(client, 9) == b"go ahead\n"
        with client_context().wrap_socket(client.dup()) as secure:
            secure.sendall(b"NOOP\n")
            assert receive(secure, 7) == b"in TLS\n"
