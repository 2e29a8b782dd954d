"""Standard output for commands that print and exit: it may be full, or its reader gone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Let the block print, and flush its output.

    Raises:
        SystemExit: the output cannot be written (one line, exit code 1); or its reader has closed
            it, as `head` does (exit code 0).
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # it is None if it was closed at the start
                sys.stdout.flush()
    except BrokenPipeError:
        _write_no_more()
        raise SystemExit(0) from None
    except OSError as error:
        _write_no_more()
        raise SystemExit(f"echod: cannot write to standard output: {error.strerror}") from None


def _write_no_more() -> None:
    """Keep the interpreter from writing the rest when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
