from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogLevel, LogPublisher, globalLogPublisher
from twisted.python import log as legacy

from echod.daemon.process import sink_for
from echod.handlers.contract import ConcurrencyModel
from echod.log.lines import json_line, text_line
from echod.log.observer import LogObserver
from echod.log.rate import WINDOW
from echod.log.sinks import DescriptorSink, FileSink, Line, Sink, SyslogSink
from echod.text import LONGEST
from tests.support.waiting import block_until

# The characters of a log: all except those that control a terminal, hide or forge text.
PRINTABLE = re.compile(
    "[^\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]*"
)

hostile = st.text(st.characters() | st.sampled_from("\x00\r\n\t\x1b\x7f\x9b\u2028\u202e\ud800{}"))


class Kept:
    """A sink that keeps lines."""

    def __init__(self, *, stamps: bool = False) -> None:
        self.stamps = stamps
        self.lines: list[str] = []

    def write(self, lines: Sequence[Line]) -> int:
        self.lines += [line.text for line in lines]
        return len(lines)

    def begin_anew(self) -> None:
        pass

    def in_child(self) -> Sink:
        return self


class Observed:
    """A log of its own, observed by `LogObserver`."""

    def __init__(self, *, stamps: bool = False, **options: Any) -> None:
        self.sink = Kept(stamps=stamps)
        self.now = 1000.0
        self.observer = LogObserver(self.sink, clock=lambda: self.now, **options)
        self.log = Logger(namespace="here", observer=LogPublisher(self.observer))

    @property
    def lines(self) -> list[str]:
        """The lines written since the last call."""
        self.observer.writer.flush(10)
        lines, self.sink.lines = self.sink.lines, []
        return lines


@pytest.fixture
def texts() -> Iterator[Observed]:
    observed = Observed()
    yield observed
    observed.observer.close()


@pytest.fixture
def records() -> Iterator[Observed]:
    observed = Observed(format="json")
    yield observed
    observed.observer.close()


def fail(text: str) -> None:
    raise ValueError(text)


def test_text_is_a_time_a_logger_a_level_and_a_message(texts: Observed) -> None:
    before = time.time()
    texts.log.warn("{what} is {how:.1f}", what="this", how=2)
    (line,) = texts.lines
    stamp, rest = line.split(" ", 1)
    assert rest == "[here#warn] this is 2.0"
    when = datetime.fromisoformat(stamp)
    assert when.tzinfo is not None
    assert before - 1 < when.timestamp() < time.time() + 1


def test_json_is_an_object_with_the_values_of_the_message(records: Observed) -> None:
    model = ConcurrencyModel.REACTOR
    records.log.info(
        "Of {peer}: {why}", peer="ü", why="odd", count=3, ratio=0.5, yes=True, data=b"a\xff",
        model=model, nothing=None, thing=object(), endless=float("inf"), _punctuation=", ",
    )  # fmt: skip
    record = json.loads(records.lines[0])
    assert datetime.fromisoformat(record.pop("time")).tzinfo is not None
    assert record == {
        "level": "info",
        "logger": "here",
        "message": "Of ü: odd",
        "peer": "ü",
        "why": "odd",
        "count": 3,
        "ratio": 0.5,
        "yes": True,
        "data": r"a\xff",
        "model": "reactor",
        "endless": "inf",
    }


def test_a_traceback_is_indented_in_text_and_a_field_in_json(
    texts: Observed, records: Observed
) -> None:
    for observed in (texts, records):
        try:
            fail("odd\x1b\nforged")
        except ValueError:
            observed.log.failure("It went {how}", how="wrong")
    (line,) = texts.lines
    first, *others = line.split("\n")
    assert first.endswith("[here#critical] It went wrong")
    assert others[-1] == "\tforged"
    assert all(other.startswith("\t") for other in others)
    record = json.loads(records.lines[0])
    assert record["message"] == "It went wrong"
    assert record["traceback"].startswith("Traceback (most recent call last):\n")
    assert record["traceback"].endswith("ValueError: odd\\x1b\nforged")


def test_a_traceback_that_is_part_of_the_message_is_a_field_too(records: Observed) -> None:
    records.log.error("Error of {peer}:\n{traceback}", peer="me", traceback="Traceback:\nodd")
    record = json.loads(records.lines[0])
    assert (record["message"], record["traceback"]) == ("Error of me", "Traceback:\nodd")


@given(hostile, st.booleans())
def test_no_control_character_gets_out(text: str, as_json: bool) -> None:
    observed = Observed(format="json" if as_json else "text")
    observed.log.info("{text}", text=text)
    observed.log.info(text)  # no code should do that, but handlers may
    observed.log.error("{text!r}: {data}", text=text, data=text.encode("utf-8", "replace"))
    observed.log.info("{odd}", **{"odd": 1, f"x{text}": text})
    try:
        fail(text)
    except ValueError:
        observed.log.failure(text)
    Logger(namespace=text, observer=observed.observer).info("this")
    lines = observed.lines
    assert lines
    for line in lines:
        assert PRINTABLE.fullmatch(line)
        if as_json:
            assert "\n" not in line
            record = json.loads(line)
            assert all(PRINTABLE.fullmatch(f"{key}{value}") for key, value in record.items())
        else:
            first, *others = line.split("\n")
            assert re.match(r"\d{4}-\d\d-\d\dT", first)
            assert all(other.startswith("\t") for other in others)
    observed.observer.close()


def test_prints_and_logs_of_old_are_lines_as_well(texts: Observed, records: Observed) -> None:
    for observed in (texts, records):
        globalLogPublisher.addObserver(observed.observer)
        try:
            legacy.msg("of old\x1b", system="sys\n")
            Logger(namespace="stdout").emit(LogLevel.info, format="{log_io}", log_io="odd\rly")
        finally:
            globalLogPublisher.removeObserver(observed.observer)
    old, printed = texts.lines
    assert old.endswith(r"[sys\n] of old\x1b")
    assert json.loads(records.lines[0])["message"] == r"of old\x1b"
    assert printed.endswith(r"[stdout#info] odd\rly")


def test_an_event_that_cannot_be_formatted_is_a_line_all_the_same(
    texts: Observed, records: Observed
) -> None:
    class Unlucky:
        tb = value = None

        def getTraceback(self) -> str:
            raise RuntimeError

    for observed in (texts, records):
        observed.log.info("{missing}")
        observed.log.info("{what()}", what=lambda: "called")
        observed.log.info("")
        observed.observer({"log_format": "{x}", "x": 1, "log_failure": Unlucky()})
    unformattable, called, failed = texts.lines
    assert "Unable to format event" in unformattable
    assert called.endswith("] called")
    assert failed.endswith("(no traceback, because formatting it raises RuntimeError)")
    traceback = json.loads(records.lines[2])["traceback"]
    assert traceback.endswith("(no traceback, because formatting it raises RuntimeError)")


def test_a_line_has_an_end(texts: Observed, records: Observed) -> None:
    for observed in (texts, records):
        observed.log.info("{text}", text="a" * LONGEST + "b" * LONGEST)
    for line in (texts.lines[0], json.loads(records.lines[0])["message"]):
        assert f"a… ({LONGEST} characters left out) …b" in line
        assert len(line) < LONGEST + 200


def test_what_is_below_the_level_is_not_logged() -> None:
    observed = Observed(level="warn")
    observed.log.debug("a")
    observed.log.info("b")
    observed.log.warn("c")
    observed.log.critical("d")
    assert [line[-1] for line in observed.lines] == ["c", "d"]


def test_syslog_has_the_time_already() -> None:
    observed = Observed(stamps=True)
    observed.log.info("this")
    assert observed.lines == ["[here#info] this"]


# Floods.


def test_what_is_too_many_is_counted_and_told() -> None:
    observed = Observed(rate=2, format="json")
    for number in range(50):
        observed.log.info("Number {number}", number=number)
    observed.log.info("Something else")
    records = [json.loads(line) for line in observed.lines]
    allowed = int(2 * WINDOW)
    assert [record.get("number") for record in records] == [*range(allowed), None]
    assert observed.observer.suppressed == 50 - allowed
    assert observed.observer._summarize() == 1.0  # it will be looked at again
    assert observed.lines == []
    observed.now += WINDOW + 1
    observed.observer._summarize()
    (summary,) = (json.loads(line) for line in observed.lines)
    assert summary["message"] == f"… {50 - allowed} more like this in 11 s: Number {{number}}"
    assert (summary["count"], summary["logger"], summary["level"]) == (30, "here", "info")
    assert observed.observer._summarize() is None
    observed.log.info("Number {number}", number=50)
    assert len(observed.lines) == 1


def test_the_writers_thread_tells_it_without_being_asked() -> None:
    observed = Observed(rate=0.1)
    observed.observer.writer.start()
    for _ in range(3):
        observed.log.info("again")
    observed.now += WINDOW
    told = "… 2 more like this in 10 s: again"
    block_until(lambda: any(told in line for line in observed.sink.lines))
    observed.observer.close()


def test_the_end_tells_what_was_not_told_yet() -> None:
    for end in (LogObserver.finish, LogObserver.close):
        observed = Observed(rate=0.1)
        for _ in range(3):
            observed.log.info("again")
        end(observed.observer)
        assert "… 2 more like this in 1 s: again" in observed.sink.lines[-1]


@pytest.mark.parametrize(
    ("dropped", "told"), [(7, "7 lines of the log were lost"), (1, "1 line of the log was lost")]
)
def test_lost_lines_are_told(texts: Observed, dropped: int, told: str) -> None:
    texts.observer.writer.dropped = dropped
    texts.log.info("on it goes")
    lost, line = texts.lines
    assert lost.endswith(f"[echod.log#warn] {told}")
    assert line.endswith("on it goes")


def test_the_summary_names_the_addresses_that_most_were_about() -> None:
    for form in ("text", "json"):
        observed = Observed(rate=0.1, format=form)
        for peer in ("192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "192.0.2.1:3"):
            observed.log.info("Of {peer}", peer=peer)
        observed.now += WINDOW
        observed.observer._summarize()
        summary = observed.lines[-1]
        if form == "text":
            assert summary.endswith(
                "… 3 more like this in 10 s (most from 192.0.2.1: 2, 192.0.2.2: 1): Of {peer}"
            )
        else:
            assert json.loads(summary)["sources"] == "192.0.2.1: 2, 192.0.2.2: 1"


def test_what_somebody_has_asked_for_is_confirmed_whatever_the_level() -> None:
    observed = Observed(level="critical")
    observed.log.info("Done", log_always=True)
    assert len(observed.lines) == 1


def test_level_and_rate_can_be_changed_on_the_way() -> None:
    observed = Observed(rate=0.1)
    for _ in range(3):
        observed.log.info("again")
    assert len(observed.lines) == 1
    observed.observer.reconfigure(level="debug", rate=0, files=0)
    observed.log.debug("quiet")
    for _ in range(300):
        observed.log.info("again")
    assert len(observed.lines) == 301
    observed.now += WINDOW
    observed.observer._summarize()
    assert "… 2 more like this in 10 s: again" in observed.lines[0]
    assert observed.observer._summarize() is None


def test_a_forked_child_does_not_wait_for_the_parents_threads() -> None:
    observed = Observed(rate=1)
    locked, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with observed.observer._lock, observed.observer.writer._lock:
            locked.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait(10)
    child = os.fork()
    if not child:
        observed.observer.restart()
        observed.log.info("the child's")
        os._exit(0 if observed.lines[-1].endswith("the child's") else 1)
    assert os.waitpid(child, 0)[1] == 0
    leave.set()
    thread.join()
    observed.observer.close()


def test_a_forked_child_counts_its_own_lines_and_gives_their_number() -> None:
    observed = Observed(rate=0.1)
    observed.observer.writer.start()
    observed.log.info("again")
    observed.log.info("again")  # this one is the parent's to report
    child = os.fork()
    if not child:
        observed.observer.restart()
        observed.sink.lines.clear()
        for _ in range(3):
            observed.log.info("again")
        observed.now += WINDOW
        observed.log.info("again")
        texts = [line.partition("] ")[2] for line in observed.sink.lines]
        expected = ["again", "… 2 more like this in 10 s: again", "again"]
        os._exit(0 if texts == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    observed.observer.close()


def test_how_many_files_are_kept_can_be_changed_on_the_way(tmp_path: Path) -> None:
    sink = FileSink(str(tmp_path / "log"), keep=3)
    observer = LogObserver(sink)
    observer.reconfigure(level="info", rate=0, files=2)
    assert sink.keep == 2
    observer.close()
    sink.close()


# Where it goes.


def options(**given: Any) -> dict[str, Any]:
    defaults = {"logfile": None, "logger": None, "nodaemon": 0, "debug": False, "syslog": 0}
    return {**defaults, "prefix": "twisted", **given}


def test_the_log_goes_where_twistd_was_asked_to_send_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open("/dev/null", "w") as stdout:  # noqa: PTH123
        for asked in ({"nodaemon": 1}, {"debug": True}, {"nodaemon": 1, "logfile": "-"}):
            assert isinstance(sink_for(options(**asked), stdout), DescriptorSink)
        assert isinstance(sink_for(options(syslog=1), stdout), SyslogSink)
        for asked, name in (({}, "twistd.log"), ({"logfile": "a.log", "nodaemon": 1}, "a.log")):
            sink = sink_for(options(**asked), stdout)
            assert isinstance(sink, FileSink)
            sink.close()
            assert (tmp_path / name).exists()
        with pytest.raises(OSError, match="nosuch"):
            sink_for(options(logfile="nosuch/log"), stdout)


def test_what_twistd_decides_is_left_to_it() -> None:
    assert sink_for(options(logger=print, nodaemon=1), sys.stdout) is None
    assert sink_for(options(logfile="-"), sys.stdout) is None


def test_lines_can_be_made_by_themselves() -> None:
    assert text_line({}) == json_line({}) == ""
