"""Ways to wait for a client, in each of which a silent one is noticed and a drain is seen."""

from __future__ import annotations

import asyncio
import os
import queue
import select
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.task import deferLater

from echod import EchoFactory, Limits
from echod.concurrency import thread_socket
from echod.connections import waiting
from echod.connections.socket_protocol import SocketProtocol
from echod.connections.sweeper import URGENT_INTERVAL
from echod.connections.waiting import Others, is_awaited, running_time, tasks
from echod.handlers.contract import ConcurrencyModel
from echod.listening.proxy import ProxyFactory
from echod.settings.definitions import LOOPBACK
from tests.support.proxy_headers import line
from tests.support.reactor import reactor
from tests.support.serving import (
    SecureServer,
    Server,
    Talker,
    eventually,
    make_model,
    server_context,
    together,
)
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.long

MODEL = ConcurrencyModel.THREAD_PER_CONNECTION

# Reads some bytes, or the end; a way to wait gives one for a socket.
Read = Callable[[], bytes]


@pytest.fixture(autouse=True)
def waiting_threads_can_be_interrupted() -> Iterator[None]:
    """As `echod.daemon.signals` does in the daemon."""
    previous = signal.signal(thread_socket.INTERRUPT, lambda number, frame: None)
    yield
    signal.signal(thread_socket.INTERRUPT, previous)


# The socket's own calls.


def by_recv(conn: socket.socket, stack: ExitStack) -> Read:
    return lambda: conn.recv(100)


def by_recv_into(conn: socket.socket, stack: ExitStack) -> Read:
    buffer = bytearray(100)
    return lambda: bytes(buffer[: conn.recv_into(buffer, nbytes=100)])


def by_recvfrom(conn: socket.socket, stack: ExitStack) -> Read:
    return lambda: conn.recvfrom(100)[0]


def by_recvfrom_into(conn: socket.socket, stack: ExitStack) -> Read:
    buffer = bytearray(100)
    return lambda: bytes(buffer[: conn.recvfrom_into(buffer)[0]])


def by_recvmsg(conn: socket.socket, stack: ExitStack) -> Read:
    return lambda: conn.recvmsg(100, 100)[0]


def by_recvmsg_into(conn: socket.socket, stack: ExitStack) -> Read:
    first, second = bytearray(2), bytearray(98)

    def read() -> bytes:
        count = conn.recvmsg_into([first, second])[0]
        return bytes(first + second)[:count]

    return read


def by_peek(conn: socket.socket, stack: ExitStack) -> Read:
    return lambda: conn.recv(len(conn.recv(100, socket.MSG_PEEK)))


def by_file(conn: socket.socket, stack: ExitStack) -> Read:
    return stack.enter_context(conn.makefile("rb")).readline


def by_unbuffered_file(conn: socket.socket, stack: ExitStack) -> Read:
    return stack.enter_context(conn.makefile("rb", buffering=0)).readline


def by_time_outs(conn: socket.socket, stack: ExitStack) -> Read:
    conn.settimeout(0.05)

    def read() -> bytes:
        while True:
            with suppress(TimeoutError):
                return conn.recv(100)
            time.sleep(0.1)  # looks after something else meanwhile

    return read


# By the descriptor.


def by_os_read(conn: socket.socket, stack: ExitStack) -> Read:
    return lambda: os.read(conn.fileno(), 100)


def by_os_readv(conn: socket.socket, stack: ExitStack) -> Read:
    buffer = bytearray(100)
    return lambda: bytes(buffer[: os.readv(conn.fileno(), [buffer])])


def by_duplicate(conn: socket.socket, stack: ExitStack) -> Read:
    other = stack.enter_context(conn.dup())
    return lambda: other.recv(100)


def by_socket_from_descriptor(conn: socket.socket, stack: ExitStack) -> Read:
    other = stack.enter_context(socket.fromfd(conn.fileno(), conn.family, conn.type))
    return lambda: other.recv(100)


def by_socket_with_time_out(conn: socket.socket, stack: ExitStack) -> Read:
    other = stack.enter_context(socket.socket(fileno=os.dup(conn.fileno())))
    other.settimeout(100)
    return lambda: other.recv(100)


def by_select(conn: socket.socket, stack: ExitStack) -> Read:
    return lambda: conn.recv(100) if select.select([conn], [], []) else b""


def by_select_and_os_read(conn: socket.socket, stack: ExitStack) -> Read:
    number = conn.fileno()
    return lambda: os.read(number, 100) if select.select([number], [], []) else b""


def by_select_with_another(conn: socket.socket, stack: ExitStack) -> Read:
    """As a proxy does: the other side is silent."""
    upstream, other = map(stack.enter_context, socket.socketpair())

    def read() -> bytes:
        select.select([upstream, conn], [], [])
        return conn.recv(100) if other else b""

    return read


def by_select_without_blocking(conn: socket.socket, stack: ExitStack) -> Read:
    conn.setblocking(False)

    def read() -> bytes:
        while True:
            with suppress(BlockingIOError):
                return conn.recv(100)
            select.select([conn], [], [])

    return read


def by_select_with_time_outs(conn: socket.socket, stack: ExitStack) -> Read:
    def read() -> bytes:
        while not select.select([conn], [], [], 0.1)[0]:
            pass
        return conn.recv(100)

    return read


def by_selector_with_time_outs(conn: socket.socket, stack: ExitStack) -> Read:
    """As `serve_forever` does."""
    selector = stack.enter_context(closing(selectors.PollSelector()))
    selector.register(conn, selectors.EVENT_READ)

    def read() -> bytes:
        while not selector.select(0.05):
            pass
        return os.read(conn.fileno(), 100)

    return read


def by_poll(conn: socket.socket, stack: ExitStack) -> Read:
    poll = select.poll()
    poll.register(conn, select.POLLIN)
    return lambda: conn.recv(100) if poll.poll() else b""


def by_epoll(conn: socket.socket, stack: ExitStack) -> Read:
    epoll = stack.enter_context(select.epoll())
    epoll.register(conn, select.EPOLLIN)
    return lambda: conn.recv(100) if epoll.poll() else b""


def by_selector(
    conn: socket.socket, stack: ExitStack, kind: Any = selectors.DefaultSelector
) -> Read:
    selector = stack.enter_context(closing(kind()))
    selector.register(conn, selectors.EVENT_READ)
    return lambda: conn.recv(100) if selector.select() else b""


def by_poll_selector(conn: socket.socket, stack: ExitStack) -> Read:
    return by_selector(conn, stack, selectors.PollSelector)


# By others.


def by_another_thread(conn: socket.socket, stack: ExitStack, way: Any = by_recv) -> Read:
    came: queue.Queue[bytes] = queue.Queue()

    def work() -> None:
        read, data = way(conn, stack), b"\n"
        while data:
            with suppress(OSError):
                data = read()
            came.put(data)

    thread = threading.Thread(target=work)
    thread.start()
    stack.callback(thread.join)
    return came.get


def by_another_thread_and_selector(conn: socket.socket, stack: ExitStack) -> Read:
    return by_another_thread(conn, stack, by_selector)


READS: list[Callable[[Any, ExitStack], Read]] = [
    by_recv,
    by_recv_into,
    by_recvfrom,
    by_recvfrom_into,
    by_recvmsg,
    by_recvmsg_into,
    by_peek,
    by_file,
    by_unbuffered_file,
    by_time_outs,
    by_os_read,
    by_os_readv,
    by_duplicate,
    by_socket_from_descriptor,
    by_socket_with_time_out,
    by_select,
    by_select_and_os_read,
    by_select_with_another,
    by_select_without_blocking,
    by_select_with_time_outs,
    by_selector_with_time_outs,
    by_poll,
    by_epoll,
    by_selector,
    by_poll_selector,
    by_another_thread,
    by_another_thread_and_selector,
]

# Whether a handler that was asked to work may go on.
LEAVE = threading.Event()


def echo_by(way: Callable[[Any, ExitStack], Read]) -> Callable[[Any], None]:
    """Return a handler that waits in this way, and sends back what comes."""

    def handler(conn: socket.socket) -> None:
        with ExitStack() as stack:
            read = way(conn, stack)
            while data := read():
                if data == b"work\n":
                    LEAVE.wait(30)
                conn.sendall(data)

    return handler


def cat(conn: socket.socket) -> None:
    subprocess.run(["cat"], stdin=conn, stdout=conn, check=True)


def cat_in_shell(conn: socket.socket) -> None:
    subprocess.run("cat; true", shell=True, stdin=conn, stdout=conn, check=True, timeout=60)


def asyncio_streams(conn: socket.socket) -> None:
    async def talk() -> None:
        conn.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=conn)
        while data := await reader.readline():
            if data == b"work\n":
                await asyncio.to_thread(LEAVE.wait, 30)
            writer.write(data)
            await writer.drain()
        writer.close()

    asyncio.run(talk())


def detached(conn: socket.socket) -> None:
    number = conn.detach()
    try:
        while data := os.read(number, 100):
            if data == b"work\n":
                LEAVE.wait(30)
            os.write(number, data)
    finally:
        os.close(number)


Handler = Callable[[Any], None]
# The handlers that work on request, see LEAVE; others only echo.
WORKING: dict[str, Handler] = {
    **{way.__name__: echo_by(way) for way in READS},
    "detached": detached,
    "asyncio_streams": asyncio_streams,
}
HANDLERS: dict[str, Handler] = {**WORKING, "cat": cat, "cat_in_shell": cat_in_shell}

# A handler that waits for nothing while it works.
PATIENT = {
    name: handler
    for name, handler in WORKING.items()
    if name not in ("asyncio_streams", "by_another_thread", "by_another_thread_and_selector")
}


class Served:
    """A server with a different handler for each client."""

    def __init__(self, handlers: dict[str, Handler], limits: Limits) -> None:
        self.running: set[str] = set()
        self.clients: dict[str, Talker] = {}
        self._handlers = handlers
        self._next = ""
        # More threads than clients, as one address does not get them all.
        self.factory = EchoFactory(
            reactor, handler=self._serve, model=make_model(MODEL, 3 * len(handlers)), limits=limits
        )
        self._talker: Callable[[], Any]

    def _serve(self, conn: socket.socket) -> None:
        name = self._next
        self.running.add(name)
        try:
            self._handlers[name](conn)
        finally:
            self.running.discard(name)

    async def connect(self, connect: Callable[[], Any], first: bytes) -> None:
        """Connect a client to each handler, and send `first` to it at once.

        On a busy machine the time between the first client and the last may be longer than a
        client may be silent.
        """
        for name in self._handlers:
            self._next = name
            self.clients[name] = client = await connect()
            if first:
                client.send(first)
            await eventually(lambda name=name: name in self.running)

    async def ask(self, data: bytes) -> None:
        """Send `data` to each handler, and get it back."""
        for client in self.clients.values():
            client.send(data)
        await self.answer(data)

    @property
    def connections(self) -> list[Any]:
        return list(self.factory.connections)

    async def finish(self) -> None:
        """Let each client end its stream, and wait until all is over."""
        for client in self.clients.values():
            client.finish()
        await self.end()

    async def end(self) -> None:
        """Wait until every handler has returned, and every connection is gone."""
        with suppress(AssertionError):
            await eventually(lambda: not (self.running or self.factory.connections))
        assert not self.running
        assert not self.factory.connections

    async def answer(self, data: bytes, then: bytes = b"") -> None:
        """Get `data` back from each handler, and send `then` to each at once."""

        async def exchange(name: str, client: Talker) -> None:
            await client.until(lambda: client.data == data or client.ended)
            assert client.data == data, (name, self.factory.metrics.ended)
            client.data.clear()
            if then:
                client.send(then)

        await together({name: exchange(name, each) for name, each in self.clients.items()})


@asynccontextmanager
async def served(
    kind: str,
    folder: Path,
    certificate: Path,
    handlers: dict[str, Handler],
    *,
    first: bytes = b"",
    **limits: float,
) -> AsyncIterator[Served]:
    """Serve each of `handlers` to a client of its own, which sends `first`, on a listener."""
    LEAVE.clear()
    one = Served(handlers, Limits(**limits))  # type: ignore[arg-type]
    if kind.startswith("unix"):
        path = str(folder / kind)
        behind_proxy = kind == "unix behind a proxy"
        port = reactor.listenUNIX(
            path, ProxyFactory(one.factory, one.factory, LOOPBACK) if behind_proxy else one.factory
        )
        endpoint = UNIXClientEndpoint(reactor, path)

        async def connect_to_path() -> Talker:
            client: Talker = await connectProtocol(endpoint, Talker())
            if behind_proxy:
                client.send(line())
            return client

        await one.connect(connect_to_path, first)
        try:
            yield one
        finally:
            LEAVE.set()
            await port.stopListening()
            one.factory.abort()
            await eventually(lambda: not one.factory.connections)
            one.factory.model.stop()
        return
    if kind == "tls":
        server: Server = SecureServer(one.factory, server_context(certificate))
    else:
        server = Server(one.factory)
        if kind == "proxy":
            await server.port.stopListening()
            server.port = reactor.listenTCP(
                0, ProxyFactory(one.factory, one.factory, LOOPBACK), interface="127.0.0.1"
            )

    async def connect() -> Talker:
        client = await server.connect()
        if kind == "proxy":
            client.send(line())
        return client

    try:
        await one.connect(connect, first)
        yield one
    finally:
        LEAVE.set()
        await server.stop()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextmanager
def task_that(function: Callable[[], object]) -> Iterator[int]:
    """Run `function` in a thread; yield the thread's number once it is about to."""
    begun = threading.Event()

    def work() -> None:
        begun.set()
        function()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    assert thread.native_id is not None
    try:
        yield thread.native_id
    finally:
        thread.join(10)


def becomes(answer: bool | None, inode: int, thread: int) -> bool:
    """Return whether the answer becomes this within the time."""
    deadline = time.monotonic() + PATIENCE
    while is_awaited(inode, tasks([thread])) is not answer and time.monotonic() < deadline:
        time.sleep(0.001)
    return is_awaited(inode, tasks([thread])) is answer


@pytest.mark.parametrize(
    "way",
    [each for each in READS if "time_outs" not in each.__name__ and "thread" not in each.__name__],
)
def test_the_kernel_tells_who_waits_for_a_socket(
    pair: tuple[socket.socket, socket.socket], way: Callable[[Any, ExitStack], Read]
) -> None:
    ours, theirs = pair
    inode, other = (os.fstat(each.fileno()).st_ino for each in pair)
    with ExitStack() as stack:
        read = way(ours, stack)
        with task_that(read) as thread:
            answers = becomes(True, inode, thread), is_awaited(other, tasks([thread]))
            theirs.sendall(b"\n")
        assert answers == (True, False)


@pytest.mark.parametrize("command", ["cat", "cat; true", "(cat; true)"])
def test_the_kernel_tells_that_a_child_process_waits(
    pair: tuple[socket.socket, socket.socket], command: str
) -> None:
    ours, theirs = pair
    inode = os.fstat(ours.fileno()).st_ino

    def work() -> None:
        subprocess.run(command, shell=True, check=True, stdin=ours, stdout=subprocess.DEVNULL)

    with task_that(work) as thread:
        assert becomes(True, inode, thread)
        theirs.shutdown(socket.SHUT_WR)


def test_who_waits_for_something_else_does_not_wait_for_the_socket(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    inode = os.fstat(ours.fileno()).st_ino
    leave = threading.Event()
    for wait in (leave.wait, lambda: select.select([theirs], [], [])):
        with task_that(wait) as thread:
            assert becomes(False, inode, thread)
            leave.set()
            ours.sendall(b"x")


def test_a_task_that_is_gone_waits_for_nothing() -> None:
    with task_that(lambda: None) as thread:
        pass
    deadline = time.monotonic() + PATIENCE
    while running_time(tasks([thread])) and time.monotonic() < deadline:
        time.sleep(0.001)  # the kernel's part of it outlives the other
    assert is_awaited(1, tasks([thread])) is False
    assert running_time(tasks([thread])) == 0


def test_the_threads_of_handlers_are_looked_at_once_for_all_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fault 72: With a hundred connections whose handlers have a thread each, the daemon checks
    each thread once, not once for each connection.
    """
    reads: list[str] = []
    real = waiting.Task.read

    def read(task: waiting.Task, name: str) -> bytes:
        reads.append(name)
        return real(task, name)

    now = [0.0]
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(50)]
        threads = [threading.Thread(target=pair[0].recv, args=(1,)) for pair in pairs]
        for thread, (ours, theirs) in zip(threads, pairs, strict=True):
            thread.start()
            stack.callback(ours.close)
            stack.callback(thread.join)
            stack.callback(theirs.close)
        numbers = [thread.native_id for thread in threads if thread.native_id is not None]
        inodes = [os.fstat(pair[0].fileno()).st_ino for pair in pairs]
        for inode, number in zip(inodes, numbers, strict=True):
            assert becomes(True, inode, number)
        others = Others(lambda: numbers, lambda: now[0])
        monkeypatch.setattr(waiting.Task, "read", read)
        others.running_time()
        now[0] -= 1  # still good
        assert all(others.wait_for(inode) for inode in inodes)
        assert reads.count("syscall") == 2 * len(pairs)  # once all, and then each that waits
        assert others.wait_for(os.fstat(pairs[0][1].fileno()).st_ino) is False
        assert reads.count("syscall") == 2 * len(pairs)


def test_looks_at_the_threads_of_handlers_take_little_of_the_time() -> None:
    now, looks = [0.0], list[float]()

    def threads() -> list[int]:
        looks.append(now[0])
        now[0] += 0.1  # the time of a look
        return []

    others = Others(threads, lambda: now[0])
    for _ in range(1000):
        others.wait_for(1)
        others.running_time()
        now[0] += 0.01
    assert len(looks) <= 1 + 1000 * 0.01 / (Others.SHARE * 0.1)


def test_a_task_that_works_runs() -> None:
    task = tasks([threading.get_native_id()])
    before, deadline = running_time(task), time.monotonic() + PATIENCE
    while running_time(task) == before and time.monotonic() < deadline:
        pass
    assert running_time(task) > before


def test_where_the_kernel_does_not_tell_the_answer_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = threading.get_native_id()
    (tmp_path / "task" / str(ours)).mkdir(parents=True)
    (tmp_path / "task" / str(ours) / "syscall").write_text("not yours to know")
    monkeypatch.setattr(waiting, "_OURS", tmp_path)
    assert is_awaited(1, tasks([ours])) is False  # it is in no call
    (tmp_path / "task" / str(ours) / "syscall").write_text("0 nonsense 0 0 0 0 0 0 0")
    assert is_awaited(1, tasks([ours])) is None
    monkeypatch.undo()
    monkeypatch.setattr(waiting, "_CALLS", None)
    assert is_awaited(1, tasks([ours])) is None


KINDS = ("tcp", "tls", "proxy", "unix", "unix behind a proxy")
LISTENERS = pytest.mark.parametrize("kind", KINDS)


async def on_each_listener(
    talk: Callable[[Served], Coroutine[Any, Any, None]],
    folder: Path,
    certificate: Path,
    handlers: dict[str, Handler],
    *,
    first: bytes = b"",
    **limits: float,
) -> None:
    """Serve `handlers` on all listeners at the same time, and `talk` on each.

    For tests that wait for long; their handlers are not asked to work.
    """

    async def on(kind: str) -> None:
        async with served(kind, folder, certificate, handlers, first=first, **limits) as one:
            await talk(one)

    await together({kind: on(kind) for kind in KINDS})


@pytest_twisted.ensureDeferred
async def test_who_says_nothing_is_disconnected_whatever_the_handler_waits_in(
    tmp_path: Path, certificate: Path
) -> None:
    """Fault 72: A client that sends nothing is disconnected, without and with TLS, behind a proxy
    and on UNIX sockets, however its handler waits.
    """

    async def say_nothing(one: Served) -> None:
        await one.end()
        assert one.factory.metrics.ended == {"first-byte-timeout": len(HANDLERS)}

    times = {"first_byte_timeout": 0.6, "linger": 0.5}
    await on_each_listener(say_nothing, tmp_path, certificate, HANDLERS, **times)


@pytest_twisted.ensureDeferred
async def test_who_falls_silent_is_disconnected_whatever_the_handler_waits_in(
    tmp_path: Path, certificate: Path
) -> None:
    """Fault 72: A client that was served, and falls silent, is disconnected, however its handler
    waits.
    """
    first = b"happy\n"

    async def fall_silent(one: Served) -> None:
        await one.answer(first)
        await one.end()
        assert one.factory.metrics.ended == {"idle-timeout": len(HANDLERS)}

    times = {"idle_timeout": 0.6, "linger": 0.5}
    await on_each_listener(fall_silent, tmp_path, certificate, HANDLERS, first=first, **times)


@pytest_twisted.ensureDeferred
async def test_a_client_that_has_spoken_may_pause_for_longer_than_before_its_first_byte(
    tmp_path: Path, certificate: Path
) -> None:
    """Fault 98: A client that has said something may be silent for longer than one that has not,
    even if its handler, or a child of it, reads through the descriptor.
    """
    handlers = {name: HANDLERS[name] for name in ("by_select", "cat", "cat_in_shell", "detached")}
    first = b"happy\n"

    async def pause(one: Served) -> None:
        await one.answer(first)
        await deferLater(reactor, 1.5)
        await one.ask(b"days\n")
        await one.finish()

    times = {"first_byte_timeout": 0.6, "idle_timeout": 30.0}
    await on_each_listener(pause, tmp_path, certificate, handlers, first=first, **times)


@pytest_twisted.ensureDeferred
async def test_a_client_that_talks_now_and_then_is_not_silent(
    tmp_path: Path, certificate: Path
) -> None:
    """Fault 98: A client that says something before each time-out stays connected, even if its
    handler, or a child of it, reads through the descriptor.
    """
    first = b"happy\n"

    async def talk_now_and_then(one: Served) -> None:
        await one.answer(first)
        began = reactor.seconds()
        while reactor.seconds() < began + 11:
            await one.ask(b"days\n")
            await deferLater(reactor, 1.0)
        await one.ask(b"bye\n")
        await one.finish()

    # A round of all takes a second or two on a busy machine.
    times = {"first_byte_timeout": 10.0, "idle_timeout": 10.0, "linger": 0.5}
    await on_each_listener(
        talk_now_and_then, tmp_path, certificate, HANDLERS, first=first, **times
    )


@LISTENERS
@pytest_twisted.ensureDeferred
async def test_who_waits_for_a_handler_at_work_is_not_silent(
    kind: str, tmp_path: Path, certificate: Path
) -> None:
    """Fault 72: A handler that computes for longer than the idle time-out can answer, and goes on
    with the conversation.
    """
    times = {"idle_timeout": 0.6, "linger": 0.2}
    first = b"work\n"
    async with served(kind, tmp_path, certificate, PATIENT, first=first, **times) as one:
        await deferLater(reactor, 1.5)
        LEAVE.set()
        await one.answer(first, then=b"happy\n")
        await one.answer(b"happy\n")


@LISTENERS
@pytest.mark.parametrize("way", [by_select, by_epoll, by_os_read])
@pytest_twisted.ensureDeferred
async def test_a_handler_that_answers_during_a_look_is_not_taken_for_one_that_waits(
    kind: str,
    way: Callable[[Any, ExitStack], Read],
    tmp_path: Path,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fault 72: A handler may answer, and wait for its client again, just as the daemon looks
    whether it waits: its client is not cut off.
    """
    real, looks = SocketProtocol._is_awaited, list[bool | None]()

    def answered_meanwhile(connection: SocketProtocol) -> bool | None:
        LEAVE.set()
        deadline = time.monotonic() + PATIENCE
        while not real(connection) and time.monotonic() < deadline:
            time.sleep(0.001)
        looks.append(real(connection))
        return looks[-1]

    handlers = {way.__name__: echo_by(way)}
    times = {"idle_timeout": 0.6, "linger": 0.2}
    first = b"work\n"
    async with served(kind, tmp_path, certificate, handlers, first=first, **times) as one:
        monkeypatch.setattr(SocketProtocol, "_is_awaited", answered_meanwhile)
        await eventually(lambda: bool(looks))
        monkeypatch.undo()
        assert looks[0]
        await one.answer(first, then=b"happy\n")
        await one.answer(b"happy\n")


@LISTENERS
@pytest_twisted.ensureDeferred
async def test_who_waits_for_a_handler_that_works_and_reads_at_once_gets_its_answer(
    kind: str, tmp_path: Path, certificate: Path
) -> None:
    """Fault 72: A handler that computes and waits for its client at the same time can still
    answer; then the conversation ends.
    """
    names = ("asyncio_streams", "by_another_thread_and_selector")
    handlers = {name: HANDLERS[name] for name in names}
    times = {"idle_timeout": 0.6, "linger": 0.2}
    first = b"work\n"
    async with served(kind, tmp_path, certificate, handlers, first=first, **times) as one:
        connections: Any = one.factory.connections
        await eventually(lambda: all(each._verdict for each in connections))
        await deferLater(reactor, 1.0)
        LEAVE.set()
        for client in one.clients.values():
            assert await client.receive_all() == b"work\n"
        await one.end()
        assert one.factory.metrics.ended == {"idle-timeout": len(handlers)}


@pytest.mark.parametrize("kind", ["tcp", "tls", "proxy"])  # of "unix" nothing is known then
@pytest_twisted.ensureDeferred
async def test_where_the_kernel_does_not_tell_who_spoke_last_decides(
    kind: str, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 72: If the kernel does not say which call a handler waits in, a handler that owes an
    answer is left alone, and a silent client is disconnected once it has its answer.
    """
    monkeypatch.setattr(waiting, "_CALLS", None)
    handlers = {each.__name__: echo_by(each) for each in (by_select, by_poll, by_epoll)}
    times = {"idle_timeout": 0.6, "linger": 0.2}
    first = b"happy\n"
    async with served(kind, tmp_path, certificate, handlers, first=first, **times) as one:
        await one.answer(first, then=b"work\n")
        await deferLater(reactor, 1.5)
        LEAVE.set()
        await one.answer(b"work\n")
        await one.end()
        assert one.factory.metrics.ended == {"idle-timeout": len(handlers)}


@LISTENERS
@pytest_twisted.ensureDeferred
async def test_where_the_kernel_does_not_tell_a_drain_ends_the_waits_as_well(
    kind: str, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_CALLS", None)
    async with served(kind, tmp_path, certificate, HANDLERS) as one:
        await one.ask(b"happy\n")
        drained = one.factory.drain()
        await one.end()
        await drained
        assert one.factory.metrics.ended == {"drained": len(HANDLERS)}


def answer_after_the_end(conn: socket.socket) -> None:
    conn.fileno()
    while data := conn.recv(100):
        conn.sendall(data)
    LEAVE.wait(30)
    conn.sendall(b"bye\n")


@LISTENERS
@pytest_twisted.ensureDeferred
async def test_where_the_kernel_does_not_tell_a_handler_may_answer_long_after_the_end(
    kind: str, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 72: Where the kernel does not tell what a handler waits in, one that sees the end of
    the stream at SIGTERM, and takes its time, still gets its answer through.
    """
    monkeypatch.setattr(waiting, "_CALLS", None)
    handlers: dict[str, Handler] = {"answer_after_the_end": answer_after_the_end}
    async with served(kind, tmp_path, certificate, handlers) as one:
        await one.ask(b"happy\n")
        drained = one.factory.drain()
        await deferLater(reactor, 4 * URGENT_INTERVAL)
        LEAVE.set()
        (client,) = one.clients.values()
        assert await client.receive_all() == b"bye\n"
        await drained
        assert one.factory.metrics.ended == {"drained": 1}


@LISTENERS
@pytest_twisted.ensureDeferred
async def test_at_a_drain_no_handler_waits_on_for_a_silent_client(
    kind: str, tmp_path: Path, certificate: Path
) -> None:
    """Fault 72: At SIGTERM no handler that waits for its client holds up the drain, however it
    waits, and no client is reset.
    """
    async with served(kind, tmp_path, certificate, HANDLERS) as one:
        await one.ask(b"happy\n")
        drained = one.factory.drain()
        await one.end()
        await drained
        assert one.factory.metrics.ended == {"drained": len(HANDLERS)}
        for client in one.clients.values():
            await client.receive_all()
            # Twisted calls it lost when the other end of a UNIX socket is shut both ways.
            assert client.clean or kind.startswith("unix")


async def leave_a_reply_unread(one: Served) -> None:
    """Let each handler answer, while no client reads."""
    for client in one.clients.values():
        client.transport.pauseProducing()
        client.send(b"happy\n")
    await eventually(
        lambda: all(each._channel.traffic_seen() or sum(each.figures) for each in one.connections)
    )
    await deferLater(reactor, 0.5)


async def read_the_reply(one: Served) -> None:
    """Have it, though the server has closed the connections."""
    for name, client in one.clients.items():
        client.transport.resumeProducing()
        assert await client.receive_all() == b"happy\n", name


@pytest_twisted.ensureDeferred
async def test_at_a_drain_a_client_that_does_not_read_its_reply_holds_up_nothing(
    tmp_path: Path, certificate: Path
) -> None:
    """Fault 98: At SIGTERM a client that has not read its last reply does not hold the drain, and
    finds the reply when it reads.
    """

    async def drain(one: Served) -> None:
        await leave_a_reply_unread(one)
        drained = one.factory.drain()
        await one.end()
        await drained
        assert one.factory.metrics.ended == {"drained": len(WORKING)}
        await read_the_reply(one)

    await on_each_listener(drain, tmp_path, certificate, WORKING, linger=0.5)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_its_reply_is_idle_like_any_other(
    tmp_path: Path, certificate: Path
) -> None:
    """Fault 98: A client that does not read its last reply may be silent for as long as any other,
    unless the kernel has no room for more.
    """

    async def be_idle(one: Served) -> None:
        await leave_a_reply_unread(one)
        await one.end()
        assert one.factory.metrics.ended == {"idle-timeout": len(WORKING)}
        await read_the_reply(one)

    times = {"idle_timeout": 3.0, "write_timeout": 1.0, "linger": 0.5}
    await on_each_listener(be_idle, tmp_path, certificate, WORKING, **times)


@LISTENERS
@pytest_twisted.ensureDeferred
async def test_at_a_drain_what_was_received_is_answered_first(
    kind: str, tmp_path: Path, certificate: Path
) -> None:
    """Fault 72: All input received before SIGTERM is answered, by whichever call its handler
    reads.
    """
    handlers = {name: each for name, each in WORKING.items() if name != "asyncio_streams"}
    async with served(kind, tmp_path, certificate, handlers) as one:
        for client in one.clients.values():
            client.send(b"work\n")
        await deferLater(reactor, 0.5)
        for client in one.clients.values():
            client.send(b"happy\n")
        await deferLater(reactor, 0.5)
        drained = one.factory.drain()
        LEAVE.set()
        for name, client in one.clients.items():
            assert await client.receive_all() == b"work\nhappy\n", name
            # Twisted calls it lost when the other end of a UNIX socket is shut both ways.
            assert client.clean or kind.startswith("unix")
        await drained
