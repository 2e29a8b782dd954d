"""Five workers, each in a thread, each printing a line. Run: python workers.py

The reactor runs in one thread, and has a few more for work that blocks. `callInThread` runs a
function in one of those. It does not report the end of the function: the worker has to do that.
"""

import sys

from twisted.internet import reactor

working = 5


def worker() -> None:
    """Runs in a thread."""
    try:
        # One string with its newline, in one write. `print` writes the newline separately, and
        # another worker's line may get between the two: "WorkerWorker", and an empty line.
        sys.stdout.write("Worker\n")
    finally:
        # The one reactor method that a thread may call: "run this yourself, soon".
        reactor.callFromThread(finished)


def finished() -> None:
    """Runs in the reactor's thread, so that no other thread can be changing `working`."""
    global working
    working -= 1
    if working == 0:
        reactor.stop()


for _ in range(working):
    reactor.callInThread(worker)

reactor.run()  # returns once the reactor is stopped
