"""A handler of a reader and a writer, under `asyncio.start_server` on uvloop."""

from __future__ import annotations

import asyncio

import uvloop

from bench.peers.wire import BACKLOG, BANNER, HOST, PREFIX, Arguments, arguments, cut


async def echo(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, read_size: int = 1024
) -> None:
    """Answer each read, as a tutorial does; echod serves this same function."""
    writer.write(BANNER)
    while data := await reader.read(65536):
        writer.write(PREFIX + data if len(data) <= read_size else cut(data, read_size))
        await writer.drain()
    writer.close()


async def serve(options: Arguments) -> None:
    """Serve until the process is ended."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await echo(reader, writer, read_size=options.read_size)

    server = await asyncio.start_server(
        handle, HOST, options.port, ssl=options.tls(), backlog=BACKLOG
    )
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments()))
