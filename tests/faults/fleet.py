"""Several hosts behind haproxy, and clients that know what they must get."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from tests.faults.network import BALANCER, LAN, lan
from tests.support.daemon import Daemon, Start
from tests.support.haproxy import HAProxy, haproxy
from tests.support.namespaces import enter
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE, block_until

CONFIGURATION = (ROOT / "etc/haproxy.cfg").read_text()
SERVERS: dict[str, str] = dict(re.findall(r"^    server (\w+) (\S+):8888$", CONFIGURATION, re.M))
LISTEN = (
    *("--listen", "proxy:tcp:8888", "--proxy-trust", BALANCER, "--status", "tcp:9464"),
    *("--framing", "line", "--no-banner"),
)

# The pause of a client between two messages, in seconds: the load is bounded.
PAUSE = 0.02

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Clients:
    """Clients of haproxy, in its network, in a thread of their own.

    Half of them come with one message and end their stream. The others send one message after the
    other for as long as they are served; when their stream ends where a reply would begin, as in
    a drain, they come again.

    Attributes:
        count: what has happened, by name. `whole`: conversations of one message that were as they
            must be. `answered`: messages of the others. `ended`: their conversations that ended
            between messages. `lost`: any other end. `stuck`: those that waited in vain.
        errors: the ends that were none, as text.
    """

    def __init__(self, port: int, number: int) -> None:
        """Set up.

        Args:
            port: haproxy's.
            number: how many there are of each kind.
        """
        self.count: Counter[str] = Counter()
        self.errors: list[str] = []
        self._port = port
        self._number = number
        self._over = False

    @contextlib.contextmanager
    def at_work(self, network: Path) -> Iterator[None]:
        """Let them work, in a network; at the end each finishes what it has begun."""

        def run() -> None:
            enter(network)
            asyncio.run(self._run())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            self._over = True
            thread.join()

    async def _run(self) -> None:
        each = range(self._number)
        await asyncio.gather(
            *(self._repeat(self._come_once, number) for number in each),
            *(self._repeat(self._stay, number) for number in each),
        )

    async def _repeat(self, talk: Callable[[int], Awaitable[None]], number: int) -> None:
        while not self._over:
            try:
                async with asyncio.timeout(2 * PATIENCE):
                    await talk(number)
            except TimeoutError:
                self.count["stuck"] += 1
            except OSError as error:
                self._lost(repr(error))
            await asyncio.sleep(PAUSE)

    def _lost(self, why: str) -> None:
        self.count["lost"] += 1
        self.errors.append(why)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def _come_once(self, number: int) -> None:
        line = b"%d, once\n" % number
        async with self._connection() as (reader, writer):
            writer.write(line)
            writer.write_eof()
            came = await reader.read(-1)
        if came == b"OK..." + line:
            self.count["whole"] += 1
        else:
            self._lost(f"once: {came!r}")

    async def _stay(self, number: int) -> None:
        async with self._connection() as (reader, writer):
            turn = 0
            while not self._over:
                turn += 1
                line = b"%d, message %d\n" % (number, turn)
                writer.write(line)
                came = await reader.readline()
                if not came:
                    self.count["ended"] += 1
                    return
                if came != b"OK..." + line:
                    self._lost(f"stays: {came!r}")
                    return
                self.count["answered"] += 1
                await asyncio.sleep(PAUSE)

    @property
    def bad(self) -> dict[str, int]:
        """How many were lost, and how many were stuck, unless there are none."""
        return {name: self.count[name] for name in ("lost", "stuck") if self.count[name]}

    @property
    def most(self) -> int:
        """How many conversations there are at a time, at most."""
        return 2 * self._number

    def go_on(self, more: int = 10) -> None:
        """Wait until so many more conversations and messages have been served."""
        before = self.count.copy()
        block_until(
            lambda: all(self.count[name] >= before[name] + more for name in ("whole", "answered"))
        )


class Fleet:
    """Three hosts, behind haproxy.

    Attributes:
        hosts: the daemons, by their addresses.
        proxy: haproxy.
        clients: the clients.
    """

    def __init__(self, start: Start, network: LAN) -> None:
        self._start = start
        self.network = network
        self.hosts: dict[str, Daemon] = {}
        self.proxy: HAProxy
        self.clients: Clients

    def start(self, address: str, *more: str) -> Daemon:
        """Start the daemon of a host."""
        host = self.network.hosts[address]
        running = self._start(*LISTEN, *more, steps=[host.step])
        running.wait_for("StatusSite starting")
        self.hosts[address] = running
        return running

    def restart(self, address: str, *more: str) -> Daemon:
        """Let a host's daemon drain and end, and start the next, until it serves a client."""
        self.hosts[address].tell()
        self.hosts[address].wait()
        running = self.start(address, *more)
        running.wait_for("Connected with")
        return running

    def served(self, address: str) -> int:
        """Return how many clients a host's daemon has been given."""
        return self.hosts[address].log.count("Connected with")


@contextlib.contextmanager
def fleet(
    start: Start, directory: Path, number: int = 4, changes: dict[str, str] | None = None
) -> Iterator[Fleet]:
    """Start three hosts, haproxy with etc/haproxy.cfg, and clients at work.

    Args:
        start: starts daemons.
        directory: for haproxy's files.
        number: how many clients of each kind there are.
        changes: parts of etc/haproxy.cfg, and what stands there instead.
    """
    text = CONFIGURATION
    for part, other in {
        "bind :9999": "bind {bind}",
        **(changes or {}),
    }.items():
        assert text.count(part) == 1, part
        text = text.replace(part, other)
    with lan(list(SERVERS.values())) as network:
        made = Fleet(start, network)
        for address in SERVERS.values():
            made.start(address)
        with haproxy(directory, text, network.balancer.namespace) as made.proxy:
            made.clients = Clients(made.proxy.port, number)
            with made.clients.at_work(network.balancer.namespace):
                made.clients.go_on()
                yield made
