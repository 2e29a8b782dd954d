"""The site by itself: who is answered, and with what."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from echod.control.site import API, Call, ControlSite, told
from echod.web.hosts import Hosts
from echod.web.site import MOST_CLIENTS, MOST_READ, REQUEST_SECONDS, Answer
from tests.support.log import Log

TOKEN = b"0123456789abcdef"
RIGHT = b"Authorization: Bearer " + TOKEN + b"\r\n"
PEER = IPv4Address("TCP", "127.0.0.1", 1)


async def echo(call: Call) -> Answer:
    return told(200, {"query": call.query.decode("latin-1"), "number": call.number})


async def take(call: Call) -> Answer:
    return told(200, call.body())


working: list[Deferred[None]] = []


async def work(call: Call) -> Answer:
    working.append(Deferred())
    try:
        await working[-1]
    finally:
        working.clear()
    return told(200, {})


ROUTES = {
    "/work": {"GET": work},
    "/a": {"GET": echo, "PUT": take, "POST": take},
    "/a/{id}": {"GET": echo},
}


def make_site(token: bytes | None = TOKEN) -> tuple[ControlSite, Clock]:
    clock = Clock()
    return ControlSite(API(ROUTES, Hosts()), clock, token), clock


class Visitor:
    """A client without a socket."""

    def __init__(self, site: ControlSite, host: Any = PEER) -> None:
        self.transport: Any = StringTransport(hostAddress=host, peerAddress=PEER)
        self.transport.abortConnection = self.lose
        self.channel: Any = site.buildProtocol(PEER)
        self.lost = False
        self.channel.makeConnection(self.transport)

    def lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.channel.connectionLost(connectionDone)

    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return the status, the headers and the body."""
        self.channel.dataReceived(data)
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.lose()
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def ask() -> Ask:
    site, _ = make_site()

    def send(
        line: str, head: bytes = RIGHT, body: bytes = b"", host: Any = PEER
    ) -> tuple[int, dict[str, str], bytes]:
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        request = f"{line} HTTP/1.1\r\n".encode() + head + length + b"\r\n" + body
        return Visitor(site, host).ask(request)

    return send


@pytest.mark.parametrize(
    ("line", "head", "body"),
    [
        ("GET /a", b"", b""),
        ("GET /a", b"Authorization: Bearer 0123456789abcdeX\r\n", b""),
        ("GET /a", b"Authorization: Basic " + TOKEN + b"\r\n", b""),
        ("GET /nosuch", b"", b""),
        ("BREW /a", b"", b""),
        ("OPTIONS *", b"", b""),
        ("GET /a", b"Host: evil.example\r\n", b""),
        ("PUT /a", b"", b"x" * 70_000),
        ("PUT /a", b"Expect: 100-continue\r\n", b"{}"),
        ("PUT /a", b"Content-Length: 100000000\r\n", b""),
        ("PUT /a", b"Transfer-Encoding: chunked\r\n", b""),
        ("GET /a", b"Nonsense\r\n", b""),
        ("nonsense", b"", b""),
    ],
)
def test_without_the_token_nothing_is_answered(
    ask: Ask, line: str, head: bytes, body: bytes
) -> None:
    """Fault 145: Each request without the token gets 401, and no other word."""
    status, headers, said = ask(line, head, body)
    assert status == 401
    assert "Allow" not in headers
    assert said in (b"", ControlSite.not_allowed.body)


@given(st.binary(max_size=300))
def test_without_the_token_no_bytes_are_answered(data: bytes) -> None:
    site, _ = make_site()
    visitor = Visitor(site)
    visitor.channel.dataReceived(data + b"\r\n\r\n")
    answer = visitor.transport.value()
    visitor.lose()
    assert not answer or answer.startswith(b"HTTP/1.1 401 ")


def test_with_the_token_a_request_is_answered(ask: Ask) -> None:
    status, headers, body = ask("GET /a?b=%20c")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {"query": "b=%20c", "number": 0}
    assert json.loads(ask("GET /a/12")[2])["number"] == 12
    assert ask("HEAD /a")[0] == 200


def test_a_site_without_a_token_answers_only_unix_sockets() -> None:
    site, _ = make_site(token=None)
    request = b"GET /a HTTP/1.1\r\nAuthorization: Bearer \0\r\n\r\n"
    assert Visitor(site).ask(request)[0] == 401
    assert Visitor(site).ask(b"GET /a HTTP/1.1\r\n" + RIGHT + b"\r\n")[0] == 401
    socket = UNIXAddress(b"/run/control.sock")
    request = b"GET /a HTTP/1.1\r\nHost: any.example\r\n\r\n"
    assert Visitor(site, socket).ask(request)[0] == 200


def test_a_foreign_host_is_refused(ask: Ask) -> None:
    """Fault 145: A foreign Host is refused, with the token, too."""
    for host, status in (("evil.example", 421), ("localhost:9465", 200), ("[::1]", 200)):
        assert ask("GET /a", RIGHT + f"Host: {host}\r\n".encode())[0] == status


@pytest.mark.parametrize(
    ("line", "status", "allow"),
    [
        ("GET /b", 404, None),
        ("GET /a/0", 404, None),
        ("GET /a/x", 404, None),
        ("GET /%ff", 404, None),
        ("DELETE /a", 405, "GET, PUT, POST, HEAD"),
        ("PUT /a/1", 405, "GET, HEAD"),
        ("OPTIONS *", 200, "GET, HEAD, PUT, POST, DELETE"),
    ],
)
def test_a_path_or_method_that_is_not_there_is_refused(
    ask: Ask, line: str, status: int, allow: str | None
) -> None:
    found, headers, _ = ask(line)
    assert (found, headers.get("Allow")) == (status, allow)


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"1", b"\xff\xfe", b"[" * 60_000, b'{"a":' + b"9" * 9000 + b"}"]
)
def test_a_body_that_is_no_object_is_refused(ask: Ask, body: bytes, log: Log) -> None:
    assert ask("PUT /a", RIGHT, body)[0] == 400
    # Twisted may still tell of the clients of the test before.
    assert not [one for one in log.events if str(one["log_namespace"]).startswith("echod")]


def test_a_body_is_taken_whatever_its_media_type(ask: Ask) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        head = RIGHT + f"Content-Type: {kind}\r\n".encode()
        for method in ("PUT", "POST"):
            assert ask(f"{method} /a", head, b'{"a": 1}')[::2] == (200, b'{"a": 1}\n')


def test_a_long_body_is_refused(ask: Ask) -> None:
    """Fault 149: A long body is refused, and not kept."""
    fits = b'{"a": "' + b"x" * (ControlSite.most_body - 9) + b'"}'
    assert len(fits) == ControlSite.most_body
    assert ask("PUT /a", RIGHT, fits)[0] == 200
    assert ask("PUT /a", RIGHT, fits + b" ")[0] == 413
    assert ask("PUT /a", RIGHT + b"Content-Length: 100000000\r\n")[0] == 400


CHUNKED = RIGHT + b"Transfer-Encoding: chunked\r\n"
# The longest body that is read to its end, in chunks of the longest that is taken.
MOST_CHUNKS = [b"x" * ControlSite.most_body] * MOST_READ


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b'{"a"', b": 1}"], 200),
        ([b'{"a": 1}' + b" " * (ControlSite.most_body - 8)], 200),
        ([], 400),
        ([b'{"a": 1}', b" " * (ControlSite.most_body - 7)], 413),
        (MOST_CHUNKS, 413),
        ([*MOST_CHUNKS, b"x"], 400),
    ],
)
def test_a_body_may_come_in_chunks(parts: list[bytes], status: int) -> None:
    """Fault 149: A body in chunks, whose length no header says, is refused as soon as it is too
    long.
    """
    visitor = Visitor(make_site()[0])
    request = b"PUT /a HTTP/1.1\r\n" + CHUNKED + b"\r\n" + chunked(*parts)
    found, _, body = visitor.ask(request)
    assert found == status
    assert visitor.transport.value().count(b"HTTP/1.1 ") == 1
    if status == 200:
        assert json.loads(body) == {"a": 1}


def test_the_status_line_has_the_words_of_its_code() -> None:
    visitor = Visitor(make_site()[0])
    visitor.ask(b"GET /a HTTP/1.1\r\nHost: evil.example\r\n" + RIGHT + b"\r\n")
    assert visitor.transport.value().startswith(b"HTTP/1.1 421 Misdirected Request\r\n")


def test_clients_are_few_and_have_little_time() -> None:
    """Fault 149: A client that sends nothing is closed in time, or sooner for the next one."""
    site, clock = make_site()
    visitors = [Visitor(site) for _ in range(MOST_CLIENTS + 1)]
    assert [one.lost for one in visitors] == [True] + [False] * MOST_CLIENTS
    clock.advance(REQUEST_SECONDS)
    assert all(one.lost for one in visitors)
    assert site.clients == 0
    assert not clock.getDelayedCalls()


def test_long_work_is_not_the_clients_time() -> None:
    site, clock = make_site()
    visitor = Visitor(site)
    visitor.channel.dataReceived(b"GET /work HTTP/1.1\r\n" + RIGHT + b"\r\n")
    clock.advance(10 * REQUEST_SECONDS)
    assert not visitor.lost
    working[0].callback(None)
    assert visitor.transport.value().startswith(b"HTTP/1.1 200 ")
    clock.advance(REQUEST_SECONDS)  # it does not read the answer
    assert visitor.lost
    assert not clock.getDelayedCalls()


def test_work_for_a_client_that_is_gone_ends() -> None:
    site, clock = make_site()
    visitor = Visitor(site)
    visitor.channel.dataReceived(b"GET /work HTTP/1.1\r\n" + RIGHT + b"\r\n")
    visitor.lose()
    assert not working
    assert not clock.getDelayedCalls()
