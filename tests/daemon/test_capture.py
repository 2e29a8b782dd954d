from __future__ import annotations

import gc
import io
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.logger import LogEvent, eventAsText, globalLogPublisher

from echod.concurrency.thread_socket import ConnectionSocket
from echod.daemon.capture import Capture, capturing
from echod.text import LONGEST
from tests.support.log import Log


class Captured:
    """The captured lines, as text with their levels."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        self.capture = Capture(self.events.append)

    @property
    def lines(self) -> list[tuple[str, str, str]]:
        return [
            (
                event["log_namespace"],
                event["log_level"].name,
                eventAsText(event, includeTimestamp=False, includeSystem=False),
            )
            for event in self.events
        ]


@contextmanager
def capturing_all() -> Iterator[Captured]:
    """Capture, with a `logging` of the test's own; within the test, as pytest captures too."""
    with pytest.MonkeyPatch.context() as patch:
        root = logging.RootLogger(logging.WARNING)
        manager = logging.Manager(root)
        patch.setattr(logging, "root", root)
        patch.setattr(logging.Logger, "root", root)
        patch.setattr(logging.Logger, "manager", manager)
        for module, name in ((threading, "excepthook"), (sys, "unraisablehook")):
            patch.setattr(module, name, getattr(module, name))
        made = Captured()
        made.capture.begin()
        try:
            yield made
        finally:
            made.capture.end()


def test_what_is_printed_is_a_line_and_no_error_wherever_it_is_printed() -> None:
    with capturing_all() as captured:
        print("one")
        print("two", file=sys.stderr)
        captured.capture.end()
        assert captured.lines == [("stdout", "info", "one"), ("stderr", "info", "two")]


def test_a_line_that_does_not_end_is_cut_where_it_is_as_long_as_one_may_be() -> None:
    with capturing_all() as captured:
        pieces = [str(number % 10) * (LONGEST // 3) for number in range(10)]
        for piece in [*pieces, "y\nz", "w" * LONGEST, "v"]:
            print(piece, end="")
        print()
        captured.capture.end()
        threes = ["".join(pieces[start : start + 3]) for start in (0, 3, 6)]
        texts = [text for _, _, text in captured.lines]
        assert texts == [*threes, pieces[9] + "y", "z", "w" * LONGEST, "v"]


def test_each_threads_lines_are_its_own_and_what_it_leaves_is_a_line() -> None:
    with capturing_all() as captured:
        begun, goes_on = threading.Event(), threading.Event()

        def work() -> None:
            print("in the ", end="")
            begun.set()
            goes_on.wait()
            print("thread\nno end", end="")

        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        print("outside")
        goes_on.set()
        thread.join()
        captured.capture.end()
        texts = [text for _, _, text in captured.lines]
        assert texts == ["outside", "in the thread", "no end"]


def test_what_a_basic_configuration_writes_is_a_line_with_level_and_logger() -> None:
    with capturing_all() as captured:
        logging.basicConfig(level=logging.INFO)
        captured.capture.take_logging()
        logging.getLogger("app.db").info("%d of {%s}", 3, "x")
        logging.getLogger("app").debug("left out")
        for level in (20, 25, 30, 45, 60):
            logging.getLogger("app").log(level, "level")
        assert captured.lines[0] == ("app.db", "info", "3 of {x}")
        assert [line[1] for line in captured.lines[1:]] == [
            "info",
            "info",
            "warn",
            "error",
            "critical",
        ]
        # Lines are alike that come from one place.
        assert captured.events[0]["log_kind"] == "%d of {%s}"


def test_without_a_configuration_warnings_are_lines() -> None:
    with capturing_all() as captured:
        captured.capture.take_logging()
        logging.getLogger("app").info("left out")
        logging.getLogger("app").warning("careful")
        assert captured.lines == [("app", "warn", "careful")]


def test_a_record_brings_its_traceback() -> None:
    with capturing_all() as captured:
        captured.capture.take_logging()
        try:
            raise ValueError("odd") from KeyError("why")
        except ValueError:
            logging.getLogger("app").exception("It went wrong")
        ((_, level, text),) = captured.lines
        assert level == "error"
        assert text.startswith("It went wrong:\nKeyError: 'why'\n\nThe above exception was")
        assert text.endswith("ValueError: odd")
        logging.getLogger("app").warning("here", stack_info=True)
        assert "here:\nStack (most recent call last)" in captured.lines[1][2]


def test_levels_and_filters_are_kept_and_what_is_no_terminal_stays(tmp_path: Path) -> None:
    with capturing_all() as captured:
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.ERROR)
        terminal.addFilter(lambda record: "secret" not in record.getMessage())
        file, memory = (
            logging.FileHandler(tmp_path / "app.log"),
            logging.StreamHandler(io.StringIO()),
        )
        logger = logging.getLogger("app")
        logger.propagate = False
        for handler in (terminal, file, memory):
            logger.addHandler(handler)
        captured.capture.take_logging()
        logger.warning("too low for the terminal")
        logger.error("a secret")
        logger.error("shown")
        file.close()
        assert captured.lines == [("app", "error", "shown")]
        written = "too low for the terminal\na secret\nshown\n"
        assert (tmp_path / "app.log").read_text() == memory.stream.getvalue() == written


def test_a_record_that_cannot_be_shown_does_no_harm() -> None:
    with capturing_all() as captured:
        captured.capture.take_logging()
        logging.getLogger("app").warning("%d", "no number")
        assert any("--- Logging error ---" in text for _, _, text in captured.lines)


def test_a_thread_that_dies_is_an_error() -> None:
    with capturing_all() as captured:

        def die() -> None:
            raise ValueError("odd")

        for target in (die, sys.exit):
            thread = threading.Thread(target=target, name="mine")
            thread.start()
            thread.join()
        ((_, level, text),) = captured.lines
        assert level == "error"
        assert text.startswith("A thread ended with an exception: mine\nTraceback")
        assert text.endswith("ValueError: odd")


def test_an_exception_that_can_be_raised_nowhere_is_an_error() -> None:
    with capturing_all() as captured:

        class Dying:
            def __del__(self) -> None:
                raise ValueError("odd")

        Dying()
        gc.collect()
        ((_, level, text),) = captured.lines
        assert level == "error"
        assert "Exception ignored in: <function" in text
        assert text.endswith("ValueError: odd")


def test_a_file_over_a_connection_that_is_lost_may_be_let_go_of() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with (
        ConnectionSocket(ours.detach(), peer=None, local=None) as conn,
        capturing_all() as captured,
    ):
        file = conn.makefile("w")
        with pytest.raises(BrokenPipeError) as caught:
            print("happy", file=file, flush=True)
        del file  # Python 3.13 tells of this
        # ... and each version, in this way, of what else ends in a finalizer.
        told = SimpleNamespace(
            exc_type=caught.type,
            exc_value=caught.value,
            exc_traceback=caught.tb,
            err_msg=None,
            object=None,
        )
        sys.unraisablehook(told)
        gc.collect()
        assert captured.lines == []


def test_an_exception_that_raises_while_it_is_shown_is_named() -> None:
    class Hostile(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise SystemExit

    def die() -> None:
        raise Hostile

    with capturing_all() as captured:
        captured.capture.take_logging()
        try:
            die()
        except Hostile:
            logging.getLogger("app").exception("It went wrong")
        thread = threading.Thread(target=die)
        thread.start()
        thread.join()
        shown = [text for _, level, text in captured.lines if level == "error"]
        assert len(shown) == 2
        assert all(
            "Hostile (no traceback, because formatting it raises SystemExit)" in s for s in shown
        )


def test_once_twisteds_log_has_begun_lines_go_there(log: Log) -> None:
    with capturing_all() as captured:
        print("before")
        sys.stderr = sys.stdout = io.StringIO()  # as Twisted puts files of its own there
        captured.capture.publish()
        print("behind")
        assert [text for _, _, text in captured.lines] == ["before"]
        assert log.text == "behind"
        assert globalLogPublisher


def test_where_the_start_fails_all_is_as_it_was() -> None:
    before = sys.stdout, sys.stderr, threading.excepthook, sys.unraisablehook
    lines: list[Any] = []

    def start() -> None:
        with capturing(Capture(lines.append)):
            print("on its way")
            raise SystemExit("no")

    with pytest.raises(SystemExit):
        start()
    assert (sys.stdout, sys.stderr) == before[:2]
    assert threading.excepthook is threading.__excepthook__
    threading.excepthook, sys.unraisablehook = before[2:]
    assert len(lines) == 1
    with capturing(None):
        assert sys.stdout is before[0]
