"""echod's factory in a Twisted program of your own. Run: python standalone.py [PORT]

No twistd, no settings: `EchoFactory` does all the work for a connection, and can be used wherever
Twisted takes a factory.
"""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver

from echod import EchoFactory


async def main(reactor: Any, port: str = "8888") -> None:
    """Serve until the program is told to stop (Ctrl-C, or SIGTERM)."""
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    factory = EchoFactory(reactor)
    listening = await serverFromString(reactor, f"tcp:{port}").listen(factory)
    print(f"Listening on port {listening.getHost().port}", flush=True)

    # As `twistd echod` does at the end: accept no new client, then answer all that was received.
    # The reactor stops once both Deferreds have fired.
    reactor.addSystemEventTrigger("before", "shutdown", listening.stopListening)
    reactor.addSystemEventTrigger("before", "shutdown", factory.drain)

    await Deferred()  # never fires


react(main, sys.argv[1:])
