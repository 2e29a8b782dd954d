"""Makes `twistd echod` and `twist echod` known to Twisted.  Declarations only."""

from twisted.application.service import ServiceMaker

echod = ServiceMaker(
    "echod",
    "echod.service",
    "A network daemon that makes a service of a handler; it comes with an echo.",
    "echod",
)
