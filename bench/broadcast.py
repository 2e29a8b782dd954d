"""Sending 100 bytes to each of 1,000 clients: echod beside a bare loop of uvloop's `write`.

`python -m bench.broadcast` serves the clients of a child process, and sends in five ways, in
turns: by a loop over uvloop's transports, and from the event loop and from a thread, each by
`broadcast` and by a loop over `Client.send`. It prints the CPU of the whole process for a message,
and the ratios to the bare loop: the medians of five rounds.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from echod import Client, EchoFactory, Handler, broadcast
from echod.reactor import install

CLIENTS = 1000
ROUNDS = 5
SENDS = 40
DATA = b"x" * 100
SECONDS_BETWEEN_READS = 0.01
# The most that a way may cost, as a multiple of the bare loop.
BARS = {"loop": 1.15, "thread": 1.25}

Pause = Callable[[float], Deferred[None]]


class Way(NamedTuple):
    """A way to send to all: a function, which is called in a thread or in the event loop."""

    send: Callable[[], None]
    in_thread: bool = False


class Room(Handler):
    """Keeps the clients."""

    clients: list[Client] = []  # noqa: RUF012 - one room

    def opened(self, client: Client) -> None:
        self.clients.append(client)

    def received(self, message: bytes) -> None:
        pass


def listen_to(port: int) -> None:
    """Connect all clients, and read until the server closes one.

    They read by the clock. If they waited for data, a send would wake this process whenever it has
    read all: slower sends would wake it more often, and pay for that.
    """
    selector = selectors.DefaultSelector()
    for _ in range(CLIENTS):
        client = socket.create_connection(("127.0.0.1", port))
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ)
    while True:
        time.sleep(SECONDS_BETWEEN_READS)
        for key, _ in selector.select(0):
            assert isinstance(key.fileobj, socket.socket)
            if not key.fileobj.recv(1 << 16):
                return


def send_to_all() -> None:
    """Push to all clients at once."""
    broadcast(Room.clients, DATA)


def send_to_each() -> None:
    """Push to one client after the other."""
    for client in Room.clients:
        client.send(DATA)


async def measure(way: Way, pause: Pause) -> float:
    """Return the CPU of this process for one message, in microseconds."""
    began = time.process_time()
    for _ in range(SENDS):
        if way.in_thread:
            await deferToThread(way.send)
        else:
            way.send()
        await pause(0)
        await pause(0)
    await pause(0.05)
    return (time.process_time() - began) / SENDS / CLIENTS * 1e6


async def measure_all(ways: dict[str, Way], pause: Pause) -> None:
    """Measure the ways to send in turns, and print the medians."""
    for way in ways.values():
        await measure(way, pause)  # warm up
    rounds = []
    for number in range(ROUNDS):
        order = [*ways] if number % 2 == 0 else [*ways][::-1]
        rounds.append({name: await measure(ways[name], pause) for name in order})
    print(f"bare: {statistics.median(each['bare'] for each in rounds):.2f} µs a message")
    for name in ways:
        ratio = statistics.median(each[name] / each["bare"] for each in rounds)
        bar = f"; the bar is {BARS[name]}" if name in BARS else ""
        print(f"{name}: {ratio:.2f} times that{bar}")


def main() -> None:
    """Serve the clients of a child process, and measure."""
    install()
    from twisted.internet import reactor as installed

    reactor: Any = installed
    factory = EchoFactory(reactor, handler=Room, banner=b"")
    port = reactor.listenTCP(0, factory, interface="127.0.0.1", backlog=CLIENTS)
    child = os.fork()
    if not child:
        listen_to(port.getHost().port)
        os._exit(0)

    async def run() -> None:
        while len(Room.clients) < CLIENTS:
            await deferLater(reactor, 0.05)
        connections: Any = factory.connections
        writes = [each.transport._uv.write for each in connections]

        def bare() -> None:
            for write in writes:
                write(DATA)

        ways = {
            "bare": Way(bare),
            "loop": Way(send_to_all),
            "thread": Way(send_to_all, in_thread=True),
            "loop, each": Way(send_to_each),
            "thread, each": Way(send_to_each, in_thread=True),
        }
        await measure_all(ways, partial(deferLater, reactor))

    def end(result: object) -> object:
        os.kill(child, signal.SIGKILL)
        reactor.stop()
        return result

    reactor.callWhenRunning(lambda: ensureDeferred(run()).addBoth(end))
    reactor.run()


if __name__ == "__main__":
    main()
