"""How long tests wait: for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

# The longest wait for any condition, in seconds: only a fault takes as long.
PATIENCE = 20.0

# The pause of a client that comes again and again, in seconds. Without one, the clients of a load
# take all of the processors for as long as their test waits for something else.
PACE = 0.005


def block_until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Block this thread until `condition()` holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
