"""Makes `twistd echod` and `twist echod` known to Twisted.  Declarations only."""

import signal

from twisted.application.service import ServiceMaker


class EchodMaker(ServiceMaker):
    """Asked for its options when this command has been chosen, before the daemon is imported.

    From then on, until the daemon has been put together and takes the signals itself, nothing has
    been opened that would have to be closed.  So SIGTERM and SIGINT end the process on the spot,
    without Python's traceback, and SIGHUP does nothing: the settings are yet to be read.
    """

    @property
    def options(self):  # type: ignore[no-untyped-def]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # SIG_IGN would be handed on to the processes that a handler starts.
        signal.signal(signal.SIGHUP, lambda *_: None)
        return super().options


echod = EchodMaker(
    "echod",
    "echod.service",
    "A network daemon that makes a service of a handler; it comes with an echo.",
    "echod",
)
