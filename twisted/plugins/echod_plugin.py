"""Makes `twistd echod` and `twist echod` known to Twisted.  Declarations, and signals, only.

Twisted imports this file while it looks for its commands: before that nothing of echod's runs.
From here on, until the daemon has been put together and takes the signals itself, nothing has been
opened that would have to be closed.  So SIGTERM and SIGINT end the process on the spot, without
Python's traceback, and SIGHUP does nothing: the settings are yet to be read.
"""

import signal
import sys
from pathlib import PurePath
from typing import Any

from twisted.application.service import ServiceMaker
from twisted.logger import globalLogBeginner


def _take_signals() -> None:
    # Python would raise KeyboardInterrupt, which Twisted swallows while it imports plugins.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # SIG_IGN would be handed on to the processes that a handler starts.
    signal.signal(signal.SIGHUP, lambda *_: None)
    # Whoever has started us may have blocked signals, for itself; that is inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def _end_if_interrupted() -> None:
    """End now if Ctrl-C came while Twisted imported a plugin: it has only logged that."""
    events: list[dict[str, Any]] = []
    globalLogBeginner._initialBuffer.replayTo(events.append)
    failures = (event.get("failure") for event in events)  # as twisted.python.log has it
    if any(failure is not None and failure.check(KeyboardInterrupt) for failure in failures):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


class EchodMaker(ServiceMaker):
    """Asked for its options when this command has been chosen, before the daemon is imported."""

    @property
    def options(self):  # type: ignore[no-untyped-def]
        _take_signals()
        _end_if_interrupted()
        return super().options


# Already now where it is the command of twistd or twist: the plugins of others come next.
if PurePath(sys.argv[0]).name in ("twistd", "twist") and "echod" in sys.argv:
    _take_signals()

echod = EchodMaker(
    "echod",
    "echod.daemon.process",
    "A network daemon that makes a service of a handler; it comes with an echo.",
    "echod",
)
