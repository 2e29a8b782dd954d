"""A program that serves one connection: its process, its pipes, and its end.

Guarantees:

* The program's standard input, output and error are pipes, and it has no other descriptor. It
  leads a session of its own, so that its process group is what it has started, and nothing else,
  but for a process that leaves the group by setsid(2). No call of the kernel finds such a one,
  except for a subreaper (which would have to reap all orphans of the daemon, also those of other
  libraries) or in a control group (for which the daemon has no permission, in general).
* No call waits: neither for the pipes nor for the process. (The start itself does wait, until the
  kernel has loaded the program.)
* The memory for each direction is bounded: what the program does not read is held until it does,
  and the caller is told to send no more; its output is read in pieces, and not while it is paused.
* With the connection ends the whole process group: by SIGTERM, and by SIGKILL if some of it
  remains. Then the process has been reaped, and our ends of its pipes are closed.
* The rest of a group, whose parent has ended, becomes a child of process 1. Where that is the
  daemon, as in a container, it is reaped here too: no zombie stays.

Each process is watched by a descriptor of its own (pidfd_open(2)), on every reactor alike, or by a
thread where the kernel has none. No SIGCHLD is needed, which belongs to the reactor.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Protocol

from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorFromThreads,
    IReadDescriptor,
    IWriteDescriptor,
)
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.timers import cancel_timer

if TYPE_CHECKING:
    from echod.interfaces import Reactor

# The longest read of a program's output, in bytes: what a pipe holds.
PIECE = 65536

# The longest read of its standard error. Each line of it costs a look at the log's rate, and a
# program may write 4000 lines of one byte: more in one turn would delay other clients.
PIECE_OF_ERRORS = 4096

# The longest line of standard error, in bytes; a longer one is cut.
LONGEST_LINE = 2048

# How many seconds after a process's end comes the first look whether all of its group has ended.
# Each pause between looks is twice as long as the one before.
FIRST_LOOK = 0.01

# How many seconds after SIGKILL a group is taken for gone.
LAST_LOOK = 1.0


class Served(Protocol):
    """The connection that a program serves, as its process sees it."""

    def program_wrote(self, data: bytes) -> None:
        """Send `data`, which the program has written to its standard output."""

    def program_complained(self, line: bytes) -> None:
        """Log a line that the program has written to its standard error."""

    def program_is_behind(self) -> None:
        """Send no more to the program, which does not read as fast as data comes."""

    def program_caught_up(self) -> None:
        """Send again: the program has read what was held for it, or will read no more."""

    def program_output_ended(self) -> None:
        """Note that nothing more comes from the program."""

    def program_exited(self, status: int) -> None:
        """Note that the program has exited, and that its output has ended.

        Args:
            status: its exit status; the negative number of the signal if one has ended it.
        """


class Process:
    """One running program.

    Attributes:
        pid: the process's id, and its group's.
    """

    def __init__(
        self,
        reactor: Reactor,
        words: Sequence[str],
        path: str,
        environment: Mapping[str, str],
        served: Served,
        reaped: Callable[[Process], None],
    ) -> None:
        """Start the program.

        Args:
            reactor: reads and writes the pipes.
            words: its name and arguments.
            path: its file.
            environment: its whole environment.
            served: the connection.
            reaped: called once, last, when the process is gone, and with it its group.

        Raises:
            OSError: it cannot be started.
        """
        self._reactor = reactor
        self._served = served
        self._reaped = reaped
        self._status: int | None = None
        self._ending: IDelayedCall | None = None
        self._over = False
        self._popen = subprocess.Popen(  # noqa: S603 - the operator names the program
            words,
            executable=path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        stdin, stdout, stderr = self._popen.stdin, self._popen.stdout, self._popen.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        self._input = _Input(reactor, stdin, served)
        self._output = _Output(reactor, stdout, PIECE, served.program_wrote, self._output_ended)
        self._lines = _Lines(served.program_complained)
        self._errors = _Output(
            reactor, stderr, PIECE_OF_ERRORS, self._lines.add, self._lines.finish
        )
        self._watch()
        self._output.resume()
        self._errors.resume()

    # The program's standard input.

    def write(self, data: bytes) -> None:
        """Pass `data` on to the program; it is dropped if the program reads no more."""
        self._input.write(data)

    def end_input(self) -> None:
        """Let the program see the end of its input, after all that was written."""
        self._input.end()

    @property
    def unread(self) -> int:
        """How many bytes were written that the program has not read."""
        return self._input.unread

    # Its standard output.

    def pause(self) -> None:
        """Read no more of its output: when the pipe is full, the program waits."""
        self._output.pause()

    def resume(self) -> None:
        """Read its output again."""
        self._output.resume()

    # Its end.

    @property
    def has_exited(self) -> bool:
        """Whether the program has exited; another process may have its output still."""
        return self._status is not None

    def end(self, patience: float) -> None:
        """End the program, and all that it has started; calling it again is harmless.

        Args:
            patience: how long after SIGTERM comes SIGKILL, in seconds.
        """
        self._input.close()
        self._output.close()
        if self._over or self._ending is not None:
            return
        self._signal_group(signal.SIGTERM)
        # A stopped process gets a signal when it goes on.
        self._signal_group(signal.SIGCONT)
        if self._status is None:
            self._ending = self._reactor.callLater(patience, self.kill)
        else:
            self._reap(patience)

    def kill(self) -> None:
        """End the program, and all that it has started, at once."""
        self._input.close()
        self._output.close()
        self._stop_waiting()
        if self._popen.returncode is None or self._over:
            self._signal_group(signal.SIGKILL)
        else:
            self._kill_rest()

    def _signal_group(self, number: int) -> None:
        # The group's number is not given to another one while the leader is not reaped, or while
        # the group has a member.
        if not self._over:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _watch(self) -> None:
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:  # a kernel before 5.3, a sandbox, or no descriptor is left
            self._watch_in_thread()
        else:
            _Exit(self._reactor, descriptor, self._exited).watch()

    def _watch_in_thread(self) -> None:
        name = f"echod-process-{self.pid}"
        try:
            threading.Thread(target=self._wait, name=name, daemon=True).start()
        except RuntimeError:  # the program has been the last one for which there was room
            self._signal_group(signal.SIGKILL)
            with self._popen:  # close the pipes, and reap it
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None

    def _wait(self) -> None:
        with contextlib.suppress(ChildProcessError):  # it has been waited for already
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        IReactorFromThreads(self._reactor).callFromThread(self._exited)

    def _exited(self) -> None:
        """Take the exit status; the process stays a zombie, which keeps the group's number."""
        self._status = _status_of(self.pid)
        if self._status is None:  # it lives: the reactor ends, and watches it no longer
            return
        self._errors.read_rest()
        self._tell_if_over()

    def _output_ended(self) -> None:
        self._served.program_output_ended()
        self._tell_if_over()

    def _tell_if_over(self) -> None:
        """Report the end, once the process has exited and its output has been read."""
        if self._status is None or not self._output.closed:
            return
        if self._ending is not None:  # the connection is gone, or going
            active = self._ending.active()
            left = self._ending.getTime() - self._reactor.seconds() if active else 0.0
            self._stop_waiting()
            self._reap(max(0.0, left))
        else:
            self._served.program_exited(self._status)

    def _stop_waiting(self) -> None:
        cancel_timer(self._ending)

    def _reap(self, patience: float) -> None:
        """Reap the process, and end what is left of its group."""
        self._popen.wait()  # which does not wait: it has exited
        self._wait_for_group(self._reactor.seconds() + patience, self._kill_rest)

    def _wait_for_group(
        self, deadline: float, too_late: Callable[[], None], pause: float = FIRST_LOOK
    ) -> None:
        """Finish when nothing is left of the group.

        Args:
            deadline: the reactor's time.
            too_late: called at the deadline, if something is left.
            pause: the time until the next look, in seconds.
        """
        left = deadline - self._reactor.seconds()
        if not self._group_exists():
            self._finish()
        elif left > 0:
            self._ending = self._reactor.callLater(
                min(pause, left), self._wait_for_group, deadline, too_late, 2 * pause
            )
        else:
            too_late()

    def _kill_rest(self) -> None:
        self._signal_group(signal.SIGKILL)
        # Process 1 may be one that reaps nothing, so that the group does not go.
        self._wait_for_group(self._reactor.seconds() + LAST_LOOK, self._finish)

    def _group_exists(self) -> bool:
        """Return whether the group has a member, after reaping those that are our children."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _finish(self) -> None:
        self._over = True
        self._errors.close()
        self._reaped(self)


def _status_of(pid: int) -> int | None:
    """Return the exit status of a child that has exited, and is not reaped; None if it lives.

    The negative number of the signal if one has ended it.
    """
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:  # SIGCHLD is ignored, as the daemon was started with
        return 0
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


class _Pipe:
    """Our end of a pipe.

    Attributes:
        closed: whether it is closed, or is so in the next turn of the event loop: see `_Exit`.
    """

    def __init__(self, reactor: Reactor, file: IO[bytes]) -> None:
        self._reactor = reactor
        self._file = file
        self.closed = False
        os.set_blocking(file.fileno(), False)

    def fileno(self) -> int:
        return -1 if self.closed else self._file.fileno()

    def _close_file(self) -> None:
        self.closed = True
        self._reactor.callLater(0, self._file.close)

    def logPrefix(self) -> str:  # noqa: N802
        return "echod"


@implementer(IReadDescriptor)
class _Output(_Pipe):
    """Reads what the program writes."""

    def __init__(
        self,
        reactor: Reactor,
        file: IO[bytes],
        longest: int,
        received: Callable[[bytes], None],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(reactor, file)
        self._longest = longest
        self._received = received
        self._ended = ended

    def pause(self) -> None:
        if not self.closed:
            self._reactor.removeReader(self)

    def resume(self) -> None:
        if not self.closed:
            self._reactor.addReader(self)

    def doRead(self) -> Exception | None:  # type: ignore[override] # noqa: N802
        try:
            data = os.read(self._file.fileno(), self._longest)
        except BlockingIOError:
            return None
        if not data:
            return CONNECTION_DONE
        self._received(data)
        return None

    def read_rest(self) -> None:
        """Read what the pipe holds now, and close it: the program has exited."""
        left = PIECE
        while left > 0 and not self.closed:
            try:
                data = os.read(self._file.fileno(), left)
            except BlockingIOError:  # another process has the other end
                return
            left -= len(data)
            if not data:
                self.connectionLost(Failure(CONNECTION_DONE))
            else:
                self._received(data)

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        if not self.closed:
            self.close()
            self._ended()

    def close(self) -> None:
        if not self.closed:
            self._reactor.removeReader(self)
            self._close_file()


@implementer(IWriteDescriptor)
class _Input(_Pipe):
    """Writes what the program reads."""

    def __init__(self, reactor: Reactor, file: IO[bytes], served: Served) -> None:
        super().__init__(reactor, file)
        self._served = served
        self._held = b""
        self._is_last = False

    @property
    def unread(self) -> int:
        if self.closed:
            return 0
        count = array.array("i", [0])
        fcntl.ioctl(self._file.fileno(), termios.FIONREAD, count)
        return count[0] + len(self._held)

    def write(self, data: bytes) -> None:
        if self.closed or self._is_last:
            return
        if self._held:
            self._held += data
        elif self._write(data) is None and self._held:
            self._reactor.addWriter(self)
            self._served.program_is_behind()

    def end(self) -> None:
        self._is_last = True
        if not self._held:
            self.close()

    def doWrite(self) -> Exception | None:  # type: ignore[override] # noqa: N802
        if (error := self._write(self._held)) is not None:
            return error
        if not self._held:
            self._reactor.removeWriter(self)
            if self._is_last:
                self.close()
            self._served.program_caught_up()
        return None

    def _write(self, data: bytes) -> Exception | None:
        """Write as much as the pipe takes, and hold the rest."""
        try:
            self._held = data[os.write(self._file.fileno(), data) :]
        except BlockingIOError:
            self._held = data
        except OSError:  # the program reads no more
            behind, self._held = bool(self._held), b""
            self.close()
            if behind:
                self._served.program_caught_up()
            return CONNECTION_LOST
        return None

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        behind, self._held = bool(self._held), b""
        self.close()
        if behind:
            self._served.program_caught_up()

    def close(self) -> None:
        if not self.closed:
            self._reactor.removeWriter(self)
            self._held = b""
            self._close_file()


@implementer(IReadDescriptor)
class _Exit:
    """A descriptor that becomes readable when a process exits.

    It is closed in the next turn of the event loop, as the pipes are. The reactor has taken all
    events of a turn together, and may still have one of this descriptor: it would tell it to
    another one that was opened meanwhile, for the next program or client, and has its number.
    """

    def __init__(self, reactor: Reactor, descriptor: int, exited: Callable[[], None]) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._exited = exited

    def watch(self) -> None:
        self._reactor.addReader(self)

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:  # noqa: N802
        return "echod"

    def doRead(self) -> Exception | None:  # type: ignore[override] # noqa: N802
        return CONNECTION_DONE

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            self._reactor.callLater(0, os.close, self._descriptor)
            self._descriptor = -1
            self._exited()


class _Lines:
    """Cuts what a program writes to its standard error into lines."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._tell = tell
        self._begun = b""

    def add(self, data: bytes) -> None:
        """Tell each line that has ended, and hold at most `LONGEST_LINE` of the last one."""
        *ended, begun = (self._begun + data).split(b"\n")
        for line in ended:
            self._tell_pieces(line)
        whole = len(begun) - len(begun) % LONGEST_LINE
        self._tell_pieces(begun[:whole])
        self._begun = begun[whole:]

    def _tell_pieces(self, line: bytes) -> None:
        for start in range(0, len(line), LONGEST_LINE):
            self._tell(line[start : start + LONGEST_LINE])

    def finish(self) -> None:
        """Tell the line that has not ended."""
        begun, self._begun = self._begun, b""
        if begun:
            self._tell(begun)
