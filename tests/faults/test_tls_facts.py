"""The facts about a client's TLS reach handlers, even from hostile clients."""

from __future__ import annotations

import ast
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type

from tests.support.certificates import Authority
from tests.support.daemon import MODELS, Daemon, starting
from tests.support.tls_peer import VERSIONS, Peer, client_context, records

# Replies with what is known of the client.
ASKING = """
from echod import Handler

class Asking(Handler):
    def opened(self, client):
        self.tls = client.tls

    def received(self, message):
        certificate = self.tls.certificate
        return ascii((self.tls.server_name, certificate and certificate.subject)).encode()
"""

AUTHORITY = Authority("an authority")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("facts")
    (path / "server.pem").write_bytes(AUTHORITY.issue("server"))
    (path / "ca.pem").write_bytes(AUTHORITY.certificate)
    (path / "asking.py").write_text(ASKING)
    return path


@pytest.fixture(scope="module", params=MODELS)
def running(request: pytest.FixtureRequest, folder: Path) -> Iterator[Daemon]:
    """A daemon in each model that takes clients with a certificate, and without."""
    listen = "tls:0:interface=127.0.0.1:certificate=server.pem:client-ca=ca.pem"
    with starting(folder) as start:
        yield start(
            *("--listen", f"{listen}:client-certificates=optional", "--no-banner"),
            *("--handler", "asking:Asking", "--concurrency", request.param),
        )


def told(peer: Peer) -> object:
    """Return the handler's description of its knowledge."""
    peer.shake_hands()
    return ast.literal_eval(peer.exchange(b"?", "close_notify").decode())


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("sizes", [(1,), (100, 3), (1 << 14,)], ids=str)
def test_a_hello_is_understood_however_it_is_cut(
    running: Daemon, version: ssl.TLSVersion, sizes: tuple[int, ...]
) -> None:
    """Fault 79: Handlers know the host that the client asked for, however the ClientHello is cut
    into records and segments.
    """
    for segment in (7, 1 << 16):
        peer = Peer(running.port, client_context(version), server_name="example.com")
        hello = records(peer.hello(), *sizes)
        for start in range(0, len(hello), segment):
            peer.socket.sendall(hello[start : start + segment])
        assert told(peer) == ("example.com", None)
        peer.socket.close()


def test_a_hello_that_is_too_long_is_refused(running: Daemon) -> None:
    """Fault 79: A ClientHello above the greatest possible length is refused, and nothing of it is
    kept.
    """
    for size in (131_397, 0xFFFFFF):
        peer = Peer(running.port)
        message = b"\x01" + size.to_bytes(3, "big") + bytes(1000)
        peer.socket.sendall(records(bytes(5) + message, 1 << 14))
        with pytest.raises(ssl.SSLError):
            peer.shake_hands()
        peer.socket.close()
    assert "Traceback" not in running.log


BITS = x509.Name(
    [
        x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody"),
        x509.NameAttribute(
            x509.NameOID.X500_UNIQUE_IDENTIFIER, b"\0\xff", _ASN1Type.BitString, _validate=False
        ),
    ]
)
NAMES = {
    "bits": (
        AUTHORITY.issue(BITS),
        (("commonName", "somebody"), ("x500UniqueIdentifier", "#030200ff")),
    ),
    # A value that OpenSSL cannot convert to text.
    "sequence": (
        AUTHORITY.issue_changed("name", b"\x0c\x04name", b"\x30\x04\x0c\x02ab"),
        (("commonName", "#30040c026162"),),
    ),
    "teletex": (
        AUTHORITY.issue_changed("name", b"\x0c\x04name", b"\x14\x04Zo\xeb!"),
        (("commonName", "Zoë!"),),
    ),
    "control": (
        AUTHORITY.issue_changed("name", b"\x0c\x04name", b"\x0c\x04\x1b[2J"),
        (("commonName", "\x1b[2J"),),
    ),
    # An alternative name that is not an address, and is not used.
    "alternative": (
        AUTHORITY.issue_changed("name", b"\x87\x04\x7f\0\0\1", b"\x81\x04\xff\0\0\1"),
        (("commonName", "name"),),
    ),
}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("name", NAMES)
def test_a_certificate_has_a_name_in_text_whatever_is_in_it(
    running: Daemon, folder: Path, version: ssl.TLSVersion, name: str
) -> None:
    """Fault 79: Handlers get a certificate's name as text, from any types of ASN.1."""
    certificate, subject = NAMES[name]
    (folder / "client.pem").write_bytes(certificate)
    context = client_context(version)
    context.load_cert_chain(folder / "client.pem")
    peer = Peer(running.port, context)
    assert told(peer) == (None, subject)
    peer.socket.close()
    assert "Traceback" not in running.log
    assert "\x1b" not in running.log
