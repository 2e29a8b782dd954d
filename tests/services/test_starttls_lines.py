"""The example of a line protocol with STARTTLS, driven by real clients of the daemon."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path

import pytest

from tests.support.certificates import self_signed_pem
from tests.support.clients import connect
from tests.support.daemon import Daemon, Start
from tests.support.tls_peer import client_context

EXAMPLE = Path(__file__).parents[2] / "examples" / "services" / "starttls_lines.py"
MODELS = ["reactor", "defer-to-thread"]


@pytest.fixture(params=MODELS)
def mailbox(
    daemon: Start, tmp_path: Path, certificate: Path, request: pytest.FixtureRequest
) -> Daemon:
    """Start the example, on a listener that offers TLS."""
    (tmp_path / EXAMPLE.name).write_text(EXAMPLE.read_text())
    return daemon(
        *("--handler", "starttls_lines:Mailbox", "--framing", "line"),
        *("--concurrency", request.param),
        *("--listen", f"starttls:0:interface=127.0.0.1:certificate={certificate}"),
    )


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of this test's own, which the test may replace."""
    path = tmp_path / "server.pem"
    path.write_bytes(self_signed_pem())
    return path


def trusting(certificate: Path) -> ssl.SSLContext:
    """Return a client's context that trusts the example's certificate alone."""
    return ssl.create_default_context(cafile=str(certificate))


def test_commands_need_tls_which_the_client_begins(mailbox: Daemon, certificate: Path) -> None:
    with connect(mailbox) as client, client.makefile("rb") as replies:
        assert replies.readline() == b"+OK ready\n"
        client.sendall(b"CAPA\nUSER happy\n")
        assert replies.readline() == b"+OK STLS QUIT\n"
        assert replies.readline() == b"-ERR STLS first\n"
        client.sendall(b"STLS\n")
        assert replies.readline() == b"+OK begin TLS\n"
        context = trusting(certificate)
        with (
            context.wrap_socket(client.dup(), server_hostname="127.0.0.1") as secure,
            secure.makefile("rb") as answers,
        ):
            secure.sendall(b"CAPA\nSTLS\nUSER happy\nQUIT\n")
            assert answers.read() == (
                b"+OK USER QUIT\n-ERR not now\n+OK welcome, happy\n+OK bye\n"
            )


def test_sighup_renews_the_certificate_that_the_listener_offers(
    mailbox: Daemon, certificate: Path
) -> None:
    before = offered_by(mailbox)
    certificate.write_bytes(self_signed_pem())
    mailbox.signal(signal.SIGHUP)
    mailbox.wait_for("Reloaded")
    after = offered_by(mailbox)
    assert before != after
    assert ssl.DER_cert_to_PEM_cert(after) in certificate.read_text()


def offered_by(mailbox: Daemon) -> bytes:
    """Return the certificate that STARTTLS offers."""
    with connect(mailbox) as client, client.makefile("rb") as replies:
        client.sendall(b"STLS\n")
        assert replies.readline() == b"+OK ready\n"
        assert replies.readline() == b"+OK begin TLS\n"
        with client_context().wrap_socket(client.dup()) as secure:
            shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def test_a_command_injected_in_clear_is_not_answered_in_tls(
    mailbox: Daemon, certificate: Path
) -> None:
    with connect(mailbox) as client:
        client.sendall(b"STLS\nUSER attacker\nUSER atta")
        replies = b"+OK ready\n+OK begin TLS\n"
        got = b""
        while len(got) < len(replies):
            got += client.recv(len(replies) - len(got))
        assert got == replies
        with (
            trusting(certificate).wrap_socket(client.dup(), server_hostname="127.0.0.1") as secure,
            secure.makefile("rb") as answers,
        ):
            secure.sendall(b"USER happy\nQUIT\n")
            assert answers.read() == b"+OK welcome, happy\n+OK bye\n"
