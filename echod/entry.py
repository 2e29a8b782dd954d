"""The entry for Twisted: `twistd echod` finds the flags here, and asks for the service.

It stands above the daemon and the workers, so it alone knows both.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

from echod.daemon import ending
from echod.daemon.process import Options, make_daemon, make_log_observer

if TYPE_CHECKING:
    from echod.daemon.service import EchoService
    from echod.workers.supervisor import Supervisor

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> EchoService | Supervisor:
    """Return the service that `options` ask for; an error is one line, with exit code 1."""
    # Registered first, so called last: the handler's functions may write, too.
    atexit.register(ending.flush_files)
    log_observer = make_log_observer(options)
    if options.settings.workers:
        from echod.workers.start import make_supervisor  # only some daemons need it

        return make_supervisor(options, log_observer)
    return make_daemon(options, log_observer)
