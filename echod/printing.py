"""Standard output, for commands that print and end: it may be full, or its reader gone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Let the block print, and see to it that all of it is written.

    Raises:
        SystemExit: it cannot be written, which is one line and exit code 1; or whoever reads it
            has had enough, as `head` has, which is no error.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # it has been closed: there is nothing to write to
                sys.stdout.flush()
    except BrokenPipeError:
        _write_no_more()
        raise SystemExit(0) from None
    except OSError as error:
        _write_no_more()
        raise SystemExit(f"echod: cannot write to standard output: {error.strerror}") from None


def _write_no_more() -> None:
    """Keep the interpreter from trying again, at its end, to write what is left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
