"""The start of threads of which the daemon needs each."""

from __future__ import annotations

import threading

import pytest

from echod.threads import NoThreadError, start_thread
from tests.support.serving import no_more_threads


def test_a_thread_does_its_work_and_holds_up_no_end() -> None:
    seen: list[str] = []
    thread = start_thread(lambda: seen.append(threading.current_thread().name), "name", "a part")
    thread.join()
    assert (seen, thread.daemon) == (["name"], True)


def test_where_none_can_be_started_the_error_names_the_part_and_the_remedy() -> None:
    with no_more_threads(), pytest.raises(NoThreadError) as caught:
        start_thread(print, "name", "a part")
    assert str(caught.value) == (
        "no thread can be started for a part (can't start new thread): "
        "raise the limit, as by ulimit -u, or TasksMax= in a unit"
    )
