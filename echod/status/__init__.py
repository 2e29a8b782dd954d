"""What the daemon shows of itself, over HTTP on a listener of its own: `--status`.

`/healthz` says whether the event loop turns, `/readyz` whether new clients are welcome, `/metrics`
has the figures for Prometheus, and `/` has them for people.  Nothing of it touches the clients'
listeners, and all of it is made in the event loop, so it answers while every thread is blocked.
"""

from echod.status.server import StatusServer
from echod.status.snapshot import Subject
from echod.status.timing import HandlerTimer

__all__ = ["HandlerTimer", "StatusServer", "Subject"]
