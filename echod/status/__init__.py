"""The daemon's status, over HTTP on a listener of its own: `--status`.

`/healthz` says whether the event loop turns, `/readyz` whether the daemon takes new clients,
`/metrics` has the figures for Prometheus, and `/` shows them to people. The status does not use
the clients' listeners, and the event loop makes all of it, so it answers while every thread is
blocked.

The server is imported by itself: a worker has figures, and no server, which takes a tenth of the
time of its start.
"""

from echod.status.look import Look
from echod.status.snapshot import Subject
from echod.status.timing import HandlerTimer

__all__ = ["HandlerTimer", "Look", "Subject"]
