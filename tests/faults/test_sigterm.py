"""SIGTERM at the worst moments: all that was received is answered, and every reply arrives."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.faults.scale import Scale, number
from tests.support.certificates import self_signed_pem
from tests.support.clients import (
    BANNER,
    PREFIX,
    connect,
    end_while_idle,
    numbered,
    receive,
    receive_all,
    unacknowledged,
)
from tests.support.daemon import CONCURRENT, REACTOR, TERMINATED, Daemon, Start, starting
from tests.support.needs import not_here
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE, block_until

HANDLERS = """
from echod import message_handler


@message_handler
def bulk(message):
    print("a handler is at work")
    return b"%07d\\n" * (int(message) // 8) % tuple(range(int(message) // 8))
"""

LARGE = 20_000_000


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("model", CONCURRENT)
def test_all_that_is_queued_is_delivered(
    daemon: Start, tmp_path: Path, model: str, tls: bool
) -> None:
    """Fault 4: All 20 MB arrive, over TLS too, within the deadline; then the daemon ends."""
    (tmp_path / "served.py").write_text(HANDLERS)
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    listen = "tls:0:certificate=server.pem" if tls else "tcp:0"
    running = daemon(
        *("--listen", listen, "--concurrency", model, "--handler", "served:bulk"),
    )
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(connect(running))
        if tls:
            # An end without close_notify would be an error.
            wrapped = client_context().wrap_socket(connection, suppress_ragged_eofs=False)
            connection = stack.enter_context(wrapped)
        connection.sendall(b"%d" % LARGE)
        running.wait_for("a handler is at work")
        running.signal()
        running.wait_for("Draining")
        came = receive_all(connection)
    assert len(came) == LARGE
    assert came.endswith(b"%07d\n" % (LARGE // 8 - 1))
    running.wait()
    assert running.process.returncode in TERMINATED


# How much a client sends ahead of the replies, in bytes.
AHEAD = 20_000

CLIENTS = 4


class Loader(threading.Thread):
    """A client that sends and reads as fast as it can until the daemon ends the stream."""

    def __init__(self, running: Daemon) -> None:
        super().__init__()
        self.connection = connect(running)
        self.sent = 0
        self.came = bytearray()
        # Whether a reset came before it stopped sending.
        self.cut_off = False
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with self.connection, selectors.DefaultSelector() as selector:
                self.connection.setblocking(False)
                selector.register(self.connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
                self._talk(selector)
        except Exception as error:
            self.error = error

    def _talk(self, selector: selectors.BaseSelector) -> None:
        while events := selector.select(PATIENCE):
            if events[0][1] & selectors.EVENT_WRITE and self.sent - len(self.came) < AHEAD:
                try:
                    # A message at a time, so that none is cut where another begins.
                    self.sent += self.connection.send(
                        numbered(4_000_000)[self.sent : self.sent + 1000]
                    )
                except ConnectionError:
                    self.cut_off = True
                    selector.modify(self.connection, selectors.EVENT_READ)
            if events[0][1] & selectors.EVENT_READ and not self._read():
                return
        raise TimeoutError(f"{len(self.came)} bytes came, then nothing")

    def _read(self) -> bool:
        """Read the available data; return False at the end."""
        try:
            piece = self.connection.recv(1 << 16)
        except BlockingIOError:
            return True
        except ConnectionError:
            self.cut_off = True
            return False
        self.came += piece
        return bool(piece)

    @property
    def received(self) -> int:
        """How much the daemon's kernel has received, at least."""
        sent = self.sent
        with contextlib.suppress(OSError):
            return max(0, sent - unacknowledged(self.connection))
        return 0


@pytest.mark.parametrize("model", CONCURRENT)
def test_sigterm_under_load_loses_nothing(tmp_path: Path, model: str, scale: Scale) -> None:
    """Fault 4: Under load, all that the daemon's machine had received at SIGTERM is answered, in
    order, and no client is reset, in 1,000 SIGTERMs.
    """
    for turn in scale(ci=2, soak=400):
        with starting(tmp_path) as start:
            # Each time, something else is under way.
            loaders = stop_under_load(start("--concurrency", model), (1 + turn % 10) * 10_000)
            assert not any(loader.cut_off for loader in loaders)


def stop_under_load(running: Daemon, least_answered: int) -> list[Loader]:
    """Send SIGTERM once each client has got this many bytes of replies."""
    loaders = [Loader(running) for _ in range(CLIENTS)]
    for loader in loaders:
        loader.start()
    block_until(lambda: all(len(loader.came) > least_answered for loader in loaders))
    received = [loader.received for loader in loaders]
    running.signal()
    for loader in loaders:
        loader.join()
    running.wait()
    assert running.process.returncode in TERMINATED
    assert "Traceback" not in running.log
    for loader, least in zip(loaders, received, strict=True):
        assert loader.error is None, loader.error
        assert loader.came.startswith(BANNER)
        echoed = bytes(loader.came[len(BANNER) :]).replace(PREFIX, b"")
        assert echoed == numbered(4_000_000)[: len(echoed)]
        assert len(echoed) >= least
    return loaders


@pytest.mark.parametrize("listen", ["tcp:0", "unix:echod.sock"])
@pytest.mark.parametrize("model", CONCURRENT)
def test_clients_that_the_daemon_has_not_accepted_yet_are_served(
    daemon: Start, tmp_path: Path, model: str, listen: str
) -> None:
    """Fault 166: A client that has connected before SIGTERM is greeted, its messages are answered,
    and it sees no reset, though the daemon has yet to accept it.
    """
    count = 300  # of which the daemon takes 64 in a turn of the loop
    limits = ("--threads", str(2 * count), "--max-connections-per-address", "0")
    running = daemon("--listen", listen, "--concurrency", model, *limits)

    def dial() -> socket.socket:
        return connect(running) if listen == "tcp:0" else dial_unix(tmp_path / "echod.sock")

    with contextlib.ExitStack() as stack:
        running.wait_for("Socket now listening")
        running.signal(signal.SIGSTOP)
        clients = [stack.enter_context(dial()) for _ in range(count)]
        for client in clients:
            client.sendall(b"happy\n")
        running.signal(signal.SIGTERM)
        running.signal(signal.SIGCONT)
        for client in clients:
            assert receive_all(client) == BANNER + PREFIX + b"happy\n"
        running.wait()
    assert "Traceback" not in running.log


ECHOES = """
import asyncio

from echod import Handler


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Buffered(asyncio.BufferedProtocol):
    def connection_made(self, transport):
        self.transport = transport
        self.buffer = bytearray(1024)

    def get_buffer(self, hint):
        return self.buffer

    def buffer_updated(self, size):
        self.transport.write(self.buffer[:size])


async def streams(reader, writer):
    while data := await reader.read(1024):
        writer.write(data)


class Upgrading(Handler):
    def opened(self, client):
        self.client = client

    def received(self, message):
        if message == b"STARTTLS":
            self.client.start_tls()
        return message
"""


def encrypted(client: socket.socket) -> socket.socket:
    # An end without close_notify would be an error.
    return client_context().wrap_socket(client, suppress_ragged_eofs=False)


def dial_unix(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


@pytest.mark.parametrize("way", ["tcp", "tls", "proxy:tls"])
@pytest.mark.parametrize("kind", [*CONCURRENT, "Echo", "Buffered", "streams"])
def test_idle_clients_see_the_end_at_once_and_no_reset(
    daemon: Start, tmp_path: Path, scale: Scale, kind: str, way: str
) -> None:
    """Fault 4: Idle clients see the end at once, close_notify over TLS, and no reset."""
    if kind not in CONCURRENT and REACTOR == ["--reactor=epoll"]:
        not_here("this reactor has no asyncio event loop")
    (tmp_path / "served.py").write_text(ECHOES)
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    count = number(ci=20, soak=1000)
    of_kind = ["--handler", f"served:{kind}"]
    if kind in CONCURRENT:
        of_kind = ["--concurrency", kind, "--no-banner", "--prefix="]
    if kind == "thread-per-connection":
        of_kind += ["--max-threads", str(2 * count)]
    listen = f"{way}:0" if way == "tcp" else f"{way}:0:certificate=server.pem"
    # A drain that waits for its deadline would take 200 s.
    running = daemon("--listen", listen, *of_kind, "--drain-timeout", "200")

    def dial() -> socket.socket:
        client = connect(running)
        if way.startswith("proxy"):
            client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        return client if way == "tcp" else encrypted(client)

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial()) for _ in range(count)]
        seconds = end_while_idle(running, clients)
    scale.note(f"{kind}, {way}: {count} clients ended in {seconds:.2f} s")


def test_idle_clients_of_several_workers_see_the_end_at_once_and_no_reset(
    daemon: Start, tmp_path: Path, scale: Scale
) -> None:
    """Fault 4: So do those of several workers, and of UNIX sockets."""
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    tls = ":certificate=server.pem"
    listeners = ["tcp:0", f"tls:0{tls}", "unix:clear", f"tls:unix:encrypted{tls}"]
    flags = [word for listener in listeners for word in ("--listen", listener)]
    running = daemon(
        *flags, "--workers", "2", "--no-banner", "--prefix=", "--drain-timeout", "200"
    )
    count = number(ci=10, soak=500)
    with contextlib.ExitStack() as stack:
        running.wait_for("Socket now listening", len(listeners))
        ports = [int(port) for port in running.wait_for(r"has port (\d+)", 2)]
        clients = [
            stack.enter_context(client)
            for _ in range(count)
            for client in (
                connect(ports[0]),
                encrypted(connect(ports[1])),
                dial_unix(tmp_path / "clear"),
                encrypted(dial_unix(tmp_path / "encrypted")),
            )
        ]
        seconds = end_while_idle(running, clients)
    scale.note(f"workers: {len(clients)} clients ended in {seconds:.2f} s")


def test_idle_clients_before_and_after_starttls_see_the_end_at_once_and_no_reset(
    daemon: Start, tmp_path: Path, scale: Scale
) -> None:
    """Fault 210: So do those that have not begun their handshake, of `tls:` and of `starttls:`."""
    (tmp_path / "served.py").write_text(ECHOES)
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    count = number(ci=10, soak=500)
    tls = ":certificate=server.pem"
    flags = ("--listen", f"starttls:0{tls}", "--listen", f"proxy:tls:0{tls}")
    running = daemon(*flags, "--handler", "served:Upgrading", "--drain-timeout", "200")
    with contextlib.ExitStack() as stack:
        offering, behind_proxy = map(int, running.wait_for(r"starting on (\d+)", 2))

        def dial(port: int) -> socket.socket:
            return stack.enter_context(connect(port))

        def asked() -> socket.socket:
            client = dial(offering)
            client.sendall(b"STARTTLS")
            assert receive(client, 8) == b"STARTTLS"
            return client

        clients = [dial(offering) for _ in range(count)]
        clients += [stack.enter_context(encrypted(asked())) for _ in range(count)]
        silent = [asked() for _ in range(count)]
        silent += [dial(behind_proxy) for _ in range(count)]  # without a header
        for client in (handshaking := [dial(behind_proxy) for _ in range(count)]):
            client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        seconds = end_while_idle(running, clients, silent + handshaking)
    scale.note(f"{5 * count} clients ended in {seconds:.2f} s")
