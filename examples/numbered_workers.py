"""Five workers with a number each. Run: python numbered_workers.py

`deferToThread` is `callInThread` with a result: it returns a Deferred, which fires in the
reactor's thread with the function's return value, or with the exception that it raised.
"""

import sys

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react
from twisted.internet.threads import deferToThread


def worker(number: int) -> None:
    """Runs in a thread."""
    # One string with its newline, in one write, so that no other line can get into it.
    sys.stdout.write(f"Worker: {number}\n")


def main(_reactor: object) -> Deferred[list[None]]:
    """Start all workers; the Deferred fires when the last one is done."""
    return gatherResults([deferToThread(worker, number) for number in range(5)])


# Runs the reactor until the Deferred fires, and exits: 0, or 1 if a worker has failed.
react(main)
