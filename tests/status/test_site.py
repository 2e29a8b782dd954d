from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher

from echod.metrics import Metrics
from echod.status.exposition import expose
from echod.status.shared import FRESH
from echod.status.site import StatusSite, make_site
from echod.status.snapshot import state_of
from echod.web.hosts import Hosts
from echod.web.site import MOST_CLIENTS, REQUEST_SECONDS
from tests.status.fakes import FakeFactory, FakeListener, FakeSubject
from tests.status.test_page import VALID_UNTIL, busy_subject, snapshot
from tests.support.log import Log

PEER = IPv4Address("TCP", "127.0.0.1", 1)


class Visitor:
    """A connection to the site, without a socket."""

    def __init__(self, site: StatusSite) -> None:
        self.transport: Any = StringTransport(peerAddress=PEER)
        self.transport.abortConnection = self.lose
        self.channel: Any = site.buildProtocol(PEER)
        self.lost = False
        if self.channel is not None:
            self.channel.makeConnection(self.transport)

    def lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.channel.connectionLost(connectionDone)

    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return the status, the headers and the body."""
        self.channel.dataReceived(data)
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, body


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def subject() -> FakeSubject:
    return busy_subject()


@pytest.fixture
def site(clock: Clock, subject: FakeSubject) -> StatusSite:
    checks = Counter(healthz=0, readyz=0)

    async def look() -> Any:
        now = snapshot(subject, clock)
        return replace(now, checks=checks, status="tcp:9464")

    return make_site(clock, look=look, state=lambda: state_of(subject), checks=checks)


Get = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def get(site: StatusSite, clock: Clock) -> Get:
    def get(path: str, method: str = "GET", accept: str = "*/*", rest: bytes = b"") -> Any:
        clock.advance(FRESH)
        visitor = Visitor(site)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n".encode()
        answer = visitor.ask(head + (rest or b"\r\n"))
        assert visitor.transport.disconnecting  # one request a connection
        visitor.lose()
        assert site.clients == 0
        assert not clock.getDelayedCalls()
        return answer

    return get


Looking = tuple[StatusSite, Deferred[Any]]


@pytest.fixture
def looking(clock: Clock) -> Looking:
    """A site whose figures are yet to come."""
    figures: Deferred[Any] = Deferred()

    async def look() -> Any:
        return await figures

    return make_site(clock, look=look, state=lambda: "ready"), figures


ASK = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_health_is_the_loops(get: Get) -> None:
    assert get("/healthz")[::2] == (200, b"ok\n")


@pytest.mark.parametrize(
    ("ready", "draining", "status", "text"),
    [
        (True, False, 200, b"ready\n"),
        (False, False, 503, b"starting\n"),
        (False, True, 503, b"draining\n"),
    ],
)
def test_readiness_is_the_services(
    get: Get, subject: FakeSubject, ready: bool, draining: bool, status: int, text: bytes
) -> None:
    subject.ready, subject.draining = ready, draining
    assert get("/readyz")[::2] == (status, text)


def test_every_answer_says_what_browsers_may_do_with_it(get: Get, log: Log) -> None:
    for path, method in (
        *[(path, "GET") for path in ("/", "/healthz", "/metrics", "/nosuch", "http://no.such/")],
        ("*", "OPTIONS"),
        ("*", "GET"),
        ("/", "DELETE"),
    ):
        _, headers, _ = get(path, method)
        assert headers["Server"] == "echod"
        assert headers["Connection"] == "close"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Content-Encoding" not in headers
    assert not log.events


def test_what_is_not_there_is_not_echoed(get: Get) -> None:
    status, _, body = get("/nosuch/%3Cscript%3E")
    assert status == 404
    assert b"nosuch" not in body


def test_it_is_for_reading(get: Get) -> None:
    status, headers, body = get("/metrics", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000
    for method in ("DELETE", "OPTIONS", "BREW"):
        status, headers, _ = get("/metrics", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 5\r\n\r\nhappy",
        b"Content-Length: 500000000\r\n\r\n" + b"x" * 100_000,
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhappy\r\n0\r\n\r\n",
    ],
)
def test_a_request_has_no_body(get: Get, rest: bytes) -> None:
    assert get("/metrics", "GET", rest=rest)[0] == 400
    assert get("/metrics", "POST", rest=rest)[0] == 400


def test_the_absolute_form_is_understood(get: Get) -> None:
    """RFC 9112, 3.2.2."""
    for target in ("http://localhost:9464/healthz", "HTTPS://127.0.0.1/healthz?x=/y"):
        assert get(target)[::2] == (200, b"ok\n")
    assert get("http://localhost")[0] == 200
    assert get("http://localhost/nosuch")[0] == 404
    status, headers, body = get("*", "OPTIONS")
    assert (status, headers["Allow"], body) == (200, "GET, HEAD", b"")


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: \xff\xe9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: \xff\r\n\r\n",
    ],
)
def test_a_header_may_hold_any_bytes(site: StatusSite, request_head: bytes, log: Log) -> None:
    status, _, body = Visitor(site).ask(request_head)
    assert status == 200
    assert len(body) > 1000
    assert not log.events


@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(
            st.sampled_from([b"GET", b"HEAD", b"OPTIONS", b"\xff"]),
            st.sampled_from([b"/", b"/metrics", b"*", b"http://[", b"http:///", b"//x", b"\xff"]),
            st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9", b"\xff"]),
            st.lists(
                st.tuples(
                    st.sampled_from(
                        [b"Host", b"Accept", b"Content-Length", b"Transfer-Encoding", b"\xff", b""]
                    ),
                    st.one_of(
                        st.binary(max_size=20),
                        st.sampled_from([b"9" * 5000, b"-1", b"chunked", b"\xb2"]),
                    ),
                ),
                max_size=4,
            ),
        ).map(
            lambda parts: (
                b" ".join(parts[:3])
                + b"".join(b"\r\n%b: %b" % pair for pair in parts[3])
                + b"\r\n\r\n"
            )
        ),
    ),
    st.integers(1, 100),
)
def test_whatever_comes_there_is_an_answer_or_an_end_and_no_traceback(
    data: bytes, at: int
) -> None:
    clock, errors = Clock(), list[LogEvent]()

    async def look() -> Any:
        return snapshot(busy_subject(), clock)

    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            errors.append(event)

    site = make_site(clock, look=look, state=lambda: "ready")
    globalLogPublisher.addObserver(observe)
    try:
        visitor = Visitor(site)
        for piece in (data[:at], data[at:]):
            if not (visitor.lost or visitor.transport.disconnecting):
                visitor.channel.dataReceived(piece)
        visitor.lose()
    finally:
        globalLogPublisher.removeObserver(observe)
    assert not errors
    assert not clock.getDelayedCalls()
    assert b"HTTP/1.1 500" not in visitor.transport.value()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9464", 200),
        ("127.0.0.1:9464", 200),
        ("[::1]:9464", 200),
        ("echod.example", 200),
        ("rebound.example:9464", 421),
    ],
)
def test_a_name_that_is_not_known_to_be_meant_is_not_answered(
    clock: Clock, host: str, status: int
) -> None:
    """A web page in an operator's browser cannot read it through any host name."""

    async def look() -> Any:
        return snapshot(busy_subject(), clock)

    site = make_site(clock, look=look, state=lambda: "ready", hosts=Hosts(["Echod.example"]))
    for path in ("/", "/metrics", "/healthz"):
        asked = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"
        assert Visitor(site).ask(asked.encode())[0] == status
        asked = f"GET http://{host}{path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert Visitor(site).ask(asked.encode())[0] == status
    assert Visitor(site).ask(b"GET /healthz HTTP/1.0\r\n\r\n")[0] == 200


def test_on_a_unix_socket_every_name_is_answered(site: StatusSite) -> None:
    visitor = Visitor(site)
    visitor.transport.getHost = lambda: UNIXAddress("/run/echod/status")
    assert visitor.ask(b"GET /healthz HTTP/1.1\r\nHost: whatever\r\n\r\n")[0] == 200


def test_a_client_has_little_time(site: StatusSite, clock: Clock) -> None:
    visitor = Visitor(site)
    for _ in range(int(REQUEST_SECONDS)):
        assert not visitor.lost
        visitor.channel.dataReceived(b"G")
        clock.advance(1)
    assert visitor.lost
    assert not clock.getDelayedCalls()


def test_when_there_are_many_who_has_been_silent_for_longest_makes_room(
    site: StatusSite,
) -> None:
    slow, *visitors = (Visitor(site) for _ in range(MOST_CLIENTS))
    request = b"GET /healthz HTTP/1.0\r\n\r\n"
    for newcomer, piece in enumerate((request[:1], request[1:9], request[9:-1])):
        slow.channel.dataReceived(piece)
        status, _, _ = Visitor(site).ask(request)
        assert status == 200
        assert [visitor.lost for visitor in visitors[: newcomer + 2]] == [
            *[True] * (newcomer + 1),
            False,
        ]
        assert site.clients == MOST_CLIENTS
    assert slow.ask(request[-1:])[0] == 200


@pytest.mark.parametrize("head", [b"GET /%s HTTP/1.1", b"GET / HTTP/1.1\r\nCookie: %s"])
def test_a_request_with_a_line_that_is_too_long_is_refused(site: StatusSite, head: bytes) -> None:
    visitor = Visitor(site)
    assert visitor.ask(head % (b"a" * 20_000) + b"\r\n\r\n")[0] == 400
    assert visitor.transport.value().count(b"HTTP/1.1") == 1


def test_while_all_have_asked_nobody_is_accepted(looking: Looking) -> None:
    site, figures = looking
    accepting = [True]
    site.on_full, site.on_room = lambda: accepting.append(False), lambda: accepting.append(True)
    visitors = [Visitor(site) for _ in range(MOST_CLIENTS)]
    for visitor in visitors:
        visitor.channel.dataReceived(ASK)
    assert accepting == [True]
    late = Visitor(site)
    assert accepting == [True, False]
    assert not late.lost
    assert not any(visitor.lost for visitor in visitors)
    late.channel.dataReceived(b"GET ")  # it can make room
    assert accepting == [True, False, True]
    last = Visitor(site)
    assert late.lost
    assert accepting == [True, False, True, False]
    last.lose()
    visitors[0].lose()
    assert accepting == [True, False, True, False, True]
    for visitor in visitors[1:]:
        visitor.lose()
    assert site.clients == 0
    assert figures.called


def test_a_request_that_waits_in_the_kernel_is_not_closed_for_another_one(
    site: StatusSite,
) -> None:
    visitors = [Visitor(site) for _ in range(MOST_CLIENTS)]
    ours, client = socket.socketpair()
    with ours, client:
        visitors[0].transport.getHandle = lambda: ours
        client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        Visitor(site)
        assert [visitor.lost for visitor in visitors[:3]] == [False, True, False]


def test_those_who_ask_at_once_share_one_look_and_so_do_those_of_one_second(
    clock: Clock, subject: FakeSubject
) -> None:
    looks: list[Deferred[Any]] = []

    def look() -> Any:
        looks.append(Deferred())
        return looks[-1]

    site = make_site(clock, look=look, state=lambda: "ready")
    visitors = [Visitor(site) for _ in range(20)]
    for visitor in visitors:
        visitor.channel.dataReceived(ASK)
    visitors.pop().lose()
    assert len(looks) == 1
    looks[0].callback(snapshot(subject, clock))
    for visitor in visitors:
        assert visitor.transport.value().startswith(b"HTTP/1.1 200 ")
        visitor.lose()
    clock.advance(FRESH - 0.01)
    for path in ("/metrics", "/"):
        assert Visitor(site).ask(f"GET {path} HTTP/1.0\r\n\r\n".encode())[0] == 200
    assert len(looks) == 1
    clock.advance(0.01)
    Visitor(site).channel.dataReceived(ASK)
    assert len(looks) == 2


def families(get: Get, accept: str = "*/*") -> dict[str, Any]:
    _, headers, body = get("/metrics", accept=accept)
    parse = openmetrics if "openmetrics" in headers["Content-Type"] else plain
    return {family.name: family for family in parse(body.decode())}


def samples(family: Any) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def test_metrics_can_be_read_in_each_format(get: Get) -> None:
    for accept in (
        "*/*",
        "text/plain;version=0.0.4",
        "text/plain;version=1.0.0;escaping=allow-utf-8",
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
    ):
        found = families(get, accept)
        assert samples(found["echod_connections_accepted"]) == {
            ("tcp:8888",): 12,
            ("tcp:8888 #2",): 0,
        }


@given(
    st.text()
    | st.from_regex(r"(text/plain|application/openmetrics-text);version=.{0,8}(;escaping=.*)?")
)
def test_whatever_is_asked_for_there_is_an_answer(accept: str) -> None:
    subject = FakeSubject()
    kind, body = expose(snapshot(subject), accept)
    assert kind.isascii()
    assert kind.isprintable()
    assert b"echod_build_info" in body


def test_metrics_are_what_was_counted(get: Get) -> None:
    found = families(get)
    ended = samples(found["echod_connections_ended"])
    assert ended["tcp:8888", "client closed"] == 1
    assert ended["tcp:8888", "drained"] == 0
    refused = {
        (sample.labels["listener"], sample.labels["limit"]): sample.value
        for sample in found["echod_connections_refused"].samples
    }
    assert refused["tcp:8888", "max-connections"] == 4
    assert refused["tcp:8888 #2", "max-accept-rate"] == 0
    assert refused["tcp:8888", "max-threads"] == refused["tcp:8888", "proxy-header"] == 0
    for name, value in {
        "echod_pool_threads": 4,
        "echod_pool_busy": 4,
        "echod_pool_queued": 9,
        "echod_pool_wait_seconds": 0,
        "echod_pool_lost_queued": 6,
        "echod_pool_lost_dropped": 5,
        "echod_handler_oldest_seconds": 61,
        "echod_loop_stalls": 2,
        "echod_loop_stalled_seconds": 0.5,
        "echod_log_lines_written": 7,
        "echod_log_lines_lost": 2,
        "echod_log_events_suppressed": 3,
    }.items():
        assert samples(found[name]) == {(): value}, name
    assert samples(found["echod_limit"]) == {("max-connections",): 100}
    assert samples(found["echod_limit_used"]) == {("max-connections",): 10}
    assert samples(found["echod_saturated"]) == {(): 0}
    assert samples(found["echod_certificate_expiry_time_seconds"]) == {
        ("server.pem", "0A1B"): VALID_UNTIL.timestamp()
    }
    states = {("starting",): 0, ("ready",): 1, ("suspended",): 0, ("draining",): 0}
    assert samples(found["echod_state"]) == states
    # The traffic of open connections counts while they are open.
    assert samples(found["echod_messages"])["tcp:8888",] == 4
    assert samples(found["echod_received_bytes"])["tcp:8888",] == 2048 + 1024
    assert samples(found["echod_connections_open"])["tcp:8888",] == 10
    assert "process_open_fds" in found


def test_requests_for_health_count_as_checks(get: Get) -> None:
    for path in ("/healthz", "/readyz", "/readyz", "/readyz?", "/", "/nothing"):
        get(path)
    found = samples(families(get)["echod_checks"])
    assert found["healthz", "tcp:9464"] == 1
    assert found["readyz", "tcp:9464"] == 3
    # Those of the listeners are there from the beginning.
    assert found["connect", "tcp:8888"] == found["local", "tcp:8888"] == 0


def test_a_histogram_is_cumulative(get: Get) -> None:
    family = families(get)["echod_handler_seconds"]
    buckets = [
        (sample.labels["le"], sample.value)
        for sample in family.samples
        if sample.name == "echod_handler_seconds_bucket"
    ]
    assert buckets[3:6] == [("0.001", 0), ("0.005", 1), ("0.01", 1)]
    assert buckets[-1] == ("+Inf", 1)


def test_without_threads_and_a_log_there_are_no_figures_of_them(
    get: Get, subject: FakeSubject
) -> None:
    subject.pool = subject.log_observer = None
    assert not [name for name in families(get) if "pool" in name or "echod_log" in name]


def test_labels_are_as_many_as_listeners_and_limits(get: Get, subject: FakeSubject) -> None:
    before = sum(len(family.samples) for family in families(get).values())
    metrics = subject.listeners[0].factory.metrics
    for _ in range(1000):
        metrics.end("idle-timeout", messages=1, received=1, sent=1)
        metrics.refused["max-accept-rate"] += 1
    assert sum(len(family.samples) for family in families(get).values()) == before


def test_a_hostile_listener_is_escaped(get: Get, subject: FakeSubject) -> None:
    subject.listeners[:] = [
        FakeListener(description='a"b\n\x1b\\', factory=FakeFactory(Metrics()))
    ]
    (labels,) = samples(families(get)["echod_listening"])
    assert labels == (r'a"b\n\x1b' + "\\",)


def test_who_leaves_while_figures_are_gathered_leaves_nothing(
    looking: Looking, clock: Clock, log: Log
) -> None:
    site, figures = looking
    visitor = Visitor(site)
    visitor.channel.dataReceived(ASK)
    assert not visitor.transport.value()
    visitor.lose()
    assert figures.called  # cancelled
    assert not clock.getDelayedCalls()
    assert not log.events


def test_figures_that_fail_are_the_servers_error(looking: Looking, log: Log) -> None:
    site, figures = looking
    visitor = Visitor(site)
    visitor.channel.dataReceived(ASK)
    figures.errback(RuntimeError("no figures"))
    assert visitor.transport.value().startswith(b"HTTP/1.1 500 ")
    assert b"no figures" not in visitor.transport.value()
    assert "no figures" in log.take_errors()[0]
    visitor.lose()
