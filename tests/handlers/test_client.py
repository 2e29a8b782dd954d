from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from echod.handlers.client import Client, connected, encrypt, place
from echod.proxy_header import ProxyHeader
from echod.tls import TLSFacts

LOCAL = "127.0.0.1:8888"


def test_two_clients_with_the_same_facts_are_two() -> None:
    one, other = Client("", "/run/echod.sock"), Client("", "/run/echod.sock")
    assert one != other
    assert len({one, other, one}) == 2


@pytest.mark.parametrize(
    ("peer", "local", "host", "port"),
    [
        ("127.0.0.1:60225", LOCAL, "127.0.0.1", 60225),
        ("127.0.0.1:60225", "", "127.0.0.1", 60225),
        ("[::1]:60225", "[::1]:8888", "::1", 60225),
        ("[fe80::1%eth0]:1", "[fe80::2%eth0]:8888", "fe80::1%eth0", 1),
        ("", "/run/echod.sock", "", 0),
        ("/tmp/here:5", "/run/echod.sock", "", 0),
        ("10.0.0.1:5", "/run/echod.sock", "", 0),  # a client may give its socket any path
        ("", "", "", 0),
    ],
)
def test_host_and_port_are_the_parts_of_an_address(
    peer: str, local: str, host: str, port: int
) -> None:
    client = Client(peer, local)
    assert (client.host, client.port) == (host, port)


def test_only_the_state_may_be_written_to() -> None:
    client = Client("127.0.0.1:1", LOCAL)
    client.state.name = "Ann"
    assert client.state.name == "Ann"
    assert not hasattr(Client("127.0.0.1:1", LOCAL).state, "name")
    with pytest.raises(AttributeError, match=r"^'peer' of a client cannot be set$"):
        client.peer = "me"  # type: ignore[misc]
    hint = "^'name' of a client cannot be set: use client.state.name$"
    with pytest.raises(AttributeError, match=hint):
        client.name = "Ann"
    with pytest.raises(AttributeError, match="'state' of a client cannot be deleted"):
        del client.state
    assert client.peer == "127.0.0.1:1"


def test_a_test_of_a_handler_may_have_a_client_of_its_own_class() -> None:
    class Deaf(Client):
        def send(self, data: object) -> bool:
            return False

    client = Deaf("127.0.0.1:1", LOCAL)
    assert client.peer == "127.0.0.1:1"
    assert not client.send(b"x")


def test_the_client_of_a_connection_is_like_one_that_a_test_makes() -> None:
    link: Any = object()
    client, like = connected("10.0.0.1:5", place(LOCAL, "tcp:1"), link), Client("", LOCAL, "tcp:1")
    assert type(client) is Client
    assert repr(client) == "<Client 10.0.0.1:5, listener='tcp:1'>"
    assert (client.local, client.tls, client.proxy) == (like.local, like.tls, like.proxy)
    assert client._place is like._place
    assert client._link is link
    with pytest.raises(AttributeError, match="'peer' of a client cannot be set"):
        client.peer = "me"  # type: ignore[misc]


def test_a_client_is_shown_by_its_facts() -> None:
    assert repr(Client("")) == "<Client without an address>"
    shown = repr(Client("127.0.0.1:1", LOCAL, "tcp:8888", TLSFacts("TLSv1.3", "odd")))
    assert shown.startswith("<Client 127.0.0.1:1, listener='tcp:8888', tls=TLSFacts(")


@pytest.mark.parametrize("copied", [copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_the_facts_and_not_the_state(copied: object) -> None:
    client = Client("127.0.0.1:1", LOCAL, "tcp:8888", TLSFacts("TLSv1.3", "x"), ProxyHeader(2))
    client.state.name = "Ann"
    assert callable(copied)
    other = copied(client)
    assert other is not client
    names = ("peer", "local", "listener", "tls", "proxy")
    assert [getattr(other, name) for name in names] == [getattr(client, name) for name in names]
    assert not hasattr(other.state, "name")


def test_the_client_is_the_same_one_before_and_after_it_has_tls() -> None:
    client = Client("127.0.0.1:1", LOCAL)
    facts = TLSFacts("TLSv1.3", "odd")
    encrypt(client, facts)
    assert client.tls is facts


def test_clients_of_one_listener_share_what_is_the_same_for_all() -> None:
    first, second = (Client(str(number), LOCAL, "tcp:8888") for number in range(2))
    assert first._place is second._place
    assert Client.__basicsize__ <= 64
