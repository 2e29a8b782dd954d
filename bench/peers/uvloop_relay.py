"""A relay of two asyncio `Protocol`s on uvloop: each passes on what it reads.

It is run as `python -m bench.peers.uvloop_relay PORT UPSTREAM`, with the ports on 127.0.0.1 to
listen on and to connect to. As `forward`, it keeps half-close, and each side pauses the other.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from bench.peers.wire import BACKLOG, HOST


class Side(asyncio.Protocol):
    """One of a conversation's two connections."""

    transport: asyncio.Transport
    other: Side
    ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        self.ended = True
        if self.other.ended:  # which closes both
            return False
        self.other.transport.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.other.transport.close()


class Client(Side):
    """A client's side, which makes the other one."""

    def __init__(self, upstream: int, tasks: set[asyncio.Task[None]]) -> None:
        self._upstream = upstream
        self._tasks = tasks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()
        connecting = asyncio.create_task(self._connect())
        self._tasks.add(connecting)
        connecting.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, self.other = await loop.create_connection(self._make_other, HOST, self._upstream)
        except OSError:
            self.transport.abort()
        else:
            self.transport.resume_reading()

    def _make_other(self) -> Side:
        made = Side()
        made.other = self
        return made


async def serve(port: int, upstream: int) -> None:
    """Serve until the process is ended."""
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(upstream, tasks), HOST, port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(*map(int, sys.argv[1:])))
