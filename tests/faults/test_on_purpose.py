"""Faults on purpose in the real daemon: the flags, the seed, the log and the metrics."""

from __future__ import annotations

import re
import socket
import urllib.request
from typing import Any

from tests.faults.scale import Scale
from tests.support.waiting import PATIENCE


def end_of(port: int) -> tuple[bytes, type[OSError] | None]:
    """Return what a client of the daemon gets that sends and ends its stream, and its error."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        try:
            client.sendall(b"hello\n")
            while data := client.recv(4096):
                received += data
        except OSError as error:
            return received, type(error)
    return received, None


def test_a_seeded_daemon_gives_the_same_faults_again_and_counts_them(daemon: Any) -> None:
    """Fault 160: The log and the metrics name each fault; the same seed gives them again."""
    runs = []
    for _ in range(2):
        here = daemon(
            *("--port", "0", "--fault", "close:after=70", "--fault", "reset:after=60,p=0.5"),
            *("--fault-seed", "7", "--prefix", "x" * 30, "--status", "tcp:0:interface=127.0.0.1"),
        )
        here.wait_for(r"Faults on purpose, seed 7: close:after=70 reset:after=60,p=0\.5")
        ends = [end_of(here.port) for _ in range(8)]
        resets = sum(error is ConnectionResetError for _, error in ends)
        assert {len(received) for received, error in ends if error} == {60}
        assert {len(received) for received, error in ends if not error} == {70}
        here.wait_for(r": fault \(.*faults: (reset|close)\)", 8)
        status = here.wait_for(r"StatusSite starting on (\d+)")[0]
        with urllib.request.urlopen(
            f"http://127.0.0.1:{status}/metrics", timeout=PATIENCE
        ) as page:
            text = page.read().decode()
        for name, count in (("reset", resets), ("close", 8 - resets)):
            counted = rf'^echod_faults_total{{fault="{name}",listener="tcp:0"}} {count}\.0$'
            assert re.search(counted, text, re.MULTILINE)
        assert 'echod_connections_ended_total{listener="tcp:0",reason="fault"} 8.0' in text
        runs.append(ends)
        here.stop()
    assert runs[0] == runs[1]


# The same faults for each of a thousand connections.

CHOICES = (
    *("--fault", "close:p=0.2,after=30"),
    *("--fault", "reset:p=0.2,after=20"),
    *("--fault", "corrupt:p=0.3,rate=0.1"),
    *("--fault", "duplicate:p=0.3,rate=0.1"),
    *("--fault", "truncate:p=0.1,after=2msg"),
    *("--fault", "drop:every=7,at-most=90,rate=0.2,direction=in"),
)
LINES = b"the first line\nthe second line\nthe third line\n"


def talk(port: int, size: int) -> tuple[bytes, str]:
    """Return the bytes and the error of a client that sends pieces of this size."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for start in range(0, len(LINES), size):
                client.sendall(LINES[start : start + size])
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(4096):
                received += data
        except OSError:
            # Whether it is an error of `send` or of `recv`, and after which bytes, depends on when
            # the reset comes.
            return b"", "reset"
    return received, ""


def test_a_thousand_connections_have_the_same_faults_again_however_reads_fall(
    daemon: Any, scale: Scale
) -> None:
    """Fault 163: The same seed gives each of 1,000 connections the same fault in two runs."""
    count = sum(1 for _ in scale(ci=200, soak=1000))
    runs = []
    for seed, size in (("7", 1000), ("7", 11), ("8", 1000)):
        here = daemon(
            *("--port", "0", "--handler", "plain-echo", "--framing", "line"),
            *("--fault-seed", seed, *CHOICES),
        )
        port = here.port
        runs.append([talk(port, size) for _ in range(count)])
        here.stop()
    first, again, other = runs
    assert first == again
    assert first != other
    assert 0.1 < sum(error == "reset" for _, error in first) / count < 0.3
    assert len({received for received, _ in first}) > 0.3 * count
