"""Pass each connection on to another server.

Run: twistd -n echod --handler tcp_proxy:proxy:host=127.0.0.1,port=6379
"""

import asyncio


async def proxy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, host: str, port: int
) -> None:
    """Passes each connection on to another server."""

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        target.write_eof()

    from_server, to_server = await asyncio.open_connection(host, port)
    try:
        await asyncio.gather(copy(reader, to_server), copy(from_server, writer))
    finally:
        to_server.close()
