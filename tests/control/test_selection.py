from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.control.selection import QueryError, arguments, is_at, selection
from echod.journal import Record

LISTENERS = {"1": "tcp:8888", "2": "unix:/run/echod.sock"}


@pytest.mark.parametrize(
    ("peer", "wanted"),
    [
        ("127.0.0.1:5", "127.0.0.1"),
        ("127.0.0.1:5", "127.0.0.1:5"),
        ("127.0.0.1:5", "127.0.0.0/8"),
        ("[::ffff:10.0.0.1]:5", "10.0.0.0/8"),
        ("[2001:db8::1]:5", "2001:db8::/32"),
        ("[fe80::1%eth0]:5", "fe80::/16"),
        ("/run/me.sock", "/run/me.sock"),
        ("", ""),
    ],
)
def test_an_address_is_meant_by_itself_or_its_network(peer: str, wanted: str) -> None:
    assert is_at(peer, wanted)
    assert not is_at("192.0.2.1:5", wanted)


@pytest.mark.parametrize(
    "wanted", ["/run/me", "fe80::1", "127.0.0.1:6", "127.0.0.2", "::1", "127.0.0.1/33"]
)
def test_another_address_is_not_meant(wanted: str) -> None:
    assert not is_at("127.0.0.1:5", wanted)


def record(**changes: object) -> Record:
    facts: dict[str, object] = {"peer": "10.0.0.1:5", "listener": "tcp:8888", "number": 7}
    return Record(**{**facts, "began": 0.0, "seconds": 1.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("", True),
        ("listener=1", True),
        ("listener=tcp:8888", True),
        ("listener=2", False),
        ("address=10.0.0.0/8&state=open", True),
        ("address=10.0.0.0/8&state=ended", False),
        ("reason=fault", False),
        ("fault=reset", True),
        ("fault=delay", False),
        ("after=6", True),
        ("after=7", False),
    ],
)
def test_all_conditions_have_to_hold(query: str, fits: bool) -> None:
    names = ("listener", "address", "state", "reason", "fault", "after")
    wanted = selection(arguments(query.encode(), names))
    assert wanted.fits(record(faults=("reset",)), LISTENERS) is fits


def test_an_ended_connection_has_a_reason() -> None:
    wanted = selection({"reason": "fault", "state": "ended"})
    assert wanted.fits(record(reason="fault"), LISTENERS)
    assert not wanted.fits(record(reason="served"), LISTENERS)


@pytest.mark.parametrize(
    "query",
    [
        "b=1",
        "a=1&a=2",
        "a",
        "a=%ff",
        "a=\xff",
        "&",
        "a=1&&a=2",
        "&".join("a=1" for _ in range(30)),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(query: str) -> None:
    with pytest.raises(QueryError):
        arguments(query.encode("latin-1"), ("a",))


@pytest.mark.parametrize(
    "given_",
    [
        {"state": "half"},
        {"after": "-1"},
        {"after": "1e3"},
        {"limit": "0"},
        {"limit": "10001"},
        {"limit": "9" * 5000},
    ],
)
def test_a_value_that_makes_no_sense_is_refused(given_: dict[str, str]) -> None:
    with pytest.raises(QueryError):
        selection(given_)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.0.0.1:80", "10.0.0.0/8", "10.1.2.3/8", "::1", "[::1]:80", "fe80::/10"),
        *("fe80::1%eth0", "[fe80::1%eth0]:80", "/run/me.sock", r"\x00name"),
    ],
)
def test_an_address_may_have_a_port_or_be_a_network_or_a_path(address: str) -> None:
    assert selection({"address": address}).address == address


@pytest.mark.parametrize(
    "address",
    [
        *("", "x", "localhost", "127.0.0.l", "127.0.0.1/33", "127.0.0.1:", "127.0.0.1:x", "1"),
        *("999.0.0.1:80", "[10.0.0.0]", "[10.0.0.0/8]:80", "::1]:80", "me.sock", "*"),
    ],
)
def test_a_text_that_is_no_address_is_refused(address: str) -> None:
    """A slip of the pen would else end no connection, and say that all is well."""
    with pytest.raises(QueryError, match=r"^address is an address, an address with its port, a n"):
        selection({"address": address})


def test_a_reason_or_a_fault_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(QueryError, match=r"^reason is one of: client closed, .*, disconnected"):
        selection({"reason": "closed"})
    with pytest.raises(QueryError, match=r"^fault is one of: reset, .*, alert$"):
        selection({"fault": "rest"})


@given(st.dictionaries(st.sampled_from("abc"), st.text()))
def test_a_query_is_read_as_it_was_written(pairs: dict[str, str]) -> None:
    pairs = {
        name: value
        for name, value in pairs.items()
        if value.encode("utf-8", "ignore").decode() == value
    }
    assert arguments(urlencode(pairs).encode(), ("a", "b", "c")) == pairs
