"""How the process ends: as the interpreter does, in time, and by the signal that asked for it.

twistd ends by sending itself the signal that it got.  That skips what Python does at the end of a
program: functions of `atexit`, joining executors and their processes, flushing files.  So the
signal is left to libc, which sends it when the interpreter has finished.  Guarantees:

* What waits for the process sees what it would see of twistd: death by the signal.
* From `keep_deadline` on the kernel ends the process at the deadline, by the same signal: near the
  interpreter's end no thread and no signal handler of Python's can any more.
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

# What the abstract class is made of, which can be asked for ten times as many objects a second.
_File: type = io.IOBase.__mro__[1]

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class _SignalEvent(ctypes.Structure):
    """`struct sigevent`: 64 bytes on Linux, whatever it asks for."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_char * 48),
    )


def end_by_signal(number: int) -> None:
    """Let libc end the process by this signal once the interpreter has finished."""
    # Last one first: what C has buffered is written, then comes the signal; where that is
    # ignored, the code that a shell shows for it remains.
    end_with_code(128 + number)
    _at_exit(_libc["raise"], number)
    _at_exit(_libc.fflush, 0)


def end_with_code(code: int) -> None:
    """Let the process end with this exit code once the interpreter has finished."""
    _at_exit(_libc._exit, code)
    _at_exit(_libc.fflush, 0)


def _at_exit(function: Any, argument: int) -> None:
    # The ABI's function below libc's own atexit(): it passes an argument on.
    _libc.__cxa_atexit(function, ctypes.c_void_p(argument), None)


def flush_files() -> None:
    """Write what files hold back that are still open.

    Python flushes a file when it deletes it, which at the interpreter's end it does to all that
    modules hold.  But not to what an event loop holds, and that is the handler with its module.
    """
    for each in gc.get_objects():
        if issubclass(type(each), _File):
            with contextlib.suppress(Exception):  # closed, or somebody else's class
                each.flush()


def keep_deadline(code: int, deadline: float) -> None:
    """Let the kernel end this process at the deadline; Python handles no signal to stop any more.

    Args:
        code: the exit code: above 128, of a signal, by which the process ends then.
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
