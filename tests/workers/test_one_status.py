"""The status of a daemon with workers: one for all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.clients import connect
from tests.support.daemon import Daemon, Start
from tests.support.served_workers import ask, wait_until_served
from tests.support.waiting import PATIENCE, block_until

COUNTING = """
import os

from prometheus_client import Counter

from echod import service


@service
async def counting(service):
    jokes = Counter("jokes", "Jokes told.", registry=service.metrics)

    def answer(message):
        jokes.inc()
        return b"%d %s" % (os.getpid(), message)

    print("a service block")
    yield answer
"""


@pytest.fixture
def served(daemon: Start, tmp_path: Path) -> Daemon:
    (tmp_path / "counts.py").write_text(COUNTING)
    running = daemon(
        *("--handler", "counts:counting", "--no-banner", "--workers", "2"),
        *("--status", "tcp:0:interface=127.0.0.1"),
    )
    wait_until_served(running, 2)
    return running


def port_of(running: Daemon) -> int:
    """Return the port for clients: that of the status is in the log, too."""
    return int(running.wait_for(r"EchoFactory starting on (\d+)")[0])


def get(running: Daemon, path: str) -> str:
    (port,) = running.wait_for(r"StatusSite starting on (\d+)")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        return answer.read().decode()


def is_ready(running: Daemon) -> bool:
    with contextlib.suppress(urllib.error.HTTPError):  # it is ready a moment after its last worker
        return get(running, "/readyz") == "ready\n"
    return False


def metric(running: Daemon, name: str) -> float:
    """Return the sum of the samples of a metric."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", get(running, "/metrics"), re.MULTILINE)
    return sum(map(float, found))


def test_one_status_shows_all_and_no_sum_decreases(served: Daemon) -> None:
    block_until(lambda: is_ready(served))
    assert get(served, "/healthz") == "ok\n"
    for _ in range(20):
        with connect(port_of(served)) as client:
            ask(client)
    block_until(lambda: metric(served, "echod_messages_total") == 20)
    assert metric(served, "echod_connections_accepted_total") == 20
    assert metric(served, "echod_worker_ready") == 2
    page = get(served, "/")
    for pid in wait_until_served(served, 2).values():
        assert f"<td>{pid}</td>" in page
    os.kill(wait_until_served(served, 2)[1], signal.SIGKILL)
    wait_until_served(served, 3)
    assert metric(served, "echod_messages_total") == 20
    os.kill(wait_until_served(served, 2)[2], signal.SIGTERM)
    wait_until_served(served, 4)
    block_until(lambda: metric(served, "echod_worker_ready") == 2)
    assert metric(served, "echod_messages_total") == 20
    with connect(port_of(served)) as client:
        ask(client)
    block_until(lambda: metric(served, "echod_messages_total") == 21)


def test_each_worker_runs_the_block_of_a_service_and_has_metrics_of_its_own(
    served: Daemon,
) -> None:
    served.wait_for(r"worker 1\] a service block")
    served.wait_for(r"worker 2\] a service block")
    for _ in range(10):
        with connect(port_of(served)) as client:
            ask(client)
    block_until(lambda: metric(served, "jokes_total") == 10)
    assert set(re.findall(r'jokes_total{worker="(\d)"}', get(served, "/metrics"))) == {"1", "2"}


def test_a_worker_that_does_not_answer_is_shown_by_its_last_figures(served: Daemon) -> None:
    with connect(port_of(served)) as client:
        pid = ask(client)
        block_until(lambda: metric(served, "echod_messages_total") == 1)
        os.kill(pid, signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            stack.callback(os.kill, pid, signal.SIGCONT)
            assert metric(served, "echod_messages_total") == 1
            assert f"<td>{pid}</td>" in get(served, "/")
