"""Five workers, each in a thread, each printing a line.  Run: python workers.py

The reactor runs in one thread, and has a few more for work that blocks.  `callInThread` gives a
function to one of those.  It says nothing about the function's end: the worker has to.
"""

import sys

from twisted.internet import reactor

working = 5


def worker() -> None:
    """Runs in a thread."""
    try:
        # One string with its newline, in one write.  `print` writes the newline separately, and
        # another worker's line may get between the two: "WorkerWorker", and an empty line.
        sys.stdout.write("Worker\n")
    finally:
        # The one reactor method that a thread may call: "run this yourself, soon".
        reactor.callFromThread(finished)


def finished() -> None:
    """Runs in the reactor's thread, so that nobody else can be changing `working`."""
    global working
    working -= 1
    if working == 0:
        reactor.stop()


for _ in range(working):
    reactor.callInThread(worker)

reactor.run()  # returns once the reactor is stopped
