"""Bad networks: nothing is lost, it only takes longer."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.network import Network, network
from tests.faults.scale import Scale
from tests.support.clients import BANNER, PREFIX, receive_all
from tests.support.daemon import CONCURRENT, Start
from tests.support.needs import tool


@pytest.fixture
def own_network() -> Iterator[Network]:
    with network() as made:
        yield made


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send `data` and shut down writing; return what was echoed until the end."""

    def send() -> None:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        came = receive_all(connection)
    finally:
        sender.join()
    assert came.startswith(BANNER)
    return came[len(BANNER) :].replace(PREFIX, b"")


def stream(size: int) -> bytes:
    """Return `size` bytes that each show their place."""
    return b"".join(b"%07d\n" % number for number in range(size // 8 + 1))[:size]


@pytest.mark.parametrize("model", CONCURRENT)
def test_with_buffers_of_a_page_nothing_is_lost(
    daemon: Start, own_network: Network, model: str
) -> None:
    """Fault 21: However little the kernel takes at a time, nothing is lost."""
    own_network.set("tcp_wmem", "'4096 4096 4096'")
    own_network.set("tcp_rmem", "'4096 4096 4096'")
    running = daemon("--concurrency", model, steps=[own_network.step])
    data = stream(300_000)
    with own_network.connect(running) as connection:
        assert exchange(connection, data) == data


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_network_that_loses_packets_loses_no_byte(
    daemon: Start, own_network: Network, model: str, scale: Scale
) -> None:
    """Fault 34: Every byte arrives, in order, on many connections at once."""
    own_network.run(tool("ip"), "link", "set", "lo", "mtu", "1500")
    own_network.run(tool("nft"), "add table ip bad")
    own_network.run(tool("nft"), "add chain ip bad input { type filter hook input priority 0; }")
    own_network.run(tool("nft"), "add rule ip bad input numgen random mod 100 < 5 counter drop")
    running = daemon("--concurrency", model, steps=[own_network.step])
    data = stream(20_000)
    wrong: list[object] = []

    def talk() -> None:
        for _ in sessions:
            try:
                with own_network.connect(running) as connection:
                    connection.settimeout(120)
                    if exchange(connection, data) != data:
                        wrong.append("other bytes")
            except OSError as error:
                wrong.append(error)

    sessions = scale(ci=20, soak=5000)
    clients = [threading.Thread(target=talk) for _ in range(20)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert wrong == []
    dropped = re.search(r"counter packets (\d+)", own_network.run(tool("nft"), "list ruleset"))
    assert dropped and int(dropped[1]) > 0


def test_a_narrow_link_is_slow_and_that_is_all(daemon: Start, own_network: Network) -> None:
    """Fault 35: A client that reads slowly gets everything, even if that takes longer than
    `--write-timeout`.
    """
    running = daemon("--write-timeout", "1", steps=[own_network.step])
    own_network.run(tool("ip"), "link", "set", "lo", "mtu", "1500")
    shape = ["root", "tbf", "rate", "4mbit", "burst", "16kb", "limit", "64kb"]
    own_network.run(tool("tc"), "qdisc", "add", "dev", "lo", *shape)
    data = stream(500_000)
    began = time.monotonic()
    with own_network.connect(running) as connection:
        assert exchange(connection, data) == data
    assert time.monotonic() - began > 1.5
