from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from echod import connection
from echod.connection import ConnectionSocket, RelayedSocket


@pytest.fixture
def pair() -> Iterator[tuple[ConnectionSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    conn = ConnectionSocket(ours.detach())
    theirs.settimeout(10)
    yield conn, theirs
    theirs.close()
    conn.release()


def test_it_is_a_real_blocking_socket_that_counts(
    pair: tuple[ConnectionSocket, socket.socket],
) -> None:
    conn, peer = pair
    assert isinstance(conn, socket.socket)
    assert conn.getblocking()
    peer.sendall(b"happy days")
    assert conn.recv(5) == b"happy"
    buffer = bytearray(5)
    assert conn.recv_into(buffer) == 5
    conn.sendall(b"OK...")
    assert conn.send(b"!") == 1
    assert peer.recv(100) == b"OK...!"
    assert (conn.received_bytes, conn.sent_bytes) == (10, 6)
    assert not (conn.receiving or conn.sending)


def test_files_made_from_it_count_too(pair: tuple[ConnectionSocket, socket.socket]) -> None:
    conn, peer = pair
    peer.sendall(b"happy\n")
    with conn.makefile("rwb") as file:
        assert file.readline() == b"happy\n"
        file.write(b"OK\n")
    assert peer.recv(100) == b"OK\n"
    assert (conn.received_bytes, conn.sent_bytes) == (6, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda conn: conn.recv(1),
        lambda conn: conn.recv_into(bytearray(1)),
        lambda conn: conn.send(b"x"),
        lambda conn: conn.sendall(b"x"),
    ],
)
def test_an_error_of_the_connection_is_remembered(call) -> None:  # type: ignore[no-untyped-def]
    with socket.socket() as unconnected:
        conn = ConnectionSocket(unconnected.detach())
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is the kernel's choice
        call(conn)
    assert conn.error is caught.value
    assert not (conn.receiving or conn.sending)
    conn.release()


def test_closing_it_ends_the_stream_though_another_descriptor_is_open(
    pair: tuple[ConnectionSocket, socket.socket],
) -> None:
    conn, peer = pair
    with conn.dup():
        conn.sendall(b"bye")
        conn.close()
        assert peer.recv(100) == b"bye"
        assert peer.recv(100) == b""
        assert conn.writing_ended


def test_it_is_released_though_a_file_is_open(
    pair: tuple[ConnectionSocket, socket.socket],
) -> None:
    conn, peer = pair
    file = conn.makefile("rb")
    with conn.dup() as reactors:
        conn.release()
        assert conn.fileno() == -1
        assert not conn.writing_ended
        reactors.sendall(b"the connection goes on")
        assert peer.recv(100) == b"the connection goes on"
    assert peer.recv(100) == b""
    file.close()


def test_a_relayed_socket_gives_the_clients_addresses() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        conn = RelayedSocket(ours.detach(), peer=("127.0.0.1", 60225), local=("127.0.0.1", 8888))
        assert conn.getpeername() == ("127.0.0.1", 60225)
        assert conn.getsockname() == ("127.0.0.1", 8888)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        conn.release()


@pytest.mark.parametrize("into", [False, True])
def test_what_was_read_but_not_counted_when_a_drain_began_takes_nothing_from_the_rest(
    pair: tuple[ConnectionSocket, socket.socket], monkeypatch: pytest.MonkeyPatch, into: bool
) -> None:
    conn, peer = pair
    peer.sendall(b"x" * 1500)
    name = "_recv_into" if into else "_recv"
    plain = getattr(connection, name)

    def drained_meanwhile(*arguments: Any) -> Any:
        result = plain(*arguments)
        if not conn.draining:
            conn.drain(500)  # what the kernel holds now
        return result

    monkeypatch.setattr(connection, name, drained_meanwhile)

    def receive(size: int) -> int:
        return conn.recv_into(bytearray(size)) if into else len(conn.recv(size))

    assert receive(1000) == 1000
    peer.sendall(b"came later")
    assert [receive(1000), receive(1000)] == [500, 0]


def test_a_drain_counts_from_what_was_read(
    pair: tuple[ConnectionSocket, socket.socket],
) -> None:
    conn, peer = pair
    peer.sendall(b"x" * 1500)
    assert len(conn.recv(1000)) == 1000
    conn.drain(500)
    peer.sendall(b"came later")
    assert [len(conn.recv(1000)), len(conn.recv(1000))] == [500, 0]
