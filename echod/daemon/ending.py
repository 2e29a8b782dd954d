"""End the process as the interpreter does, in time, and by the signal that asked for the end.

twistd ends by sending itself the signal that it got. That skips Python's own shutdown: functions
of `atexit`, joining executors and their processes, flushing files. So libc sends the signal when
the interpreter has finished. Guarantees:

* The parent process sees the same as with twistd: death by the signal.
* From `keep_deadline` on, the kernel ends the process at the deadline, by the same signal, because
  near the interpreter's end no thread and no signal handler of Python can do it any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import math
import signal
import time
from typing import Any

# The concrete base of the abstract class: checking an object against it is ten times as fast.
_File: type = io.IOBase.__mro__[1]

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class _SignalEvent(ctypes.Structure):
    """`struct sigevent`: always 64 bytes on Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_char * 48),
    )


def end_by_signal(number: int) -> None:
    """Let libc end the process by this signal once the interpreter has finished."""
    # libc calls these in reverse order: it flushes C's buffers, then sends the signal; if that is
    # ignored, the process ends with the code that a shell shows for it.
    end_with_code(128 + number)
    _at_exit(_libc["raise"], number)
    _at_exit(_libc.fflush, 0)


def end_with_code(code: int) -> None:
    """Let the process end with this exit code once the interpreter has finished."""
    _at_exit(_libc._exit, code)
    _at_exit(_libc.fflush, 0)


def _at_exit(function: Any, argument: int) -> None:
    # The function of the ABI beneath libc's atexit(): it accepts an argument.
    _libc.__cxa_atexit(function, ctypes.c_void_p(argument), None)


def flush_files() -> None:
    """Flush the files that are still open.

    Python flushes a file when it deletes it. At the interpreter's end it deletes the files that
    modules hold, but not those that an event loop holds, such as a handler's and its module's.
    """
    gc.unfreeze()  # `get_objects` leaves out those
    for each in gc.get_objects():
        if issubclass(type(each), _File):
            with contextlib.suppress(Exception):  # it is closed, or of a foreign class
                each.flush()


def keep_deadline(code: int, deadline: float) -> None:
    """Let the kernel end this process at the deadline; Python no longer handles signals to stop.

    Args:
        code: the exit code; above 128 it stands for a signal, by which the process then ends.
        deadline: when, on the monotonic clock, in seconds.
    """
    number = code - 128 if code > 128 else signal.SIGTERM
    for each in (number, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)
    left = max(deadline - time.monotonic(), 0.001)
    if not _set_timer(number, left):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, left)


def _set_timer(number: int, seconds: float) -> bool:
    """Let the kernel send this process a signal in so many seconds; return whether it will."""
    if not hasattr(_libc, "timer_create"):  # as on macOS
        return False
    event = _SignalEvent(signo=number, notify=0)  # SIGEV_SIGNAL
    timer = ctypes.c_void_p()
    fraction, whole = math.modf(seconds)
    wanted = _TimerSpec(value=_Timespec(int(whole), int(fraction * 1e9)))
    if _libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
        return False
    refused: int = _libc.timer_settime(timer, 0, ctypes.byref(wanted), None)
    return not refused
