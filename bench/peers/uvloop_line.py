"""An echo of lines by hand: an asyncio `Protocol` on uvloop."""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

from bench.peers.framed import LONGEST_LINE
from bench.peers.wire import BACKLOG, BANNER, HOST, PREFIX, arguments


class Echo(asyncio.Protocol):
    """Answers each line with the prefix and the line, and those of one read together."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(BANNER)

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LONGEST_LINE:
            self.transport.abort()
        elif len(lines) == 1:
            self.transport.write(PREFIX + lines[0] + b"\n")
        else:
            self.transport.write(b"".join([PREFIX + line + b"\n" for line in lines]))

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def serve() -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(
        Echo, HOST, arguments().port, backlog=BACKLOG
    )
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
