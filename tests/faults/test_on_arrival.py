"""Faults on purpose before there is a connection, in the real daemon."""

from __future__ import annotations

import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import BANNER, connect, receive, receive_all
from tests.support.daemon import CONCURRENT, TERMINATED
from tests.support.waiting import PATIENCE, block_until

STATUS = ("--status", "tcp:0:interface=127.0.0.1")


def page(daemon: Any, path: str) -> str:
    port = daemon.wait_for(r"StatusSite starting on (\d+)")[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
    return text


@pytest.mark.parametrize(
    ("fault", "error"),
    [("refuse", ConnectionRefusedError), ("connect-timeout", TimeoutError)],
)
def test_a_daemon_is_ready_that_lets_no_client_in_and_it_can_be_reloaded_and_stopped(
    daemon: Any, fault: str, error: type[OSError]
) -> None:
    """Fault 139: A daemon that lets no client in is ready, can be reloaded, and ends at once."""
    here = daemon("--port", "0", "--fault", fault, *STATUS)
    here.wait_for("Began a fault on purpose on tcp:0: " + fault)
    for _ in range(2):
        with pytest.raises(error):
            socket.create_connection(("127.0.0.1", here.port), 0.5)
        here.signal(signal.SIGHUP)
        here.wait_for("Reloaded")
        assert "ready" in page(here, "/readyz")
    assert f'echod_faults_total{{fault="{fault}",listener="tcp:0"}} 1.0' in page(here, "/metrics")
    here.signal()
    here.wait()
    assert here.process.returncode in (0, *TERMINATED)
    here.wait_for("Ended a fault on purpose on tcp:0: " + fault)


@pytest.mark.parametrize("fault", ["refuse", "connect-timeout", "slow-accept:time=0.1"])
def test_a_reload_changes_other_settings_while_a_listener_has_a_fault(
    daemon: Any, tmp_path: Path, fault: str
) -> None:
    """Fault 139: While it lasts, SIGHUP changes other settings, and leaves the fault as it is."""
    settings = tmp_path / "echod.toml"
    control = tmp_path / "control"

    def write(banner: str, faults: str) -> None:
        settings.write_text(
            f'port = 0\nbanner = "{banner}"\nfault = ["{faults}"]\ncontrol = "unix:{control}"\n'
        )

    write("before", fault)
    here = daemon("--config", str(settings), listening=True)
    here.wait_for("Began a fault on purpose")
    port = here.port
    write("after", "close:after=2")
    here.signal(signal.SIGHUP)
    here.wait_for("Reloaded; changed: banner")
    here.wait_for("Ignored until restart: fault")
    assert "Ended a fault on purpose" not in here.log
    clear(control)
    here.wait_for("Ended a fault on purpose")
    with connect(port) as client:
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"after\n"


def clear(control: Path) -> None:
    """End all faults of a daemon, by its control."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(control))
        client.sendall(b"DELETE /faults HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in receive_all(client).partition(b"\r\n")[0]


@pytest.mark.parametrize("fault", ["refuse:for=0.5", "connect-timeout:for=0.5"])
def test_a_fault_of_a_listener_ends_by_its_time(daemon: Any, fault: str) -> None:
    here = daemon("--port", "0", "--fault", fault)
    here.wait_for("Ended a fault on purpose on tcp:0: ")
    with connect(here) as client:
        assert receive(client, len(BANNER)) == BANNER


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_client_that_waits_is_served_when_the_daemon_drains(daemon: Any, model: str) -> None:
    """Fault 139: The daemon answers all that a client sends while `slow-accept` holds it, in every
    model."""
    options = ("--concurrency", model, "--fault", "slow-accept:time=1000")
    here = daemon("--port", "0", *options, *STATUS)
    with connect(here) as client:
        client.sendall(b"hello")
        block_until(
            lambda: (
                'echod_faults_total{fault="slow-accept",listener="tcp:0"} 1.0'
                in page(here, "/metrics")
            )
        )
        here.signal()
        assert receive(client, len(BANNER) + 10) == BANNER + b"OK...hello"
    here.wait()


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_client_that_is_accepted_late_is_served(daemon: Any, model: str) -> None:
    here = daemon("--port", "0", "--concurrency", model, "--fault", "slow-accept:time=0.1")
    with connect(here) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == BANNER + b"OK...hello"


def test_a_fault_of_a_listener_takes_no_other_keys(daemon: Any) -> None:
    here = daemon("--port", "0", "--fault", "refuse:p=0.5")
    here.wait()
    assert "refuse takes no key 'p'; it takes: for, after, listener" in here.log
