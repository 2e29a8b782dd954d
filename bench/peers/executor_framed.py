"""A `Protocol` on uvloop that hands each message to a `ThreadPoolExecutor`.

A connection has one message at a time there, so its replies are in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import uvloop

from bench.peers.framed import Cut, Frame, framing
from bench.peers.wire import BACKLOG, HOST, PREFIX, arguments


def answer(message: bytes) -> bytes:
    """Answer a message, in a thread."""
    return PREFIX + message


class Echo(asyncio.Protocol):
    """Cuts and writes in the event loop, and answers in the pool."""

    transport: asyncio.Transport

    def __init__(self, pool: ThreadPoolExecutor, cut: Cut, frame: Frame, banner: bytes) -> None:
        self.pool = pool
        self.cut = cut
        self.frame = frame
        self.banner = banner
        self.loop = asyncio.get_running_loop()
        self.rest = b""
        self.waiting: deque[bytes] = deque()
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.banner)

    def data_received(self, data: bytes) -> None:
        try:
            messages, self.rest = self.cut(self.rest + data)
        except ValueError:
            self.transport.abort()
            return
        self.waiting.extend(messages)
        if not self.is_busy:
            self.go_on()

    def go_on(self) -> None:
        """Hand over the next message, if there is one."""
        self.is_busy = bool(self.waiting)
        if self.is_busy:
            future = self.loop.run_in_executor(self.pool, answer, self.waiting.popleft())
            future.add_done_callback(self.answered)

    def answered(self, future: asyncio.Future[bytes]) -> None:
        """Send a reply."""
        self.transport.write(self.frame(future.result()))
        self.go_on()

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def serve(cut: Cut, frame: Frame, banner: bytes) -> None:
    """Serve until the process is ended."""
    with ThreadPoolExecutor() as pool:
        server = await asyncio.get_running_loop().create_server(
            lambda: Echo(pool, cut, frame, banner), HOST, arguments().port, backlog=BACKLOG
        )
        await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(*framing()))
