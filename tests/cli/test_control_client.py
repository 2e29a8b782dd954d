from __future__ import annotations

import http.client

import pytest

from echod.cli.control_client import ControlError, connection_to


@pytest.mark.parametrize(
    ("place", "host", "port"),
    [
        ("tcp:9465", "127.0.0.1", 9465),
        ("9465", "127.0.0.1", 9465),
        ("tcp:9465:interface=10.0.0.1", "10.0.0.1", 9465),
        ("tcp:9465:interface=0.0.0.0", "127.0.0.1", 9465),
        (r"tcp6:9465:interface=\:\:", "::1", 9465),
        ("tcp:example.org:9465", "example.org", 9465),
        (r"tcp:\:\:1:9465", "::1", 9465),
        ("tcp:[::1]:9465", "::1", 9465),
        ("tcp6:9465", "::1", 9465),
        ("tcp6:[::1]:9465", "::1", 9465),
        ("tls:[::1]:9465", "::1", 9465),
        ("tls:tcp:9465:certificate=a:key=b", "127.0.0.1", 9465),
        ("tls:tcp6:9465:certificate=a:key=b", "::1", 9465),
        ("tls:example.org:9465", "example.org", 9465),
        ("tls:9465:certificate=a:key=b", "127.0.0.1", 9465),
        ("http://example.org:80", "example.org", 80),
        ("http://[::1]:9465/", "::1", 9465),
        ("https://example.org", "example.org", 443),
    ],
)
def test_an_endpoint_may_be_the_daemons_or_a_clients(place: str, host: str, port: int) -> None:
    made = connection_to(place)
    assert (made.host, made.port) == (host, port)
    secure = place.startswith(("tls", "https"))
    assert isinstance(made, http.client.HTTPSConnection) is secure


@pytest.mark.parametrize(
    "place",
    [
        "x",
        "unix:",
        "tcp:",
        "tcp:a:b",
        "http://",
        "http://x:y",
        "tcp:a:b:1",
        "ssh:1",
        "tcp6:::1:9465",
        "tcp:::9465",
    ],
)
def test_an_endpoint_that_makes_no_sense_is_refused(place: str) -> None:
    with pytest.raises(ControlError) as caught:
        connection_to(place)
    assert caught.value.code == 2
    assert "as in" in str(caught.value)
