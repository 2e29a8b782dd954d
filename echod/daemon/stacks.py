"""Stacks of running code: of a thread, or of a waiting coroutine."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import PurePath
from types import FrameType

from echod.text import escape, escape_lines
from echod.user_code import is_ours

# How many frames of a stack are shown, counted from the innermost.
DEPTH = 16

# A stack, the outermost frame first.
Frames = list[FrameType]


def frames_under(frame: FrameType | None) -> Frames:
    """Return the frames that led to `frame`, and `frame` itself."""
    return [one for one, _ in traceback.walk_stack(frame)][::-1] if frame is not None else []


def frames_of_thread(thread: int) -> Frames:
    """Return the stack of a thread; empty if it has ended."""
    return frames_under(sys._current_frames().get(thread))


def frames_of_coroutine(coroutine: object) -> Frames:
    """Return the stack of a waiting coroutine, or generator, down to the last object awaited."""
    return list(_awaited_frames(coroutine))


def _awaited_frames(waiting: object) -> Iterator[FrameType]:
    for _ in range(1000):  # in case the `cr_await` of a foreign object leads in a circle
        frame = _first_of(waiting, "cr_frame", "gi_frame", "ag_frame")
        if not isinstance(frame, FrameType):
            return
        yield frame
        waiting = _first_of(waiting, "cr_await", "gi_yieldfrom", "ag_await")


def _first_of(waiting: object, *names: str) -> object:
    """Return the first of these attributes that is there, and not None."""
    found = (getattr(waiting, name, None) for name in names)
    return next((each for each in found if each is not None), None)


def module_of(frame: FrameType) -> str:
    """Return the name of the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__"))


def from_handler(frames: Frames) -> Frames:
    """Leave out the frames of echod that led to the handler, if it is within the handler."""
    for index, frame in enumerate(frames):
        if not (_is_ours(frame) or module_of(frame) == "threading"):
            return frames[index:]
    return frames


def _is_ours(frame: FrameType) -> bool:
    return is_ours(frame.f_code.co_filename)


def shown(frames: Frames) -> str:
    """Return the innermost frames as a traceback shows them, escaped."""
    if not frames:
        return "  an unknown place"
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return escape_lines("".join(summary.format()[-DEPTH:]).rstrip("\n"))


def in_one_line(frames: Frames) -> str:
    """Return the innermost frames as `file.py:12 in function`, the outermost first, escaped.

    echod's own frames are left out, unless there are no others.
    """
    frames = [frame for frame in frames if not _is_ours(frame)] or frames
    places = [
        f"{PurePath(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
        for frame in frames
    ]
    return escape(", ".join(places[-DEPTH:]) or "an unknown place")
