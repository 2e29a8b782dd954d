"""The load generator without a C compiler, or without OpenSSL's headers: slower, but the same.

`load.c` says what the command line, the modes and the result are. This is run as
`python -m bench.load`, on uvloop if that is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import json
import re
import signal
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.machine import cpu_seconds, raise_descriptor_limit
from bench.peers.wire import BANNER, HOST, PREFIX

# As in load.c.
PATIENCE = 60
SOURCES = 16
FIRST = 20
HEADER = struct.Struct(">I")


class LoadError(Exception):
    """The server did not do its work; the text says what it did instead, in one line."""


@dataclass(frozen=True)
class Options:
    """The command line.

    Attributes:
        mode: one of `Mode`.
        port: the server's TCP port.
        pid: the server's process.
        connections: how many there are at once.
        size: of a message, in bytes.
        depth: messages in one write.
        warm_up: seconds before what is measured.
        seconds: how long it is measured.
        tls: whether the server speaks TLS.
    """

    mode: str
    port: int
    pid: int
    connections: int
    size: int
    depth: int
    warm_up: float
    seconds: float
    tls: bool

    @classmethod
    def read(cls, words: list[str]) -> Options:
        """Read the command line."""
        mode, *numbers, warm_up, seconds, tls = words
        port, pid, connections, size, depth = map(int, numbers)
        times = float(warm_up), float(seconds)
        return cls(mode, port, pid, connections, size, depth, *times, tls == "1")

    def tls_context(self) -> ssl.SSLContext | None:
        """Return a context that trusts any certificate; None for plain TCP."""
        if not self.tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context


class Counts:
    """The bytes that came back, since `clear`; latencies in seconds."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Reset all figures."""
        self.messages = 0
        self.pieces = 0
        self.latencies: list[float] = []


def message(options: Options) -> tuple[bytes, int]:
    """Return a message, and how many bytes beside its payload come back with it."""
    if options.mode == "lengths":
        payload = b"x" * (options.size - HEADER.size)
        return HEADER.pack(len(payload)) + payload, HEADER.size + len(PREFIX)
    end = b"x" if options.mode == "messages" else b"\n"
    return b"x" * (options.size - 1) + end, len(PREFIX)


class Client(asyncio.Protocol):
    """One connection: reads the banner, and then sends and counts as often as it is told to."""

    transport: asyncio.Transport

    def __init__(self, options: Options, counts: Counts) -> None:
        self._counts = counts
        self._depth = options.depth
        self._expected = BANNER
        if options.mode == "lengths":
            self._expected = HEADER.pack(len(BANNER)) + BANNER
        self._message, self._beside = message(options)
        self._payload = self._message * options.depth
        self._banner = bytearray()
        self._awaited = 0
        self._other = 0
        self._started = 0.0
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if not self.greeted.done():
            self._read_banner(data)
        else:
            self._count(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the server closed a connection: {error or 'end of stream'}")

    def begin(self) -> None:
        """Begin a round trip."""
        self._awaited = self._payload.count(b"x") + self._payload.count(b"\n")
        self._other = 0
        self._started = time.perf_counter()
        self.transport.write(self._payload)

    def _read_banner(self, data: bytes) -> None:
        self._banner += data
        if len(self._banner) >= len(self._expected):
            if self._banner == self._expected:
                self.greeted.set_result(None)
            else:
                self._fail(f"instead of the banner: {bytes(self._banner)!r}")

    def _count(self, data: bytes) -> None:
        back = data.count(b"x") + data.count(b"\n")
        self._awaited -= back
        self._other += len(data) - back
        if self._awaited < 0:
            self._fail("the server sent back more than it was sent")
        elif not self._awaited:
            self._finish()

    def _finish(self) -> None:
        pieces, rest = divmod(self._other, self._beside)
        if not pieces or rest:
            self._fail(f"{self._other} bytes came back beside the payload: not whole prefixes")
            return
        self._counts.messages += self._depth
        self._counts.pieces += pieces
        self._counts.latencies.append(time.perf_counter() - self._started)
        self.begin()

    def _fail(self, why: str) -> None:
        for future in (self.greeted, self.failed):
            if not future.done():
                future.set_exception(LoadError(why))
        with contextlib.suppress(asyncio.InvalidStateError):
            self.failed.exception()  # retrieved, because no task may wait for it
        self.transport.abort()


class Greedy(Client):
    """Sends empty lines as fast as it can, and discards the replies."""

    LINES = b"\n" * 262_144

    def begin(self) -> None:
        self._writing = True
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        while self._writing:
            self.transport.write(self.LINES)

    def _count(self, data: bytes) -> None:
        pass


def sources() -> Iterator[str]:
    """Return addresses to connect from, in turns: each has 28,000 ports."""
    while True:
        yield from (f"127.0.0.{number}" for number in range(1, 1 + SOURCES))


class Load:
    """Makes connections for the modes."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._context = options.tls_context()
        self._sources = sources()
        self._counts = Counts()

    async def run(self) -> dict[str, float]:
        """Run the mode that was asked for, and return its figures."""
        modes = {"connect": self._connect, "idle": self._idle}
        modes |= dict.fromkeys(("messages", "lines", "lengths", "greedy"), self._messages)
        return await modes[self._options.mode]()

    async def _open(self, kind: type[Client] = Client) -> Client:
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: kind(self._options, self._counts),
            HOST,
            self._options.port,
            ssl=self._context,
            server_hostname="localhost" if self._context else None,
            local_addr=(next(self._sources), 0),
        )
        await client.greeted
        return client

    async def _measure(self, clear: Callable[[], None]) -> tuple[float, float]:
        """Warm up, `clear`, wait; return seconds by the clock and of the server's CPU."""
        await asyncio.sleep(self._options.warm_up)
        clear()
        started, cpu = time.perf_counter(), cpu_seconds(self._options.pid)
        await asyncio.sleep(self._options.seconds)
        return time.perf_counter() - started, cpu_seconds(self._options.pid) - cpu

    async def _messages(self) -> dict[str, float]:
        clients = [await self._open() for _ in range(self._options.connections)]
        if self._options.mode == "greedy":
            clients.append(await self._open(Greedy))
        for client in clients:
            client.begin()
        seconds, cpu = await self._measure(self._counts.clear)
        for client in clients:
            if client.failed.done():
                client.failed.result()
        latencies = sorted(self._counts.latencies)
        if not latencies:
            raise LoadError(f"not one message came back in {seconds:g} seconds")
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "messages": self._counts.messages,
            "pieces": self._counts.pieces,
            "p50_us": 1e6 * latencies[len(latencies) // 2],
            "p99_us": 1e6 * latencies[len(latencies) * 99 // 100],
            "max_us": 1e6 * latencies[-1],
        }

    async def _connect(self) -> dict[str, float]:
        count = 0

        async def connect_repeatedly() -> None:
            nonlocal count
            while True:
                client = await self._open()
                client.transport.close()
                count += 1

        def clear() -> None:
            nonlocal count
            count = 0

        tasks = [
            asyncio.ensure_future(connect_repeatedly()) for _ in range(self._options.connections)
        ]
        seconds, cpu = await self._measure(clear)
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        return {"seconds": seconds, "cpu_seconds": cpu, "connections": count}

    async def _idle(self) -> dict[str, float]:
        for client in await self._open_idle(min(FIRST, self._options.connections)):
            client.transport.close()
        await asyncio.sleep(self._options.warm_up)
        before = self._server_memory()
        clients = await self._open_idle(self._options.connections)
        await asyncio.sleep(self._options.warm_up)
        after = self._server_memory()
        return {"connections": len(clients), "memory_before": before, "memory_after": after}

    async def _open_idle(self, count: int) -> list[Client]:
        clients: list[Client] = []
        try:
            while len(clients) < count:
                clients.append(await self._open())
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        return clients

    def _server_memory(self) -> int:
        """Return the server's resident memory, in bytes."""
        text = Path(f"/proc/{self._options.pid}/smaps_rollup").read_text()
        match = re.search(r"^Rss:\s+(\d+) kB", text, re.MULTILINE)
        assert match
        return int(match[1]) * 1024


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where there is one."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop]
        factory = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return factory


def main() -> None:
    """Run as the command line says."""
    options = Options.read(sys.argv[1:])
    raise_descriptor_limit()
    signal.alarm(int(options.warm_up + options.seconds + PATIENCE))
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            figures = runner.run(Load(options).run())
        except (LoadError, OSError) as error:
            sys.exit(f"load: {error}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
