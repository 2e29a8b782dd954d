"""Many conversations through `forward`, by real daemons: nothing is lost."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor

from tests.faults.scale import Scale
from tests.support.daemon import Start
from tests.support.waiting import PATIENCE

# How many conversations there are at once, so that no process waits for another one.
AT_ONCE = 16
LARGEST = 1_000_000


def test_many_half_closed_conversations_through_forward_lose_nothing(
    daemon: Start, scale: Scale
) -> None:
    """Fault 150: Of conversations of 10 B to 1 MB, each reply arrives whole."""
    served = daemon("--handler", "plain-echo")
    running = daemon("--handler", f"forward:to=127.0.0.1:{served.port}")
    numbers = random.Random(13)
    data = numbers.randbytes(LARGEST)
    rounds = scale(ci=300, soak=100_000)

    async def converse() -> None:
        for _ in rounds:
            # As many of 10 to 100 bytes as of 100,000 to a million.
            sent = data[: int(10 ** numbers.uniform(1, 6))]
            assert await asyncio.wait_for(_reply_to(sent, running.port), PATIENCE) == sent

    async def converse_at_once() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(converse())

    with ThreadPoolExecutor(1) as thread:  # in this one, the tests' reactor runs
        thread.submit(lambda: asyncio.run(converse_at_once())).result()
    assert "Traceback" not in running.log + served.log
    assert "Cannot forward" not in running.log


async def _reply_to(sent: bytes, port: int) -> bytes:
    """Send, end the stream, and return all that comes back until the other stream ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LARGEST)
    try:
        writer.write(sent)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
