"""Faults on purpose in the real daemon: the flags, the seed, the log and the metrics."""

from __future__ import annotations

import re
import socket
import urllib.request
from typing import Any

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
