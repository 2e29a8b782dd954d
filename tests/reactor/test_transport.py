"""Streams: behaviour that Twisted's own suites do not test."""

from __future__ import annotations

import array
import fcntl
import gc
import os
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.interfaces import (
    IConsumer,
    IFileDescriptorReceiver,
    IHalfCloseableProtocol,
    ITCPTransport,
    IUNIXTransport,
)
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.python import log
from zope.interface import implementer
from zope.interface.verify import verifyObject

from echod.reactor import transport as transport_module
from echod.reactor.transport import StreamTransport
from tests.support.needs import more_descriptors
from tests.support.waiting import PATIENCE, block_until

from .harness import Echo, Harness, dial, read_all


class Remembers(Protocol):
    """Records what happens to it, in the class."""

    events: list[Any]

    def dataReceived(self, data: bytes) -> None:
        self.events.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.events.append(reason.type.__name__)


def remembering() -> type[Remembers]:
    return type("Remembering", (Remembers,), {"events": []})


def test_interfaces(harness: Harness) -> None:
    class Checks(Protocol):
        def connectionMade(self) -> None:
            assert verifyObject(ITCPTransport, self.transport)
            assert verifyObject(IConsumer, self.transport)
            assert self.transport.getHost().port == port
            self.transport.write(b"fine")
            self.transport.loseConnection()

    port = harness.listen(Checks)
    harness.run(lambda: check(read_all(dial(port)) == b"fine"))
    assert harness.failures == []


def check(truth: bool) -> None:
    assert truth


# Half-close


@implementer(IHalfCloseableProtocol)
class HalfClosingEcho(Echo):
    def readConnectionLost(self) -> None:
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass


@pytest.mark.parametrize("protocol", [Echo, HalfClosingEcho])
@pytest.mark.parametrize("size", [10, 1000, 65536, 1_000_000])
def test_half_close_loses_nothing(harness: Harness, protocol: type[Echo], size: int) -> None:
    port = harness.listen(protocol)
    sent = os.urandom(size)

    def client() -> None:
        for _ in range(20):
            connection = dial(port)
            sender = threading.Thread(target=send, args=[connection])
            sender.start()
            assert read_all(connection) == sent
            sender.join()
            connection.close()

    def send(connection: socket.socket) -> None:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)

    harness.run(client)


def test_the_end_of_the_peers_stream_is_seen_before_it_is_read(harness: Harness) -> None:
    looked: list[bool] = []

    class Looks(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def dataReceived(self, data: bytes) -> None:
            self.transport.pauseProducing()  # the end of the stream will not be read
            looked.append(self.transport.lookForEnd())
            self.transport.write(data)
            self.look()

        def look(self) -> None:
            if not self.transport.lookForEnd():
                harness.reactor.callLater(0.01, self.look)
            else:
                looked.append(self.transport.closeIfSent())

    port = harness.listen(Looks)

    def client() -> None:
        connection = dial(port)
        connection.sendall(b"go")
        assert connection.recv(10) == b"go"
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b""
        connection.close()

    harness.run(client)
    assert looked == [False, True]


@pytest.mark.parametrize("size", [10, 30_000_000])
def test_only_a_stream_that_has_sent_all_is_closed_at_once(harness: Harness, size: int) -> None:
    closed: list[bool] = []

    @implementer(IHalfCloseableProtocol)
    class ClosesAtOnce(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def dataReceived(self, data: bytes) -> None:
            closed.append(self.transport.closeIfSent())
            self.transport.write(b"x" * size)

        def readConnectionLost(self) -> None:
            if self.transport.closeIfSent():
                closed.append(True)
            else:
                self.transport.loseConnection()

        def writeConnectionLost(self) -> None:
            """Go on closing."""

    port = harness.listen(ClosesAtOnce)

    def client() -> None:
        connection = dial(port)
        connection.sendall(b"go")
        if size == 10:
            assert connection.recv(size)
        connection.shutdown(socket.SHUT_WR)
        assert len(read_all(connection)) == (0 if size == 10 else size)
        connection.close()

    harness.run(client)
    # Not before the peer's end; and not while something waits.
    assert closed == ([False, True] if size == 10 else [False])
    assert ClosesAtOnce.events == ["ConnectionDone"]


def test_write_side_half_close(harness: Harness) -> None:
    @implementer(IHalfCloseableProtocol)
    class SendsThenListens(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def connectionMade(self) -> None:
            self.transport.write(b"x" * 3_000_000)
            self.transport.loseWriteConnection()

        def writeConnectionLost(self) -> None:
            self.events.append("write lost")
            self.transport.write(b"too late")

        def readConnectionLost(self) -> None:
            self.events.append("read lost")
            self.transport.loseConnection()

    port = harness.listen(SendsThenListens)

    def client() -> None:
        connection = dial(port)
        assert len(read_all(connection)) == 3_000_000
        connection.sendall(b"still here")
        connection.close()

    harness.run(client)
    assert SendsThenListens.events == ["write lost", b"still here", "read lost", "ConnectionDone"]


@pytest.mark.parametrize("streaming", [True, False])
def test_write_side_half_close_with_a_producer(harness: Harness, streaming: bool) -> None:
    class Produces(Protocol):
        left = 100

        def connectionMade(self) -> None:
            self.transport.registerProducer(self, streaming)
            if streaming:
                self.resumeProducing()

        def resumeProducing(self) -> None:
            self.producing = True
            while self.left and self.producing:
                self.left -= 1
                self.transport.write(b"x" * 100_000)
                self.producing = streaming and self.producing
            if not self.left:
                self.transport.loseWriteConnection()
                self.transport.unregisterProducer()

        def pauseProducing(self) -> None:
            self.producing = False

        def stopProducing(self) -> None:
            pass

    port = harness.listen(Produces)
    harness.run(lambda: check(len(read_all(dial(port))) == 10_000_000))


def test_a_peer_that_never_reads_is_given_up(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delivery of the remaining output after the peer's end of stream has a deadline."""

    class Floods(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def dataReceived(self, data: bytes) -> None:
            self.transport.write(b"x" * 50_000_000)

    monkeypatch.setattr(transport_module, "FLUSH_TIMEOUT", 0.5)
    port = harness.listen(Floods)
    took: list[float] = []

    def client() -> None:
        connection = dial(port)
        connection.sendall(b"x")
        began = time.monotonic()
        connection.shutdown(socket.SHUT_WR)
        block_until(lambda: Floods.events)
        took.append(time.monotonic() - began)
        connection.close()

    harness.run(client)
    assert Floods.events == ["ConnectionDone"]
    assert took[0] >= transport_module.FLUSH_TIMEOUT


# Exceptions


def test_exception_in_build_protocol(harness: Harness) -> None:
    def broken() -> Protocol:
        raise ZeroDivisionError

    port = harness.listen(broken)
    harness.run(lambda: check(read_all(dial(port)) == b""))
    assert len(harness.failures) == 1


def test_exception_in_connection_made(harness: Harness) -> None:
    protocol = remembering()
    protocol.connectionMade = lambda self: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    port = harness.listen(protocol)
    harness.run(lambda: check(read_all(dial(port)) == b""))
    assert len(harness.failures) == 1
    assert protocol.events == ["ZeroDivisionError"]


@pytest.mark.parametrize("kind", [ZeroDivisionError, OSError, ConnectionResetError])
def test_exception_in_data_received(harness: Harness, kind: type[Exception]) -> None:
    protocol = remembering()

    def fail_or_echo(self: Any, data: bytes) -> None:
        if data == b"fail":
            raise kind
        self.transport.write(data)

    protocol.dataReceived = fail_or_echo  # type: ignore[method-assign]
    port = harness.listen(protocol)

    def client() -> None:
        other = dial(port)
        failing = dial(port)
        failing.sendall(b"fail")
        assert read_all(failing) == b""
        assert protocol.events == [kind.__name__]
        other.sendall(b"still here")
        assert other.recv(100) == b"still here"

    harness.run(client)
    assert len(harness.failures) == 1


def test_refused_by_the_factory(harness: Harness) -> None:
    port = harness.listen(Echo)
    harness.port.factory.buildProtocol = lambda address: None
    harness.run(lambda: check(read_all(dial(port)) == b""))
    assert harness.failures == []


# Reading


def test_banner_is_seen_by_a_client(harness: Harness) -> None:
    """The banner may arrive with the event that tells the client of its connection."""

    class Banner(Protocol):
        def connectionMade(self) -> None:
            self.transport.write(b"hello")

    class Reads(Protocol):
        def dataReceived(self, data: bytes) -> None:
            got.append(data)
            self.transport.loseConnection()
            if len(got) == 20:
                harness.reactor.stop()
            else:
                connect()

    got: list[bytes] = []
    port = harness.listen(Banner)

    def connect() -> None:
        factory = ClientFactory.forProtocol(Reads)
        factory.noisy = False
        harness.reactor.connectTCP("127.0.0.1", port, factory)

    harness.reactor.callWhenRunning(connect)
    harness.run_until_stopped()
    assert got == [b"hello"] * 20


def test_data_received_may_be_replaced(harness: Harness) -> None:
    class Changes(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.dataReceived = self.other  # type: ignore[method-assign]
            self.transport.write(b"first")

        def other(self, data: bytes) -> None:
            self.transport.write(b"other")

    port = harness.listen(Changes)

    def client() -> None:
        connection = dial(port)
        for expected in b"first", b"other", b"other":
            connection.sendall(b"x")
            assert connection.recv(100) == expected

    harness.run(client)


def test_paused_from_the_start(harness: Harness) -> None:
    class Late(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def connectionMade(self) -> None:
            self.transport.pauseProducing()
            self.transport.pauseProducing()
            harness.reactor.callLater(0.1, self.resume)

        def resume(self) -> None:
            self.events.append("resumed")
            self.transport.resumeProducing()
            self.transport.resumeProducing()

    port = harness.listen(Late)

    def client() -> None:
        connection = dial(port)
        connection.sendall(b"x")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""

    harness.run(client)
    assert Late.events == ["resumed", b"x", "ConnectionDone"]


def test_a_later_client_resumes_one_that_was_accepted_with_it(harness: Harness) -> None:
    class Waits(Remembers):
        events: list[Any] = []  # noqa: RUF012
        first: list[Any] = []  # noqa: RUF012

        def connectionMade(self) -> None:
            if self.first:  # the partner that the first has waited for
                self.first[0].resumeProducing()
            else:
                self.transport.pauseProducing()
                self.first.append(self.transport)

    port = harness.listen(Waits)
    # Both wait to be accepted when the reactor begins to run.
    paused, _ = dial(port), dial(port)

    def client() -> None:
        paused.sendall(b"x")
        block_until(lambda: Waits.events == [b"x"])

    harness.run(client)


# Writing and closing


class SavesTransport(Remembers):
    transports: list[Any]

    def connectionMade(self) -> None:
        self.transports.append(self.transport)


def test_everything_is_harmless_after_the_end(harness: Harness) -> None:
    SavesTransport.transports, SavesTransport.events = [], []
    port = harness.listen(SavesTransport)

    def client() -> None:
        dial(port).close()
        block_until(lambda: SavesTransport.events)
        harness.reactor.callFromThread(afterwards)
        assert over.wait(PATIENCE)

    def afterwards() -> None:
        [transport] = SavesTransport.transports
        for act in (
            lambda: transport.write(b"x"),
            lambda: transport.writeSequence([b"x", b"y"]),
            transport.pauseProducing,
            transport.resumeProducing,
            transport.loseWriteConnection,
            transport.unregisterProducer,
            transport.loseConnection,
            transport.abortConnection,
            transport.getPeer,
        ):
            act()
        assert transport.fileno() == -1
        assert "SavesTransport" in repr(transport)
        over.set()

    over = threading.Event()
    harness.run(client)
    assert SavesTransport.events == ["ConnectionDone"]
    assert harness.failures == []


def test_abort_resets(harness: Harness) -> None:
    class Aborts(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(b"x" * 10_000_000)
            self.transport.abortConnection()

    port = harness.listen(Aborts)

    def client() -> None:
        connection = dial(port)
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(connection)

    harness.run(client)


def test_pull_producer_is_asked_for_all(harness: Harness) -> None:
    class Pulled(Protocol):
        left = 300

        def connectionMade(self) -> None:
            self.transport.registerProducer(self, False)

        def resumeProducing(self) -> None:
            self.left -= 1
            self.transport.write(b"x" * 10_000)
            if self.left == 0:
                self.transport.unregisterProducer()
                self.transport.loseConnection()

        def stopProducing(self) -> None:
            pass

    port = harness.listen(Pulled)
    harness.run(lambda: check(len(read_all(dial(port))) == 3_000_000))


def test_own_producer_bounds_memory(harness: Harness) -> None:
    """A transport registered as its own producer reads no more than the peer takes back."""

    class Bounded(Echo):
        def connectionMade(self) -> None:
            self.transport.registerProducer(self.transport, True)
            transports.append(self.transport)

    transports: list[Any] = []
    port = harness.listen(Bounded)
    buffered: list[int] = []

    def client() -> None:
        connection = dial(port)
        connection.settimeout(0.3)
        sent = 0
        try:
            while sent < 100_000_000:
                sent += connection.send(b"x" * 65536)
        except TimeoutError:
            pass
        buffered.append(transports[0]._uv.get_write_buffer_size())
        connection.settimeout(PATIENCE)
        got = 0
        while got < sent:
            got += len(connection.recv(1_000_000))
        connection.close()

    harness.run(client)
    assert buffered[0] < 1_000_000


# The socket


def waiting_to_be_read(handle: socket.socket) -> int:
    """How many bytes the kernel has for a socket."""
    count = array.array("i", [0])
    fcntl.ioctl(handle, termios.FIONREAD, count)
    return count[0]


def test_handle_is_a_real_socket(harness: Harness) -> None:
    class Peeks(Protocol):
        def connectionMade(self) -> None:
            self.transport.pauseProducing()
            self.peek()

        def peek(self) -> None:
            handle = self.transport.getHandle()
            if waiting_to_be_read(handle) < len(b"hello"):
                harness.reactor.callLater(0.005, self.peek)
                return
            with handle.dup() as duplicate:
                seen.extend([waiting_to_be_read(handle), isinstance(handle, socket.socket)])
                assert duplicate.getpeername()[:2] == handle.getpeername()[:2]
            # Making a duplicate must not make the connection blocking.
            seen.append(os.get_blocking(handle.fileno()))
            self.transport.loseConnection()

    seen: list[Any] = []
    port = harness.listen(Peeks)

    def client() -> None:
        connection = dial(port)
        connection.sendall(b"hello")
        with pytest.raises(ConnectionResetError):  # "hello" was not read
            read_all(connection)

    harness.run(client)
    assert seen == [5, True, False]


def test_closing_the_handle_hands_the_connection_over(harness: Harness) -> None:
    class HandsOver(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def connectionMade(self) -> None:
            taken = self.transport.getHandle().dup()
            self.transport.getHandle().close()
            taken.setblocking(True)
            threading.Thread(target=self.serve, args=[taken]).start()

        @staticmethod
        def serve(taken: socket.socket) -> None:
            with taken:
                while data := taken.recv(1024):
                    taken.sendall(b"OK..." + data)

    port = harness.listen(HandsOver)

    def client() -> None:
        connection = dial(port)
        for _ in range(3):
            connection.sendall(b"hello")
            assert connection.recv(100) == b"OK...hello"
        assert harness.reactor.streams == set()
        connection.close()

    harness.run(client)
    assert HandsOver.events == []


# UNIX streams


def test_descriptors_over_unix(harness: Harness, tmp_path: Any) -> None:
    class Sends(Protocol):
        def connectionMade(self) -> None:
            assert verifyObject(IUNIXTransport, self.transport)
            assert isinstance(self.transport, StreamTransport)
            self.transport.sendFileDescriptor(writer)
            self.transport.write(b"with this")
            self.transport.loseConnection()

    @implementer(IFileDescriptorReceiver)
    class Receives(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def fileDescriptorReceived(self, descriptor: int) -> None:
            os.write(descriptor, b"hello")
            os.close(descriptor)

        def connectionLost(self, reason: Any = None) -> None:
            super().connectionLost(reason)
            harness.reactor.stop()

    reader, writer = os.pipe()
    path = str(tmp_path / "socket")
    harness.reactor.listenUNIX(path, Factory.forProtocol(Sends))
    harness.reactor.connectUNIX(path, ClientFactory.forProtocol(Receives))
    harness.run_until_stopped()
    assert os.read(reader, 100) == b"hello"
    assert b"".join(Receives.events[:-1]) == b"with this"
    assert Receives.events[-1] == "ConnectionDone"
    os.close(reader)
    os.close(writer)


# Log


def test_log_prefix_names_the_connection(harness: Harness) -> None:
    class Logs(Protocol):
        def dataReceived(self, data: bytes) -> None:
            log.msg("within", marker=True)
            harness.reactor.callLater(0, log.msg, "outside", marker=True)
            harness.reactor.callLater(0, self.transport.loseConnection)

    systems: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("marker"):
            systems.append(event["system"])

    log.addObserver(observe)
    port = harness.listen(Logs)

    def client() -> None:
        connection = dial(port)
        connection.sendall(b"x")
        read_all(connection)

    harness.run(client)
    log.removeObserver(observe)
    assert systems == ["Logs,0,127.0.0.1", "-"]


# Nothing is left, and little is used


def test_nothing_is_left_of_a_connection(harness: Harness) -> None:
    kept: list[weakref.ref[Any]] = []

    class Kept(Echo):
        def connectionMade(self) -> None:
            kept.append(weakref.ref(self.transport))

    port = harness.listen(Kept)
    gc.collect()
    gc.disable()  # a reference cycle would wait for it

    def alive() -> bool:
        return any(ref() is not None for ref in kept)

    def client() -> None:
        with dial(port) as first:  # libuv opens what it keeps in reserve with it
            first.sendall(b"x")
            assert first.recv(1) == b"x"
        block_until(lambda: not alive())
        open_before = open_descriptors()
        for number in range(200):
            connection = dial(port)
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            if number % 2:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()
        block_until(lambda: not alive() and open_descriptors() <= open_before)

    try:
        harness.run(client)
    finally:
        gc.enable()
    assert len(kept) == 201
    assert not alive()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_idle_connection_is_small(harness: Harness) -> None:
    port = harness.listen(Echo)
    count = 400
    sizes: list[int] = []

    def client() -> None:
        def open_some() -> list[socket.socket]:
            made = [dial(port) for _ in range(count)]
            for connection in made:
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"
            return made

        first = open_some()
        clients = tracemalloc_of_clients()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        second = open_some()
        gc.collect()
        sizes.append((tracemalloc.get_traced_memory()[0] - before) // count - clients)
        for connection in first + second:
            connection.close()

    def tracemalloc_of_clients() -> int:
        before = tracemalloc.get_traced_memory()[0]
        made = [socket.socket() for _ in range(50)]
        size = (tracemalloc.get_traced_memory()[0] - before) // len(made)
        for connection in made:
            connection.close()
        return size

    tracemalloc.start()
    try:
        with more_descriptors(4 * count + 100):
            harness.run(client)
    finally:
        tracemalloc.stop()
    assert sizes[0] < 2560


ALL_AT_ONCE = """
import tracemalloc
from echod.reactor.server import TCPServerTransport, UNIXServerTransport

for kind in (TCPServerTransport, UNIXServerTransport):
    made = [kind(None, ("127.0.0.1", 1), None, None, None) for _ in range(200)]
    tracemalloc.start()
    for one in made:
        one.connected = 1
        one.protocol = one.data_received = one.producer = None
    print(tracemalloc.get_traced_memory()[0] // len(made))
    tracemalloc.stop()
"""


def test_clients_that_come_at_once_take_no_more_memory_than_one_after_the_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE], capture_output=True, text=True, check=True
    )
    assert [int(each) for each in done.stdout.split()] == [0, 0]


def test_with_short_reads_a_producer_is_paused_earlier(harness: Harness) -> None:
    paused: list[int] = []
    over = threading.Event()

    class Sends(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def connectionMade(self) -> None:
            self.transport.shortenReads()
            self.transport.registerProducer(self, True)
            while not paused:
                self.transport.write(b"x" * 1000)

        def pauseProducing(self) -> None:
            paused.append(self.transport._uv.get_write_buffer_size())
            over.set()

        def resumeProducing(self) -> None: ...

        def stopProducing(self) -> None: ...

    port = harness.listen(Sends)

    def client() -> None:
        with dial(port):
            over.wait(10)  # and then the client resets, as it has not read

    harness.run(client)
    backlog = transport_module.SHORT_BACKLOG
    assert backlog < paused[0] <= backlog + 1000


@pytest.mark.parametrize("case", ["shorter reads", "a limit"])
def test_a_producer_is_paused_if_too_much_waits_already(harness: Harness, case: str) -> None:
    """Fault 209: A client for which too much waits to be sent already gets no more until it reads,
    also if the limit is set only then, as by a long read that has to wait.
    """
    paused: list[int] = []
    over = threading.Event()

    class Sends(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def connectionMade(self) -> None:
            write = self.transport._uv.write  # as a protocol that is connected directly has it
            self.transport.registerProducer(self, True)
            while self.transport.queued <= 20_000:
                write(b"x" * 1000)
            assert paused == []
            if case == "shorter reads":
                self.transport.shortenReads()
            else:
                self.transport.limitQueue(10_000)
            harness.reactor.callLater(0.01, over.set)

        def pauseProducing(self) -> None:
            paused.append(self.transport.queued)

        def resumeProducing(self) -> None: ...

        def stopProducing(self) -> None: ...

    port = harness.listen(Sends)

    def client() -> None:
        with dial(port):
            over.wait(10)  # and then the client resets, as it has not read

    harness.run(client)
    assert len(paused) == 1
    assert harness.failures == []


def test_reads_can_be_shortened(harness: Harness) -> None:
    """A protocol that keeps what it gets need not get a quarter of a megabyte at once."""
    longest: dict[bool, int] = {False: 0, True: 0}
    shortened = False

    @implementer(IHalfCloseableProtocol)
    class Keeps(Protocol):
        def connectionMade(self) -> None:
            self.kept: list[bytes] = []
            self.transport.pauseProducing()
            self.wait()

        def wait(self) -> None:
            """Read once there is much to read: a reader that keeps up is given little at once."""
            if waiting_to_be_read(self.transport.getHandle()) > transport_module.SHORT_READ:
                self.transport.resumeProducing()
            else:
                harness.reactor.callLater(0.005, self.wait)

        def dataReceived(self, data: bytes) -> None:
            nonlocal shortened
            longest[shortened] = max(longest[shortened], len(data))
            self.kept.append(data)
            if not shortened and len(data) > transport_module.SHORT_READ:
                shortened = True
                self.transport.shortenReads()
                self.transport.shortenReads()

        def readConnectionLost(self) -> None:
            self.transport.write(b"".join(self.kept))
            self.transport.loseConnection()

        def writeConnectionLost(self) -> None:
            pass

    port = harness.listen(Keeps)
    # The amount that a connection may hold unread is set when it is accepted.
    harness.port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sent = os.urandom(8_000_000)

    def client() -> None:
        connection = dial(port)
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        check(read_all(connection) == sent)

    harness.run(client)
    assert shortened
    assert longest[True] <= transport_module.SHORT_READ < longest[False]
    assert harness.failures == []


def test_reads_can_be_views_of_one_buffer(harness: Harness) -> None:
    views: list[object] = []

    @implementer(IHalfCloseableProtocol)
    class Copies(Protocol):
        def connectionMade(self) -> None:
            self.kept: list[bytes] = []

        def dataReceived(self, data: bytes | memoryview) -> None:
            views.append(data.obj if isinstance(data, memoryview) else None)
            self.kept.append(bytes(data))
            self.transport.readInPlace()
            if len(self.kept) == 3:
                self.transport.shortenReads()
            self.transport.write(b"go on")

        def readConnectionLost(self) -> None:
            self.transport.writeChunks(self.kept)
            self.transport.loseConnection()
            self.transport.writeChunks([b"still", b"sent"])  # `write` is diverted now

        def writeConnectionLost(self) -> None: ...

    port = harness.listen(Copies)
    sent = [letter * 30_000 for letter in (b"a", b"b", b"c", b"d", b"e")]

    def client() -> None:
        with dial(port) as connection:
            for message in sent:
                connection.sendall(message)
                check(connection.recv(5, socket.MSG_WAITALL) == b"go on")
            connection.shutdown(socket.SHUT_WR)
            check(read_all(connection).endswith(b"".join(sent) + b"stillsent"))

    harness.run(client)
    assert views[0] is None
    assert len(views) >= len(sent)
    assert {id(view) for view in views[1:]} == {id(harness.reactor.read_buffer.obj)}
    assert harness.failures == []


# A protocol that is connected directly


def test_a_protocol_may_be_called_by_uvloop_itself(harness: Harness) -> None:
    class Direct(Remembers):
        events: list[Any] = []  # noqa: RUF012

        def connect_directly(self, transport: Any, writer: Any) -> Any:
            self.direct_write = writer.write
            return self.answer

        def answer(self, data: bytes) -> None:
            if data == b"fail":
                raise ValueError("on purpose")
            self.direct_write(b"OK..." + data)

    port = harness.listen(Direct)

    def client() -> None:
        connection = dial(port)
        connection.sendall(b"happy")
        assert connection.recv(100) == b"OK...happy"
        connection.sendall(b"fail")
        assert read_all(connection) == b""

    harness.run(client)
    assert [str(failure["log_failure"].value) for failure in harness.failures] == ["on purpose"]
    assert Direct.events == ["ValueError"]
