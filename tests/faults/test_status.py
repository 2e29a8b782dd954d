"""The status of the real daemon, requested by real clients."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.clients import BANNER, connect, receive, receive_all
from tests.support.daemon import Daemon, Start
from tests.support.needs import tool
from tests.support.waiting import PATIENCE, block_until

ETC = Path(__file__).parent.parent.parent / "etc"

STATUS = ("--status", "tcp:0:interface=127.0.0.1")


class Observed:
    """A daemon, and where its status is."""

    def __init__(self, running: Daemon) -> None:
        self.running = running
        self.port = int(running.wait_for(r"StatusSite starting on (\d+)")[0])

    def curl(self, path: str, *options: str) -> tuple[int, str]:
        """Return the status and the page that curl gets."""
        done = subprocess.run(
            [tool("curl"), "--silent", "--max-time", "10", "--write-out", "\n%{http_code}",
             *options, f"http://127.0.0.1:{self.port}{path}"],
            capture_output=True,
            text=True,
        )  # fmt: skip
        page, _, status = done.stdout.rpartition("\n")
        return int(status), page

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Return each sample, by its name and the values of its labels."""
        status, page = self.curl("/metrics")
        assert status == 200
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }


@pytest.fixture
def observed(daemon: Start) -> Any:
    """Start a daemon with a status."""
    return lambda *arguments, **options: Observed(daemon(*STATUS, *arguments, **options))


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Closes clients in the end."""
    with ExitStack() as stack:
        yield stack


BLOCKING = """
import time

def block(message: bytes) -> bytes:
    time.sleep(30)
    return message
"""


@pytest.mark.parametrize("model", ["defer-to-thread", "thread-per-connection"])
def test_health_answers_while_every_thread_is_blocked(
    observed: Any, tmp_path: Path, clients: ExitStack, model: str
) -> None:
    """Fault 27: Health, readiness and metrics answer while every thread is blocked; the metrics
    have the numbers of busy threads and of waiting messages.
    """
    (tmp_path / "blocking.py").write_text(BLOCKING)
    here = observed(
        "--handler", "blocking:block", "--concurrency", model, "--threads", "2",
        "--max-threads", "2", "--no-banner", "--drain-timeout", "0.1",
    )  # fmt: skip
    for _ in range(3):
        client = clients.enter_context(connect(here.running))
        client.sendall(b"happy\n")
    block_until(lambda: here.metrics()[("echod_pool_busy",)] == 2)
    assert here.curl("/healthz") == (200, "ok\n")
    assert here.curl("/readyz") == (200, "ready\n")
    if model == "defer-to-thread":
        block_until(lambda: here.metrics()[("echod_pool_wait_seconds",)] > 0.5)
        assert here.metrics()[("echod_pool_queued",)] >= 1
    else:
        metrics = here.metrics()
        assert metrics["echod_connections_refused_total", "max-threads", "tcp:0"] == 1


def test_idle_connections_keep_nobody_from_asking_for_health(
    observed: Any, clients: ExitStack
) -> None:
    """Fault 91: However many silent connections the status has, each probe is answered."""
    here = observed()
    block_until(lambda: here.curl("/readyz")[0] == 200)
    for _ in range(100):
        clients.enter_context(connect(here.port))
    assert [here.curl("/healthz") for _ in range(5)] == [(200, "ok\n")] * 5


@pytest.mark.parametrize("kind", ["status", "control"])
def test_many_who_ask_at_once_are_all_answered(
    daemon: Start, tmp_path: Path, clients: ExitStack, kind: str
) -> None:
    """Fault 215: Each of 300 requests that wait in the kernel at once is answered."""
    running = daemon(f"--{kind}", f"unix:{tmp_path}/web")
    running.wait_for("Socket now listening")
    with socket.socket(socket.AF_UNIX) as first:  # the file is there before the socket listens
        block_until(lambda: first.connect_ex(f"{tmp_path}/web") == 0)
    running.signal(signal.SIGSTOP)
    try:
        asking = []
        for _ in range(300):
            asking.append(clients.enter_context(socket.socket(socket.AF_UNIX)))
            asking[-1].settimeout(PATIENCE)
            asking[-1].connect(f"{tmp_path}/web")
            asking[-1].sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    finally:
        running.signal(signal.SIGCONT)
    answers = [receive_all(each).partition(b"\r\n")[0] for each in asking]
    status = b"200 OK" if kind == "status" else b"404 Not Found"
    assert answers == [b"HTTP/1.1 " + status] * 300


def test_a_page_in_a_browser_cannot_read_the_status_by_a_name_of_its_own(observed: Any) -> None:
    """Fault 92: A request for a host name that `status-host` does not list gets no figures."""
    here = observed("--status-host", "echod.example.org")
    block_until(lambda: here.curl("/readyz")[0] == 200)
    for name, status in {
        "rebound.example": 421,
        "echod.example.org": 200,
        "localhost": 200,
    }.items():
        for path in ("/", "/metrics"):
            answer, page = here.curl(path, "--header", f"Host: {name}:{here.port}")
            assert answer == status
            assert ("echod_build_info" in page or "<title>" in page) is (status == 200)


def test_metrics_are_not_for_clients_and_do_not_grow_by_what_they_send(observed: Any) -> None:
    """Fault 57: Clients find no metrics on the listener that serves them, and nothing that they
    send adds a time series.
    """
    here = observed("--framing", "line")
    block_until(lambda: here.curl("/readyz")[0] == 200)
    with connect(here.running) as client:
        receive(client, len(BANNER))
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        client.shutdown(socket.SHUT_WR)
        assert b"echod_" not in receive_all(client)
    before = here.metrics()
    for number in range(50):
        with connect(here.running) as client:
            receive(client, len(BANNER))
            client.sendall(b'%d{label="\n",x}\x1b\xff\n' % number * number)
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
    # Figures may be a second old.
    ended = "echod_connections_ended_total", "client closed", "tcp:0"
    block_until(lambda: here.metrics()[ended] == 51)
    assert set(here.metrics()) == set(before)


def test_open_connections_are_counted_while_they_are_open(observed: Any) -> None:
    here = observed()
    with connect(here.running) as client:
        receive(client, len(BANNER))
        client.sendall(b"happy\n")
        receive(client, len(b"OK...happy\n"))
        metrics = here.metrics()
        assert metrics["echod_connections_open", "tcp:0"] == 1
        assert metrics["echod_messages_total", "tcp:0"] == 1
        assert metrics["echod_received_bytes_total", "tcp:0"] == 6
        assert metrics["echod_sent_bytes_total", "tcp:0"] == len(BANNER) + 11
        assert metrics[("echod_handler_seconds_count",)] == 1
        assert metrics["echod_state", "ready"] == 1


def test_the_status_answers_to_the_last_moment_of_a_drain(observed: Any, tmp_path: Path) -> None:
    """Fault 57: A draining daemon is not ready, but healthy, and its metrics say so."""
    (tmp_path / "blocking.py").write_text(BLOCKING)
    here = observed(
        "--handler", "blocking:block", "--concurrency", "defer-to-thread", "--drain-timeout", "2"
    )
    with connect(here.running) as client:
        client.sendall(b"happy\n")
        block_until(lambda: here.metrics()[("echod_pool_busy",)] == 1)
        here.running.signal(signal.SIGTERM)
        block_until(lambda: here.curl("/readyz") == (503, "draining\n"))
        assert here.curl("/healthz") == (200, "ok\n")
        assert here.metrics()["echod_state", "draining"] == 1
        assert here.metrics()["echod_listening", "tcp:0"] == 0
        here.running.wait()
    lines = here.running.lines
    stopped = [number for number, line in enumerate(lines) if line.endswith("] Stopped")]
    closed = [number for number, line in enumerate(lines) if f"Port {here.port} Closed" in line]
    assert closed > stopped > []


def test_curl_reads_and_cannot_write(observed: Any) -> None:
    here = observed()
    status, page = here.curl("/")
    assert status == 200
    assert "<title>echod: ready</title>" in page
    assert here.curl("/metrics", "--head")[0] == 200
    assert here.curl("/metrics", "--request", "PUT")[0] == 405
    assert here.curl("/metrics", "--data", "x=1")[0] == 400
    assert here.curl("/nosuch")[0] == 404


def test_it_can_be_served_on_a_unix_socket(daemon: Start, tmp_path: Path) -> None:
    running = daemon("--status", f"unix:{tmp_path}/status")
    block_until((tmp_path / "status").exists)
    running.wait_for("Socket now listening")

    def answer() -> str:
        done = subprocess.run(
            [tool("curl"), "--silent", "--unix-socket", tmp_path / "status", "http://x/readyz"],
            capture_output=True,
            text=True,
        )
        return done.stdout

    block_until(lambda: answer() == "ready\n")


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("nosuch:1", "--status nosuch:1: there is no kind of listener 'nosuch'"),
        ("tcp:{taken}:interface=127.0.0.1", "Bind failed. Error Code : 98"),
    ],
)
def test_a_status_that_cannot_be_served_keeps_it_from_starting(
    daemon: Start, endpoint: str, why: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = daemon("--status", endpoint.format(taken=taken.getsockname()[1]))
        running.wait()
    assert running.process.returncode == 1
    # Two streams in one: the log may end after the reason has been said on standard error.
    assert any(why in line for line in running.lines)


# The metrics that etc/ names.


@contextmanager
def names(observed: Any, certificate: Path) -> Iterator[set[str]]:
    """The names of all metrics, with threads and a certificate."""
    tls = f"tls:tcp:0:interface=127.0.0.1:certificate={certificate}"
    here = observed("--concurrency", "defer-to-thread", "--listen", tls)
    yield {name for name, *_ in here.metrics()}


def used(expression: str) -> set[str]:
    """Return the names of metrics that an expression of Prometheus' uses."""
    return set(re.findall(r"\b(?:echod|process)_\w+", expression))


def expressions(node: Any) -> Iterator[str]:
    """Yield every expression in a dashboard, or in rules."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_alerts_and_dashboard_use_metrics_that_there_are(observed: Any, certificate: Path) -> None:
    alerts = yaml.safe_load((ETC / "prometheus-alerts.yml").read_text())
    dashboard = json.loads((ETC / "grafana-dashboard.json").read_text())
    scrape = yaml.safe_load((ETC / "prometheus.yml").read_text())
    assert scrape["rule_files"] == ["prometheus-alerts.yml"]
    with names(observed, certificate) as known:
        for file in (alerts, dashboard):
            found = {name for expression in expressions(file) for name in used(expression)}
            assert found
            assert found <= known
    shown = {name for expression in expressions(dashboard) for name in used(expression)}
    assert {name for name in known if name.startswith("echod_") and "_total" in name} <= shown


def test_promtool_accepts_the_metrics_and_the_rules(observed: Any) -> None:
    promtool = tool("promtool")
    here = observed()
    _, page = here.curl("/metrics")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True
    )
    # Of those that begin with process_, it complains too, but they are Prometheus' own.
    complaints = [line for line in checked.stderr.splitlines() if line.startswith("echod_")]
    assert not complaints
    for command in (("rules", "prometheus-alerts.yml"), ("config", "prometheus.yml")):
        subprocess.run([promtool, "check", *command], cwd=ETC, check=True, capture_output=True)
