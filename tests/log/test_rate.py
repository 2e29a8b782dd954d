from __future__ import annotations

from collections import Counter
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import address

from echod.addresses import network_at, shown_address
from echod.log.rate import (
    MOST_KINDS,
    MOST_SOURCES,
    WINDOW,
    EventKind,
    Limiter,
    Tally,
    source_of,
)


def kind(number: int) -> EventKind:
    return EventKind("here", str(number), "info")


def test_a_new_window_begins_when_the_old_one_is_over() -> None:
    limiter = Limiter(rate=0.1)
    assert limiter.admits(kind(1), 0)
    assert not limiter.admits(kind(1), 5)
    assert limiter.admits(kind(2), 9)
    assert limiter.admits(kind(2), 19)
    assert not limiter.admits(kind(1), 11)  # until it has been told
    assert limiter.report(11) == [(kind(1), 2, 11, [])]
    assert limiter.admits(kind(1), 11)


def test_the_number_of_kinds_is_bounded() -> None:
    limiter = Limiter(rate=1)
    assert all(limiter.admits(kind(number), 0) for number in range(MOST_KINDS))
    extra = [limiter.admits(kind(MOST_KINDS + number), 1) for number in range(100)]
    assert extra.count(True) == WINDOW
    ((others, count, _, _),) = limiter.report(11)
    assert (others.format, count) == ("(others)", 90)
    assert all(limiter.admits(kind(-number), 12) for number in range(1, 100))
    assert len(limiter._windows) <= MOST_KINDS


def test_a_refusal_beforehand_counts_as_the_event_would_have() -> None:
    limiter = Limiter(rate=0.2)
    for _ in range(5):
        if not limiter.refuses(kind(1), lambda: 0):
            limiter.admits(kind(1), 0)
    assert limiter.suppressed == 3
    assert limiter.report(11) == [(kind(1), 3, 11, [])]
    assert not limiter.refuses(kind(1), lambda: 11)


@given(
    st.sampled_from([0, 0.1, 0.5, 3]),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 2 * WINDOW)), max_size=80),
)
def test_who_asks_beforehand_writes_and_counts_the_same(
    rate: float, events: list[tuple[int, float]]
) -> None:
    asking, unasked, now = Limiter(rate), Limiter(rate), 0.0
    for number, pause in events:
        now += pause
        noted = asking.above.get(kind(number))
        if noted is None:
            refused = asking.refuses(kind(number), partial(float, now))
        else:
            refused = True
            noted.append("")
        wanted = not refused and asking.admits(kind(number), now)
        assert wanted is unasked.admits(kind(number), now)
        assert asking.suppressed == unasked.suppressed
        assert asking.report(now) == unasked.report(now)


def test_what_is_too_many_is_counted_by_address() -> None:
    limiter = Limiter(rate=0.1)
    limiter.admits(kind(1), 0, "192.0.2.9:1")
    peers = ["192.0.2.1:5"] * 5 + ["[2001:db8::1]:7", "[2001:db8::2]:7"] + ["192.0.2.2:1"]
    for peer in [*peers, "192.0.2.3:1", "192.0.2.3:2", "192.0.2.3:2", "a path", "", "[::1"]:
        if (noted := limiter.above.get(kind(1))) is not None:
            noted.append(source_of(peer))
        else:
            assert limiter.refuses(kind(1), lambda: 1, source_of(peer))
    assert limiter.suppressed == 14
    (excess,) = limiter.report(11)
    assert excess.events == 14
    assert excess.top == [("192.0.2.1", 5), ("192.0.2.3", 3), ("2001:db8::/64", 2)]


@given(st.ip_addresses(), st.integers(0, 65535))
def test_the_source_of_a_client_is_the_network_that_it_counts_under(
    host: IPv4Address | IPv6Address, port: int
) -> None:
    kind = address.IPv4Address if host.version == 4 else address.IPv6Address
    client = kind("TCP", str(host), port)
    assert source_of(shown_address(client)) == network_at(client)


@given(
    st.lists(st.integers(0, 300).map(lambda n: str(n * n // 300)), max_size=2000),
    st.integers(1, 100),
)
def test_a_tally_keeps_what_is_frequent_and_never_more_than_so_many(
    sources: list[str], at_once: int
) -> None:
    tally = Tally()
    for start in range(0, len(sources), at_once):
        for source, count in Counter(sources[start : start + at_once]).items():
            tally.add(source, count)
    counted = dict(tally.top(len(sources)))
    assert len(counted) <= MOST_SOURCES
    for source, count in Counter(sources).items():
        assert count - len(sources) / (MOST_SOURCES + 1) <= counted.get(source, 0) <= count
