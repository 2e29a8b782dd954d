"""An echo of messages behind their length by hand: an asyncio `Protocol` on uvloop."""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

from bench.peers.framed import HEADER, LONGEST
from bench.peers.wire import BACKLOG, BANNER, HOST, PREFIX, arguments


class Echo(asyncio.Protocol):
    """Answers each message with the prefix and the message, and those of one read together."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(HEADER.pack(len(BANNER)) + BANNER)

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        replies, start, end, size = [], 0, len(data), HEADER.size
        while start + size <= end:
            (length,) = HEADER.unpack_from(data, start)
            if length > LONGEST:
                self.transport.abort()
                return
            begin = start + size
            if begin + length > end:
                break
            start = begin + length
            reply = PREFIX + data[begin:start]
            replies.append(HEADER.pack(len(reply)) + reply)
        self.rest = data[start:]
        if len(replies) == 1:
            self.transport.write(replies[0])
        else:
            self.transport.write(b"".join(replies))

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
