from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.web.hosts import Hosts


@pytest.mark.parametrize(
    "host",
    [
        None,
        "localhost",
        "LocalHost.:80",
        "127.0.0.1",
        "10.1.2.3:9464",
        "[::1]",
        "[fe80::1%eth0]:1",
    ],
)
def test_an_address_and_localhost_are_always_answered(host: str | None) -> None:
    assert Hosts().answers(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[::1",
        "a:b:c",
        ":80",
    ],
)
def test_any_other_name_is_not(host: str) -> None:
    assert not Hosts().answers(host)
    assert not Hosts(["good.example"]).answers(host)


def test_a_name_that_is_listed_is_answered_however_it_is_written() -> None:
    hosts = Hosts(["Status.Example"])
    for host in ("status.example", "STATUS.example.:9464", " status.example "):
        assert hosts.answers(host)
    assert Hosts(["*"]).answers("whatever")


@given(st.text())
def test_no_host_is_too_odd_to_be_judged(host: str) -> None:
    assert Hosts().answers(host) in (True, False)
