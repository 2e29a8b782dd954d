"""Workers that are killed, or ended, under load; and how even the kernel's draw is."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.scale import Scale, number
from tests.support.clients import connect
from tests.support.daemon import Daemon, Start
from tests.support.served_workers import (
    Load,
    ask,
    served_by,
    wait_until_served,
    write_handler,
)
from tests.support.waiting import block_until

THREADS = 4


def end_workers(running: Daemon, signals: Scale, number: signal.Signals, count: int) -> Load:
    """Send a signal to a random worker, again and again, under load; return the load."""
    with Load(running, THREADS) as load:
        for done in signals(ci=count, soak=10 * count):
            before = load.served
            os.kill(random.choice(list(served_by(running).values())), number)
            wait_until_served(running, 3 + done)
            block_until(lambda before=before: load.served > before + 20)
    return load


@pytest.mark.long
@pytest.mark.timeout(0 if number(ci=0, soak=1) else 300)
def test_workers_may_be_killed_under_load(daemon: Start, tmp_path: Path, scale: Scale) -> None:
    """Fault 170: A killed worker loses only the connections that it had accepted, in 200 SIGKILLs
    under load; no client is refused.
    """
    load = end_workers(started(daemon, tmp_path), scale, signal.SIGKILL, 20)
    assert not load.refused
    # Each thread has one connection at a time.
    assert load.broken + load.closed <= THREADS * number(ci=20, soak=200)


@pytest.mark.long
@pytest.mark.timeout(0 if number(ci=0, soak=1) else 300)
def test_workers_may_be_ended_under_load(daemon: Start, tmp_path: Path, scale: Scale) -> None:
    """Fault 170: SIGTERM to a worker breaks no connection, and closes in good order those alone
    that it had accepted, in 200 SIGTERMs under load; no client is refused.
    """
    load = end_workers(started(daemon, tmp_path), scale, signal.SIGTERM, 20)
    assert not load.refused
    assert load.broken == 0
    assert load.closed <= THREADS * number(ci=20, soak=200)


def test_the_draw_of_a_worker_is_fair(daemon: Start, tmp_path: Path) -> None:
    """Bursts of 50 connections; a fair draw differs by less than this, in all but one run of 10^6
    (1,000 connections), or as the kernel's hash allows (8,000).
    """
    running = started(daemon, tmp_path)
    count, most = number(ci=1_000, soak=8_000), number(ci=155, soak=320)
    seen: Counter[int] = Counter()
    for _ in range(count // 50):
        with contextlib.ExitStack() as burst:
            for client in [burst.enter_context(connect(running)) for _ in range(50)]:
                seen[ask(client)] += 1
    one, other = seen.values()
    assert one + other == count
    assert abs(one - other) <= most


def started(daemon: Start, folder: Path) -> Daemon:
    """Start two workers, whose handler says in which process it runs."""
    write_handler(folder)
    running = daemon("--handler", "answers:who", "--workers", "2", "--log-rate", "0")
    wait_until_served(running, 2)
    return running
