from __future__ import annotations

import errno
import io
import os
import select
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from echod.concurrency import thread_socket
from echod.concurrency.thread_socket import ConnectionSocket, RelayedSocket
from tests.support.waiting import PATIENCE

PEER, LOCAL = ("127.0.0.1", 60225), ("127.0.0.1", 8888)


@pytest.fixture
def pair() -> Iterator[tuple[ConnectionSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    conn = ConnectionSocket(ours.detach(), peer=PEER, local=LOCAL)
    theirs.settimeout(PATIENCE)
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
        conn = ConnectionSocket(unconnected.detach(), peer=PEER, local=LOCAL)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is the kernel's choice
        call(conn)
    assert conn.caused(caught.value)
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


@pytest.fixture(params=["shut", "drained"])
def ended(
    request: pytest.FixtureRequest,
    pair: tuple[ConnectionSocket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> ConnectionSocket:
    """A socket whose input has ended, by its client or by a drain: it may be read five times."""
    monkeypatch.setattr(thread_socket, "MOST_ENDS", 5)
    conn, peer = pair
    if request.param == "drained":
        conn.drain(0)
    else:
        peer.shutdown(socket.SHUT_WR)
    return conn


@pytest.mark.parametrize(
    "read",
    [
        lambda conn: conn.recv(9),
        lambda conn: conn.recv_into(bytearray(9)),
        lambda conn: conn.recvmsg(9)[0],
        lambda conn: conn.recvmsg_into([bytearray(9)])[0],
    ],
)
def test_a_handler_that_reads_nothing_but_the_end_is_ended(
    ended: ConnectionSocket, read: Callable[[ConnectionSocket], Any]
) -> None:
    for _ in range(3):
        assert not any(read(ended) for _ in range(5))
        ended.sendall(b"x")  # it may send on, and look for more meanwhile
    assert not any(read(ended) for _ in range(5))
    with pytest.raises(RuntimeError, match="the handler has read this end 5 times") as caught:
        read(ended)
    assert not ended.caused(caught.value)


@pytest.mark.parametrize(
    "read",
    [
        lambda conn: conn.recv(0),
        lambda conn: conn.recv(9, socket.MSG_PEEK),
        lambda conn: conn.recv_into(bytearray()),
        lambda conn: conn.recv_into(bytearray(9), 0, socket.MSG_PEEK),
        lambda conn: conn.recvmsg(0)[0],
        lambda conn: conn.recvmsg(9, 0, socket.MSG_PEEK)[0],
        lambda conn: conn.recvmsg_into([])[0],
        lambda conn: conn.recvmsg_into([bytearray(9)], 0, socket.MSG_PEEK)[0],
    ],
)
def test_a_look_at_the_end_is_no_read_of_it(
    ended: ConnectionSocket, read: Callable[[ConnectionSocket], Any]
) -> None:
    assert not any(read(ended) for _ in range(20))


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
    plain = getattr(thread_socket, name)

    def drained_meanwhile(*arguments: Any) -> Any:
        result = plain(*arguments)
        if not conn.draining:
            conn.drain(500)  # the kernel holds these now
        return result

    monkeypatch.setattr(thread_socket, name, drained_meanwhile)

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
    """As `echod.daemon.signals` does in the daemon."""
    previous = signal.signal(thread_socket.INTERRUPT, lambda number, frame: None)
    yield
    signal.signal(thread_socket.INTERRUPT, previous)


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
    assert not conn._errors
    peer.sendall(b"came later")
    assert conn.recv(5) == b""
    conn.sendall(b"bye")
    assert peer.recv(5) == b"bye"


@pytest.mark.usefixtures("interruptible")
def test_what_comes_before_the_interruption_is_returned(
    pair: tuple[ConnectionSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    conn, peer = pair
    plain, go_on = thread_socket._recv, threading.Event()

    def come_to_it_late(*arguments: Any) -> bytes:
        go_on.wait(10)
        return plain(*arguments)

    monkeypatch.setattr(thread_socket, "_recv", come_to_it_late)
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
    conn.settimeout(PATIENCE)
    assert not conn.interrupt()


@pytest.mark.parametrize(
    "receive",
    [
        lambda conn, *peek: conn.recv(4, *peek),
        lambda conn, *peek: conn.recvfrom(4, *peek)[0],
        lambda conn, *peek: conn.recvmsg(4, 0, *peek)[0],
    ],
)
def test_what_is_only_peeked_at_is_not_read(
    pair: tuple[ConnectionSocket, socket.socket],
    receive: Callable[..., bytes],
) -> None:
    conn, peer = pair
    peer.sendall(b"aaaabbbb")
    assert receive(conn, socket.MSG_PEEK) == b"aaaa"
    assert conn.received_bytes == 0
    conn.drain(8)
    peer.sendall(b"came later")
    got = [(receive(conn, socket.MSG_PEEK), receive(conn)) for _ in range(3)]
    assert got == [(b"aaaa", b"aaaa"), (b"bbbb", b"bbbb"), (b"", b"")]


def into(name: str, *arguments: Any, flags: int = 0) -> Callable[[ConnectionSocket, int], bytes]:
    """Return a function that receives by the method `name`, into a buffer."""

    def receive(conn: ConnectionSocket, size: int) -> bytes:
        buffer = bytearray(size)
        target = [memoryview(buffer)[:1], memoryview(buffer)[1:]] if "msg" in name else buffer
        result = getattr(conn, name)(target, *arguments, flags)
        return bytes(buffer[: result if isinstance(result, int) else result[0]])

    return receive


@pytest.mark.parametrize(
    "receive",
    [
        lambda conn, size: conn.recv(size),
        lambda conn, size: conn.recvfrom(size)[0],
        lambda conn, size: conn.recvmsg(size)[0],
        into("recv_into", 0),
        into("recvfrom_into", 0),
        into("recvmsg_into", 0),
    ],
)
def test_every_way_to_receive_counts_and_sees_the_end_at_a_drain(
    pair: tuple[ConnectionSocket, socket.socket],
    receive: Callable[[ConnectionSocket, int], bytes],
) -> None:
    conn, peer = pair
    peer.sendall(b"happy days")
    assert receive(conn, 5) == b"happy"
    assert conn.received_bytes == 5
    conn.drain(5)
    peer.sendall(b"came later")
    assert [receive(conn, 9), receive(conn, 9)] == [b" days", b""]
    assert not conn.exposed


def test_a_message_brings_descriptors_too(pair: tuple[ConnectionSocket, socket.socket]) -> None:
    conn, peer = pair
    socket.send_fds(peer, [b"here"], [peer.fileno()])
    data, (descriptor,), _, _ = socket.recv_fds(conn, 100, 1)
    with socket.socket(fileno=descriptor) as brought:
        assert (data, brought.fileno()) == (b"here", descriptor)
        assert os.fstat(descriptor).st_ino == os.fstat(peer.fileno()).st_ino


@pytest.mark.parametrize(
    "send",
    [
        lambda conn, data, path: conn.send(data),
        lambda conn, data, path: conn.sendmsg([data]),
        lambda conn, data, path: conn.sendfile(path.open("rb")),
        lambda conn, data, path: (conn.settimeout(10), conn.sendfile(path.open("rb"))),
        lambda conn, data, path: conn.sendfile(io.BytesIO(data)),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file")
def test_every_way_to_send_counts(
    pair: tuple[ConnectionSocket, socket.socket], tmp_path: Path, send: Callable[..., object]
) -> None:
    conn, peer = pair
    path = tmp_path / "file"
    path.write_bytes(b"happy")
    send(conn, b"happy", path)
    assert peer.recv(100) == b"happy"
    assert (conn.sent_bytes, conn.sending, conn.exposed) == (5, False, False)


@pytest.mark.parametrize(
    "ask",
    [
        lambda conn: conn.fileno(),
        lambda conn: conn.dup().close(),
        lambda conn: select.select([conn], [], [], 0),
        lambda conn: os.close(conn.detach()),
    ],
)
def test_it_knows_that_its_descriptor_was_asked_for(
    pair: tuple[ConnectionSocket, socket.socket], ask: Callable[[ConnectionSocket], object]
) -> None:
    conn, _ = pair
    conn.makefile("rwb").close()
    assert not conn.exposed
    ask(conn)
    assert conn.exposed


def test_it_knows_that_it_was_looked_at_for_more_in_vain(
    pair: tuple[ConnectionSocket, socket.socket],
) -> None:
    conn, peer = pair
    conn.settimeout(0.01)
    assert not conn.polled
    with pytest.raises(TimeoutError):
        conn.recv(1)
    assert conn.polled
    peer.sendall(b"happy")
    conn.recv(1)
    assert not conn.polled
    conn.setblocking(False)
    conn.recv(100)
    with pytest.raises(BlockingIOError):
        conn.recv(1)
    assert conn.polled


def test_its_addresses_are_those_at_accept() -> None:
    with socket.socket() as unconnected:
        conn = ConnectionSocket(unconnected.detach(), peer=PEER, local=LOCAL)
    assert (conn.getpeername(), conn.getsockname()) == (PEER, LOCAL)
    conn.release()


def raised_by(call: Callable[[], object]) -> BaseException:
    """Return what `call` raises."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is the kernel's choice
        call()
    return caught.value


@pytest.mark.parametrize(
    "call",
    [
        lambda conn: conn.recv(1),
        lambda conn: conn.recvmsg(1),
        lambda conn: conn.recvmsg_into([bytearray(1)]),
        lambda conn: conn.sendmsg([b"x"]),
        lambda conn: conn.sendfile(io.BytesIO(b"x")),
        lambda conn: conn.shutdown(socket.SHUT_WR),
        lambda conn: conn.makefile("rb").readline(),
        pytest.param(
            lambda conn: print("happy", file=conn.makefile("w"), flush=True),
            # Since Python 3.13 the file reports it once more when it is deleted.
            marks=pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ),
    ],
)
def test_an_error_of_the_connection_is_known_whichever_call_brings_it(
    call: Callable[[ConnectionSocket], object],
) -> None:
    with socket.socket() as unconnected:
        conn = ConnectionSocket(unconnected.detach(), peer=PEER, local=LOCAL)
    error = raised_by(lambda: call(conn))
    assert conn.caused(error)
    raised_by(lambda: conn.recv(1))  # tries again before it lets go
    assert conn.caused(error)
    assert not conn.caused(ConnectionResetError(*error.args))
    assert conn.caused(ExceptionGroup("tasks", [error]))  # type: ignore[type-var]
    assert not conn.caused(ExceptionGroup("tasks", [error, OSError()]))  # type: ignore[type-var]
    for _ in range(20):
        raised_by(lambda: conn.recv(1))
    assert not conn.caused(error)  # the number of remembered errors is bounded
    conn.release()


def call_after(first: Callable[[Any], object], then: Callable[[Any], object]) -> Any:
    def call(conn: ConnectionSocket) -> object:
        first(conn)
        return then(conn)

    return call


@pytest.mark.parametrize(
    "call",
    [
        call_after(lambda conn: conn.settimeout(0.01), lambda conn: conn.recv(1)),
        call_after(lambda conn: conn.settimeout(0.01), lambda conn: conn.makefile("rb").read(1)),
        call_after(lambda conn: conn.setblocking(False), lambda conn: conn.recv(1)),
        call_after(lambda conn: conn.close(), lambda conn: conn.recv(1)),
        call_after(lambda conn: conn.shutdown(socket.SHUT_WR), lambda conn: conn.send(b"x")),
        lambda conn: conn.setsockopt(socket.SOL_SOCKET, 9999, 1),
    ],
)
def test_what_a_handler_brings_upon_itself_is_no_error_of_the_connection(
    pair: tuple[ConnectionSocket, socket.socket], call: Callable[[ConnectionSocket], object]
) -> None:
    conn, _ = pair
    assert not conn.caused(raised_by(lambda: call(conn)))


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (TimeoutError("timed out"), False),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), True),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), False),
        (ConnectionResetError("Connection lost"), True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True),
        (OSError(errno.EBADF, "Bad file descriptor"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), True),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), False),
        (EOFError(), False),
    ],
)
def test_some_errors_are_of_the_kind_that_a_lost_connection_brings(
    error: Exception, loss: bool
) -> None:
    assert thread_socket.is_loss(error) is loss
    assert thread_socket.is_loss(ExceptionGroup("tasks", [error])) is loss


def test_a_kernel_that_is_short_of_memory_is_no_error_of_the_handler(
    pair: tuple[ConnectionSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    conn, _ = pair
    short = OSError(errno.ENOMEM, "Cannot allocate memory")

    def fail(*arguments: object) -> int:
        raise short

    monkeypatch.setattr(thread_socket, "_send", fail)
    assert conn.caused(raised_by(lambda: conn.send(b"happy")))
    assert not conn.caused(OSError(errno.ENOMEM, "Cannot allocate memory"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM])
def test_an_error_of_the_file_that_is_sent_is_the_handlers(
    pair: tuple[ConnectionSocket, socket.socket], number: int
) -> None:
    conn, _ = pair
    error = OSError(number, "of the disk")
    assert raised_by(lambda: conn.sendfile(Unreadable(error))) is error
    assert not conn.caused(error)


class Unreadable(io.BytesIO):
    """A file that cannot be read."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        raise self._error
