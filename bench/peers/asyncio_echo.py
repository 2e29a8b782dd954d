"""An asyncio `Protocol`, on the standard library's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from bench.peers.wire import BACKLOG, BANNER, HOST, PREFIX, Arguments, arguments, cut


def protocol(read_size: int) -> type[asyncio.Protocol]:
    """Return the protocol that answers with at most `read_size` bytes a piece."""

    class Echo(asyncio.Protocol):
        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.Transport", transport)
            self.transport.write(BANNER)

        def data_received(self, data: bytes) -> None:
            if len(data) <= read_size:
                self.transport.write(PREFIX + data)
            else:
                self.transport.write(cut(data, read_size))

        def pause_writing(self) -> None:
            self.transport.pause_reading()

        def resume_writing(self) -> None:
            self.transport.resume_reading()

    return Echo


def make(*, read_size: int = 1024) -> asyncio.Protocol:
    """Return a protocol for one connection, as echod wants it."""
    made = _CLASSES.get(read_size)
    if made is None:
        made = _CLASSES[read_size] = protocol(read_size)
    return made()


_CLASSES: dict[int, type[asyncio.Protocol]] = {}


async def serve(options: Arguments) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(
        protocol(options.read_size), HOST, options.port, ssl=options.tls(), backlog=BACKLOG
    )
    await server.serve_forever()


def run(loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Serve as the command line says, on a loop of this kind."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(arguments()))


if __name__ == "__main__":
    run()
