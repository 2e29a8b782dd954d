"""A Twisted reactor whose stream transports are uvloop's own.

Reading and writing a TCP or UNIX stream happens in uvloop's C transports, which call the Twisted
protocol; everything else (UDP, processes, plain descriptors, timers, threads, signals) behaves as
in Twisted's epoll reactor. Linux only.

Install it before anything imports ``twisted.internet.reactor``::

    import echod.reactor
    echod.reactor.install()

or name it to Twisted's tools: ``twistd --reactor=uvloop``. This package imports only `awaiting`
from the rest of echod.
"""

from __future__ import annotations

from echod.reactor.reactor import UvloopReactor, install

__all__ = ["UvloopReactor", "install"]
