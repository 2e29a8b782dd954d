"""The pipes between a supervisor and a worker, within one process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.log.sinks import DescriptorSink, Line
from echod.workers.link import Link, LinkSink, LogLines, Messages, encode
from tests.support.waiting import PATIENCE

LINES = st.lists(
    st.builds(
        Line,
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.sampled_from(["debug", "info", "warn", "error", "critical"]),
    )
)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    start = 0
    for end in ends:
        yield data[start:end]
        start = end


@given(LINES, st.lists(st.integers(0, 10_000)))
def test_lines_of_the_log_arrive_whole_however_the_pipe_cuts_them(
    lines: list[Line], places: list[int]
) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        assert LinkSink(writer).write(lines) == len(lines)
        os.close(writer)
        data = pipe.read()
    taken = LogLines()
    assert [line for piece in cut(data, places) for line in taken.feed(piece)] == lines


def test_half_a_line_of_a_killed_worker_is_none() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        LinkSink(writer).write([Line("first", "info"), Line("second", "info")])
        os.close(writer)
        data = pipe.read()
    assert list(LogLines().feed(data[:-1])) == [Line("first", "info")]


def test_without_a_supervisor_no_line_counts_as_written() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sink = LinkSink(writer)
    assert sink.write([Line("lost", "info")]) == 0
    os.close(writer)
    assert type(sink.in_child()) is not LinkSink
    assert isinstance(sink.in_child(), DescriptorSink)


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers())), st.lists(st.integers(0)))
def test_messages_arrive_whole(messages: list[dict[str, object]], places: list[int]) -> None:
    data = b"".join(map(encode, messages))
    taken = Messages()
    assert [each for piece in cut(data, places) for each in taken.feed(piece)] == messages


def test_a_link_obeys_in_order_and_tells_in_order() -> None:
    orders_in, orders_out = os.pipe()
    news_in, news_out = os.pipe()
    link = Link(orders_in, news_out)
    os.write(orders_out, encode({"do": "start"}) + encode({"do": "one"}) + encode({"do": "two"}))
    assert link.first() == {"do": "start"}
    obeyed: list[object] = []
    gone = threading.Event()
    link.send(news="early")  # before its threads run
    link.start(obeyed.append, gone.set)
    for number in range(100):
        link.send(news=number)
    link.finish(PATIENCE)
    os.close(orders_out)
    assert gone.wait(PATIENCE)
    assert obeyed == [{"do": "one"}, {"do": "two"}]
    os.close(news_out)
    with os.fdopen(news_in, "rb") as pipe:
        told = [each["news"] for each in Messages().feed(pipe.read())]
    assert told == ["early", *range(100)]
    link._orders.close()


def test_a_worker_without_a_first_order_ends() -> None:
    orders_in, orders_out = os.pipe()
    os.close(orders_out)
    link = Link(orders_in, 2)
    with pytest.raises(SystemExit):
        link.first()
    link._orders.close()
