"""More clients than there is room for."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import socket
import time

import pytest

from tests.support.clients import BANNER, connect, greeted, is_served, receive, receive_all, serves
from tests.support.daemon import CONCURRENT, Daemon, Start
from tests.support.needs import more_descriptors, not_here
from tests.support.programs import limit
from tests.support.waiting import PATIENCE, block_until


def settled(connections: list[socket.socket], seconds: float) -> list[bytes | None]:
    """Return each connection's data after a while: b"" for an end, None for nothing."""
    deadline = time.monotonic() + seconds
    open_ones = set(connections)
    got: dict[socket.socket, bytes | None] = dict.fromkeys(connections)
    while open_ones and (left := deadline - time.monotonic()) > 0:
        for each in select.select(open_ones, [], [], left)[0]:
            open_ones.remove(each)
            try:
                got[each] = each.recv(1000)
            except ConnectionError:
                got[each] = b""
    return list(got.values())


@pytest.mark.parametrize("model", CONCURRENT)
def test_without_descriptors_clients_are_turned_away_and_it_recovers(
    daemon: Start, model: str
) -> None:
    """Fault 17: Connected clients are still served, new clients without a descriptor are
    disconnected at once, and once descriptors are free again, new clients are served.
    """
    running = daemon("--concurrency", model)
    if not running.on_uvloop:
        not_here("a promise of echod's own reactor, and this is another")
    # Below what the limits on connections have been fitted to.
    resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (64, 64))
    with contextlib.ExitStack() as stack:
        refusal = b"Server busy: Too many open files, try again later\n"
        survivors = [stack.enter_context(greeted(running)) for _ in range(5)]
        with contextlib.ExitStack() as crowd:
            clients = [crowd.enter_context(connect(running)) for _ in range(200)]
            got = settled(clients, 10)
            assert {each for each in got if each} <= {BANNER, refusal}
            assert None not in got
            assert b"" in got
            assert all(is_served(survivor) for survivor in survivors)
        block_until(lambda: running.descriptors < 40)
        assert serves(running)
        assert all(is_served(survivor) for survivor in survivors)
    assert "Traceback" not in running.log


@pytest.mark.parametrize(
    ("model", "limits"),
    [*((model, []) for model in CONCURRENT), (CONCURRENT[0], ["--max-connections=0"])],
)
def test_limits_are_lowered_to_the_descriptors_that_there_are(
    daemon: Start, model: str, limits: list[str]
) -> None:
    """Fault 17: If the process may open fewer files than the limits need, the daemon lowers the
    limits and logs it; it tells and counts the clients above them, and the status answers.
    """
    steps = [limit(resource.RLIMIT_NOFILE, 256)]
    status = ["--status=unix:status", "--max-connections-per-address=0"]
    running = daemon("--concurrency", model, *status, *limits, steps=steps)
    if not running.on_uvloop:
        not_here("Twisted's own ports count nobody whom they turn away")
    port = running.port
    (fitted,) = running.wait_for(r"may open 256 files and sockets.* max-connections is (\d+)")
    assert 32 <= int(fitted) <= 128
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(300)]
        settled(clients, 3)
        answer = ask_status(running, stack)
        assert b"200 OK" in answer
        counts = re.findall(rb'refused_total{[^}]*limit="[a-z-]+"[^}]*} (\d+)', answer)
        assert sum(map(int, counts)) == 300 - int(fitted)
    assert "Traceback" not in running.log


def ask_status(running: Daemon, stack: contextlib.ExitStack) -> bytes:
    """Return the metrics of a daemon whose status is at `unix:status`."""
    path = os.readlink(f"/proc/{running.process.pid}/cwd") + "/status"  # noqa: PTH115
    asking = stack.enter_context(socket.socket(socket.AF_UNIX))
    asking.settimeout(PATIENCE)
    asking.connect(path)
    asking.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
    return receive_all(asking)


@pytest.mark.timeout(120)
def test_thousands_of_clients_at_once_are_all_served(daemon: Start) -> None:
    """Fault 33: All of them are greeted and answered."""
    running = daemon(steps=[limit(resource.RLIMIT_NOFILE, 8192)])
    with more_descriptors(8192), contextlib.ExitStack() as stack:
        address = ("127.0.0.1", running.port)
        clients = [stack.enter_context(socket.socket()) for _ in range(5000)]
        for each in clients:
            each.setblocking(False)
            each.connect_ex(address)
        for each in clients:
            each.settimeout(60)
            assert receive(each, len(BANNER)) == BANNER
        assert all(is_served(each) for each in clients[::50])
    assert serves(running)
