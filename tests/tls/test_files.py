from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from echod.tls import Files, FilesError, Pair, ServerContext
from echod.tls.context import new_server_context
from echod.tls.der import subject
from echod.tls.facts import facts_of
from echod.tls.pem import read
from tests.support.certificates import DAY, Authority, encrypted_key
from tests.support.tls_peer import VERSIONS, client_context, reread

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
    server: ServerContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let both sides shake hands in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [server.wrap(up, down, None), client.wrap_bio(down, up, session=session)]
    for side in (sides[1], *sides, *sides):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return sides[0], sides[1]


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
    _, client = handshake(server, client_context(ca=folder / "ca.pem"))
    assert client.version() == "TLSv1.3"
    assert client.compression() is None


OWN_KEY = "name the key's own file, or in a folder call it certificate.key"


@pytest.mark.parametrize(
    ("certificate", "names", "why"),
    [
        ("none.pem", {}, "cannot read {}/none.pem: No such file or directory"),
        ("no\0ne.pem", {}, "cannot read {}/no\0ne.pem: embedded null byte"),
        ("pair.pem", {"key": "none.pem"}, "cannot read {}/none.pem: No such file"),
        ("pair.pem", {"key": "."}, "cannot read {}: Is a directory"),
        ("text.pem", {}, "{}/text.pem holds no certificate in PEM"),
        ("certificate.pem", {}, f"{{}}/certificate.pem holds no private key in PEM: {OWN_KEY}"),
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


def shown_to(server: ServerContext, host: str | None) -> str:
    """Return the common name of the certificate that a client gets that asks for this host."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [server.wrap(up, down, host), client_context().wrap_bio(down, up)]
    for side in (sides[1], *sides):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    der = sides[1].getpeercert(binary_form=True)
    assert der is not None
    return dict(subject(der))["commonName"]


# The certificates of a folder, by their files: their names, and the hosts in them.
HOSTS = {
    "a.pem": ("first", ("first.example",)),
    "b.crt": ("shop", ("shop.example", "WWW.shop.example")),
    "c.cert": ("all", ("*.shop.example", "*.example")),
    "d.CER": ("old.example", ()),
}


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A folder with a certificate for each of several hosts, and files that do not count."""
    folder = tmp_path / "several"
    folder.mkdir()
    for name, (owner, hosts) in HOSTS.items():
        pair = AUTHORITY.issue(owner, hosts=hosts)
        certificate, _, key = pair.partition(b"-----BEGIN PRIVATE")
        if name.endswith(".crt"):
            (folder / name).write_bytes(certificate)
            (folder / name).with_suffix(".key").write_bytes(b"-----BEGIN PRIVATE" + key)
        else:
            (folder / name).write_bytes(pair)
    (folder / "README").write_text("These are renewed monthly.")
    (folder / ".hidden.pem").write_text("A draft.")
    return folder


@pytest.mark.parametrize(
    ("host", "owner"),
    [
        ("shop.example", "shop"),
        ("SHOP.Example", "shop"),
        ("www.shop.example", "shop"),
        ("www.shop.example.", "shop"),
        ("api.shop.example", "all"),
        ("other.example", "all"),
        ("old.example", "old.example"),  # by its common name: it names no other
        ("a.b.shop.example", "first"),  # a star is one label
        ("example", "first"),
        ("elsewhere.test", "first"),
        ("", "first"),
        (None, "first"),
    ],
)
def test_a_client_gets_the_certificate_for_the_host_that_it_asks_for(
    several: Path, host: str | None, owner: str
) -> None:
    by_folder = ServerContext(Files(str(several)))
    assert shown_to(by_folder, host) == owner
    first, *others = (
        Pair(
            str(path := several / name),
            str(key) if (key := path.with_suffix(".key")).exists() else None,
        )
        for name in HOSTS
    )
    by_name = ServerContext(Files(first.certificate, first.key, others=tuple(others)))
    assert shown_to(by_name, host) == owner
    assert [one.path for one in by_folder.served] == [str(several / name) for name in HOSTS]
    assert by_folder.served == by_name.served


@pytest.mark.parametrize(
    ("file", "hosts", "why"),
    [
        ("e.pem", ["new.example", "Shop.example"], "{0}/b.crt and {0}/e.pem are both for shop.ex"),
        ("e.pem", ["*.example"], "{0}/c.cert and {0}/e.pem are both for *.example: leave out one"),
        ("e.pem", [], "{0}/e.pem names no host, so no client would get it: put it first"),
        ("b.pem", ["b.example"], "{0}/b.key is not the key of the certificate in {0}/b.pem"),
    ],
)
def test_a_certificate_that_does_not_go_with_the_others_is_refused(
    several: Path, file: str, hosts: list[str], why: str
) -> None:
    server = ServerContext(Files(str(several)))
    (several / file).write_bytes(AUTHORITY.issue("no host", hosts=hosts))
    for load in (server.files.load, partial(reread, server)):
        with pytest.raises(FilesError) as raised:
            load()
        assert str(raised.value).startswith(why.format(several))
        assert "\n" not in str(raised.value)
    assert shown_to(server, "shop.example") == "shop"


def test_a_folder_without_certificates_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(FilesError, match="/empty holds no certificate: no file there ends in"):
        ServerContext(files(folder, "empty"))
    with pytest.raises(FilesError, match="is a folder, in which each certificate has a key of"):
        ServerContext(files(folder, "empty", key="key.pem"))


def test_a_folder_that_cannot_be_read_says_why(
    several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FilesError, match=r"^cannot read .*/several: Permission denied$"):
        ServerContext(Files(str(several)))


def test_each_step_of_a_reload_loads_one_certificate(
    several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerContext(Files(str(several)))
    made: list[ssl.SSLContext] = []

    def make(alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        made.append(new_server_context(alpn))
        return made[-1]

    monkeypatch.setattr("echod.tls.files.new_server_context", make)
    for count, _ in enumerate(server.reread(), 1):
        assert len(made) == count
    assert len(made) == len(server.served)


def test_what_was_in_use_before_a_reload_is_freed_one_by_one(several: Path) -> None:
    server = ServerContext(Files(str(several)))
    before = server._loaded.by_host
    (several / "d.CER").unlink()
    count, left_over = len(before), reread(server)()
    for number, _ in enumerate(left_over, 1):
        assert len(before) == count - number
    assert not before
    assert shown_to(server, "shop.example") == "shop"


def test_a_reload_takes_what_a_folder_holds_now(several: Path) -> None:
    server = ServerContext(Files(str(several)))
    (several / "e.pem").write_bytes(AUTHORITY.issue("new", hosts=["new.test"]))
    (several / "b.crt").unlink()
    take_into_use = reread(server)
    assert shown_to(server, "new.test") == "first"
    take_into_use()
    assert shown_to(server, "new.test") == "new"
    assert shown_to(server, "shop.example") == "all"
    assert [Path(one.path).name for one in server.served] == ["a.pem", "c.cert", "d.CER", "e.pem"]


@pytest.fixture(params=[OSError, AttributeError])
def no_memory_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without files in memory, or without this way to make one."""

    def memfd_create(name: str) -> int:
        raise request.param

    monkeypatch.setattr(os, "memfd_create", memfd_create)


def test_files_in_memory_will_do_without_a_temporary_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(folder / "none")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    ServerContext(files(folder, "certificate.pem", key="key.pem", chain="ca.pem"))


@pytest.mark.usefixtures("no_memory_files")
def test_a_temporary_directory_will_do_without_files_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temporary"))
    server = ServerContext(files(folder, "certificate.pem", key="key.pem", chain="ca.pem"))
    handshake(server, client_context(ca=folder / "ca.pem"))
    assert not list((folder / "temporary").iterdir())


@pytest.mark.usefixtures("no_memory_files")
def test_without_either_it_says_so_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(folder / "none")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(FilesError) as raised:
        ServerContext(files(folder, "pair.pem"))
    assert str(raised.value).startswith(
        f"{folder}/pair.pem cannot be used: No usable temporary directory found in "
    )


def test_a_reload_takes_the_new_certificate_for_new_connections(folder: Path) -> None:
    server = ServerContext(files(folder, "pair.pem"))
    _, before = handshake(server, client_context())
    (folder / "pair.pem").write_bytes(AUTHORITY.issue("new"))
    reread(server)()
    _, after = handshake(server, client_context())
    assert before.getpeercert(binary_form=True) != after.getpeercert(binary_form=True)


def test_a_reload_that_fails_changes_nothing(folder: Path) -> None:
    server = ServerContext(files(folder, "certificate.pem", key="key.pem"))
    (folder / "certificate.pem").write_bytes(AUTHORITY.issue("new"))
    with pytest.raises(FilesError, match="is not the key of the certificate"):
        reread(server)()
    _, client = handshake(server, client_context(ca=folder / "ca.pem"))
    certificate = client.getpeercert()
    assert certificate is not None
    assert certificate["subject"] == ((("commonName", "server"),),)


@pytest.mark.parametrize(
    ("name", "days"), [("pair.pem", 1), ("expired.pem", -1), ("certificate.pem", 1)]
)
def test_the_end_of_validity_is_told(folder: Path, name: str, days: int) -> None:
    key = "key.pem" if name == "certificate.pem" else name
    server = ServerContext(files(folder, name, key=key))
    expected = datetime.datetime.now(datetime.UTC) + days * DAY
    assert abs(server.served[0].valid_until - expected) < datetime.timedelta(minutes=5)


@pytest.mark.parametrize("content", [b"", b"AA==", b"MIIB", b"MAA="])
def test_a_certificate_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "wrong.pem"
    begin, end = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----\n"
    path.write_bytes(begin + content + end)
    with pytest.raises(
        FilesError, match=r"the certificate in .*wrong\.pem or the key in .* damaged"
    ):
        Files(str(path), str(folder / "key.pem")).load()


def test_a_file_that_changes_while_it_is_read_is_one_thing_or_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read of a file finds a state of its renewal, maybe half written."""
    path = folder / "pair.pem"
    states = [b"", b"-----BEGIN CERT", path.read_bytes(), AUTHORITY.issue("new", 9 * DAY)]
    for order in itertools.product(states, repeat=3):
        turns = itertools.chain(order, itertools.repeat(order[-1]))

        def changing(of: str, turns: Iterator[bytes] = turns) -> str:
            path.write_bytes(next(turns))
            return read(of)

        monkeypatch.setattr("echod.tls.files.read", changing)
        try:
            server = ServerContext(files(folder, "pair.pem"))
        except FilesError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        _, client = handshake(server, client_context(ca=folder / "ca.pem"))
        shown = client.getpeercert()
        assert shown is not None
        said = ssl.cert_time_to_seconds(str(shown["notAfter"]))
        assert said == server.served[0].valid_until.timestamp()


def test_client_certificates_are_required_or_optional(folder: Path) -> None:
    asked = files(folder, "pair.pem", client_ca="ca.pem")
    optional = Files(
        asked.certificate, client_ca=asked.client_ca, client_certificates_optional=True
    )
    handshake(ServerContext(optional), client_context())
    with pytest.raises(ssl.SSLError, match="did not return a certificate"):
        handshake(ServerContext(asked), client_context())
    client = client_context()
    client.load_cert_chain(folder / "pair.pem")
    server, _ = handshake(ServerContext(asked), client)
    assert server.getpeercert()


def test_a_protocol_is_agreed_on(folder: Path) -> None:
    server = ServerContext(Files(str(folder / "pair.pem"), alpn=("b", "a")))
    client = client_context()
    client.set_alpn_protocols(["a", "b"])
    assert handshake(server, client)[0].selected_alpn_protocol() == "b"


def session_of(client: ssl.SSLObject) -> ssl.SSLSession:
    """Return a session that a client can resume: in TLS 1.3 it reads its ticket first."""
    with contextlib.suppress(ssl.SSLWantReadError):
        client.read(1)
    assert client.session is not None
    assert client.session.has_ticket
    return client.session


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_is_resumed_by_its_ticket_and_that_one_by_its_own(
    folder: Path, version: ssl.TLSVersion
) -> None:
    server, client = ServerContext(files(folder, "pair.pem")), client_context(version)
    session = None
    for reused in (False, True, True):
        sides = handshake(server, client, session)
        assert [side.session_reused for side in sides] == [reused, reused]
        session = session_of(sides[1])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_resumes_has_the_same_certificate(
    folder: Path, version: ssl.TLSVersion
) -> None:
    server = ServerContext(files(folder, "pair.pem", client_ca="ca.pem"))
    client = client_context(version)
    client.load_cert_chain(folder / "pair.pem")
    first = handshake(server, client)
    again = handshake(server, client, session_of(first[1]))
    assert again[0].session_reused
    facts = [facts_of(side, None) for side in (first[0], again[0])]
    assert [each.resumed for each in facts] == [False, True]
    assert replace(facts[0], resumed=True) == facts[1]
    assert facts[1].certificate is not None
    assert facts[1].certificate.common_name == "server"


@pytest.mark.parametrize("version", VERSIONS)
def test_after_a_reload_sessions_begin_anew(folder: Path, version: ssl.TLSVersion) -> None:
    server, client = ServerContext(files(folder, "pair.pem")), client_context(version)
    session = session_of(handshake(server, client)[1])
    reread(server)()
    assert not handshake(server, client, session)[0].session_reused
