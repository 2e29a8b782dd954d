from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What `echod.signals` does in the daemon."""
    previous = signal.signal(connection.INTERRUPT, lambda number, frame: None)
    yield
    signal.signal(connection.INTERRUPT, previous)


def received_meanwhile(conn: ConnectionSocket, receive: Callable[[], Any]) -> Iterator[Any]:
    """Let a thread receive; go on once it is about to, and at the end yield what it got."""
    results: list[Any] = []

    def run() -> None:
        conn.thread = threading.get_ident()
        results.append(receive())

    thread = threading.Thread(target=run)
    thread.start()
    while not conn.receiving:
        pass
    yield
    thread.join(10)
    yield results.pop()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("into", [False, True])
def test_while_it_drains_a_thread_that_waits_can_be_interrupted_and_sees_the_end(
    pair: tuple[ConnectionSocket, socket.socket], into: bool
) -> None:
    conn, peer = pair
    meanwhile = received_meanwhile(
        conn, lambda: conn.recv_into(bytearray(5)) if into else conn.recv(5)
    )
    next(meanwhile)
    conn.drain(0)
    assert conn.interrupt()
    assert not next(meanwhile)
    assert not conn.receiving
    assert conn.error is None
    peer.sendall(b"came later")
    assert conn.recv(5) == b""
    conn.sendall(b"bye")
    assert peer.recv(5) == b"bye"


@pytest.mark.usefixtures("interruptible")
def test_what_comes_before_the_interruption_is_returned(
    pair: tuple[ConnectionSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    conn, peer = pair
    plain, go_on = connection._recv, threading.Event()

    def come_to_it_late(*arguments: Any) -> bytes:
        go_on.wait(10)
        return plain(*arguments)

    monkeypatch.setattr(connection, "_recv", come_to_it_late)
    meanwhile = received_meanwhile(conn, lambda: [conn.recv(5), conn.recv(5)])
    next(meanwhile)
    conn.drain(0)
    assert conn.interrupt()
    peer.sendall(b"happy")
    go_on.set()
    assert next(meanwhile) == [b"happy", b""]


def test_a_thread_that_waits_with_a_time_out_or_is_nobodys_is_not_interrupted(
    pair: tuple[ConnectionSocket, socket.socket],
) -> None:
    conn, _ = pair
    conn.drain(0)
    assert not conn.interrupt()
    conn.thread = threading.get_ident()
    conn.settimeout(10)
    assert not conn.interrupt()
