"""Declare `twistd echod` and `twist echod` to Twisted, and handle signals during the start.

Twisted imports this file while it looks for its commands: before that no code of echod runs. From
here on, until the daemon has been set up and handles the signals itself, nothing is open that
would have to be closed. So SIGTERM and SIGINT end the process at once, without Python's traceback,
and SIGHUP does nothing, because the settings have not been read yet.
"""

import signal
import sys
from pathlib import PurePath
from typing import Any

from twisted.application.service import ServiceMaker
from twisted.logger import globalLogBeginner


def take_signals() -> None:
    """Let a signal end the process at once, until the daemon handles signals itself."""
    # Python would raise KeyboardInterrupt, which Twisted swallows while it imports plugins.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The processes that a handler starts would inherit SIG_IGN.
    signal.signal(signal.SIGHUP, lambda *_: None)
    # The parent process may have blocked signals for itself; this process has inherited that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def _end_if_interrupted() -> None:
    """End now if Ctrl-C arrived while Twisted imported a plugin: Twisted has only logged it."""
    events: list[dict[str, Any]] = []
    globalLogBeginner._initialBuffer.replayTo(events.append)
    failures = (event.get("failure") for event in events)  # as twisted.python.log has it
    if any(failure is not None and failure.check(KeyboardInterrupt) for failure in failures):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


class EchodMaker(ServiceMaker):
    """Gives Twisted its options when this command is chosen, before the daemon is imported."""

    @property
    def options(self):  # type: ignore[no-untyped-def]
        take_signals()
        _end_if_interrupted()
        from echod.collector import importing  # from here on, a signal may come

        with importing():
            return super().options


# Do it already now if echod is the command of twistd or twist: they import other plugins next.
if PurePath(sys.argv[0]).name in ("twistd", "twist") and "echod" in sys.argv:
    take_signals()

echod = EchodMaker(
    "echod",
    "echod.entry",
    "A network daemon that makes a service of a handler; its default handler is an echo.",
    "echod",
)
