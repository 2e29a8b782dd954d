"""Find limits that are reached, or nearly: reasons why a ready daemon is saturated.

Pure. A page that says only "ready" while clients wait, or are refused, would mislead its reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from echod.limits import Level
from echod.metrics import Totals
from echod.text import plural

# The share of a limit above which it counts as nearly reached.
NEARLY = 0.9

# How late the event loop may be, in seconds.
LATE = 0.1

# How long a message may wait for a thread, in seconds.
LONG_WAIT = 1.0

# A certificate that expires sooner has to be replaced now, in seconds.
SOON = 14 * 86400.0


class Strained(Protocol):
    """The interface of a snapshot."""

    @property
    def levels(self) -> Sequence[Level]: ...
    @property
    def last_minute(self) -> Totals: ...
    @property
    def worst_lag(self) -> float: ...
    @property
    def pool_wait(self) -> float: ...
    @property
    def certificate_ends_in(self) -> float: ...


def strains(now: Strained) -> list[str]:
    """Describe each limit that is reached, or nearly; return nothing if all is well."""
    return [*_levels(now), *_minute(now), *_times(now)]


def _levels(now: Strained) -> Iterator[str]:
    for level in now.levels:
        if level.used >= NEARLY * level.most:
            yield f"{level.limit}: {level.used:,} of {level.most:,} in use"


def _minute(now: Strained) -> Iterator[str]:
    minute = now.last_minute
    if minute.refused:
        clients = plural(minute.refused, "client was", "clients were")
        yield f"{minute.refused:,} {clients} refused in the last minute"
    if minute.handler_errors:
        errors = plural(minute.handler_errors, "error", "errors")
        yield f"{minute.handler_errors:,} {errors} of the handler in the last minute"
    if minute.lines_lost:
        lines = plural(minute.lines_lost, "line", "lines")
        yield f"{minute.lines_lost:,} {lines} of the log lost in the last minute"


def _times(now: Strained) -> Iterator[str]:
    if now.worst_lag >= LATE:
        yield f"the event loop was late by {now.worst_lag:.1f} s in the last minute"
    if now.pool_wait >= LONG_WAIT:
        yield f"a message waits {now.pool_wait:.1f} s for a thread"
    if now.certificate_ends_in < SOON:
        days = max(0, int(now.certificate_ends_in // 86400))
        yield f"a certificate is valid for {days} {plural(days, 'day', 'days')} more"
