"""`plain-echo`, `discard` and `chargen` (RFC 862 to 864), by the real daemon: at the speed of the
loop, with back-pressure, and without growth.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from pathlib import Path

import pytest

from echod.handlers.builtin import pattern
from tests.support.clients import connect, receive, receive_all
from tests.support.daemon import CONCURRENT, MODELS, TERMINATED, Daemon, Start
from tests.support.tls_peer import client_context
from tests.support.waiting import block_until

MIB = 1 << 20
# Far more than memory may grow by, and than every buffer between the two holds.
MUCH = 24 * MIB
# How much a process may grow by, apart from what it holds for clients.
GROWTH = 12 * MIB

WAYS = ["clear", "TLS", "UNIX"]


def listen(way: str, certificate: Path) -> tuple[str, str]:
    """Return the flags by which a daemon listens in one of `WAYS`."""
    match way:
        case "clear":
            return "--listen", "tcp:0:interface=127.0.0.1"
        case "TLS":
            return "--listen", f"tls:0:interface=127.0.0.1:certificate={certificate}"
        case _:
            return "--listen", "unix:service.sock"


def client_of(running: Daemon, way: str) -> socket.socket:
    if way != "UNIX":
        port = int(running.wait_for(r"(?:EchoFactory|TLSFactory).* starting on (\d+)")[0])
        made = connect(port)
        return client_context().wrap_socket(made) if way == "TLS" else made
    running.wait_for("Socket now listening")
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(20)
    made.connect(str(running.directory / "service.sock"))
    return made


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_chargen_sends_the_lines_of_the_rfc_however_long_a_client_reads(
    daemon: Start, way: str, certificate: Path
) -> None:
    running = daemon(*listen(way, certificate), "--handler", "chargen")
    with client_of(running, way) as client:
        expected = pattern() * 300  # 2 MB
        assert receive(client, len(expected)) == expected


def test_chargen_holds_no_more_for_a_client_that_reads_nothing(
    daemon: Start, way: str, certificate: Path
) -> None:
    """Fault 154: Memory does not grow, and other clients are served."""
    running = daemon(*listen(way, certificate), "--handler", "chargen")
    with client_of(running, way) as reading:
        receive(reading, MIB)
    before = running.resident
    waiting = [client_of(running, way) for _ in range(4)]
    with client_of(running, way) as reading:  # meanwhile this one reads much
        for _ in range(MUCH // MIB):
            assert len(receive(reading, MIB)) == MIB
    assert running.resident - before < GROWTH
    for one in waiting:
        one.close()


def test_chargen_goes_on_for_a_client_that_sends_no_more(daemon: Start) -> None:
    running = daemon("--handler", "chargen")
    with connect(running) as client:
        client.sendall(b"thrown away")
        client.shutdown(socket.SHUT_WR)
        assert receive(client, len(pattern()) * 300) == pattern() * 300


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_drain_ends_chargen_with_fin_and_waits_for_no_deadline(
    daemon: Start, *, half_closed: bool, way: str, certificate: Path
) -> None:
    """Fault 155: The client sees FIN at once, not at the deadline."""
    running = daemon(*listen(way, certificate), "--handler", "chargen", "--drain-timeout", "3600")
    with client_of(running, way) as client:
        receive(client, MIB)
        if half_closed and way != "TLS":
            client.shutdown(socket.SHUT_WR)
        running.signal(signal.SIGTERM)
        rest = receive_all(client)
        assert rest in pattern() * (len(rest) // len(pattern()) + 2)
    running.wait()
    assert running.process.returncode in TERMINATED
    ended = running.wait_for("Disconnected from.*: (client closed|drained) ")
    assert ended == ["client closed" if half_closed and way != "TLS" else "drained"]


# Each model, and each way: a message of a thousand bytes goes through all of the pool for 25 MB.
@pytest.mark.parametrize(
    ("model", "way"),
    [*((model, "clear") for model in MODELS), ("reactor", "TLS"), ("reactor", "UNIX")],
)
def test_discard_takes_what_comes_and_holds_nothing_of_it(
    daemon: Start, model: str, way: str, certificate: Path
) -> None:
    running = daemon(*listen(way, certificate), "--handler", "discard", "--concurrency", model)
    data = os.urandom(MIB)
    with client_of(running, way) as client:
        client.sendall(data)
        before = running.resident
        for _ in range(MUCH // MIB):
            client.sendall(data)
        grown = running.resident - before
        if isinstance(client, ssl.SSLSocket):
            client.unwrap()  # returns once the daemon has answered the end
        else:
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
    assert grown < GROWTH
    (counted,) = running.wait_for(r"Disconnected from .*bytes in: (\d+), out: 0")
    assert int(counted) == MUCH + MIB


# The serial model answers one message of each client, as the lesson that it is.
@pytest.mark.parametrize("model", CONCURRENT)
def test_plain_echo_sends_back_exactly_what_it_gets(
    daemon: Start, model: str, way: str, certificate: Path
) -> None:
    running = daemon(*listen(way, certificate), "--handler", "plain-echo", "--concurrency", model)
    data = os.urandom(4 * MIB)
    with client_of(running, way) as client:
        came = bytearray()
        reading = threading.Thread(target=lambda: came.extend(receive(client, len(data))))
        if way == "TLS":  # no two threads may use Python's `ssl` at a time
            for start_at in range(0, len(data), 65536):
                piece = data[start_at : start_at + 65536]
                client.sendall(piece)
                came += receive(client, len(piece))
        else:
            reading.start()
            client.sendall(data)
            reading.join()
        assert came == data


def test_chargen_names_the_model_that_it_runs_under(daemon: Start) -> None:
    running = daemon("--handler", "chargen", "--concurrency", "serial")
    running.wait()
    assert running.process.returncode == 1
    assert "chargen is a Twisted protocol: it runs with --concurrency reactor, not serial" in (
        running.log
    )


def test_nothing_waits_for_chargens_clients_at_the_deadline(daemon: Start) -> None:
    """A client that reads nothing ends at the drain's deadline, as with any handler."""
    running = daemon("--handler", "chargen", "--drain-timeout", "0.5")
    with connect(running) as client:
        block_until(lambda: client.recv(1, socket.MSG_PEEK))
        running.signal(signal.SIGTERM)
        running.wait()
    assert running.process.returncode in TERMINATED
