"""Handlers that are asyncio's. Run one: twistd -n echod --handler asyncio_handlers:NAME

Nothing here is echod's: the same code serves under `asyncio.start_server` or `create_server`.
"""

import asyncio


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A function for `asyncio.start_server`: it answers each line until the client's last."""
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()


async def repeat(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, times: int = 2
) -> None:
    """A keyword parameter is an argument: --handler asyncio_handlers:repeat:times=3"""
    while line := await reader.readline():
        writer.write(line * times)
        await asyncio.sleep(0.1)


class Echo(asyncio.Protocol):
    """A protocol class: each connection has an instance of its own."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def limited(*, most: int = 3) -> asyncio.Protocol:
    """A function that makes a protocol: the annotation of its result says so."""
    return Limited(most)


class Limited(Echo):
    """Echoes so many bytes, and closes."""

    def __init__(self, most: int) -> None:
        self.left = most

    def data_received(self, data: bytes) -> None:
        self.transport.write(data[: self.left])
        self.left -= len(data)
        if self.left <= 0:
            self.transport.close()
