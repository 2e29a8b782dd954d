"""Spare Python's garbage collector the modules of the daemon, which stay until the end."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Keep the collector from looking at what is imported within, now and later.

    Without this it looks at it again and again: a tenth of the instructions from the start to the
    end of a daemon go there.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
