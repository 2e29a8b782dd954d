"""Certificates that are chosen by the host that a client asks for, in the real daemon."""

from __future__ import annotations

import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from echod.tls.der import subject
from tests.support.certificates import DAY, Authority
from tests.support.daemon import TWISTD, Start
from tests.support.programs import run
from tests.support.proxy_headers import line
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE, block_until

AUTHORITY = Authority("an authority")

# Begins TLS for a client that asks for it.
POLITE = """
from echod import Handler

class Polite(Handler):
    async def received(self, message):
        if message == b"STARTTLS":
            self.client.start_tls()
            return b"go ahead"
        return message

    def opened(self, client):
        self.client = client
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a certificate for each of two hosts, and a handler."""
    (tmp_path / "tls").mkdir()
    for name, hosts in {"a": ("first.test",), "b": ("*.shop.test", "shop.test")}.items():
        (tmp_path / "tls" / f"{name}.pem").write_bytes(AUTHORITY.issue(name, hosts=hosts))
    (tmp_path / "polite.py").write_text(POLITE)
    return tmp_path


def shown(host: str | None, connect: Callable[[], socket.socket]) -> str:
    """Return the name in the certificate that a client gets that asks for `host`."""
    context = client_context()
    with connect() as plain, context.wrap_socket(plain, server_hostname=host) as secure:
        der = secure.getpeercert(binary_form=True)
        assert der
        return dict(subject(der))["commonName"]


@pytest.mark.parametrize("kind", ["tls:", "proxy:tls:", "tls:unix:", "starttls:"])
def test_clients_get_the_certificate_for_the_host_that_they_ask_for(
    daemon: Start, folder: Path, kind: str
) -> None:
    """Fault 141: Each client gets the certificate that names the host it asks for, on each kind of
    listener; without a name, or with an unknown one, the first.
    """
    place = "unix:socket" if "unix" in kind else "0:interface=127.0.0.1"
    kind = kind.replace("unix:", "")
    running = daemon("--listen", f"{kind}{place}:certificate=tls", "--handler", "polite:Polite")

    def connect() -> socket.socket:
        if place.startswith("unix"):
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(PATIENCE)
            made.connect(str(folder / "socket"))
        else:
            made = socket.create_connection(("127.0.0.1", running.port), PATIENCE)
        if kind.startswith("proxy:"):
            made.sendall(line())
        if kind == "starttls:":
            made.sendall(b"STARTTLS")
            assert made.recv(100) == b"go ahead"
        return made

    if place.startswith("unix"):
        running.wait_for("Socket now listening")  # "starting on" comes before the file
    asked = ["first.test", "shop.test", "www.shop.test", "a.www.shop.test", "other.test", None]
    assert [shown(host, connect) for host in asked] == ["a", "b", "b", "a", "a", "a"]


def test_each_certificate_has_a_date_in_the_metrics_and_in_the_log_and_is_renewed(
    daemon: Start, folder: Path
) -> None:
    """Fault 141: The log and the metrics have the expiry of each certificate. SIGHUP reads them
    again; if two are for one host, all stay as they are, and one line says which.
    """
    (folder / "tls/b.pem").write_bytes(AUTHORITY.issue("b", 9 * DAY, hosts=["shop.test"]))
    running = daemon(
        *("--listen", "tls:0:interface=127.0.0.1:certificate=tls/a.pem:certificate=tls/b.pem"),
        *("--status", "tcp:0:interface=127.0.0.1"),
    )
    running.wait_for(r"/tls/a\.pem expires in 0 days")
    running.wait_for(r"/tls/b\.pem expires in 8 days")
    status = running.wait_for(r"StatusSite starting on (\d+)")[0]
    before = dates(status)
    assert sorted(before) == ["a.pem", "b.pem"]
    (folder / "tls/b.pem").write_bytes(AUTHORITY.issue("b", 99 * DAY, hosts=["shop.test"]))
    running.signal(signal.SIGHUP)
    running.wait_for(r"Reloaded; changed: certificate \S+/tls/b\.pem \(serial")
    block_until(lambda: dates(status) != before)  # pages are made once a second
    after = dates(status)
    assert after["a.pem"] == before["a.pem"]
    assert after["b.pem"] > before["b.pem"]
    (folder / "tls/b.pem").write_bytes(AUTHORITY.issue("b", hosts=["first.test"]))
    running.signal(signal.SIGHUP)
    running.wait_for(r"Reload refused, .*/a\.pem and \S+/b\.pem are both for first\.test: leave")
    assert dates(status) == after


def dates(port: str) -> dict[str, float]:
    """Return when each certificate expires, by the name of its file."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as page:
        families = text_string_to_metric_families(page.read().decode())
        return {
            Path(sample.labels["certificate"]).name: sample.value
            for family in families
            for sample in family.samples
            if sample.name == "echod_certificate_expiry_time_seconds"
        }


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("c.pem", lambda: AUTHORITY.issue("c", hosts=["Shop.test"]), "are both for shop.test"),
        ("c.pem", lambda: AUTHORITY.issue("no host"), "names no host, so no client would get it"),
        ("b.key", lambda: AUTHORITY.key, "b.key is not the key of the certificate in"),
        ("c.crt", lambda: AUTHORITY.certificate, "c.crt holds no private key in PEM"),
    ],
)
def test_certificates_that_contradict_each_other_are_found_before_the_start(
    folder: Path, file: str, content: Callable[[], bytes], why: str
) -> None:
    """Fault 141: `--check-config` and the start find two certificates for one host, one for none,
    and a key that does not fit, and say so in one line.
    """
    (folder / "tls" / file).write_bytes(content())
    for more in ((), ("--check-config",)):
        done = run(folder, *TWISTD, "echod", "--listen", "tls:0:certificate=tls", *more)
        assert done.returncode == 1
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1
