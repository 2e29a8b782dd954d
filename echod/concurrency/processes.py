"""The processes of `exec`: how many programs run, for whom, and their end.

It stands beside the four models: with `exec` the concurrency model is `reactor`, and this one runs
in its place.

Guarantees, besides those in `echod.concurrency.model`:

* A connection holds its place from `enter` until its process is gone, even if its client goes
  before.
* `drain` waits for every process; `stop` ends them with SIGKILL.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from echod.concurrency.fairness import Holders
from echod.concurrency.model import Busy, address_of, check_share
from echod.concurrency.models import InReactor
from echod.concurrency.process import Process, Served
from echod.handlers.command import Command
from echod.limits import Level, Limits
from echod.reasons import Refusal
from echod.text import plural

if TYPE_CHECKING:
    from echod.interfaces import Reactor

# The errors of a system that has no room for another process now.
_NO_ROOM: Mapping[int, Refusal] = {
    errno.EAGAIN: Refusal.PROCESSES,
    errno.ENOMEM: Refusal.PROCESSES,
    errno.EMFILE: Refusal.DESCRIPTORS,
    errno.ENFILE: Refusal.DESCRIPTORS,
}


class Processes(InReactor):
    """Starts a process for each connection, and refuses clients above `most`.

    They are refused, not queued, for the reasons that `ThreadPerConnection` gives.
    """

    def __init__(self, reactor: Reactor, most: int, *, shared: bool = True) -> None:
        """Set up, without a process.

        Args:
            reactor: reads and writes the pipes.
            most: how many processes may run at once.
            shared: whether one address may have only a share of them.
        """
        super().__init__()
        self.shared = shared
        self._reactor = reactor
        self._most = most
        self._inside = Holders()
        self._running: dict[Process, object] = {}

    def reconfigure(self, limits: Limits) -> None:
        self.shared = limits.bounds_addresses

    @property
    def levels(self) -> Sequence[Level]:
        return (Level(Refusal.MAX_PROCESSES.value, len(self._inside), self._most),)

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        address, free = address_of(connection), self._most - len(self._inside)
        if free <= 0:
            most = self._most
            processes = plural(most, "the only process is", f"all {most} processes are")
            raise Busy(f"{processes} in use, try again later", Refusal.MAX_PROCESSES)
        if self.shared and address:
            check_share(self._inside.by_address[address], free, Refusal.PROCESSES_PER_ADDRESS)
        self._inside.add(connection, address)
        start()

    def leave(self, connection: object) -> None:
        self._inside.discard(connection)

    def start(self, command: Command, environment: Mapping[str, str], served: Served) -> Process:
        """Start a program for a connection, which has entered.

        Args:
            command: the program.
            environment: what it is told about its client.
            served: the connection; `leave` follows by itself when the process is gone.

        Raises:
            Busy: the system allows no more processes.
            OSError: the program cannot be executed.
        """
        try:
            process = Process(
                self._reactor,
                command.words,
                command.path,
                {**command.environment, **environment},
                served,
                partial(self._gone, served),
            )
        except OSError as error:
            if (refusal := _NO_ROOM.get(error.errno or 0)) is not None:
                raise Busy(f"{error.strerror}, try again later", refusal) from error
            raise
        self._running[process] = served
        return process

    def _gone(self, served: Served, process: Process) -> None:
        del self._running[process]
        self.leave(served)
        self._tell_if_drained()

    @property
    def _is_quiet(self) -> bool:
        return super()._is_quiet and not self._running

    def stop(self) -> None:
        for process in list(self._running):
            process.kill()
        super().stop()
