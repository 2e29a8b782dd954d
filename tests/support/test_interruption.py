from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.interruption import Interruption
from tests.support.own_pytest import own_pytest
from tests.support.waiting import PATIENCE, block_until

# The names of the tests are those of what they wait in.
TESTS = """
import threading
import time
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater


@pytest.fixture
def cleaned():
    yield
    # The reactor still runs.
    pytest_twisted.blockon(deferLater(reactor, 0))
    Path("cleaned").touch()


def test_sleep(cleaned):
    Path("begun").touch()
    time.sleep(60)


@pytest_twisted.ensureDeferred
async def test_reactor(cleaned):
    Path("begun").touch()
    await Deferred()


@pytest_twisted.ensureDeferred
async def test_thread(cleaned):
    over = threading.Event()
    threading.Thread(target=over.wait).start()
    Path("begun").touch()
    try:
        await Deferred()
    finally:
        over.set()


def test_stubborn():
    try:
        # Within the try: on a busy machine the signal is here before the next line is.
        Path("begun").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        Path("refused").touch()
        time.sleep(60)


def test_later():
    Path("later").touch()
"""


@pytest.fixture
def interrupted(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a pytest of its own, and wait until a test is at work."""
    started: list[subprocess.Popen[str]] = []

    def start(
        waits_in: str, *options: str, only: type | None = Interruption
    ) -> subprocess.Popen[str]:
        tests = ["-k", f"{waits_in} or later"]
        process = own_pytest(tmp_path, {"signals": TESTS}, *tests, *options, only=only)
        started.append(process)
        # Several pytests may be starting on a busy machine.
        block_until((tmp_path / "begun").exists, 2 * PATIENCE)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("waits_in", "number", "only", "options"),
    [
        ("sleep", signal.SIGTERM, Interruption, []),
        ("reactor", signal.SIGINT, None, []),
        # One worker: a second would run the later test.
        ("thread", signal.SIGTERM, Interruption, ["-n", "1"]),
    ],
)
def test_a_signal_ends_pytest_in_order(
    tmp_path: Path,
    interrupted: Callable[..., subprocess.Popen[str]],
    waits_in: str,
    number: signal.Signals,
    only: type | None,
    options: list[str],
) -> None:
    process = interrupted(waits_in, *options, only=only)
    process.send_signal(number)
    said, _ = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 128 + number, said
    assert f"Interrupted: {number.name}" in said
    assert (tmp_path / "cleaned").exists(), said
    assert not (tmp_path / "later").exists()
    assert "Error" not in said


def test_the_second_signal_ends_it_at_once(
    tmp_path: Path, interrupted: Callable[..., subprocess.Popen[str]]
) -> None:
    process = interrupted("stubborn")
    process.terminate()
    block_until((tmp_path / "refused").exists)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGTERM
