"""Sockets for several workers, within one process."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from echod.listening.endpoints import ListenError, parse_listen
from echod.listening.shared import PassedSockets, SharedSockets
from tests.support.reactor import reactor
from tests.support.waiting import PATIENCE


def shared(text: str, count: int = 2) -> SharedSockets:
    return SharedSockets(parse_listen(reactor, text).endpoint, count)


@pytest.mark.parametrize("text", ["tcp:0:interface=127.0.0.1", r"tcp6:0:interface=\:\:1"])
def test_each_worker_has_a_socket_of_its_own_on_one_port(text: str) -> None:
    sockets = shared(text, 3)
    with contextlib.closing(sockets):
        sockets.bind()
        found = [sockets.descriptors_of(number) for number in (1, 2, 3)]
        assert len({one for (one,) in found}) == 3
        ports = set()
        for (one,) in found:
            with socket.socket(fileno=os.dup(one)) as opened:
                ports.add(opened.getsockname()[1])
                assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert ports == {sockets.port}


def has_clients(descriptor: int) -> bool:
    """Accept all the clients that wait; return whether there was one."""
    found = False
    with (
        socket.socket(fileno=os.dup(descriptor)) as listening,
        contextlib.suppress(OSError),
    ):
        listening.setblocking(False)
        while True:
            listening.accept()[0].close()
            found = True
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_the_others_have_the_clients_of_a_socket_that_is_withdrawn(number: int) -> None:
    sockets = shared("tcp:0:interface=127.0.0.1")
    with contextlib.closing(sockets), contextlib.ExitStack() as clients:
        sockets.bind()
        (own,), (other,) = (sockets.descriptors_of(each) for each in (number, 3 - number))
        place = ("127.0.0.1", sockets.port)

        def connect() -> None:
            for _ in range(40):
                clients.enter_context(socket.create_connection(place, PATIENCE))

        sockets.withdraw(number)
        connect()
        assert (has_clients(own), has_clients(other)) == (False, True)
        sockets.restore(number)
        connect()
        assert (has_clients(own), has_clients(other)) == (True, True)


def test_a_port_that_another_daemon_shares_among_its_workers_is_in_use() -> None:
    first = shared("tcp:0:interface=127.0.0.1")
    with contextlib.closing(first):
        first.bind()
        second = shared(f"tcp:{first.port}:interface=127.0.0.1")
        with pytest.raises(OSError, match="Address already in use"):
            second.bind()
        second.close()


def test_workers_share_the_queue_of_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    sockets = shared(f"unix:{path}:mode=600")
    sockets.bind()
    assert sockets.descriptors_of(1) == sockets.descriptors_of(2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sockets.close()
    assert not path.exists()
    sockets.close()


def test_a_file_that_has_taken_the_place_of_the_socket_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    sockets = shared(f"unix:{path}")
    sockets.bind()
    path.unlink()
    path.write_text("another")
    sockets.close()
    assert path.read_text() == "another"


def test_other_endpoints_cannot_be_shared() -> None:
    endpoint = parse_listen(reactor, "tcp:0").endpoint
    with pytest.raises(
        ListenError, match="workers can share tcp:, tcp6:, unix: and systemd: only"
    ):
        SharedSockets(object(), 2)
    assert SharedSockets(endpoint, 2)


def test_listeners_take_the_passed_sockets_in_their_order() -> None:
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    passed = PassedSockets(1, [[one.fileno()] for one in made])
    found = [passed.endpoint(reactor) for _ in range(3)]
    assert [each and list(each.descriptors) for each in found] == [
        [made[0].fileno()],
        [made[1].fileno()],
        None,
    ]
    for one in made:
        one.close()
