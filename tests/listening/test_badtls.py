from __future__ import annotations

import resource
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import fail
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from echod.errors import UserError
from echod.listening.badtls import HEAD, BadTLSError, SharedMistakes, TrustedEndpoint
from echod.listening.endpoints import parse_listen
from echod.listening.proxy import ProxyFactory
from echod.listening.tcp import IPv6Endpoint, TCPEndpoint
from echod.listening.unix import UNIXEndpoint
from echod.tls.mistakes import MistakesContext
from tests.support.daemon import REACTOR, TWISTD
from tests.support.log import Log
from tests.support.programs import limit, run
from tests.support.reactor import reactor
from tests.support.serving import no_more_threads


@pytest.mark.parametrize(
    ("text", "kind", "interface"),
    [
        ("badtls:0", TCPEndpoint, "127.0.0.1"),
        ("badtls:tcp:0", TCPEndpoint, "127.0.0.1"),
        ("badtls:tcp:port=0", TCPEndpoint, "127.0.0.1"),
        ("badtls:0:alpn=h2:backlog=7", TCPEndpoint, "127.0.0.1"),
        ("proxy:badtls:0", TCPEndpoint, "127.0.0.1"),
        ("badtls:0:interface=0.0.0.0", TCPEndpoint, "0.0.0.0"),
        ("badtls:tcp:0:127.0.0.2", TCPEndpoint, "127.0.0.2"),
        ("badtls:tcp6:0", IPv6Endpoint, "::1"),
        ("badtls:tcp6:0:interface=\\:\\:", IPv6Endpoint, "::"),
        ("badtls:unix:/tmp/x", UNIXEndpoint, None),
    ],
)
def test_it_listens_for_this_machine_unless_another_address_is_asked_for(
    text: str, kind: type, interface: str | None
) -> None:
    listening = parse_listen(reactor, text)
    assert isinstance(listening.endpoint, TrustedEndpoint)
    endpoint: Any = listening.endpoint.endpoint
    assert isinstance(endpoint, kind)
    assert getattr(endpoint, "interface", None) == interface
    assert isinstance(listening.tls, MistakesContext)
    assert listening.proxied is text.startswith("proxy:")
    assert not listening.starts_clear


@pytest_twisted.ensureDeferred
async def test_the_certificates_are_made_later_if_there_is_no_thread_for_them() -> None:
    authority = SharedMistakes()
    with no_more_threads():
        await authority.make_ahead(reactor)
    assert authority.mistakes.certificate


def test_listeners_share_an_authority() -> None:
    authority = SharedMistakes()
    contexts = [parse_listen(reactor, "badtls:0", None, authority).tls for _ in range(2)]
    made = {id(context._mistakes) for context in contexts if isinstance(context, MistakesContext)}
    assert made == {id(authority.mistakes)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("badtls:0:certificate=x", "badtls: takes no option 'certificate'; there are: ca, client"),
        ("badtls:tls:0", "tls: may occur only once, before the endpoint"),
        ("badtls:99999", "99999 is not a port"),
        ("badtls:0:ca=none/ca.pem", "/none/ca.pem: there is no folder "),
        ("badtls:0:ca=other.pem", "this file exists, and no badtls: listener has written it"),
        ("badtls:0:client=other.pem", "this file exists, and no badtls: listener has written it"),
        ("badtls:0:ca=folder", "/folder: Is a directory"),
        ("badtls:0:ca=a\0b", "embedded null byte"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as raised:
        parse_listen(reactor, text)
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "other.pem").read_text() == "-----BEGIN PRIVATE KEY-----\n"


def test_without_the_package_that_makes_certificates_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "echod.tls.mistakes", None)
    with pytest.raises(BadTLSError, match=r"pip install 'txechod\[badtls\]'$"):
        parse_listen(reactor, "badtls:0")


def endpoint(**options: str) -> TrustedEndpoint:
    inner = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    return TrustedEndpoint(inner, SharedMistakes(), **options)


@pytest_twisted.ensureDeferred
async def test_without_a_name_the_authority_is_in_a_temporary_file_while_it_listens(
    log: Log,
) -> None:
    for _ in range(2):
        port = await endpoint().listen(Factory())
        said = log.text.rpartition("the authority is in ")[2]
        path = Path(said.partition(";")[0])
        assert path.read_text().startswith(f"{HEAD}-----BEGIN CERTIFICATE-----\n")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert "good.localhost, expired.localhost" in said
        await port.stopListening()
        assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_a_file_with_a_name_stays_and_the_next_start_writes_over_it(tmp_path: Path) -> None:
    ca, client = tmp_path / "ca.pem", tmp_path / "client.pem"
    before: set[str] = set()
    for _ in range(2):
        port = await endpoint(ca=str(ca), client=str(client)).listen(Factory())
        await port.stopListening()
        assert [stat.S_IMODE(each.stat().st_mode) for each in (ca, client)] == [0o644, 0o600]
        assert "PRIVATE KEY" not in ca.read_text()
        assert "PRIVATE KEY" in client.read_text()
        assert not before & (before := {ca.read_text(), client.read_text()})
    assert sorted(tmp_path.iterdir()) == [ca, client]


@pytest_twisted.ensureDeferred
async def test_if_a_file_cannot_be_written_it_does_not_listen(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    trusted = endpoint(ca=str(tmp_path / "folder/ca.pem"))
    (tmp_path / "folder").rmdir()
    with pytest.raises(BadTLSError, match="there is no folder"):
        await trusted.listen(Factory())


def test_where_there_is_no_room_for_the_file_none_is_left(tmp_path: Path) -> None:
    """Fault 194: A start that finds no room for a file leaves none behind."""
    steps = [limit(resource.RLIMIT_FSIZE, 100)]
    command = (*TWISTD, *REACTOR, "echod", "--listen", "badtls:0:ca=ca.pem")
    ended = run(tmp_path, *command, steps=steps)
    assert ended.stderr.endswith(f"ca={tmp_path}/ca.pem: File too large\n")
    assert not list(tmp_path.iterdir())


class Watched:
    """An endpoint that notes what files hold when it listens, and perhaps cannot."""

    def __init__(self, folder: Path, error: OSError | None = None) -> None:
        self._folder = folder
        self._error = error
        self.seen: dict[str, str] = {}

    def listen(self, factory: Factory) -> Any:
        self.seen = contents(self._folder)
        if self._error is not None:
            return fail(Failure(self._error))
        return TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest_twisted.ensureDeferred
async def test_the_files_are_there_when_the_port_listens(tmp_path: Path) -> None:
    """Fault 194: A client that waits for the port finds the files, and what they hold is right."""
    inner = Watched(tmp_path)
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "client")}
    port = await TrustedEndpoint(inner, SharedMistakes(), **paths).listen(Factory())
    assert inner.seen == contents(tmp_path)
    assert sorted(inner.seen) == ["ca.pem", "client.pem"]
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_if_it_cannot_listen_it_leaves_no_file(tmp_path: Path) -> None:
    inner = Watched(tmp_path, OSError("taken"))
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "client")}
    with pytest.raises(OSError, match="taken"):
        await TrustedEndpoint(inner, SharedMistakes(), **paths).listen(Factory())
    assert len(inner.seen) == 2
    assert not list(tmp_path.iterdir())


@pytest_twisted.ensureDeferred
async def test_if_it_cannot_listen_the_files_are_again_as_they_were(tmp_path: Path) -> None:
    """Fault 194: A second daemon, whose port is taken, does not change the files of the first."""
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "client")}
    port = await endpoint(**paths).listen(Factory())
    before = contents(tmp_path)
    inner = Watched(tmp_path, OSError("taken"))
    with pytest.raises(OSError, match="taken"):
        await TrustedEndpoint(inner, SharedMistakes(), **paths).listen(Factory())
    assert contents(tmp_path) == before
    modes = [stat.S_IMODE((tmp_path / f"{name}.pem").stat().st_mode) for name in paths]
    assert modes == [0o644, 0o600]
    await port.stopListening()


def test_behind_a_proxy_the_header_comes_first() -> None:
    listening = parse_listen(reactor, "proxy:badtls:0")
    assert isinstance(listening.wrap(Factory(), reactor, ()), ProxyFactory)
