"""Code of asyncio that knows nothing of echod, served by the real daemon."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from smtplib import SMTP, SMTPServerDisconnected
from typing import Any

import pytest

from tests.faults.scale import number
from tests.support.certificates import self_signed_pem
from tests.support.clients import connect, receive, receive_all
from tests.support.daemon import REACTOR, TERMINATED, TWISTD, Daemon, Start
from tests.support.haproxy import DEFAULTS, haproxy
from tests.support.needs import missing, not_here, tool
from tests.support.programs import run
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE, block_until

HANDLERS = '''
import asyncio
import ssl

from aiosmtpd.smtp import SMTP

from echod import protocol_factory


async def streams(reader, writer):
    """The echo of a tutorial."""
    while data := await reader.read(1024):
        writer.write(data)
        await writer.drain()
    writer.close()


class Echo(asyncio.Protocol):
    """The echo of asyncio's own documentation."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Buffered(asyncio.BufferedProtocol):
    def connection_made(self, transport):
        self.transport = transport
        self.buffer = bytearray(4096)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self.transport.write(bytes(self.buffer[:nbytes]))


class Keeps:
    async def handle_DATA(self, server, session, envelope):
        await asyncio.sleep(0.1)
        return f"250 Kept {len(envelope.content)} bytes of {session.peer}"


@protocol_factory
def mail(*, certificate: str = ""):
    """Takes mail by aiosmtpd, with STARTTLS if there is a certificate."""
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    return SMTP(Keeps(), hostname="here", tls_context=context)
'''

ECHOES = ["streams", "Echo", "Buffered"]
MAIL = "Subject: happy days\r\n\r\nhappy\r\n"

pytestmark = pytest.mark.usefixtures("_on_a_loop")


@pytest.fixture(scope="module")
def _on_a_loop() -> None:
    if REACTOR == ["--reactor=epoll"]:
        not_here("such a handler is refused on this reactor: see the test of refusals")


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(HANDLERS)
    (tmp_path / "server.pem").write_bytes(self_signed_pem())


def listen(way: str) -> tuple[str, ...]:
    """Return the flags to listen by this way."""
    endpoints = {
        "clear": "tcp:0:interface=127.0.0.1",
        "tls": "tls:0:certificate=server.pem",
        "unix": "unix:echod.sock",
        "proxy:tls": "proxy:tls:0:certificate=server.pem",
    }
    return ("--listen", endpoints[way])


@contextlib.contextmanager
def client_of(running: Daemon, way: str) -> Iterator[socket.socket]:
    """Connect to a daemon by this way, through haproxy for one behind a proxy."""
    with contextlib.ExitStack() as stack:
        if way == "unix":
            running.wait_for("Socket now listening")
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(PATIENCE)
            connection.connect(str(running.directory / "echod.sock"))
        elif way.startswith("proxy:"):
            text = f"""{DEFAULTS}
listen in
    bind {{bind}}
    server echod 127.0.0.1:{running.port} send-proxy-v2
"""
            proxy = stack.enter_context(haproxy(running.directory, text))
            connection = stack.enter_context(proxy.connect())
        else:
            connection = stack.enter_context(connect(running))
        if "tls" in way:
            wrapped = client_context().wrap_socket(connection, suppress_ragged_eofs=False)
            connection = stack.enter_context(wrapped)
        yield connection


def echoed(client: socket.socket, data: bytes) -> bytes:
    """Send `data`, and return as many bytes; 64 KiB are on their way at a time.

    One thread does both: two that use one connection of Python's `ssl` at a time break
    it now and then (https://github.com/python/cpython/issues/151508).
    """
    came, piece, ahead = bytearray(), 1 << 13, 1 << 16
    for start in range(0, len(data), piece):
        client.sendall(data[start : start + piece])
        if start >= ahead:
            came += receive(client, piece)
    return bytes(came) + receive(client, len(data) - len(came))


@pytest.mark.parametrize("way", ["clear", "tls", "unix", "proxy:tls"])
@pytest.mark.parametrize("handler", ECHOES)
def test_an_echo_of_asyncio_is_served_by_each_way(daemon: Start, handler: str, way: str) -> None:
    running = daemon(*listen(way), "--handler", f"served:{handler}")
    sent = bytes(range(256)) * 1000
    with client_of(running, way) as client:
        assert echoed(client, sent) == sent
        if "tls" in way:
            with contextlib.suppress(OSError):
                client.unwrap()  # type: ignore[attr-defined]
        else:
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
    running.wait_for(r"Disconnected from .*: client closed \(.* s, bytes in: 256000, out: 256000")
    assert "messages:" not in running.log
    assert "Traceback" not in running.log


@pytest.mark.parametrize(
    ("way", "starttls"),
    [("clear", False), ("clear", True), ("tls", False), ("unix", True), ("proxy:tls", False)],
)
def test_aiosmtpd_takes_mail_unchanged(daemon: Start, way: str, starttls: bool) -> None:
    running = daemon(*listen(way), "--handler", "served:mail:certificate=server.pem")
    with client_of(running, way) as connection:
        client = smtp_over(connection)
        if starttls:
            client.starttls(context=client_context())
            client.ehlo()
        assert client.sendmail("a@example.org", ["b@example.org"], MAIL) == {}
        client.quit()
        client.close()
    running.wait_for("Disconnected from")
    assert "Traceback" not in running.log


def smtp_over(connection: socket.socket) -> SMTP:
    """Return a client of the standard library on a connection, after EHLO."""
    client = SMTP()
    client.sock, client._host = connection, "localhost"  # type: ignore[attr-defined]
    assert client.getreply()[0] == 220
    client.ehlo("there")
    return client


def test_swaks_delivers_by_starttls(daemon: Start) -> None:
    running = daemon("--handler", "served:mail:certificate=server.pem")
    command = [tool("swaks"), "--to", "b@example.org", "--from", "a@example.org", "-tls"]
    done = subprocess.run(
        [*command, "--server", f"127.0.0.1:{running.port}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if "requires Net::SSLeay" in done.stderr:
        missing("swaks cannot speak TLS: install libnet-ssleay-perl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<~  250 Kept" in done.stdout
    assert "Traceback" not in running.log


@pytest.mark.parametrize("way", ["clear", "tls", "unix"])
def test_a_client_in_data_gets_its_250(daemon: Start, way: str) -> None:
    """Fault 105: An SMTP client that has begun to send its mail gets its 250."""
    running = daemon(*listen(way), "--handler", "served:mail")
    with client_of(running, way) as connection:
        client = smtp_over(connection)
        client.mail("a@example.org")
        client.rcpt("b@example.org")
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        connection.sendall(b"Subject: happy days\r\n")
        settle(running)
        running.signal()
        running.wait_for("Draining")
        connection.sendall(b"\r\nhappy\r\n.\r\n")
        assert client.getreply()[0] == 250
        with pytest.raises(SMTPServerDisconnected):
            client.getreply()
        client.close()
    running.wait()
    assert running.process.returncode in TERMINATED
    assert "Traceback" not in running.log
    assert len(running.wait_for(": drained")) == 1


def settle(running: Daemon) -> None:
    """Let the daemon's loop read what is there: it is idle when it has used no more time."""
    before = -1.0
    while running.cpu != before:
        before = running.cpu
        time.sleep(0.05)


@pytest.mark.timeout(180)  # for its handshakes, on a machine that is busy otherwise
@pytest.mark.parametrize("way", ["clear", "tls"])
@pytest.mark.parametrize("handler", [*ECHOES, "mail"])
def test_idle_clients_do_not_delay_the_end(daemon: Start, handler: str, way: str) -> None:
    """Fault 106: The daemon ends long before the drain's deadline, and no client sees a reset."""
    count = number(ci=200 if way == "clear" else 30, soak=1000)
    # A deadline that no test waits for: the end does not come from it.
    running = daemon(*listen(way), "--handler", f"served:{handler}", "--drain-timeout", "600")
    with contextlib.ExitStack() as stack:
        clients: list[Any] = []
        running.port  # noqa: B018 - it is there when the daemon listens
        before = running.descriptors
        for each in range(count):
            client = stack.enter_context(connect(running))
            if way == "tls":
                client = stack.enter_context(client_context().wrap_socket(client))
            clients.append(client)
            if each % 2 and handler != "mail":  # the others have not spoken yet
                client.sendall(b"happy")
                assert receive(client, 5) == b"happy"
            if handler == "mail":
                assert receive(client, 4) == b"220 "
        block_until(lambda: running.descriptors >= before + count)  # each is accepted
        settle(running)
        running.signal()
        for client in clients:  # as a polite client does, it closes at the end of the stream
            receive_all(client)
            client.close()
        running.wait()
    assert "Traceback" not in running.log
    assert running.process.returncode in TERMINATED


def check(tmp_path: Path, *arguments: str, reactor: tuple[str, ...] = ()) -> str:
    """Return the last line of `--check-config`, which has to fail."""
    done = run(tmp_path, *TWISTD, *reactor, "echod", "--port", "0", *arguments, "--check-config")
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return (done.stdout + done.stderr).splitlines()[-1]


STREAMS = "served:streams is a handler of asyncio streams"
PROTOCOL = "served:Echo is an asyncio protocol"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["streams", "--concurrency", "serial"], f"--handler: {STREAMS}: it runs with "),
        (["Echo", "--concurrency", "defer-to-thread"], f"--handler: {PROTOCOL}: it runs with "),
        (
            ["streams", "--concurrency", "thread-per-connection"],
            f"--handler: {STREAMS}: it runs with --concurrency reactor, not thread-per-connection",
        ),
        (["streams", "--framing", "line"], f"--framing has no effect: {STREAMS}, which reads "),
        (["Echo", "--max-message", "100"], f"--max-message has no effect: {PROTOCOL}, which "),
        (["Echo", "--banner", "hi"], f"--banner has no effect: {PROTOCOL}, which reads and "),
        (["streams:size=4"], "--handler: served:streams takes no argument 'size'; it takes: none"),
        (["mail:certificat=x"], "--handler: served:mail takes no argument 'certificat'; it "),
        (["streams", "--prefix", "x"], "--handler: served:streams takes no argument 'prefix'"),
    ],
)
def test_a_combination_that_cannot_work_is_one_line_that_says_what_would(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    handler, *others = arguments
    assert check(tmp_path, "--handler", f"served:{handler}", *others).startswith(f"echod: {line}")


@pytest.mark.parametrize("handler", ["streams", "Echo", "Buffered", "mail"])
def test_what_needs_a_loop_is_refused_on_a_reactor_without_one(
    tmp_path: Path, handler: str
) -> None:
    line = check(tmp_path, "--handler", f"served:{handler}", reactor=("--reactor=epoll",))
    assert line.startswith(f"echod: --handler: served:{handler} is ")
    assert line.endswith("which needs an asyncio event loop: leave out --reactor=epoll")


def test_twisteds_own_asyncio_reactor_will_do(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        *(*TWISTD, "--reactor=asyncio", "echod", "--handler", "served:Echo", "--check-config"),
    )
    assert done.returncode == 0, done.stderr


def test_the_log_says_which_kind_it_is(daemon: Start) -> None:
    running = daemon("--handler", "served:streams")
    running.wait_for("Serving the asyncio streams handler served:streams, concurrency model reac")


def test_the_metrics_count_the_connections_and_bytes(daemon: Start) -> None:
    running = daemon("--handler", "served:Echo", "--status", "unix:status.sock")
    with client_of(running, "clear") as client:
        client.sendall(b"happy")
        assert receive(client, 5) == b"happy"
    running.wait_for("Disconnected")
    with socket.socket(socket.AF_UNIX) as status:
        status.settimeout(PATIENCE)
        status.connect(str(running.directory / "status.sock"))
        status.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        metrics = receive_all(status).decode()
    assert 'reason="client closed"} 1.0' in metrics
    assert "Traceback" not in running.log
