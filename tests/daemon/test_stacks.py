from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from echod.daemon.stacks import (
    DEPTH,
    frames_of_coroutine,
    frames_of_thread,
    frames_under,
    from_handler,
    in_one_line,
    module_of,
    shown,
)


class Waiting:
    """Waits for ever."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def inner() -> None:
    await Waiting()


async def outer() -> None:
    await inner()


def names(frames: Any) -> list[str]:
    return [frame.f_code.co_name for frame in frames]


def test_a_coroutine_is_followed_to_what_it_awaits() -> None:
    coroutine = outer()
    coroutine.send(None)
    assert names(frames_of_coroutine(coroutine)) == ["outer", "inner", "__await__"]
    coroutine.close()
    assert frames_of_coroutine(coroutine) == []


def test_a_thread_is_seen_where_it_is_and_not_when_it_has_ended() -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        leave.wait()

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    assert thread.ident is not None
    frames = frames_of_thread(thread.ident)
    assert "work" in names(frames)
    handler = from_handler(frames)
    assert names(handler)[0] == "work"
    leave.set()
    thread.join()
    assert frames_of_thread(thread.ident) == []
    assert shown([]) == "  an unknown place"
    assert in_one_line([]) == "an unknown place"


def nested(depth: int) -> str:
    if depth:
        return nested(depth - 1)
    frames = frames_under(sys._getframe())
    return shown(frames) + "\n---\n" + in_one_line(frames)


@given(st.integers(0, 100))
def test_a_stack_has_its_innermost_frames_and_no_more_than_some(depth: int) -> None:
    text, _, line = nested(depth).partition("\n---\n")
    assert text.count("  File ") <= DEPTH
    assert "in nested" in text.splitlines()[-2] or "repeated" in text  # as Python shortens it
    assert line.count(" in nested") == min(depth + 1, DEPTH)


def test_what_a_file_is_called_does_not_reach_a_terminal() -> None:
    found: list[Any] = []
    source = "import sys\nfound.append(sys._getframe())\n"
    exec(compile(source, "bad\x1b[31m\n.py", "exec"), {"found": found})
    for text in (shown(found), in_one_line(found)):
        assert "\x1b" not in text
    assert "\n" not in in_one_line(found)
    assert module_of(found[0]) == "None"
