"""The faults of TLS in the real daemon: the file of the authority, and the packets."""

from __future__ import annotations

import re
import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.daemon import TWISTD, Start
from tests.support.needs import tool
from tests.support.programs import run
from tests.support.waiting import PATIENCE

AUTHORITY = Authority("an authority")

HELLO = """
from echod import Close

def hello(message):
    return Close(b"HTTP/1.0 200 OK\\r\\n\\r\\nhello\\n")
"""
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text(HELLO)
    (tmp_path / "cert.pem").write_bytes(AUTHORITY.issue("shop", hosts=["shop.localhost"]))
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.certificate)
    return tmp_path


def with_curl(folder: Path, port: int, patience: float = PATIENCE) -> str:
    url = f"https://shop.localhost:{port}"
    options = ("--silent", "--show-error", "--max-time", str(patience), "--cacert", "ca.pem")
    done = run(folder, tool("curl"), *options, url, timeout=2 * PATIENCE)
    if done.returncode == 0:
        assert done.stdout == "hello\n"
        return "no error"
    return done.stderr.splitlines()[0].removeprefix("curl: ")


def with_python(folder: Path, port: int, patience: float = PATIENCE) -> str:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        plain.settimeout(patience)
        try:
            with context.wrap_socket(plain, server_hostname="shop.localhost") as secure:
                secure.sendall(REQUEST)
                while secure.recv(100):
                    pass
        except OSError as error:
            return re.sub(r"(\[SSL: \w+\] | \(_ssl\.c:\d+\)|_ssl\.c:\d+: )", "", str(error))
    return "no error"


def test_the_authority_of_a_wrong_certificate_is_in_its_file(daemon: Start, folder: Path) -> None:
    """Fault 143: `ca=` names the file for the authority, by which a client finds one mistake; only
    the client that asks for the host of `sni=` gets the certificate, and SIGHUP changes nothing.
    """
    running = daemon(
        *("--listen", "tls:0:interface=127.0.0.1:certificate=cert.pem", "--no-banner"),
        *("--fault", "wrong-certificate:name=expired,sni=bad.localhost,ca=bad.pem"),
        *("--handler", "hello:hello"),
    )
    port = running.port
    for _ in range(2):
        url = f"https://bad.localhost:{port}"
        said = run(folder, tool("curl"), "-sS", "--cacert", "bad.pem", url).stderr
        assert said.startswith("curl: (60) SSL certificate problem: certificate has expired\n")
        assert with_curl(folder, port) == "no error"
        running.signal(signal.SIGHUP)
        running.wait_for("Reloaded; changed: nothing")
        running.lines.clear()
    assert "PRIVATE" not in (folder / "bad.pem").read_text()


def test_a_file_that_cannot_be_written_is_an_error_of_the_start(folder: Path) -> None:
    """Fault 143: A file for the authority that would overwrite another is refused in one line."""
    (folder / "key.pem").write_text("a key")
    for more in ((), ("--check-config",)):
        done = run(
            folder,
            *(*TWISTD, "echod", "--listen", "tls:0:certificate=cert.pem"),
            *("--fault", "wrong-certificate:ca=key.pem", *more),
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "--fault wrong-certificate: ca=" in done.stderr
        assert (folder / "key.pem").read_text() == "a key"
