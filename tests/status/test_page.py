from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from echod.limits import Level
from echod.metrics import Metrics, Totals
from echod.status.look import Look
from echod.status.page import duration, number, page, size
from echod.status.snapshot import Snapshot
from echod.status.timing import HandlerTimer
from echod.tls import ServedCertificate
from tests.status.fakes import FakeConnection, FakeFactory, FakeListener, FakeLog, FakeSubject

VALID_UNTIL = datetime.now(UTC) + timedelta(days=90)


class FakePool:
    size, busy, waiting, lost_waiting, dropped = 4, 4, 9, 6, 5


def server_of(subject: FakeSubject, clock: Clock) -> Look:
    timer = HandlerTimer(in_threads=False)
    timer.histogram.observe(0.002)
    return Look(clock, subject, timer, reactor_name="none")


def snapshot(subject: FakeSubject, clock: Clock | None = None) -> Snapshot:
    server = server_of(subject, clock or Clock())
    return immediate(Deferred.fromCoroutine(server.look()))


def immediate(deferred: Deferred[Any]) -> Any:
    """Return a result that is there already."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results[0]


class Text(HTMLParser):
    """The text of a page, and the tags that hold it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.words.append(data.strip())


def busy_subject() -> FakeSubject:
    metrics = Metrics(accepted=12)
    metrics.end("client closed", messages=3, received=2048, sent=10)
    metrics.end("idle-timeout", messages=0, received=0, sent=0)
    metrics.refused["max-connections"] = 4
    connections: list[Any] = [FakeConnection((1, 1024, 5))]
    return FakeSubject(
        listeners=[
            FakeListener(factory=FakeFactory(metrics, connections)),
            FakeListener(address=None),
        ],
        metrics=Metrics(stalls=2, stalled=0.5),
        oldest_call=61.0,
        pool=FakePool(),
        log_observer=FakeLog(),
        levels=[Level("max-connections", 10, 100)],
        certificates=[ServedCertificate("server.pem", "0A1B", VALID_UNTIL)],
    )


def test_the_page_shows_everything() -> None:
    text = Text(page(snapshot(busy_subject())))
    assert not text.open
    shown = " ".join(text.words)
    for what in (
        "echod ready",
        "Connections 10 open; 12 accepted 0 in the last minute",
        "Messages 4 passed to the handler",
        "Received 3.0 KiB from clients",
        "2 stalls, 500 ms",
        "Oldest call 1 min 1 s of the handler",
        "Log lines 7 2 lost, 3 above the rate",
        "tcp:8888 10 12 4 3.0 KiB 15 B 127.0.0.1:8888",
        "tcp:8888 #2 0 0 0 0 B 0 B not listening",
        "client closed 1 0 1",
        "Refused 4 clients 0 in the last minute",
        "limit tcp:8888 tcp:8888 #2 all max-connections 4 0 4",
        "limit in use of max-connections 10 100",
        f"server.pem 0A1B {VALID_UNTIL:%Y-%m-%d}",
        "up to 5 ms 1",
        "at work 4 of 4",
        "messages waiting 9",
        "for lost connections 6",
        "of those, dropped 5",
    ):
        assert what in shown, shown


def test_a_page_with_little_to_show_says_so() -> None:
    subject = FakeSubject(ready=False)
    now = snapshot(subject)
    now.handler_time.counts[:] = [0] * len(now.handler_time.counts)
    shown = " ".join(Text(page(now)).words)
    assert "echod starting" in shown
    for nothing in ("No connection has ended yet", "No client has been refused", "No message has"):
        assert nothing in shown
    assert "Threads" not in shown
    assert "Log lines" not in shown


@given(st.text())
def test_no_text_becomes_markup(text: str) -> None:
    plain = Text(page(snapshot(FakeSubject()))).tags
    subject = FakeSubject(listeners=[FakeListener(description=text)])
    assert Text(page(snapshot(subject))).tags == plain


def test_nothing_is_fetched_from_elsewhere() -> None:
    html = page(snapshot(busy_subject()))
    assert "<script" not in html
    assert not re.findall(r"(?:src|href)=\"(?!data:,|metrics|readyz|healthz)", html)
    assert "url(" not in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2e-6, "2 µs"),
        (0.0123, "12.3 ms"),
        (59.9, "59.9 s"),
        (61, "1 min 1 s"),
        (3660, "1 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_and_sizes_are_short() -> None:
    assert [number(value) for value in (0, 12_345, 1_234_567, 5_000_000_000)] == [
        "0",
        "12,345",
        "1.23 M",
        "5.00 G",
    ]
    assert [size(value) for value in (0, 1023, 1024, 3 << 30, 5 << 50)] == [
        "0 B",
        "1,023 B",
        "1.0 KiB",
        "3.0 GiB",
        "5,120.0 TiB",
    ]


def test_a_daemon_that_is_saturated_is_not_shown_as_well() -> None:
    subject = busy_subject()
    assert 'class="state ready"' in page(snapshot(subject))
    subject.levels = [Level("threads", 16, 16)]
    shown = page(snapshot(subject))
    assert 'class="state saturated" role="status">ready, saturated<' in shown
    assert "<li>threads: 16 of 16 in use</li>" in shown
    assert "<title>echod: ready, saturated</title>" in shown
    subject.draining = True
    assert 'class="state draining" role="status">draining<' in page(snapshot(subject))


def test_what_the_last_minute_has_brought_is_beside_what_there_has_been_in_all() -> None:
    clock, subject = Clock(), busy_subject()
    subject.pool = None
    server = server_of(subject, clock)
    server.start()
    immediate(Deferred.fromCoroutine(server.look()))
    metrics = subject.listeners[0].factory.metrics
    metrics.accepted += 30
    metrics.refused["max-connections"] += 5
    metrics.handler_errors += 1
    metrics.end("handler error", messages=120, received=6000, sent=60)
    for _ in range(59):
        clock.advance(0.5)
    text = " ".join(Text(page(immediate(Deferred.fromCoroutine(server.look())))).words)
    assert "30 in the last minute" in text
    assert "5 in the last minute" in text
    assert "4.1 a second" in text  # 120 messages in 29.5 s
    assert "203 B a second" in text
    assert "5 clients were refused in the last minute" in text
    assert "1 error of the handler in the last minute" in text
    for _ in range(180):
        clock.advance(0.5)
    now = immediate(Deferred.fromCoroutine(server.look()))
    assert now.last_minute == Totals()
    assert now.rates is None  # the last look is longer ago than that
    server.stop()
