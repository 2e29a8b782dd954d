"""A Twisted reactor whose stream transports are uvloop's own.

Reading and writing a TCP or UNIX stream happens in uvloop's C transports, which call the Twisted
protocol; everything else (UDP, processes, plain descriptors, timers, threads, signals) behaves as
in Twisted's epoll reactor. Linux only.

Install it before anything imports ``twisted.internet.reactor``::

    import echod.reactor
    echod.reactor.install()

or name it to Twisted's tools: ``twistd --reactor=uvloop``. This package imports nothing from the
rest of echod.
"""

from __future__ import annotations

import asyncio
import os

import uvloop

from echod.reactor.reactor import UvloopReactor

__all__ = ["UvloopReactor", "install"]


def install(loop: uvloop.Loop | None = None) -> None:
    """Make a :class:`UvloopReactor` the global reactor.

    :param loop: the uvloop loop to run on; a new one by default. It becomes asyncio's current
        loop, so that asyncio code in the same process shares it.
    :raise twisted.internet.error.ReactorAlreadyInstalledError: another reactor is in place.
    """
    from twisted.internet.main import installReactor

    _fill_standard_descriptors()
    reactor = UvloopReactor(loop)
    installReactor(reactor)
    asyncio.set_event_loop(reactor.loop)


def _fill_standard_descriptors() -> None:
    """Open ``/dev/null`` where a standard stream is closed: libuv ends the process without."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
