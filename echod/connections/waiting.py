"""Ask the kernel whether a task waits for input from a socket.

A program may wait for its socket where no Python object sees it: in `poll` or `epoll`, in a read
of the bare descriptor or of a duplicate, in a thread or a child process of its own. For each task
Linux shows the current system call with its arguments (proc(5), /proc/PID/task/TID/syscall); these
contain the descriptors, and the object behind a descriptor can be read as well.

A check disturbs nothing, and costs some ten microseconds a task. The sweep makes it once a client
has been silent for the allowed time. The threads that handlers have started may belong to any
connection: they are checked together, for all connections, and not too often (`Others`).
Otherwise, with a thread each, a hundred clients would cost ten thousand checks.

Without these files (another system, a sandbox, a process that has given up root since it was
started) the answer is "unknown".
"""

from __future__ import annotations

import contextlib
import math
import platform
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# The flags of poll(2), select(2) and epoll(7): POLLIN, POLLPRI, POLLRDNORM, POLLRDBAND.
_TO_READ = 0x1 | 0x2 | 0x40 | 0x80
_POLLED = struct.Struct("=ihh")


@dataclass(frozen=True)
class _Calls:
    """The numbers of the system calls that can wait for input from a socket.

    Attributes:
        read: calls whose first argument is the descriptor.
        select: calls with sets of descriptors; poll: with arrays; epoll: with an epoll descriptor.
    """

    read: frozenset[int]
    select: frozenset[int]
    poll: frozenset[int]
    epoll: frozenset[int]


# read, readv, recvfrom, recvmsg, splice, recvmmsg; select, pselect6; poll, ppoll; epoll_wait,
# epoll_pwait, epoll_pwait2. Newer architectures share one table (asm-generic/unistd.h).
_X86_64 = _Calls(
    frozenset({0, 19, 45, 47, 275, 299}),
    frozenset({23, 270}),
    frozenset({7, 271}),
    frozenset({232, 281, 441}),
)
_GENERIC = _Calls(
    frozenset({63, 65, 76, 207, 212, 243}), frozenset({72}), frozenset({73}), frozenset({22, 441})
)
_CALLS = {
    "x86_64": _X86_64,
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
}.get(platform.machine() if sys.platform == "linux" and sys.maxsize > 1 << 32 else "")

_OURS = Path("/proc/self")


@dataclass(frozen=True)
class Task:
    """A thread, of this process or of a child.

    Attributes:
        process: the process's folder in /proc.
        number: the thread's number.
    """

    process: Path
    number: int

    def read(self, name: str) -> bytes:
        """Return the content of the task's file `name` in /proc."""
        return (self.process / "task" / str(self.number) / name).read_bytes()

    def family(self) -> Iterator[Task]:
        """Yield the task, and the tasks of the child processes that it has started."""
        yield self
        with contextlib.suppress(OSError, RecursionError):  # it is gone, or unknown
            for child in self.read("children").split():
                process = Path("/proc") / child.decode()
                for task in (process / "task").iterdir():
                    yield from Task(process, int(task.name)).family()


def tasks(threads: Iterable[int]) -> list[Task]:
    """Return `threads` of this process, by their native ids, and their child processes."""
    return [task for number in threads for task in Task(_OURS, number).family()]


def is_awaited(inode: int, among: Iterable[Task]) -> bool | None:
    """Return whether a task waits for input from a socket; None: it is unknown.

    Args:
        inode: the socket's inode, the same for all its descriptors.
        among: the tasks to check.
    """
    known = True
    for task in among:
        try:
            if _waits_for(task, f"socket:[{inode}]"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended meanwhile, or has closed the descriptor
        except (OSError, ValueError):
            known = False
    return False if known and _CALLS is not None else None


def running_time(among: Iterable[Task]) -> int:
    """Return how long the tasks have run, in nanoseconds; 0 if the kernel does not say."""
    total = 0
    for task in among:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(task.read("schedstat").split()[0])
    return total


class Others:
    """The waits of tasks that may belong to any connection, checked together."""

    # The share of the time that checks may take: one in this many.
    SHARE = 20

    def __init__(
        self, threads: Callable[[], Iterable[int]], seconds: Callable[[], float] = time.monotonic
    ) -> None:
        """Set up, without checking.

        Args:
            threads: returns the native ids of those threads of this process.
            seconds: the clock.
        """
        self._threads = threads
        self._seconds = seconds
        self._good_until = -math.inf
        self._known = True
        self._waiting: dict[str, list[Task]] = {}
        self._ran = 0

    def wait_for(self, inode: int) -> bool | None:
        """Return whether one of the tasks waits for a socket, as `is_awaited` does.

        Waiting tasks are checked again; a task that began to wait after the last check is missed.
        """
        self._look()
        if is_awaited(inode, self._waiting.get(f"socket:[{inode}]", ())):
            return True
        return False if self._known else None

    def running_time(self) -> int:
        """Return how long the tasks had run at the last check, in nanoseconds."""
        self._look()
        return self._ran

    def _look(self) -> None:
        if (began := self._seconds()) < self._good_until:
            return
        among = tasks(self._threads())
        self._known, self._waiting = _CALLS is not None, {}
        for task in among:
            try:
                for name in _awaited_names(task):
                    self._waiting.setdefault(name, []).append(task)
            except (FileNotFoundError, ProcessLookupError):
                pass  # as above
            except (OSError, ValueError):
                self._known = False
        self._ran = running_time(among)
        ended = self._seconds()
        self._good_until = ended + self.SHARE * (ended - began)


def _awaited_names(task: Task) -> Iterator[str]:
    """Yield the name of each descriptor that `task` waits to read from."""
    for descriptor in _awaited_by(task):
        with contextlib.suppress(FileNotFoundError):  # closed, although a wait for it goes on
            yield str((task.process / "fd" / str(descriptor)).readlink())


def _waits_for(task: Task, name: str) -> bool:
    """Return whether `task` waits to read from a descriptor with this `name`."""
    return name in _awaited_names(task)


def _awaited_by(task: Task) -> Iterable[int]:
    """Return the descriptors that `task` waits to read from."""
    words = task.read("syscall").split()
    if _CALLS is None or len(words) < 7:  # it is not in a system call
        return ()
    number, (first, second) = int(words[0]), (int(word, 16) for word in words[1:3])
    if number in _CALLS.read:
        return (first,)
    if number in _CALLS.select:
        bits = int.from_bytes(_memory(task, second, (first + 7) // 8), sys.byteorder)
        return (descriptor for descriptor in range(first) if bits >> descriptor & 1)
    if number in _CALLS.poll:
        polled = _POLLED.iter_unpack(_memory(task, first, second * _POLLED.size))
        return (descriptor for descriptor, events, _ in polled if events & _TO_READ)
    return _registered(task, first) if number in _CALLS.epoll else ()


def _memory(task: Task, address: int, size: int) -> bytes:
    if not address or not size:
        return b""
    with (task.process / "mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def _registered(task: Task, descriptor: int) -> Iterator[int]:
    """Yield the descriptors registered for reading with an epoll descriptor."""
    with (task.process / "fdinfo" / str(descriptor)).open("rb") as file:
        for words in map(bytes.split, file):
            if words[:1] == [b"tfd:"] and int(words[3], 16) & _TO_READ:
                yield int(words[1])


def threads_of_handlers() -> Iterator[int]:
    """Yield the native ids of the threads that handlers have started, or their modules."""
    ours = threading.current_thread()
    for thread in threading.enumerate():
        if thread is not ours and not thread.name.startswith("echod-") and thread.native_id:
            yield thread.native_id
