"""A handler for `bench.collector`: each connection leaves a cycle behind."""

from __future__ import annotations

import gc
import json
import time
import weakref
from typing import Any

_alive: weakref.WeakSet[Cyclic] = weakref.WeakSet()
_pauses: list[float] = []
_began = 0.0


def _note(phase: str, _: dict[str, Any]) -> None:
    global _began
    if phase == "start":
        _began = time.perf_counter()
    else:
        _pauses.append(time.perf_counter() - _began)


gc.callbacks.insert(0, _note)


class Cyclic:
    """Keeps itself alive until the collector comes."""

    def __init__(self) -> None:
        self.itself = self
        _alive.add(self)

    def received(self, message: bytes) -> bytes:
        """Return the message; for a `?`, the longest pause since the last one, in seconds, and the
        number of living handlers.
        """
        if message != b"?":
            return message
        figures = {"longest": max(_pauses, default=0.0), "alive": len(_alive)}
        _pauses.clear()
        return json.dumps(figures).encode()
