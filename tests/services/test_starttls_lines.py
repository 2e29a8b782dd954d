"""The example of a line protocol with STARTTLS, driven by real clients of the daemon."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.support.clients import connect
from tests.support.daemon import Daemon, Start

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
