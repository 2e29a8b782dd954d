"""The same `Protocol` as `asyncio_echo`, on uvloop; TLS is uvloop's own too."""

from __future__ import annotations

import uvloop

from bench.peers.asyncio_echo import run

if __name__ == "__main__":
    run(uvloop.new_event_loop)
