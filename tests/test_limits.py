from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from echod.addresses import network_of
from echod.connections.admission import Admission, TokenBucket, text_of
from echod.limits import Limits
from echod.reasons import EndReason, Refusal
from echod.settings.definitions import Settings


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_a_negative_limit_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        Limits(**{name: -1})


def test_limits_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().linger = 1.0  # type: ignore[misc]


def test_every_default_has_a_reason() -> None:
    for field in fields(Limits):
        assert field.metadata["why"].strip().endswith((".", "`serial`: time to type a line."))


# How long a message may take.


@pytest.mark.parametrize(
    ("limits", "size", "seconds"),
    [
        (Limits(message_timeout=60, min_rate=100), 0, 60),
        (Limits(message_timeout=60, min_rate=100), 1000, 70),
        (Limits(message_timeout=60, min_rate=0), 1000, 60),
        (Limits(message_timeout=0, min_rate=100), 1000, float("inf")),
    ],
)
def test_a_long_message_may_take_longer(limits: Limits, size: int, seconds: float) -> None:
    assert limits.message_time(size) == seconds


# Decides which connections are accepted.


def admission(*, now: float = 0.0, **limits: int) -> Admission:
    return Admission(Limits(**limits), lambda: now)


def test_as_many_as_allowed_are_let_in_and_one_more_when_one_has_left() -> None:
    door = admission(max_connections=2)
    assert [door.accept() for _ in range(3)] == [None, None, Refusal.MAX_CONNECTIONS]
    door.release()
    assert door.accept() is None


def test_an_address_has_a_share() -> None:
    door = admission(max_connections_per_address=1)
    assert door.accept() is None
    assert door.identify("192.0.2.1") is None
    assert door.accept() is None
    assert door.identify("192.0.2.1") is Refusal.PER_ADDRESS
    assert door.identify("192.0.2.2") is None
    door.release("192.0.2.1")
    assert door.identify("192.0.2.1") is None


def test_zero_is_no_limit() -> None:
    door = admission(max_connections=0, max_connections_per_address=0, max_accept_rate=0)
    for _ in range(100_000):
        assert door.accept() is None
        assert door.identify("192.0.2.1") is None


def test_connections_that_come_too_fast_are_refused() -> None:
    times = iter([*[0.0] * 11, 0.05, 0.1])
    door = Admission(Limits(max_connections=3, max_accept_rate=10), lambda: next(times))
    for _ in range(10):
        assert door.accept() is None
        door.release()
    assert door.accept() is Refusal.ACCEPT_RATE
    assert door.accept() is None


def test_new_limits_hold_for_those_who_come_from_now_on() -> None:
    door = admission(max_connections=1)
    assert door.accept() is None
    door.limits = Limits(max_connections=2)
    assert door.limits == Limits(max_connections=2)
    assert door.accept() is None
    door.limits = Limits(max_connections=1)
    assert door.accept() is Refusal.MAX_CONNECTIONS
    assert door.open == 2


@pytest.mark.parametrize(
    "refusal", [Refusal.MAX_CONNECTIONS, Refusal.PER_ADDRESS, Refusal.ACCEPT_RATE]
)
def test_a_refusal_by_admission_names_a_limit_and_tells_the_client_why(refusal: Refusal) -> None:
    assert refusal.value.replace("-", "_") in {field.name for field in fields(Limits)}
    assert text_of(refusal).startswith("Server busy: too many connections")


def test_a_timeout_ends_a_connection_by_the_name_of_its_setting() -> None:
    names = {field.name.replace("_", "-") for field in fields(Settings)}
    timeouts = {reason.value for reason in EndReason if reason.value.endswith("-timeout")}
    assert len(timeouts) == 7
    assert timeouts <= names


class Door(RuleBasedStateMachine):
    """Through any arrivals and departures, the counts match the real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.door = Admission(
            Limits(max_connections=5, max_connections_per_address=2, max_accept_rate=1),
            lambda: self.now,
        )
        self.inside: list[str] = []

    @rule(network=st.sampled_from(["", "a", "b", "c"]), pause=st.floats(0, 2))
    def come(self, network: str, pause: float) -> None:
        self.now += pause
        full = len(self.inside) == 5
        refusal = self.door.accept()
        assert (refusal is Refusal.MAX_CONNECTIONS) is full
        if refusal is None:
            crowded = bool(network) and self.inside.count(network) == 2
            if network and self.door.identify(network):
                assert crowded
                self.door.release()
            else:
                assert not crowded
                self.inside.append(network)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.inside) - 1))
        self.door.release(self.inside.pop(at))

    @invariant()
    def all_is_counted(self) -> None:
        assert self.door.open == len(self.inside)
        assert self.door.by_address == Counter(filter(None, self.inside))
        assert "" not in self.door.by_address


TestDoor = Door.TestCase
TestDoor.settings = settings(max_examples=30, stateful_step_count=30)


# The rate.


# Parts of a second that a float holds exactly: so the rule can be checked to the last one.
PAUSES = st.one_of(st.just(0), st.integers(0, 64), st.integers(0, 10_000)).map(lambda n: n / 64)


@given(
    rate=st.integers(1, 100),
    burst=st.integers(1, 20),
    begin=st.integers(0, 10**6),
    pauses=st.lists(PAUSES, max_size=100),
)
def test_in_every_window_no_more_happens_than_the_rate_and_the_burst_allow_and_no_less(
    rate: int, burst: int, begin: int, pauses: list[float]
) -> None:
    now = float(begin)
    bucket = TokenBucket(rate, burst, now)
    taken: list[float] = []
    for pause in pauses:
        now += pause
        # For each window that begins with one that happened: how many more it has room for.
        room = [
            burst + rate * (now - start) - (len(taken) - number)
            for number, start in enumerate(taken)
        ]
        may = min(room, default=burst) >= 1
        assert bucket.take(now) is may
        if may:
            taken.append(now)


@pytest.mark.parametrize(("rate", "most", "at_once"), [(10, 3, 10), (3, 10, 10), (4, 0, 4)])
def test_as_many_may_come_at_once_as_may_be_connected_or_come_in_a_second(
    rate: int, most: int, at_once: int
) -> None:
    door = admission(max_accept_rate=rate, max_connections=most)
    for _ in range(at_once):
        assert door.accept() is None
        door.release()
    assert door.accept() is Refusal.ACCEPT_RATE


@given(rate=st.integers(1, 1000), count=st.integers(1, 100))
def test_what_keeps_to_the_rate_is_never_refused(rate: int, count: int) -> None:
    bucket = TokenBucket(rate, 2, 0.0)
    assert all(bucket.take(number / rate) for number in range(count))


# The networks that count as one address.


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_an_address_counts_as_its_network(host: str, network: str) -> None:
    assert network_of(host) == network


@given(st.ip_addresses(v=6))
def test_ipv6_addresses_count_as_one_within_a_64_alone(one: ipaddress.IPv6Address) -> None:
    """Two of them differ in any one bit."""
    for bit in range(128):
        other = ipaddress.IPv6Address(int(one) ^ (1 << bit))
        if not (one.ipv4_mapped or other.ipv4_mapped):
            assert (network_of(str(one)) == network_of(str(other))) is (bit < 64)


@given(st.ip_addresses(v=6))
def test_the_network_of_an_ipv6_address_is_the_one_it_is_in(one: ipaddress.IPv6Address) -> None:
    if not one.ipv4_mapped:
        assert one in ipaddress.IPv6Network(network_of(str(one)))
