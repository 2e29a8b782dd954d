"""Services written for Twisted, unchanged, in the real daemon, with standard clients."""

from __future__ import annotations

import contextlib
import poplib
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.faults.scale import Scale, number
from tests.support.certificates import self_signed_pem
from tests.support.clients import connect, end_while_idle, receive, receive_all
from tests.support.daemon import TERMINATED, Daemon, Start, nothing_kept
from tests.support.proxy_headers import line
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE, block_until

SERVICES = """
from io import BytesIO

import echod
from twisted.conch.telnet import TelnetTransport, TelnetProtocol
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet import ssl
from twisted.internet.protocol import Factory
from twisted.mail import pop3
from twisted.protocols import basic, finger, wire
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.words.service import InMemoryWordsRealm, IRCFactory

CHECKERS = [InMemoryUsernamePasswordDatabaseDontUse(happy=b"secret")]
MAIL = b"".join(b"line %d of a long mail\\n" % number for number in range(200_000))


class Mailbox(pop3.Mailbox):
    def listMessages(self, index=None):
        return [len(MAIL)] if index is None else len(MAIL)

    def getMessage(self, index):
        return BytesIO(MAIL)

    def getUidl(self, index):
        return b"%d" % index


class Mailboxes:
    def requestAvatar(self, avatarId, mind, *interfaces):
        return pop3.IMailbox, Mailbox(), lambda: None


class Post(Factory):
    noisy = False
    protocol = pop3.POP3

    def buildProtocol(self, addr):
        protocol = super().buildProtocol(addr)
        protocol.portal = Portal(Mailboxes(), CHECKERS)
        return protocol


def chat() -> IRCFactory:
    realm = InMemoryWordsRealm("example.org")
    realm.createGroupOnRequest = True
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    for name in ("happy", "other"):  # IRC's names are text, those of POP3 bytes
        checker.addUser(name, "secret")
    return IRCFactory(realm, Portal(realm, [checker]))


class Page(Resource):
    isLeaf = True

    def render_GET(self, request):
        return b"hello " + request.getClientAddress().host.encode()

    def render_POST(self, request):
        return request.content.read()


site = Site(Page())


class Telnet(TelnetProtocol):
    def dataReceived(self, data):
        self.transport.write(b"heard " + data)


telnet = Factory()
telnet.protocol = lambda: TelnetTransport(Telnet)


class Telling(Factory):
    noisy = False
    protocol = wire.Echo

    def startFactory(self):
        print("the factory starts")

    def stopFactory(self):
        print("the factory stops")


@echod.service
async def opened(service):
    yield Telling()
    print("the service is over")


class Encrypting(basic.LineReceiver):
    def lineReceived(self, line):
        if line == b"STARTTLS":
            self.sendLine(b"go ahead")
            with open("server.pem") as file:
                self.transport.startTLS(ssl.PrivateCertificate.loadPEM(file.read()).options())
        else:
            self.sendLine(line.upper())
"""


@pytest.fixture
def start(daemon: Start, tmp_path: Path) -> Callable[..., Daemon]:
    (tmp_path / "served.py").write_text(SERVICES)
    (tmp_path / "server.pem").write_bytes(self_signed_pem())

    def started(handler: str, *flags: str, way: str = "clear") -> Daemon:
        listen = "tls:0:certificate=server.pem" if way.endswith("TLS") else "tcp:0"
        if way.startswith("PROXY"):
            listen = f"proxy:{listen}"
        name = handler if ":" in handler else f"served:{handler}"
        return daemon("--handler", name, "--listen", listen, *flags)

    return started


@contextlib.contextmanager
def reached(running: Daemon, way: str) -> Iterator[socket.socket]:
    """Connect: by TLS, or behind a proxy."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(connect(running))
        if way.startswith("PROXY"):
            connection.sendall(line())
        if way.endswith("TLS"):
            # An end without close_notify would be an error.
            context = client_context()
            wrapped = context.wrap_socket(connection, suppress_ragged_eofs=False)
            connection = stack.enter_context(wrapped)
        yield connection


WAYS = ["clear", "TLS", "PROXY", "PROXY and TLS"]


class Post(poplib.POP3):
    """A client of POP3 on a connection that exists."""

    def __init__(self, connection: socket.socket) -> None:
        self.sock = connection
        self.file = connection.makefile("rb")
        self._debugging = 0
        self._tls_established = False
        self.welcome = self._getresp()  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", WAYS)
def test_poplib_fetches_mail(start: Callable[..., Daemon], way: str) -> None:
    running = start("Post", way=way)
    with reached(running, way) as connection:
        client = Post(connection)
        client.user("happy")
        client.pass_("secret")
        assert client.stat()[0] == 1
        _, lines, size = client.retr(1)
        assert len(lines) == 200_000
        assert size > 4_000_000
        client.quit()
    running.wait_for("Disconnected from .*(closed|lost) ")


@pytest.mark.parametrize("way", ["clear", "TLS"])
def test_sigterm_in_the_middle_of_a_mail_lets_it_end(
    start: Callable[..., Daemon], way: str
) -> None:
    """Fault 118: A mail that is being fetched arrives whole, before the client is disconnected."""
    running = start("Post", "--drain-timeout", "100", way=way)
    with reached(running, way) as connection:
        client = Post(connection)
        client.user("happy")
        client.pass_("secret")
        connection.sendall(b"RETR 1\r\n")
        assert receive(connection, 3) == b"+OK"
        running.signal()
        running.wait_for("Draining")
        came = receive_all(connection)
        client.file.close()
        assert came.endswith(b"\r\nline 199999 of a long mail\r\n.\r\n")
    running.wait()
    assert running.process.returncode in TERMINATED
    assert "Drain time-out" not in running.log


def test_two_clients_of_irc_talk(start: Callable[..., Daemon]) -> None:
    running = start("chat")

    def until(heard: BinaryIO, word: bytes) -> bytes:
        while word not in (said := heard.readline()):
            assert said
        return said

    with contextlib.ExitStack() as stack:
        files = []
        for name in (b"happy", b"other"):
            client = stack.enter_context(connect(running))
            files.append(stack.enter_context(client.makefile("rb")))
            client.sendall(b"PASS secret\r\nNICK %s\r\nUSER %s 0 * :x\r\n" % (name, name))
            until(files[-1], b" 004 ")
            client.sendall(b"JOIN #echod\r\n")
            until(files[-1], b" 366 ")
        client.sendall(b"PRIVMSG #echod :how are you?\r\n")
        said = until(files[0], b" PRIVMSG #")
        assert said.startswith(b":other!")
        assert said.endswith(b" :how are you?\r\n")


@pytest.mark.parametrize(
    ("handler", "asked", "answer"),
    [
        ("twisted.protocols.wire:Echo", b"happy", b"happy"),
        ("twisted.protocols.wire:QOTD", b"", b"An apple a day keeps the doctor away.\r\n"),
        ("twisted.protocols.wire:Daytime", b"", b""),
        ("twisted.protocols.wire:Discard", b"happy", b""),
        ("twisted.protocols.finger:Finger", b"happy\r\n", b"Login: happy"),
        ("served:telnet", b"happy", b"heard happy"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_small_services_run(
    start: Callable[..., Daemon], way: str, handler: str, asked: bytes, answer: bytes
) -> None:
    running = start(handler, way=way)
    with reached(running, way) as connection:
        connection.sendall(asked)
        assert receive(connection, len(answer)) == answer


@pytest.mark.parametrize("way", ["clear", "TLS"])
def test_a_site_of_twisted_web_is_served(start: Callable[..., Daemon], way: str) -> None:
    running = start("site", way=way)
    running.wait_for("Socket now listening")
    scheme = "https" if way == "TLS" else "http"
    context = client_context() if way == "TLS" else None
    url = f"{scheme}://127.0.0.1:{running.port}/"
    with urllib.request.urlopen(url, timeout=PATIENCE, context=context) as page:
        assert page.read() == b"hello 127.0.0.1"
    body = bytes(1_000_000)
    with urllib.request.urlopen(url, body, timeout=PATIENCE, context=context) as page:
        assert page.read() == body


def test_a_protocol_encrypts_its_connection_by_itself(start: Callable[..., Daemon]) -> None:
    running = start("Encrypting")
    with connect(running) as connection:
        connection.sendall(b"clear\r\nSTARTTLS\r\n")
        assert receive(connection, 17) == b"CLEAR\r\ngo ahead\r\n"
        context = client_context()
        with context.wrap_socket(connection, suppress_ragged_eofs=False) as encrypted:
            encrypted.sendall(b"encrypted\r\n")
            assert receive(encrypted, 11) == b"ENCRYPTED\r\n"
            running.signal()
            with contextlib.suppress(ssl.SSLZeroReturnError):
                assert receive_all(encrypted) == b""
    running.wait()


@pytest.mark.parametrize("way", ["clear", "TLS"])
def test_sigterm_ends_every_idle_conversation_and_resets_no_client(
    start: Callable[..., Daemon], scale: Scale, way: str
) -> None:
    """Fault 106: Idle clients see the end of the stream at once, and no reset."""
    count = number(ci=100, soak=1000)
    running = start("twisted.protocols.wire:Echo", "--drain-timeout", "200", way=way)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(reached(running, way)) for _ in range(count)]
        seconds = end_while_idle(running, clients)
    scale.note(f"{way}: {count} conversations ended in {seconds:.2f} s")


def test_a_service_may_yield_a_factory_which_starts_before_the_first_client(
    start: Callable[..., Daemon],
) -> None:
    running = start("opened", way="TLS")
    with reached(running, "TLS") as connection:
        connection.sendall(b"happy")
        assert receive(connection, 5) == b"happy"
    running.stop()
    assert running.log.count("the factory starts") == 1
    assert running.log.count("the factory stops") == 1
    assert running.log.index("the factory starts") < running.log.index("Connected with")
    assert running.log.index("the factory stops") < running.log.index("the service is over")


def test_no_descriptor_is_left(start: Callable[..., Daemon]) -> None:
    running = start("twisted.protocols.wire:Echo")
    with connect(running) as warm:
        warm.shutdown(socket.SHUT_WR)
        receive_all(warm)
    block_until(lambda: "Disconnected" in running.log)
    with nothing_kept(running):
        for _ in range(20):
            with connect(running) as each:
                each.sendall(b"happy")
                receive(each, 5)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            ("--framing", "line"),
            "--framing has no effect: twisted.protocols.wire:Echo is a Twisted",
        ),
        (
            ("--banner", "hello"),
            "--banner has no effect: twisted.protocols.wire:Echo is a Twisted",
        ),
        (
            ("--concurrency", "defer-to-thread"),
            "is a Twisted protocol: it runs with --concurrency reactor, not defer-to-thread",
        ),
    ],
)
def test_settings_without_effect_are_refused_in_one_line(
    start: Callable[..., Daemon], flags: tuple[str, ...], why: str
) -> None:
    running = start("twisted.protocols.wire:Echo", "--check-config", *flags)
    running.wait(PATIENCE)
    assert running.process.returncode == 1
    assert running.log.count("\n") == 0
    assert why in running.log


def test_an_argument_that_does_not_exist_is_refused_in_one_line(
    start: Callable[..., Daemon],
) -> None:
    running = start("twisted.protocols.wire:Echo:size=3", "--check-config")
    running.wait(PATIENCE)
    assert running.process.returncode == 1
    assert "takes no argument 'size'" in running.lines[-1]
