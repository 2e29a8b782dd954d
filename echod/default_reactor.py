"""Which Twisted reactor the daemon runs on: uvloop's, unless somebody has chosen another.

A reactor is in place before `Options.postOptions` only if `--reactor` asked for it, under `twistd`
and under `twist`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from twisted.logger import Logger
from twisted.python import runtime

log = Logger("echod")


def choose() -> None:
    """Install the uvloop reactor, where none is in place yet and uvloop imports."""
    if "twisted.internet.reactor" in sys.modules:
        return
    try:
        from echod import reactor
    except ImportError as error:
        log.warn("No uvloop reactor here: {why}", why=str(error))
    else:
        reactor.install()


def name_of(reactor: Any) -> str:
    """Return what `--reactor` calls this reactor."""
    return type(reactor).__name__.removesuffix("Reactor").lower()


def follow_the_monotonic_clock(reactor: Any) -> None:
    """Let timers be unmoved when the wall clock is set; before the first of them is made.

    Only where the reactor's time is the wall clock: the uvloop reactor has a monotonic one.
    """
    if reactor.seconds is runtime.seconds and not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
