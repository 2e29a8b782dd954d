"""The wall clock is set while the daemon runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.support.clients import connect, greeted, is_served, receive, receive_all
from tests.support.daemon import Start
from tests.support.needs import missing
from tests.support.waiting import PATIENCE

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

HANDLERS = """
import time


def wall_clock(message):
    return f"{time.time():.0f}".encode()
"""


# The library refuses the call that Python's sleep makes: clock_nanosleep with an absolute time.
SLEEP = """
import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds)
"""


class WallClock:
    """The wall clock that daemons see."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "time"
        self.set(0)
        if not LIBRARIES:
            missing("libfaketime is not installed (Debian: faketime)")
        (directory / "sitecustomize.py").write_text(SLEEP)
        self.environment = {
            "PYTHONPATH": str(directory),
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """Set it wrong by this many seconds."""
        self._file.write_text(f"{seconds:+d}\n")


def test_a_clock_that_is_set_moves_no_timer(daemon: Start, tmp_path: Path) -> None:
    """Fault 14: No time-out comes earlier or later when the clock is set forward or back by an
    hour.
    """
    (tmp_path / "served.py").write_text(HANDLERS)
    clock = WallClock(tmp_path)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **clock.environment}
    patient = daemon("--idle-timeout", "600", env=environment)
    hasty = daemon(
        *("--handler", "served:wall_clock", "--idle-timeout", "2", "--no-banner"), env=environment
    )
    with greeted(patient) as kept:
        for before, after in ((0, 3600), (3600, -3600)):
            with connect(hasty) as dropped:
                dropped.sendall(b"?")
                assert abs(int(receive(dropped, 10)) - time.time() - before) < PATIENCE
                clock.set(after)
                dropped.sendall(b"?")
                began = time.monotonic()
                assert abs(int(receive(dropped, 10)) - time.time() - after) < PATIENCE
                assert receive_all(dropped) == b""
                assert 1.5 < time.monotonic() - began < PATIENCE
            assert is_served(kept)
        patient.signal()
        assert receive_all(kept) == b""
    patient.wait()
    assert "held" not in patient.log
