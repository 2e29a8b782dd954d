from __future__ import annotations

import datetime
import ssl
import tempfile
from pathlib import Path

import pytest

from echod.tls import Files, FilesError, ServerContext
from tests.certificates import DAY, Authority, encrypted_key

AUTHORITY = Authority("an authority")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files of all kinds."""
    pair = AUTHORITY.issue("server")
    certificate, _, key = pair.partition(b"-----BEGIN PRIVATE")
    # At its beginning: elsewhere a change may make another certificate of it.
    damaged = certificate.replace(b"CERTIFICATE-----\nMI", b"CERTIFICATE-----\nAA", 1)
    for name, content in {
        "pair.pem": pair,
        "certificate.pem": certificate,
        "key.pem": b"-----BEGIN PRIVATE" + key,
        "other.pem": AUTHORITY.key,
        "encrypted.pem": encrypted_key(),
        "damaged.pem": damaged,
        "damaged-key.pem": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "text.pem": b"hello\xff\n",
        "ca.pem": AUTHORITY.certificate,
        "expired.pem": AUTHORITY.issue("old", -DAY),
    }.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def files(folder: Path, certificate: str, **names: str) -> Files:
    paths = {what: str(folder / name) for what, name in names.items()}
    return Files(str(folder / certificate), **paths)  # type: ignore[arg-type]


def handshake(
    server: ServerContext, client: ssl.SSLContext, name: str | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let both sides shake hands in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [server.wrap(up, down), client.wrap_bio(down, up, server_hostname=name)]
    for side in (sides[1], *sides, *sides):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return sides[0], sides[1]


def trusting(*, ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(ca)
    return context


@pytest.mark.parametrize(
    "names",
    [
        {"certificate": "pair.pem"},
        {"certificate": "pair.pem", "key": "key.pem"},
        {"certificate": "certificate.pem", "key": "key.pem", "chain": "ca.pem"},
    ],
)
def test_a_certificate_and_its_key_are_taken(folder: Path, names: dict[str, str]) -> None:
    server = ServerContext(files(folder, **names))
    _, client = handshake(server, trusting(ca=folder / "ca.pem"))
    assert client.version() == "TLSv1.3"
    assert client.compression() is None


@pytest.mark.parametrize(
    ("certificate", "names", "why"),
    [
        ("none.pem", {}, "cannot read {}/none.pem: No such file or directory"),
        ("no\0ne.pem", {}, "cannot read {}/no\0ne.pem: embedded null byte"),
        ("pair.pem", {"key": "none.pem"}, "cannot read {}/none.pem: No such file"),
        ("pair.pem", {"key": "."}, "cannot read {}: Is a directory"),
        ("text.pem", {}, "{}/text.pem holds no certificate in PEM"),
        ("certificate.pem", {}, "{}/certificate.pem holds no private key in PEM: name"),
        ("pair.pem", {"key": "text.pem"}, "{}/text.pem holds no private key in PEM"),
        ("pair.pem", {"key": "other.pem"}, "{}/other.pem is not the key of the cert"),
        ("pair.pem", {"key": "encrypted.pem"}, "the key in {}/encrypted.pem is encr"),
        ("pair.pem", {"key": "damaged-key.pem"}, "the certificate in {}/pair.pem or"),
        ("damaged.pem", {"key": "key.pem"}, "the certificate in {}/damaged.pem or "),
        ("pair.pem", {"chain": "text.pem"}, "{}/text.pem holds no certificate in PEM"),
        ("pair.pem", {"client_ca": "text.pem"}, "{}/text.pem holds no certificate in"),
        ("pair.pem", {"client_ca": "damaged.pem"}, "a certificate in {}/damaged.pem"),
        ("pair.pem", {"dh_parameters": "text.pem"}, "{}/text.pem holds no Diffie-Hell"),
    ],
)
def test_what_cannot_be_used_says_why_in_one_line(
    folder: Path, certificate: str, names: dict[str, str], why: str
) -> None:
    with pytest.raises(FilesError) as raised:
        ServerContext(files(folder, certificate, **names))
    assert str(raised.value).startswith(why.format(folder))
    assert "\n" not in str(raised.value)


def test_a_chain_without_a_temporary_directory_says_so_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(folder / "none")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(FilesError) as raised:
        ServerContext(files(folder, "pair.pem", chain="ca.pem"))
    assert str(raised.value).startswith(
        f"{folder}/ca.pem cannot be used: No usable temporary directory found in "
    )
    assert str(raised.value).endswith(
        f": append its certificates to those in {folder}/pair.pem, and leave it out"
    )


def test_a_reload_takes_the_new_certificate_for_new_connections(folder: Path) -> None:
    server = ServerContext(files(folder, "pair.pem"))
    _, before = handshake(server, trusting())
    (folder / "pair.pem").write_bytes(AUTHORITY.issue("new"))
    server.reread()()
    _, after = handshake(server, trusting())
    assert before.getpeercert(binary_form=True) != after.getpeercert(binary_form=True)


def test_a_reload_that_fails_changes_nothing(folder: Path) -> None:
    server = ServerContext(files(folder, "certificate.pem", key="key.pem"))
    (folder / "certificate.pem").write_bytes(AUTHORITY.issue("new"))
    with pytest.raises(FilesError, match="is not the key of the certificate"):
        server.reread()()
    _, client = handshake(server, trusting(ca=folder / "ca.pem"))
    certificate = client.getpeercert()
    assert certificate is not None
    assert certificate["subject"] == ((("commonName", "server"),),)


@pytest.mark.parametrize(
    ("name", "days"), [("pair.pem", 1), ("expired.pem", -1), ("certificate.pem", 1)]
)
def test_the_end_of_validity_is_told(folder: Path, name: str, days: int) -> None:
    expiry = files(folder, name).expiry()
    expected = datetime.datetime.now(datetime.UTC) + days * DAY
    assert abs(expiry - expected) < datetime.timedelta(minutes=5)


@pytest.mark.parametrize("content", [b"", b"AA==", b"MIIB", b"MAA="])
def test_a_certificate_that_is_none_has_no_end_of_validity(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.pem"
    begin, end = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----\n"
    path.write_bytes(begin + content + end)
    with pytest.raises(FilesError, match=r"the certificate in .*wrong\.pem is damaged"):
        Files(str(path)).expiry()


def test_client_certificates_are_required_or_optional(folder: Path) -> None:
    asked = files(folder, "pair.pem", client_ca="ca.pem")
    optional = Files(
        asked.certificate, client_ca=asked.client_ca, client_certificates_optional=True
    )
    handshake(ServerContext(optional), trusting())
    with pytest.raises(ssl.SSLError, match="did not return a certificate"):
        handshake(ServerContext(asked), trusting())
    client = trusting()
    client.load_cert_chain(folder / "pair.pem")
    server, _ = handshake(ServerContext(asked), client)
    assert server.getpeercert()


def test_a_protocol_is_agreed_on(folder: Path) -> None:
    server = ServerContext(Files(str(folder / "pair.pem"), alpn=("b", "a")))
    client = trusting()
    client.set_alpn_protocols(["a", "b"])
    assert handshake(server, client)[0].selected_alpn_protocol() == "b"
