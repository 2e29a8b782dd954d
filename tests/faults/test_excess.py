"""Clients that take more than their share: the limits, kept against a real daemon."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.scale import Scale
from tests.support.certificates import self_signed_pem
from tests.support.clients import (
    BANNER,
    connect,
    connect_narrow,
    greeted,
    is_over,
    is_served,
    receive,
    receive_all,
    serves,
    warm_up,
)
from tests.support.daemon import CONCURRENT, Daemon, Start, nothing_kept
from tests.support.programs import limit
from tests.support.waiting import PATIENCE, block_until

pytestmark = pytest.mark.long

# So much may the memory of the daemon grow because of one client, in bytes.
MOST = 8 << 20
VOLUME = 100_000_000


def send_without_reading(connection: socket.socket) -> int:
    """Send up to `VOLUME` bytes; return how many were taken until the daemon had enough."""
    connection.settimeout(0.5)
    sent, piece = 0, b"x" * 65536
    with contextlib.suppress(TimeoutError, ConnectionError):
        while sent < VOLUME:
            sent += connection.send(piece)
    return sent


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_client_that_never_reads_is_paused_and_then_disconnected(
    daemon: Start, model: str
) -> None:
    """Fault 13: The daemon stops reading from it, bounds the memory that it costs, and disconnects
    it after the write time-out.
    """
    running = daemon("--concurrency", model, "--write-timeout", "1")
    warm_up(running)
    before = running.resident
    with nothing_kept(running), connect(running) as connection:
        assert send_without_reading(connection) < VOLUME
        assert running.resident - before < MOST
        assert serves(running)
        running.wait_for("Disconnected from .*: write-timeout")
    assert "Traceback" not in running.log


def send_and_read_slowly(connection: socket.socket, size: int, done: threading.Event) -> None:
    """Send without reading, then read `size` bytes every twentieth of a second."""
    send_without_reading(connection)
    with contextlib.suppress(ConnectionError):
        while not done.wait(0.05) and connection.recv(size):
            pass


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_client_that_reads_too_slowly_is_disconnected(daemon: Start, model: str) -> None:
    """Fault 13: A client that reads a few bytes now and then does not put off the write time-out;
    a client that reads at `min-rate` does.
    """
    running = daemon("--concurrency", model, "--write-timeout=2", "--min-rate=10000")
    done = threading.Event()
    with (
        connect_narrow(running) as steady,
        connect_narrow(running) as slow,
        ThreadPoolExecutor(2) as executor,
    ):
        executor.submit(send_and_read_slowly, steady, 4096, done)
        executor.submit(send_and_read_slowly, slow, 10, done)
        try:
            ended = running.wait_for(r"Disconnected from \S+:(\d+): write-timeout")
        finally:
            done.set()
        assert ended == [str(slow.getsockname()[1])]


@contextlib.contextmanager
def dripping(running: Daemon, begin: bytes) -> Iterator[socket.socket]:
    """A client that begins a message; the test sends the rest, a byte at a time."""
    with greeted(running) as connection:
        connection.sendall(begin)
        connection.settimeout(0.2)
        yield connection


def drip_until_the_end(connection: socket.socket) -> tuple[bytes, float]:
    """Send a byte again and again; return the bytes before the end, and the time until it."""
    began, got = time.monotonic(), bytearray()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < PATIENCE:
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                piece = connection.recv(1000)
                if not piece:
                    break
                got += piece
    return bytes(got), time.monotonic() - began


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_message_that_comes_a_byte_at_a_time_has_a_deadline(daemon: Start, model: str) -> None:
    """Fault 23: A line has to be complete within its time-out, however steadily its bytes arrive;
    a byte puts off the idle time-out, but not this one.
    """
    running = daemon("--framing=line", "--message-timeout=1", "--concurrency", model)
    with dripping(running, b"x") as connection:
        got, seconds = drip_until_the_end(connection)
    assert 1 <= seconds < 40
    # In a thread of its own the handler's socket is not for the reactor to write to.
    told = b"" if model == "thread-per-connection" else b"Message too slow: the limit is 1 s\n"
    assert got == told
    running.wait_for("Disconnected from .*: message-timeout")


def test_a_message_behind_its_length_has_the_same_deadline(daemon: Start) -> None:
    """Fault 23: A message in `length` framing has to be complete within its time-out, too."""
    running = daemon("--framing=length", "--message-timeout=1", "--no-banner")
    with connect(running) as connection:
        connection.sendall(struct.pack("!I", 1000))
        connection.settimeout(0.2)
        got, seconds = drip_until_the_end(connection)
    assert got[4:] == b"Message too slow: the limit is 1 s\n"
    assert 1 <= seconds < 40


def test_a_person_who_types_slowly_is_served(daemon: Start) -> None:
    """Fault 23: A slow client is answered in `chunk` framing, where each byte may be a message of
    its own.
    """
    running = daemon("--message-timeout=1", "--idle-timeout=5")
    with greeted(running) as connection:
        for _ in range(5):
            assert is_served(connection, b"x")
            time.sleep(0.4)  # the pace of this client, not a wait


def test_a_silent_client_is_disconnected(daemon: Start) -> None:
    """Fault 24: A client that has sent nothing yet is disconnected after the first-byte time-out,
    any other silent client after the idle time-out.
    """
    # A busy machine may take a while from the greeting to the first byte.
    times = ("--first-byte-timeout=1", "--idle-timeout=5")
    running = [daemon(*times, "--concurrency", model) for model in CONCURRENT]
    with contextlib.ExitStack() as stack:
        talking = []
        for each in running:
            talking.append(stack.enter_context(greeted(each)))
            assert is_served(talking[-1])
        for silent in [stack.enter_context(greeted(each)) for each in running]:
            assert is_over(silent)
        for each in running:
            each.wait_for("Disconnected from .*: first-byte-timeout")
        spoke = []
        for client in talking:
            spoke.append(time.monotonic())
            assert is_served(client)
        for client, when in zip(talking, spoke, strict=True):
            assert is_over(client)
            assert time.monotonic() - when >= 4
    for each in running:
        each.wait_for("Disconnected from .*: idle-timeout")


BLOCKING = """
import time
from pathlib import Path
from twisted.internet import reactor

def resolve():
    reactor.resolve("localhost").addBoth(lambda result: print("resolved:", result, flush=True))

def block(message):
    if message == b"resolve":
        reactor.callFromThread(reactor.callLater, 0.5, resolve)
    while not Path("released").exists():
        time.sleep(0.01)
    return message
"""


def test_with_every_thread_blocked_work_is_queued_and_then_refused(
    daemon: Start, tmp_path: Path
) -> None:
    """Fault 27: Up to `--max-queue` messages wait for a thread; clients that send more are told
    so. Names can be resolved meanwhile, and the waiting messages are answered in the end.
    """
    (tmp_path / "blocking.py").write_text(BLOCKING)
    running = daemon(
        *("--handler", "blocking:block", "--concurrency", "defer-to-thread"),
        *("--threads=2", "--max-queue=3"),
    )
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(running)) for _ in range(5)]
        for number, client in enumerate(clients):
            client.sendall(b"resolve" if number == 1 else b"wait")
        running.wait_for("^resolved: 127.0.0.1|resolved: 127.0.0.1")
        with connect(running) as late:
            late.sendall(b"late")
            assert receive_all(late) == (
                b"Server busy: 3 messages are waiting already, try again later\n"
            )
        (tmp_path / "released").touch()
        for number, client in enumerate(clients):
            assert receive(client, 4) == (b"reso" if number == 1 else b"wait")
    running.wait_for(r"Refused 127.*: max-queue \(Server busy: 3 messages are waiting")
    running.wait_for("refused .*messages: 0, bytes in: 4")


def test_a_client_without_a_thread_is_told_so(daemon: Start) -> None:
    """Fault 28: A client that connects when every thread has a client gets one line, and the end;
    as soon as a thread is free, the next client is served.
    """
    running = daemon("--concurrency=thread-per-connection", "--max-threads=2")
    with greeted(running) as one:
        with greeted(running) as other:
            with connect(running) as late:
                assert receive_all(late) == (
                    b"Server busy: all 2 threads are in use, try again later\n"
                )
            assert is_served(one)
            assert is_served(other)
        block_until(lambda: serves(running))
        assert is_served(one)


def connect_from(running: Daemon, host: str) -> socket.socket:
    return connect(running, source_address=(host, 0))


def first_line(connection: socket.socket) -> bytes:
    return connection.makefile("rb").readline()


ALL = b"Server busy: too many connections, try again later\n"
ADDRESS = b"Server busy: too many connections from your address, try again later\n"


@pytest.mark.parametrize("model", CONCURRENT)
def test_the_caps_hold_for_all_and_for_each_address(daemon: Start, model: str) -> None:
    """Fault 29: A client above the cap for its address, or for all, is told so, disconnected and
    counted; a client that leaves makes room, and connected clients are not affected.
    """
    running = daemon(
        *("--max-connections=40", "--max-connections-per-address=2", "--concurrency", model)
    )
    hosts = [f"127.0.0.{number}" for number in range(2, 51)]
    warm_up(running)
    with nothing_kept(running), contextlib.ExitStack() as stack:
        inside: list[socket.socket] = []
        for host in hosts[:19]:
            for _ in range(2):
                inside.append(stack.enter_context(connect_from(running, host)))
                assert first_line(inside[-1]) == BANNER
            with connect_from(running, host) as refused:
                assert first_line(refused) == ADDRESS
                assert refused.recv(1) == b""
        inside += [stack.enter_context(connect_from(running, host)) for host in hosts[19:21]]
        assert [first_line(connection) for connection in inside[38:]] == [BANNER] * 2
        for host in hosts[21:]:
            with connect_from(running, host) as refused:
                assert first_line(refused) == ALL
        assert all(is_served(connection) for connection in inside)
        inside[0].close()
        block_until(lambda: len(running.wait_for("Disconnected from")) > 1)
        with connect_from(running, hosts[0]) as again:
            assert first_line(again) == BANNER
    refusals = "\n".join(running.wait_for("Refused"))
    assert len(running.wait_for(r"Refused .*: max-connections-per-address \(", 19)) == 19, refusals
    assert len(running.wait_for(r"Refused .*: max-connections \(", 28)) == 28, refusals


def test_ten_thousand_clients_that_connect_and_reset_leave_nothing(
    daemon: Start, scale: Scale
) -> None:
    """Fault 30: A client that connects and resets at once leaves no open descriptor, no occupied
    place and no traceback.
    """
    running = daemon("--max-connections=200", "--max-accept-rate=0")
    warm_up(running)
    address = ("127.0.0.1", running.port)
    with nothing_kept(running):
        for _ in scale(ci=2000, soak=10_000):
            with socket.create_connection(address, PATIENCE) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        block_until(lambda: serves(running))
    assert "Traceback" not in running.log


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_line_may_come_in_any_pieces_but_not_be_endless(daemon: Start, model: str) -> None:
    """Fault 32: A segment for each byte makes no difference; a megabyte without a delimiter ends
    the connection at the limit, with a line that says so.
    """
    running = daemon("--framing=line", "--concurrency", model)
    line = bytes(range(48, 91)) * 10 + b"\n"
    with greeted(running) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in line:
            connection.sendall(bytes([byte]))
        assert receive(connection, 5 + len(line)) == b"OK..." + line
    with greeted(running) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"x" * 1_000_000)
        told = b"Message too long: the limit is 16384 bytes\n"
        assert receive(connection, len(told)) == told
        assert is_over(connection)
    assert serves(running)


def test_over_tls_a_client_above_a_cap_is_disconnected_and_room_is_made(
    daemon: Start, tmp_path: Path
) -> None:
    """Fault 29: Over TLS a client above a cap is disconnected before its handshake, and counted; a
    client that leaves makes room.
    """
    pem = self_signed_pem()
    (tmp_path / "server.pem").write_bytes(pem)
    running = daemon("--listen=tls:0:certificate=server.pem:key=server.pem", "--max-connections=1")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(connect(running)) as inside:
        assert receive(inside, len(BANNER)) == BANNER
        with pytest.raises(OSError), context.wrap_socket(connect(running)):  # noqa: PT011
            pass
        reset = r"max-connections \(reset before the TLS handshake: too many connections\)"
        running.wait_for(rf"Refused .*: {reset}")
        assert "Server busy" not in running.log
        assert is_served(inside)
    running.wait_for("Disconnected from")
    with context.wrap_socket(connect(running)) as again:
        assert receive(again, len(BANNER)) == BANNER


def test_the_log_says_how_a_client_of_tls_behind_a_proxy_is_refused(
    daemon: Start, certificate: Path
) -> None:
    running = daemon(f"--listen=proxy:tls:0:certificate={certificate}", "--max-connections=1")
    with connect(running), connect(running) as refused:
        assert receive_all(refused) == b""
        closed = r"max-connections \(closed before the TLS handshake: too many connections\)"
        running.wait_for(rf"Refused .*: {closed}")
    assert "Server busy" not in running.log


def test_as_many_descriptors_are_asked_for_as_there_may_be_connections(daemon: Start) -> None:
    """Fault 17: The daemon asks for the descriptors that its connections need, and logs it if the
    system gives it fewer.
    """
    small = daemon(steps=[limit(resource.RLIMIT_NOFILE, 64)])
    able = daemon("--max-connections=1000", steps=[limit(resource.RLIMIT_NOFILE, 64, 4096)])
    small.wait_for(
        r"may open 64 files and sockets, too few for 16384 connections: raise its limit"
    )
    able.wait_for("Socket now listening")
    limits = Path(f"/proc/{able.process.pid}/limits").read_text()
    assert re.search(r"^Max open files +1256 +4096 ", limits, re.MULTILINE)
    assert "too few" not in able.log
