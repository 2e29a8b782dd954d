"""Timers of the reactor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall


def cancel_timer(timer: IDelayedCall | None) -> None:
    """Cancel a timer, unless it has fired or was cancelled before; None is no timer."""
    if timer is not None and timer.active():
        timer.cancel()
